//! The table of settings: one row each, from which come the flags of `fly-rpc serve` and its help, the variables that
//! may be set, the defaults and the table in the documents; and how the text of a value or of a default is parsed, or
//! refused with a line that says what would be right. What a value means is in `Config::from_values`.
//! (Not clap's derive with `env`: a program that embeds the crate reads the environment without clap, and clap shows a wrong
//! value, secrets among them, and does not name its variable.)

use std::{
    collections::BTreeMap,
    fmt::Display,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    str::FromStr,
    time::Duration,
};

use hickory_resolver::proto::rr::Name;

use super::{ConfigError, DnsName};
use crate::name::InvalidName;

/// One setting as people see it: a flag of `fly-rpc serve` and the variable of the same meaning.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The environment variable.
    pub variable: &'static str,
    /// The flag, without its dashes; empty for a variable that has none.
    pub flag: &'static str,
    /// What stands for the value in help texts.
    pub value: &'static str,
    /// The default; in words if it is not a constant.
    pub default: &'static str,
    /// One line of help.
    pub help: &'static str,
}

impl Setting {
    /// An error about this setting.
    pub(crate) fn error(self, detail: impl Into<String>) -> ConfigError {
        let setting = match self.flag {
            "" => self.variable.to_owned(),
            flag => format!("{} (--{flag})", self.variable),
        };
        ConfigError::new(setting, detail)
    }
}

/// Defines a constant for each row, and `SETTINGS` with all of them.
macro_rules! settings {
    ($($variable:ident $flag:literal $value:literal $default:literal, $help:literal;)*) => {
        $(pub(crate) const $variable: Setting = Setting {
            variable: stringify!($variable),
            flag: $flag,
            value: $value,
            default: $default,
            help: $help,
        };)*

        /// Every setting, in the order of the documents.
        pub const SETTINGS: &[Setting] = &[$($variable),*];
    };
}

settings! {
    // VARIABLE "flag" "VALUE" "default", "help";
    FLY_REGION "region" "REGION" "local", "this instance's region";
    MY_REGION "" "REGION" "none", "this instance's region where FLY_REGION is not set";
    PRIMARY_REGION "primary" "REGION" "local", "the primary region";
    FLY_MACHINE_ID "instance" "ID" "random, printed at start", "this instance's id";
    FLY_APP_NAME "app" "APP" "none",
        "the application: only instances of the same one are peers, and share the keys in a store";
    FLY_IMAGE_REF "release" "RELEASE" "none", "the release, shown to people";
    FLY_PRIVATE_IP "" "ADDRESS" "none",
        "the address that /regions shows for an instance that listens on all of its addresses";
    RELEASE_COMMAND "" "1|0" "0", "1 where Fly runs a release command: such an instance joins no cluster";
    RPC_LISTEN "listen" "HOST:PORT" "127.0.0.1:8080", "the address to serve on";
    RPC_INTERNAL_LISTEN "internal-listen" "HOST:PORT" "none: /internal/* shares RPC_LISTEN",
        "an address of its own for what instances ask of each other";
    RPC_METRICS_LISTEN "metrics-listen" "HOST:PORT" "none",
        "an address with /metrics, /healthz and /readyz only, open to scrapers without a token";
    RPC_DNS_NAME "dns-name" "NAME,…" "$FLY_APP_NAME.internal, else none",
        "what discovery resolves: names (A and AAAA), names that start with _ (SRV), NAME:PORT or ADDRESS:PORT";
    RPC_DNS_SERVER "dns-server" "ADDRESS:PORT" "the system's", "the DNS server to ask";
    RPC_PEER_PORT "peer-port" "PORT" "the port of RPC_INTERNAL_LISTEN, else of RPC_LISTEN",
        "the port of peers found by A and AAAA";
    RPC_POLL_INTERVAL "poll-interval" "DURATION" "5s", "the time between two discovery rounds, ± 20 %";
    RPC_DEFAULT_TIMEOUT "default-timeout" "DURATION" "5s", "the timeout of a call that names none";
    RPC_MAX_TIMEOUT "max-timeout" "DURATION" "60s", "the longest timeout that a call may name";
    RPC_CONNECT_TIMEOUT "connect-timeout" "DURATION" "1s", "the longest wait for a connection to a peer";
    RPC_ROUTE "route" "proxy|replay|auto" "proxy",
        "how calls for other regions get there: forwarded, or replayed by Fly Proxy";
    RPC_APP_URL "app-url" "URL" "none",
        "where an app serves its functions: http://127.0.0.1:3000/rpc or unix:/run/app.sock:/rpc";
    RPC_APP_TOKEN "" "TOKEN" "none", "the token in every request to the app, which answers 401 to a request without it";
    RPC_APP_CONCURRENCY "app-concurrency" "COUNT" "64", "calls in the app at once; as many again wait for their turn";
    RPC_APP_STOP_TIMEOUT "app-stop-timeout" "DURATION" "10s", "how long the command of fly-rpc run may take to stop";
    RPC_APP_ALLOW_ANONYMOUS "app-allow-anonymous" "true|false" "false",
        "offer the functions of an app even if it gives its list without RPC_APP_TOKEN";
    RPC_KEY_STORE "" "URL" "none: each instance remembers by itself",
        "where all instances remember idempotency keys: redis://HOST:PORT of a Redis 7 or a Valkey";
    RPC_TOKEN "" "TOKEN,…" "none", "the cluster's secret: the first is used, all are accepted";
    RPC_CLIENT_TOKENS "" "NAME:TOKEN,…" "none", "the clients that may use the public routes";
    RPC_ALLOW_ANONYMOUS "allow-anonymous" "true|false" "false", "let anyone who reaches RPC_LISTEN call functions";
    RPC_MAX_BODY "max-body" "SIZE" "1MiB", "the largest request body";
    RPC_MAX_RESULT "max-result" "SIZE" "8MiB", "the largest result of a function";
    RPC_MAX_IN_FLIGHT "max-in-flight" "COUNT" "1024", "calls that may run here at once";
    RPC_MAX_MEMORY "max-memory" "SIZE" "a quarter of what the control group or the machine has",
        "the bytes of heads, bodies and answers that may wait here";
    RPC_DRAIN_DELAY "drain-delay" "DURATION" "3s", "how long a stopping instance still takes calls";
    RPC_DRAIN_TIMEOUT "drain-timeout" "DURATION" "20s", "how long calls in flight may finish after that";
    RPC_LOG "log" "FILTER" "info", "the tracing filter; JSON lines where stderr is no terminal";
}

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
                .map_err(|detail| setting.error(format!("{} {detail}", shown(value)))),
        }
    }

    /// The value of a secret, which no error shows.
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

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
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

/// A value of any type; the error of a text that does not parse is `wrong`.
fn fitting<T: FromStr>(text: &str, wrong: &str) -> Result<T, String> {
    text.parse().map_err(|_| wrong.to_owned())
}

/// The number in `text`, which must be digits alone: Rust's own parser takes a plus before them too.
pub(crate) fn digits<T: FromStr>(text: &str) -> Option<T> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_plain)
}

pub(super) fn count(text: &str) -> Result<usize, String> {
    let count = digits(text).filter(|count| COUNTS.contains(count));
    count.ok_or_else(|| "is not a whole number of 1 or more".to_owned())
}

pub(super) fn true_or_false(text: &str) -> Result<bool, String> {
    fitting(text, "is not true or false")
}

/// A boolean, as Fly sets it; any other text is somebody else's: releases of Elixir have a variable of the same name.
pub(super) fn is_one(text: &str) -> Result<bool, String> {
    Ok(text == "1")
}

/// `text` in quotes for an error, without what is a password, a query or a fragment where it is a URL.
pub(crate) fn shown(text: &str) -> String {
    let scheme = text.find("://").map_or("", |end| &text[..end + 3]);
    let shown = match (text.rsplit_once('@'), text.find(['?', '#'])) {
        (None, None) => text.to_owned(),
        (None, Some(end)) => format!("{}…", &text[..=end]),
        // The `@` may be in the query, or the `?` in the password.
        (Some(_), Some(_)) => format!("{scheme}…"),
        (Some((_, after)), None) => format!("{scheme}…@{after}"),
    };
    format!("{shown:?}")
}

/// Each secret of a comma list; an error names one by its place.
pub(super) fn secrets<T: FromStr<Err = InvalidName>>(text: &str) -> Result<Vec<T>, String> {
    let parse = |(number, secret): (usize, &str)| {
        parsed(secret.trim()).map_err(|invalid| format!("entry {}: {invalid}", number + 1))
    };
    text.split(',').enumerate().map(parse).collect()
}

pub(super) fn port(text: &str) -> Result<u16, String> {
    let port = digits(text).filter(|port| *port != 0);
    port.ok_or_else(|| "is not a port from 1 to 65535".to_owned())
}

pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    let wrong = "is not an address; write for example fdaa:0:18:a7b::2";
    fitting(text, wrong)
}

pub(super) fn host_and_port(text: &str) -> Result<String, String> {
    let wrong = || "is not HOST:PORT; write for example 127.0.0.1:8080 or [::1]:8080".to_owned();
    if text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let is_host_name = !host.is_empty() && !host.contains([':', '[', ']', '/', ' ']);
    if is_host_name && digits::<u16>(port).is_some() {
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
    // More than one colon is in an IPv6 address, which has no port here.
    let (name, port_text) = match text.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') => (name, Some(port)),
        _ => (text, None),
    };
    let is_name = Name::from_utf8(name).is_ok_and(|name| name.num_labels() > 0);
    if text.contains("://") {
        // Not repeated: a comma in its password would have cut it into two entries.
        return Err("has an entry that is a URL, which is no DNS name".to_owned());
    }
    if !is_name && text.parse::<IpAddr>().is_err() {
        return Err(format!("has an entry that is no DNS name: {}", shown(text)));
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
        // A word that is not a level would be read as a target: its lines would be logged, and no others.
        let is_word = |part: &&str| part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let mut words = text.split(',').filter(is_word);
        if let Some(word) = words.find(|word| word.parse::<LevelFilter>().is_err()) {
            return wrong(&format!("{word:?} is no level"));
        }
        // So would one with the name of the program, of which no line is.
        if text
            .split(',')
            .any(|part| part.trim().starts_with("fly-rpc"))
        {
            return wrong(&"a target has no '-': fly_rpc");
        }
    }
    Ok(text.to_owned())
}
