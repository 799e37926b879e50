//! The header `fly-replay` as Fly Proxy reads it, strictly: what its documentation does not allow is refused.
//! <https://fly.io/docs/networking/dynamic-request-routing/#replay-header-format>

use std::time::Duration;

use super::Machine;

/// Names that stand for several regions.
const ALIASES: [&str; 7] = ["apac", "eu", "na", "sa", "us", "usa", "any"];

/// What a `fly-replay` asks for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Directive {
    pub regions: Vec<String>,
    pub instance: Option<String>,
    pub prefers: Option<String>,
    pub state: Option<String>,
    pub timeout: Option<Duration>,
    pub falls_back: bool,
    pub elsewhere: bool,
}

impl Directive {
    /// `None` for a header that Fly Proxy refuses (PA03), or that names another application, of which there is none.
    pub(super) fn parse(header: &str) -> Option<Self> {
        let mut directive = Self::default();
        for field in header.split(';') {
            let (key, value) = field.split_once('=')?;
            match key {
                "region" => directive.regions = regions(value)?,
                "instance" => directive.instance = Some(token(value)?),
                "prefer_instance" => directive.prefers = Some(token(value)?),
                "state" => directive.state = Some(token(value)?),
                "timeout" => directive.timeout = Some(duration(value)?),
                "fallback" => {
                    directive.falls_back = ["force_self", "prefer_self"].contains(&value);
                    directive.falls_back.then_some(())?;
                }
                "elsewhere" => directive.elsewhere = value.parse().ok()?,
                _ => return None,
            }
        }
        Some(directive)
    }

    /// Whether `machine` is one that `sender` asks for with it.
    pub(super) fn allows(&self, machine: &Machine, sender: &Machine) -> bool {
        let is_meant = |asked: &String| *asked == machine.region || asked == "any";
        (self.regions.is_empty() || self.regions.iter().any(is_meant))
            && self.instance.as_ref().is_none_or(|id| *id == machine.id)
            && !(self.elsewhere && machine.id == sender.id)
    }
}

/// One region, or several in quotes.
fn regions(value: &str) -> Option<Vec<String>> {
    let quoted = value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let list: Vec<_> = match quoted {
        Some(list) => list.split(',').map(str::to_owned).collect(),
        None => vec![value.to_owned()],
    };
    let is_code =
        |text: &str| text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_lowercase());
    let are_all_known = list
        .iter()
        .all(|region| is_code(region) || ALIASES.contains(&region.as_str()));
    are_all_known.then_some(list)
}

/// A value without quotes: which others Fly Proxy reads is not documented.
fn token(value: &str) -> Option<String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte);
    let fits = !value.is_empty() && value.bytes().all(is_plain);
    fits.then(|| value.to_owned())
}

/// A duration such as `10s` or `800ms`.
fn duration(value: &str) -> Option<Duration> {
    match value.strip_suffix("ms") {
        Some(milliseconds) => milliseconds.parse().ok().map(Duration::from_millis),
        None => value
            .strip_suffix('s')?
            .parse()
            .ok()
            .map(Duration::from_secs),
    }
}

#[test]
fn a_directive_is_read_strictly() {
    let read =
        Directive::parse("region=syd;instance=6e82;timeout=800ms;fallback=prefer_self;state=a.b");
    let expected = Directive {
        regions: vec!["syd".to_owned()],
        instance: Some("6e82".to_owned()),
        prefers: None,
        state: Some("a.b".to_owned()),
        timeout: Some(Duration::from_millis(800)),
        falls_back: true,
        elsewhere: false,
    };
    assert_eq!(read, Some(expected));
    assert!(Directive::parse("region=\"sjc,any\"").is_some());
    assert!(Directive::parse("region=syd;prefer_instance=6e82;elsewhere=true").is_some());
    for refused in [
        "",
        "region",
        "region=",
        "region=sjc,any",
        "region=local",
        "region=SYD",
        "timeout=1",
        "timeout=1m",
        "fallback=self",
        "state=a b",
        "state=",
        "app=other",
        "nonsense=1",
        "region=syd;",
        "elsewhere=1",
    ] {
        assert_eq!(Directive::parse(refused), None, "{refused:?}");
    }
}
