//! The table of settings: variables, flags, defaults and help in one place.

/// One setting as people see it: a flag of `fly-rpc serve` and the variable of the same meaning.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The environment variable.
    pub variable: &'static str,
    /// The flag, without its dashes; empty for a variable that has none.
    pub flag: &'static str,
    /// What stands for the value in help texts.
    pub value: &'static str,
    /// The default, in words where it is no constant.
    pub default: &'static str,
    /// One line of help.
    pub help: &'static str,
}

/// Every setting, in the order of the documents.
pub const SETTINGS: &[Setting] = &[
    setting(
        "FLY_REGION",
        "region",
        "REGION",
        "local",
        "this instance's region",
    ),
    setting(
        "MY_REGION",
        "",
        "REGION",
        "none",
        "this instance's region where FLY_REGION is not set",
    ),
    setting(
        "PRIMARY_REGION",
        "primary",
        "REGION",
        "local",
        "the primary region",
    ),
    setting(
        "FLY_MACHINE_ID",
        "instance",
        "ID",
        "random, printed at start",
        "this instance's id",
    ),
    setting(
        "FLY_APP_NAME",
        "app",
        "APP",
        "none",
        "the application; an address that answers for another is not a peer",
    ),
    setting(
        "FLY_IMAGE_REF",
        "release",
        "RELEASE",
        "none",
        "the release, shown to people",
    ),
    setting(
        "FLY_PRIVATE_IP",
        "",
        "ADDRESS",
        "none",
        "the address that /regions shows for an instance that listens on all of its addresses",
    ),
    setting(
        "RELEASE_COMMAND",
        "",
        "1|0",
        "0",
        "1 where Fly runs a release command: such an instance joins no cluster",
    ),
    setting(
        "RPC_LISTEN",
        "listen",
        "HOST:PORT",
        "127.0.0.1:8080",
        "the address to serve on",
    ),
    setting(
        "RPC_INTERNAL_LISTEN",
        "internal-listen",
        "HOST:PORT",
        "none: /internal/* shares RPC_LISTEN",
        "an address of its own for what instances ask of each other",
    ),
    setting(
        "RPC_METRICS_LISTEN",
        "metrics-listen",
        "HOST:PORT",
        "none",
        "an address with /metrics, /healthz and /readyz only, open to scrapers without a token",
    ),
    setting(
        "RPC_DNS_NAME",
        "dns-name",
        "NAME,…",
        "$FLY_APP_NAME.internal, else none",
        "what discovery resolves: names (A and AAAA), names that start with _ (SRV), NAME:PORT or ADDRESS:PORT",
    ),
    setting(
        "RPC_DNS_SERVER",
        "dns-server",
        "ADDRESS:PORT",
        "the system's",
        "the DNS server to ask",
    ),
    setting(
        "RPC_PEER_PORT",
        "peer-port",
        "PORT",
        "the port of RPC_INTERNAL_LISTEN, else of RPC_LISTEN",
        "the port of peers found by A and AAAA",
    ),
    setting(
        "RPC_POLL_INTERVAL",
        "poll-interval",
        "DURATION",
        "5s",
        "the time between two discovery rounds, ± 20 %",
    ),
    setting(
        "RPC_DEFAULT_TIMEOUT",
        "default-timeout",
        "DURATION",
        "5s",
        "the timeout of a call that names none",
    ),
    setting(
        "RPC_MAX_TIMEOUT",
        "max-timeout",
        "DURATION",
        "60s",
        "the longest timeout that a call may name",
    ),
    setting(
        "RPC_CONNECT_TIMEOUT",
        "connect-timeout",
        "DURATION",
        "1s",
        "the longest wait for a connection to a peer",
    ),
    setting(
        "RPC_ROUTE",
        "route",
        "proxy|replay|auto",
        "proxy",
        "how calls for other regions get there: forwarded, or replayed by Fly Proxy",
    ),
    setting(
        "RPC_TOKEN",
        "",
        "TOKEN,…",
        "none",
        "the cluster's secret: the first is used, all are accepted",
    ),
    setting(
        "RPC_CLIENT_TOKENS",
        "",
        "NAME:TOKEN,…",
        "none",
        "the clients that may use the public routes",
    ),
    setting(
        "RPC_ALLOW_ANONYMOUS",
        "allow-anonymous",
        "true|false",
        "false",
        "let anyone who reaches RPC_LISTEN call functions",
    ),
    setting(
        "RPC_MAX_BODY",
        "max-body",
        "SIZE",
        "1MiB",
        "the largest request body",
    ),
    setting(
        "RPC_MAX_RESULT",
        "max-result",
        "SIZE",
        "8MiB",
        "the largest result of a function",
    ),
    setting(
        "RPC_MAX_IN_FLIGHT",
        "max-in-flight",
        "COUNT",
        "1024",
        "calls that may run here at once",
    ),
    setting(
        "RPC_MAX_MEMORY",
        "max-memory",
        "SIZE",
        "a quarter of what the control group or the machine has",
        "the bytes of heads, bodies and answers that may wait here",
    ),
    setting(
        "RPC_DRAIN_DELAY",
        "drain-delay",
        "DURATION",
        "3s",
        "how long a stopping instance still takes calls",
    ),
    setting(
        "RPC_DRAIN_TIMEOUT",
        "drain-timeout",
        "DURATION",
        "20s",
        "how long calls in flight may finish after that",
    ),
    setting(
        "RPC_LOG",
        "log",
        "FILTER",
        "info",
        "the tracing filter; JSON lines where stderr is no terminal",
    ),
];

const fn setting(
    variable: &'static str,
    flag: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
) -> Setting {
    Setting {
        variable,
        flag,
        value,
        default,
        help,
    }
}
