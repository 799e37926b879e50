//! From the text of a setting to its value, or to a line that says what would be right.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use hickory_resolver::proto::rr::Name;

use super::{ConfigError, DnsName, SETTINGS};
use crate::{access::Client, name::InvalidName, region::Region, token::Token};

/// The port of the DNS protocol, for a `RPC_DNS_SERVER` without one.
const DNS_PORT: u16 = 53;

/// The settings that were given, by variable.
pub(super) struct Values(pub(super) BTreeMap<String, String>);

impl Values {
    pub(super) fn get<T>(
        &self,
        variable: &str,
        parse: fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.0.get(variable) else {
            return Ok(None);
        };
        if value.is_empty() {
            return Err(error(variable, "is empty; give it a value or unset it"));
        }
        parse(value)
            .map(Some)
            .map_err(|detail| error(variable, &format!("{value:?} {detail}")))
    }

    /// A value that must not be shown, not even to say what is wrong with it.
    pub(super) fn secret<T>(
        &self,
        variable: &str,
        parse: fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.0.get(variable) else {
            return Ok(None);
        };
        parse(value)
            .map(Some)
            .map_err(|detail| error(variable, &detail))
    }

    pub(super) fn text(&self, variable: &str) -> Result<Option<String>, ConfigError> {
        self.get(variable, |text| Ok(text.to_owned()))
    }

    pub(super) fn refuse_unknown(&self) -> Result<(), ConfigError> {
        let known = |name: &str| SETTINGS.iter().any(|setting| setting.variable == name);
        let Some(name) = self.0.keys().find(|name| !known(name)) else {
            return Ok(());
        };
        let near = SETTINGS
            .iter()
            .map(|setting| {
                (
                    strsim::jaro_winkler(setting.variable, name),
                    setting.variable,
                )
            })
            .max_by(|a, b| a.0.total_cmp(&b.0));
        Err(error(
            name,
            &match near {
                Some((likeness, variable)) if likeness > 0.9 => {
                    format!("no such setting; did you mean {variable}?")
                }
                _ => "no such setting; `fly-rpc serve --help` lists them all".to_owned(),
            },
        ))
    }
}

/// Whether a variable is a setting, or claims to be one by its prefix.
pub(super) fn is_ours(variable: &str) -> bool {
    variable.starts_with("RPC_") || SETTINGS.iter().any(|setting| setting.variable == variable)
}

pub(super) fn error(variable: &str, detail: &str) -> ConfigError {
    let flag = SETTINGS
        .iter()
        .find(|setting| setting.variable == variable)
        .map_or("", |setting| setting.flag);
    let setting = match flag {
        "" => variable.to_owned(),
        flag => format!("{variable} (--{flag})"),
    };
    ConfigError {
        setting,
        detail: detail.to_owned(),
    }
}

pub(super) fn word<T: FromStr<Err = InvalidName>>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|invalid: InvalidName| format!("does not fit: {invalid}"))
}

pub(super) fn region(text: &str) -> Result<Region, String> {
    word(text)
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
    // With room to add to it.
    let range = 1..=usize::MAX >> 16;
    usize::try_from(size.as_u64())
        .ok()
        .filter(|bytes| range.contains(bytes))
        .ok_or_else(|| "is out of range; write for example 1MiB".to_owned())
}

pub(super) fn count(text: &str) -> Result<usize, String> {
    // The upper bound is the most permits that a tokio semaphore holds.
    let range = 1..=tokio::sync::Semaphore::MAX_PERMITS;
    text.parse()
        .ok()
        .filter(|count| range.contains(count))
        .ok_or_else(|| "is not a whole number of 1 or more".to_owned())
}

pub(super) fn truth(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "is not true or false".to_owned())
}

/// A truth as Fly's own variables tell it.
pub(super) fn flag(text: &str) -> Result<bool, String> {
    match text {
        "1" => Ok(true),
        "0" => Ok(false),
        _ => Err("is not 1 or 0".to_owned()),
    }
}

pub(super) fn cluster_tokens(text: &str) -> Result<Vec<Token>, String> {
    secrets(text)
}

pub(super) fn clients(text: &str) -> Result<Vec<Arc<Client>>, String> {
    Ok(secrets(text)?.into_iter().map(Arc::new).collect())
}

/// Each secret of a comma list; one that does not fit is told by its place.
fn secrets<T: FromStr<Err = InvalidName>>(text: &str) -> Result<Vec<T>, String> {
    let parse = |(number, secret): (usize, &str)| {
        let parsed = secret.trim().parse();
        parsed.map_err(|invalid| format!("entry {}: {invalid}", number + 1))
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
    // Who embeds the crate sets up a log of their own.
    #[cfg(feature = "cli")]
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(text) {
        return Err(format!(
            "is not a filter such as info or fly_rpc=debug: {error}"
        ));
    }
    Ok(text.to_owned())
}
