//! The table of settings: one row each, from which come the flags of `fly-rpc serve` and its help, the variables that
//! may be set, the defaults (the text of a default is parsed as a value is) and the table in the documents.
//! What a value means is in `Config::from_values`. (Not clap's derive with `env`: a program that embeds the crate reads the
//! environment without clap, and clap shows a wrong value, secrets among them, and does not name its variable.)

use super::ConfigError;

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

impl Setting {
    /// That the value of this setting is wrong.
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
    FLY_APP_NAME "app" "APP" "none", "the application; an address that answers for another is not a peer";
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
    RPC_APP_TOKEN "" "TOKEN" "none", "what every request to the app carries; the app answers 401 to one that does not";
    RPC_APP_CONCURRENCY "app-concurrency" "COUNT" "64", "calls in the app at once; as many again wait for their turn";
    RPC_APP_STOP_TIMEOUT "app-stop-timeout" "DURATION" "10s", "how long the command of fly-rpc run may take to stop";
    RPC_APP_ALLOW_ANONYMOUS "app-allow-anonymous" "true|false" "false",
        "offer the functions of an app that gives its list without RPC_APP_TOKEN too";
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
