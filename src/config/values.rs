//! From the text of a setting to its value, or to a line that says what would be right.

use std::{
    collections::BTreeMap,
    fmt::Display,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    str::FromStr,
    time::Duration,
};

use hickory_resolver::proto::rr::Name;

use super::{ConfigError, DnsName, SETTINGS, Setting};
use crate::name::InvalidName;

/// The port of the DNS protocol, for a `RPC_DNS_SERVER` without one.
const DNS_PORT: u16 = 53;

/// The sizes that there may be, in bytes: with room to add to them.
pub(super) const SIZES: RangeInclusive<usize> = 1..=usize::MAX >> 16;
/// The counts that there may be: as many permits as a tokio semaphore holds.
pub(super) const COUNTS: RangeInclusive<usize> = 1..=tokio::sync::Semaphore::MAX_PERMITS;

/// From the text of a value to the value, or to what is wrong with the text.
type Parse<T> = fn(&str) -> Result<T, String>;

/// The text of the settings that were given, by variable.
#[derive(Default)]
pub(super) struct Values(pub(super) BTreeMap<String, String>);

impl Values {
    /// The value of `setting`, or its default, which must not be in words.
    pub(super) fn get<T>(&self, setting: Setting, parse: Parse<T>) -> Result<T, ConfigError> {
        match self.given(setting, parse)? {
            Some(value) => Ok(value),
            None => parse(setting.default).map_err(|detail| setting.error(detail)),
        }
    }

    /// The value of `setting`, if it was given.
    pub(super) fn given<T>(
        &self,
        setting: Setting,
        parse: Parse<T>,
    ) -> Result<Option<T>, ConfigError> {
        match self.0.get(setting.variable).map(String::as_str) {
            None => Ok(None),
            Some("") => Err(setting.error("is empty; give it a value or unset it")),
            Some(value) => parse(value)
                .map(Some)
                .map_err(|detail| setting.error(format!("{value:?} {detail}"))),
        }
    }

    /// The same for a secret, which no error may show.
    pub(super) fn secret<T>(
        &self,
        setting: Setting,
        parse: Parse<T>,
    ) -> Result<Option<T>, ConfigError> {
        let value = self.0.get(setting.variable).map(|value| parse(value));
        value.transpose().map_err(|detail| setting.error(detail))
    }

    pub(super) fn refuse_unknown(&self) -> Result<(), ConfigError> {
        let mut names = self.0.keys();
        let Some(name) = names.find(|name| setting(name).is_none()) else {
            return Ok(());
        };
        let likeness = |setting: &Setting| strsim::jaro_winkler(setting.variable, name);
        let likenesses = SETTINGS.iter().map(|setting| (likeness(setting), setting));
        let detail = match likenesses.max_by(|a, b| a.0.total_cmp(&b.0)) {
            Some((likeness, setting)) if likeness > 0.9 => {
                format!("no such setting; did you mean {}?", setting.variable)
            }
            _ => "no such setting; `fly-rpc serve --help` lists them all".to_owned(),
        };
        Err(ConfigError::new(name, detail))
    }
}

pub(super) fn setting(variable: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.variable == variable)
}

/// Whether a variable is a setting, or claims to be one by its prefix.
pub(super) fn is_ours(variable: &str) -> bool {
    variable.starts_with("RPC_") || setting(variable).is_some()
}

/// A value whose own error says what is wrong with the text.
pub(super) fn parsed<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|invalid: T::Err| invalid.to_string())
}

pub(super) fn word<T: FromStr<Err = InvalidName>>(text: &str) -> Result<T, String> {
    parsed(text).map_err(|invalid| format!("does not fit: {invalid}"))
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("has no unit; write {text}s or {text}ms"));
    }
    humantime::parse_duration(text)
        .map_err(|_| "is not a duration; write for example 5s or 750ms".to_owned())
}

pub(super) fn size(text: &str) -> Result<usize, String> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!(
            "has no unit; write for example {text}KiB or {text}MiB"
        ));
    }
    let size: bytesize::ByteSize = text
        .parse()
        .map_err(|_| "is not a size; write for example 1MiB".to_owned())?;
    usize::try_from(size.as_u64())
        .ok()
        .filter(|bytes| SIZES.contains(bytes))
        .ok_or_else(|| "is out of range; write for example 1MiB".to_owned())
}

pub(super) fn count(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|count| COUNTS.contains(count))
        .ok_or_else(|| "is not a whole number of 1 or more".to_owned())
}

pub(super) fn true_or_false(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "is not true or false".to_owned())
}

/// A boolean, as Fly sets it.
pub(super) fn one_or_zero(text: &str) -> Result<bool, String> {
    match text {
        "1" => Ok(true),
        "0" => Ok(false),
        _ => Err("is not 1 or 0".to_owned()),
    }
}

/// Each secret of a comma list; an error names one by its place.
pub(super) fn secrets<T: FromStr<Err = InvalidName>>(text: &str) -> Result<Vec<T>, String> {
    let parse = |(number, secret): (usize, &str)| {
        parsed(secret.trim()).map_err(|invalid| format!("entry {}: {invalid}", number + 1))
    };
    text.split(',').enumerate().map(parse).collect()
}

pub(super) fn port(text: &str) -> Result<u16, String> {
    text.parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| "is not a port from 1 to 65535".to_owned())
}

pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse()
        .map_err(|_| "is not an address; write for example fdaa:0:18:a7b::2".to_owned())
}

pub(super) fn host_and_port(text: &str) -> Result<String, String> {
    let wrong = || "is not HOST:PORT; write for example 127.0.0.1:8080 or [::1]:8080".to_owned();
    if text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let is_host_name = !host.is_empty() && !host.contains([':', '[', ']', '/', ' ']);
    if is_host_name && port.parse::<u16>().is_ok() {
        Ok(text.to_owned())
    } else {
        Err(wrong())
    }
}

pub(super) fn dns_server(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(SocketAddr::new(address, DNS_PORT)),
        Err(_) => text.parse().map_err(|_| {
            "is not ADDRESS:PORT; write for example 127.0.0.1:53 or [fdaa::3]:53".to_owned()
        }),
    }
}

pub(super) fn dns_names(text: &str) -> Result<Vec<DnsName>, String> {
    text.split(',').map(|name| dns_name(name.trim())).collect()
}

/// What an instance of the application resolves to find its peers, [on Fly](https://fly.io/docs/networking/private-networking/).
pub(super) fn app_dns_name(app: &str) -> Result<DnsName, String> {
    let is_label = (1..=63).contains(&app.len())
        && !app.starts_with('-')
        && app
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if is_label {
        Ok(DnsName::Host(format!("{app}.internal"), None))
    } else {
        Err("makes no DNS name with .internal: letters, digits and '-' only, at most 63; set RPC_DNS_NAME to find \
             peers by another name"
            .to_owned())
    }
}

fn dns_name(text: &str) -> Result<DnsName, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        if address.port() == 0 {
            return Err(format!(
                "has an entry without a port that peers can be at: {text:?}"
            ));
        }
        return Ok(DnsName::Address(address));
    }
    let (name, port_text) = match text.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') => (name, Some(port)),
        _ => (text, None),
    };
    let is_name = Name::from_utf8(name).is_ok_and(|name| name.num_labels() > 0);
    if !is_name && text.parse::<IpAddr>().is_err() {
        return Err(format!("has an entry that is no DNS name: {text:?}"));
    }
    match (name.starts_with('_'), port_text) {
        (true, None) => Ok(DnsName::Service(name.to_owned())),
        (true, Some(_)) => Err(format!(
            "gives a port to {name}, but SRV records carry it; leave the port out"
        )),
        (false, None) => Ok(DnsName::Host(name.to_owned(), None)),
        (false, Some(text)) => Ok(DnsName::Host(name.to_owned(), Some(port(text)?))),
    }
}

pub(super) fn log_filter(text: &str) -> Result<String, String> {
    // A program that embeds the crate sets up its own log.
    #[cfg(feature = "cli")]
    {
        use tracing_subscriber::filter::{EnvFilter, LevelFilter};
        let wrong = |why: &dyn Display| {
            Err(format!(
                "is not a filter such as info or fly_rpc=debug: {why}"
            ))
        };
        if let Err(error) = EnvFilter::try_new(text) {
            return wrong(&error);
        }
        // A word that is no level would be a target, all of whose lines are let through, and none of any other.
        let is_word = |part: &&str| part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let mut words = text.split(',').filter(is_word);
        if let Some(word) = words.find(|word| word.parse::<LevelFilter>().is_err()) {
            return wrong(&format!("{word:?} is no level"));
        }
    }
    Ok(text.to_owned())
}
