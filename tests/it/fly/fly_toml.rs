//! `fly.toml` against flyctl's schema, and against what an instance does with it.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;
use toml::{Table, Value};

use crate::support::process::{Environment, Process};

/// Every key that `fly.toml` may have here, from flyctl's `internal/appconfig/config.go`, `service.go` and
/// `testdata/full-reference.toml` at ad0172fa (<https://github.com/superfly/flyctl>), and from
/// <https://fly.io/docs/reference/configuration/>. An item of a list stands as `[]`, a name of one's own as `*`.
const KNOWN: &[&str] = &[
    "app",
    "build.dockerfile",
    "deploy.max_unavailable",
    "deploy.release_command",
    "deploy.strategy",
    "deploy.wait_timeout",
    "env.*",
    "http_service.auto_start_machines",
    "http_service.auto_stop_machines",
    "http_service.checks[].grace_period",
    "http_service.checks[].interval",
    "http_service.checks[].method",
    "http_service.checks[].path",
    "http_service.checks[].timeout",
    "http_service.concurrency.hard_limit",
    "http_service.concurrency.soft_limit",
    "http_service.concurrency.type",
    "http_service.force_https",
    "http_service.internal_port",
    "http_service.min_machines_running",
    "http_service.processes[]",
    "kill_signal",
    "kill_timeout",
    "metrics[].path",
    "metrics[].port",
    "metrics[].processes[]",
    "primary_region",
    "restart[].policy",
    "restart[].retries",
    "vm[].memory",
    "vm[].size",
];

fn fly_toml() -> Table {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fly.toml");
    std::fs::read_to_string(path).unwrap().parse().unwrap()
}

/// The paths of all values below `value`.
fn keys(path: &str, value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Table(table) if path == "env" => {
            assert!(table.values().all(Value::is_str), "{table:?}");
            found.insert("env.*".to_owned());
        }
        Value::Table(table) => {
            for (key, value) in table {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                keys(&path, value, found);
            }
        }
        Value::Array(items) => items
            .iter()
            .for_each(|item| keys(&format!("{path}[]"), item, found)),
        _ => {
            found.insert(path.to_owned());
        }
    }
}

fn text<'a>(table: &'a Table, key: &str) -> &'a str {
    table[key]
        .as_str()
        .unwrap_or_else(|| panic!("{key} is no text"))
}

/// The settings that instances are given.
fn settings(fly_toml: &Table) -> &Table {
    fly_toml["env"].as_table().unwrap()
}

/// The setting as `fly.toml` has it, else its default.
fn duration(fly_toml: &Table, variable: &str) -> Duration {
    let setting = fly_rpc::SETTINGS
        .iter()
        .find(|setting| setting.variable == variable)
        .unwrap();
    let got = settings(fly_toml).get(variable).and_then(Value::as_str);
    humantime::parse_duration(got.unwrap_or(setting.default)).unwrap()
}

#[test]
fn every_key_is_one_of_flyctl() {
    let mut found = BTreeSet::new();
    keys("", &Value::Table(fly_toml()), &mut found);
    let unknown: Vec<_> = found
        .iter()
        .filter(|key| !KNOWN.contains(&key.as_str()))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn a_stop_has_the_time_that_it_takes() {
    let fly_toml = fly_toml();
    let kill_timeout = humantime::parse_duration(text(&fly_toml, "kill_timeout")).unwrap();
    let stop = duration(&fly_toml, "RPC_DRAIN_DELAY") + duration(&fly_toml, "RPC_DRAIN_TIMEOUT");
    // What is left is for the process to end.
    assert!(kill_timeout >= stop + Duration::from_secs(5));
    assert!(kill_timeout <= Duration::from_secs(300));
    assert!(duration(&fly_toml, "RPC_DEFAULT_TIMEOUT") <= duration(&fly_toml, "RPC_DRAIN_TIMEOUT"));
    assert_eq!(text(&fly_toml, "kill_signal"), "SIGTERM");
}

#[test]
fn a_check_fails_before_calls_are_refused() {
    let fly_toml = fly_toml();
    let check = fly_toml["http_service"]["checks"][0].as_table().unwrap();
    let span = |key| humantime::parse_duration(text(check, key)).unwrap();
    assert!(duration(&fly_toml, "RPC_DRAIN_DELAY") > span("interval") + span("timeout"));
}

#[test]
fn the_service_is_the_public_listener_and_no_service_names_the_other() {
    let fly_toml = fly_toml();
    let port = |variable: &str| {
        let listen = text(settings(&fly_toml), variable);
        listen.rsplit_once(':').unwrap().1.parse::<i64>().unwrap()
    };
    let service = fly_toml["http_service"].as_table().unwrap();
    assert_eq!(
        service["internal_port"].as_integer(),
        Some(port("RPC_LISTEN"))
    );
    assert!(!fly_toml.contains_key("services"));
    let ports = ["RPC_LISTEN", "RPC_INTERNAL_LISTEN", "RPC_METRICS_LISTEN"].map(port);
    assert_eq!(BTreeSet::from(ports).len(), ports.len());
    let metrics = fly_toml["metrics"][0].as_table().unwrap();
    assert_eq!(metrics["port"].as_integer(), Some(ports[2]));
    assert_eq!(text(metrics, "path"), "/metrics");
    assert_eq!(text(service, "auto_stop_machines"), "off");
    let strategies = ["canary", "rolling", "immediate", "bluegreen"];
    assert!(strategies.contains(&text(fly_toml["deploy"].as_table().unwrap(), "strategy")));
}

/// With its settings, the secrets and what Fly gives a Machine, an instance starts and is ready; only the ports and the
/// name of the private address, which this machine does not have, are others.
#[tokio::test]
async fn an_instance_takes_its_settings_and_passes_its_check() {
    let fly_toml = fly_toml();
    let mut environment = Environment::from([
        ("FLY_APP_NAME", "shop".to_owned()),
        ("FLY_REGION", "syd".to_owned()),
        ("FLY_MACHINE_ID", "148e21dad76789".to_owned()),
        (
            "FLY_IMAGE_REF",
            "registry.fly.io/shop:deployment-1".to_owned(),
        ),
        ("FLY_PRIVATE_IP", "::1".to_owned()),
        (
            "PRIMARY_REGION",
            text(&fly_toml, "primary_region").to_owned(),
        ),
        ("RPC_TOKEN", "0123456789abcdef0123456789abcdef".to_owned()),
        (
            "RPC_CLIENT_TOKENS",
            "shop:fedcba9876543210fedcba9876543210".to_owned(),
        ),
    ]);
    for setting in fly_rpc::SETTINGS {
        let Some(value) = settings(&fly_toml).get(setting.variable) else {
            continue;
        };
        let got = match value.as_str().unwrap().rsplit_once(':') {
            Some((host, _)) => format!("{}:0", host.replace("fly-local-6pn", "[::1]")),
            None => value.as_str().unwrap().to_owned(),
        };
        environment.insert(setting.variable, got);
    }
    let names = environment.keys().copied().collect::<BTreeSet<_>>();
    assert!(
        settings(&fly_toml)
            .keys()
            .all(|name| names.contains(name.as_str())),
        "{names:?}"
    );
    let instance = Process::start(&environment).await;
    assert!(instance.address.ip().is_unspecified() && instance.address.is_ipv6());
    let check = fly_toml["http_service"]["checks"][0].as_table().unwrap();
    let over_ipv4 = format!(
        "http://127.0.0.1:{}{}",
        instance.address.port(),
        text(check, "path")
    );
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = async || {
        crate::support::process::answer(client.get(&over_ipv4))
            .await
            .unwrap()
    };
    let ready =
        crate::support::patience::eventually("ready", ask, |answer| answer.status == 200).await;
    assert_eq!(
        ready.body,
        json!({"status": "ready", "instance": "148e21dad76789", "region": "syd"})
    );
}
