//! The settings in the environment, without the variables that Kubernetes adds to it for each Service of the namespace:
//! for a Service `rpc-public` for example `RPC_PUBLIC_PORT=tcp://10.0.0.1:80`, which by its prefix would be a setting.
//! <https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>

use std::{collections::BTreeMap, net::SocketAddr};

use super::{
    ConfigError,
    settings::{is_ours, setting},
};

/// The variables that are settings, or claim to be by their prefix, and the prefix of each Service of Kubernetes.
///
/// # Errors
/// A value that is not UTF-8.
pub(super) fn read() -> Result<(BTreeMap<String, String>, Vec<String>), ConfigError> {
    let mut values = BTreeMap::new();
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.into_string().ok().filter(|name| is_ours(name)) else {
            continue;
        };
        let Ok(value) = value.into_string() else {
            let not_utf8 = "the value is not UTF-8";
            return Err(match setting(&name) {
                Some(setting) => setting.error(not_utf8),
                None => ConfigError::new(name, not_utf8),
            });
        };
        values.insert(name, value);
    }
    let service_links = take_service_links(&mut values);
    Ok((values, service_links))
}

/// Removes the variables of every Service from `values`, and returns the prefix of each Service.
fn take_service_links(values: &mut BTreeMap<String, String>) -> Vec<String> {
    let services = values.keys().filter_map(|name| service(name, values));
    let services: Vec<String> = services.collect();
    let is_link = |name: &str, prefix: &String| {
        let rest = name.strip_prefix(prefix).unwrap_or_default();
        rest == "_PORT" || rest.starts_with("_PORT_") || rest.starts_with("_SERVICE_")
    };
    values.retain(|name, _| !services.iter().any(|prefix| is_link(name, prefix)));
    services
}

/// The prefix of the Service whose host the variable `name` gives, where its port and its URL are there too, and agree: a
/// lone variable, or one that disagrees, may be a setting that was mistyped.
fn service(name: &str, values: &BTreeMap<String, String>) -> Option<String> {
    let prefix = name.strip_suffix("_SERVICE_HOST")?;
    let host = values.get(name)?.parse().ok()?;
    let port = values.get(&format!("{prefix}_SERVICE_PORT"))?.parse();
    let (_, address) = values.get(&format!("{prefix}_PORT"))?.split_once("://")?;
    let agrees = address.parse() == Ok(SocketAddr::new(host, port.ok()?));
    agrees.then(|| prefix.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINKS: [(&str, &str); 9] = [
        ("RPC_PUBLIC_PORT", "tcp://10.0.0.1:80"),
        ("RPC_PUBLIC_PORT_53_UDP", "udp://10.0.0.1:53"),
        ("RPC_PUBLIC_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("RPC_PUBLIC_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("RPC_PUBLIC_PORT_80_TCP_PORT", "80"),
        ("RPC_PUBLIC_PORT_80_TCP_PROTO", "tcp"),
        ("RPC_PUBLIC_SERVICE_HOST", "10.0.0.1"),
        ("RPC_PUBLIC_SERVICE_PORT", "80"),
        ("RPC_PUBLIC_SERVICE_PORT_HTTP", "80"),
    ];

    /// What is left of `values`, and the Services in them.
    fn taken(values: &[(impl ToString, impl ToString)]) -> (Vec<String>, Vec<String>) {
        let owned = values.iter();
        let owned = owned.map(|(name, value)| (name.to_string(), value.to_string()));
        let mut values = owned.collect();
        let services = take_service_links(&mut values);
        (values.into_keys().collect(), services)
    }

    #[test]
    fn the_whole_set_of_a_service_is_taken_whatever_its_address() {
        assert_eq!(taken(&LINKS), (vec![], vec!["RPC_PUBLIC".to_owned()]));
        let six = LINKS.map(|(name, value)| {
            let value = value.replace("10.0.0.1:", "[fd00::1]:");
            (name, value.replace("10.0.0.1", "fd00::1"))
        });
        assert_eq!(taken(&six), (vec![], vec!["RPC_PUBLIC".to_owned()]));
        // A Service `rpc`, and one whose name makes that of a setting.
        for (end, prefix) in [("", "RPC"), ("_PEER", "RPC_PEER")] {
            let links = LINKS.map(|(name, value)| (name.replace("_PUBLIC", end), value));
            assert_eq!(taken(&links), (vec![], vec![prefix.to_owned()]));
        }
    }

    #[test]
    fn what_belongs_to_no_whole_set_or_does_not_agree_stays() {
        for missing in ["_PORT", "_SERVICE_HOST", "_SERVICE_PORT"] {
            let name = format!("RPC_PUBLIC{missing}");
            let part: Vec<_> = LINKS.into_iter().filter(|(it, _)| *it != name).collect();
            let left: Vec<String> = part.iter().map(|(name, _)| (*name).to_owned()).collect();
            assert_eq!(taken(&part), (left, vec![]), "without {name}");
        }
        let other = LINKS.map(|(name, value)| (name, value.replace("10.0.0.1:80", "81")));
        assert_eq!(taken(&other).1, [""; 0]);
        for (name, value) in [
            ("RPC_PUBLIC_PORTS", "tcp://10.0.0.1:80"),
            ("RPC_PUBLICS_PORT", "tcp://10.0.0.1:80"),
            ("RPC_LISTEM", "127.0.0.1:80"),
        ] {
            let mut values: BTreeMap<_, _> = LINKS.into();
            values.insert(name, value);
            let values: Vec<_> = values.into_iter().collect();
            let (left, services) = taken(&values);
            assert_eq!((left, services.len()), (vec![name.to_owned()], 1));
        }
    }
}
