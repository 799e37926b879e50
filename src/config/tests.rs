//! What a set of values makes of a configuration, and the errors to the letter that `tests/it` does not have.

use super::*;

fn config(values: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let values = values
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Config::from_values(&Values(values))
}

fn error(name: &str, value: &str) -> String {
    config(&[(name, value)]).unwrap_err().to_string()
}

/// The region, the primary region and the listener of a configuration.
fn place(values: &[(&str, &str)]) -> String {
    let config = config(values).unwrap();
    let Identity {
        region, primary, ..
    } = &config.identity;
    format!("{region} {primary} {}", config.listen)
}

#[test]
fn nothing_set_is_a_cluster_of_one_and_fly_region_wins_over_my_region() {
    assert_eq!(place(&[]), "local local 127.0.0.1:8080");
    assert_eq!(config(&[]).unwrap().discovery.names, []);
    let both = place(&[("FLY_REGION", "syd"), ("MY_REGION", "fra")]);
    assert_eq!(both, "syd local 127.0.0.1:8080");
    let mine = place(&[("MY_REGION", "fra"), ("PRIMARY_REGION", "iad")]);
    assert_eq!(mine, "fra iad 127.0.0.1:8080");
    // It must be a region even where it does not count.
    let both = config(&[("FLY_REGION", "syd"), ("MY_REGION", "Sydney")]);
    both.unwrap_err();
}

#[test]
fn the_app_gives_the_dns_name_unless_one_is_set() {
    let host = |name: &str, port| DnsName::Host(name.to_owned(), port);
    assert_eq!(
        config(&[("FLY_APP_NAME", "shop")]).unwrap().discovery.names,
        [host("shop.internal", None)]
    );
    let names = "_rpc._tcp.shop, a.shop:81,127.0.0.1:80,[::1]:80,10.0.0.1";
    assert_eq!(
        config(&[("FLY_APP_NAME", "shop"), ("RPC_DNS_NAME", names)])
            .unwrap()
            .discovery
            .names,
        [
            DnsName::Service("_rpc._tcp.shop".to_owned()),
            host("a.shop", Some(81)),
            DnsName::Address("127.0.0.1:80".parse().unwrap()),
            DnsName::Address("[::1]:80".parse().unwrap()),
            host("10.0.0.1", None),
        ]
    );
}

#[test]
fn every_error_names_the_setting_and_what_is_right() {
    // Where the message repeats the value, it has an ellipsis here.
    let cases = r#"
RPC_LISTEN=: is empty; give it a value or unset it
RPC_LISTEN=8080: … is not HOST:PORT; write for example 127.0.0.1:8080 or [::1]:8080
RPC_POLL_INTERVAL=1ms: must be 50ms or more, for example 5s
RPC_DRAIN_TIMEOUT=25h: must be 24h or less
RPC_DRAIN_DELAY=eins: … is not a duration; write for example 5s or 750ms
RPC_DRAIN_DELAY=5 bananas: … is not a duration; write for example 5s or 750ms
RPC_DRAIN_DELAY=-1s: … is not a duration; write for example 5s or 750ms
RPC_CONNECT_TIMEOUT=584554531y: must be 24h or less
RPC_MAX_BODY=5: … has no unit; write for example 5KiB or 5MiB
RPC_MAX_BODY=16EiB: … is out of range; write for example 1MiB
RPC_MAX_MEMORY=3MiB: must be four times RPC_MAX_BODY or more; raise it or lower RPC_MAX_BODY
RPC_MAX_IN_FLIGHT=0: … is not a whole number of 1 or more
RPC_PEER_PORT=0: … is not a port from 1 to 65535
RPC_DNS_NAME=_rpc._tcp.shop:80: … gives a port to _rpc._tcp.shop, but SRV records carry it; leave the port out
RPC_DNS_NAME=a,,b: … has an entry that is no DNS name: ""
RPC_DNS_NAME=shop.internal,127.0.0.1:0: … has an entry without a port that peers can be at: "127.0.0.1:0"
FLY_APP_NAME=my shop: … makes no DNS name with .internal: letters, digits and '-' only, at most 63; set RPC_DNS_NAME to find peers by another name
FLY_PRIVATE_IP=fly-local-6pn: … is not an address; write for example fdaa:0:18:a7b::2"#;
    for case in cases.trim().lines() {
        let (given, detail) = case.split_once(": ").unwrap();
        let (name, value) = given.split_once('=').unwrap();
        let detail = detail.replace('…', &format!("{value:?}"));
        let expected = setting(name).unwrap().error(detail).to_string();
        assert_eq!(error(name, value), expected);
    }
    let refused = error("RPC_APP_URL", "http://shop:hunter2@127.0.0.1:3000/rpc");
    assert!(
        refused.contains(": \"http://…@127.0.0.1:3000/rpc\" has more than"),
        "{refused}"
    );
    for filter in [
        "fly_rpc=loud",
        "info,hyper=warn,debugg",
        "9",
        "fly-rpc",
        "info, fly-rpc=debug",
    ] {
        let refused = error("RPC_LOG", filter);
        assert!(
            refused.contains("is not a filter such as info or fly_rpc=debug"),
            "{refused}"
        );
    }
    for filter in [
        "Warn",
        "2",
        "info,fly_rpc",
        "error,fly_rpc::link=trace",
        "[call{request_id=1}]=debug",
    ] {
        config(&[("RPC_LOG", filter)]).unwrap();
    }
}

#[test]
fn a_peer_port_needs_a_name_that_takes_it() {
    let with = |name| config(&[("RPC_DNS_NAME", name), ("RPC_PEER_PORT", "81")]);
    assert_eq!(with("shop").unwrap().discovery.peer_port, Some(81));
    let refused = with("_rpc._tcp.shop").unwrap_err().to_string();
    assert!(
        refused.starts_with("RPC_PEER_PORT (--peer-port): has no effect"),
        "{refused}"
    );
}

#[test]
fn variables_of_fly_describe_the_machine() {
    let machine = |values: &[(&str, &str)]| config(values).unwrap().machine;
    let on_fly = machine(&[("FLY_PRIVATE_IP", "fdaa:0:18::2"), ("RELEASE_COMMAND", "1")]);
    assert_eq!(on_fly.private_ip, "fdaa:0:18::2".parse().ok());
    assert!(on_fly.runs_release_command);
    for other in ["0", "start", "eval"] {
        assert!(!machine(&[("RELEASE_COMMAND", other)]).runs_release_command);
    }
}

#[test]
fn settings_that_let_a_stop_cut_calls_are_warned_about() {
    let warnings = |values: &[(&str, &str)]| config(values).unwrap().stop_warnings(false);
    let ip = ("FLY_PRIVATE_IP", "fdaa::2");
    let long = ("RPC_DRAIN_TIMEOUT", "299s");
    assert!(warnings(&[ip]).is_empty() && warnings(&[long]).is_empty());
    assert_eq!(
        warnings(&[("RPC_DEFAULT_TIMEOUT", "30s")]),
        ["a stop may cut calls: RPC_DEFAULT_TIMEOUT is 30s, but RPC_DRAIN_TIMEOUT gives them 20s"]
    );
    assert_eq!(
        warnings(&[ip, long]),
        [
            "a stop may cut calls: by RPC_DRAIN_DELAY and RPC_DRAIN_TIMEOUT it takes up to 302s, but Fly kills a Machine \
             after 300s at the latest"
        ]
    );
    let app = ("RPC_APP_URL", "unix:/run/app.sock:/rpc");
    let kill_timeout = |values: &[(&str, &str)], has_child| {
        let kill_timeout = config(values).unwrap().kill_timeout(has_child);
        kill_timeout.map(|time| time.as_secs())
    };
    assert_eq!(kill_timeout(&[ip, app], false), Some(23));
    assert_eq!(kill_timeout(&[ip, app], true), Some(53));
    assert_eq!(kill_timeout(&[app], true), None);
    let with_app = config(&[ip, app, ("RPC_DRAIN_TIMEOUT", "150s")]).unwrap();
    assert!(with_app.stop_warnings(false).is_empty());
    assert!(with_app.stop_warnings(true)[0].contains("313s"));
}
