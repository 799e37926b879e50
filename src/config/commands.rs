//! What the program reads from variables that are not settings of an instance: where its commands find one, the app that
//! they start or check, and whether traces are exported.

use http::{Uri, uri::Scheme};

use super::{
    ConfigError,
    settings::{parsed, port, shown},
};
use crate::token::Token;

/// <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

/// Variables of OpenTelemetry, with the values that are supported here: the exporter ignores any other in silence. Of the
/// variables that mean the same, the first that is set counts.
/// <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>
const CHOICES: [(&[&str], &[&str]); 4] = [
    (&["OTEL_TRACES_EXPORTER"], &["otlp"]),
    (
        &[
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "OTEL_EXPORTER_OTLP_PROTOCOL",
        ],
        &["http/protobuf"],
    ),
    (
        &[
            "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
            "OTEL_EXPORTER_OTLP_COMPRESSION",
        ],
        &["none"],
    ),
    (
        &["OTEL_TRACES_SAMPLER"],
        &[
            "always_on",
            "always_off",
            "traceidratio",
            "parentbased_always_on",
            "parentbased_always_off",
            "parentbased_traceidratio",
        ],
    ),
];

/// Those with which the exporter sends nothing, and says nothing, where they are 0.
const SIZES: [&str; 2] = ["OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"];

/// The base URL that the commands which call an instance use when they are given none.
pub(crate) fn default_url() -> String {
    variable("FLY_RPC_URL").unwrap_or_else(|| "http://127.0.0.1:8080".to_owned())
}

/// The token in the variable `name`, which no error shows: `FLY_RPC_TOKEN`, which the commands that call an instance
/// send, or `RPC_APP_TOKEN`, for those that ask an app.
pub(crate) fn token(name: &str) -> Result<Option<Token>, ConfigError> {
    let token = variable(name).map(|text| parsed(&text)).transpose();
    token.map_err(|detail| ConfigError::new(name, detail))
}

/// The port that an app is to listen at: `PORT`, else 3000.
pub(crate) fn app_port() -> Result<u16, ConfigError> {
    let text = variable("PORT").unwrap_or_else(|| "3000".to_owned());
    port(&text).map_err(|detail| ConfigError::new("PORT", format!("{text:?} {detail}")))
}

pub(crate) fn is_set(name: &str) -> bool {
    variable(name).is_some()
}

/// The name of the service under which traces are exported; the exporter reads the other variables of OpenTelemetry itself.
/// `None` without an endpoint, or where traces are switched off.
///
/// # Errors
/// An endpoint that is no `http` URL, or a variable whose value the exporter would ignore, or with which it would send nothing.
pub(crate) fn traced_service() -> Result<Option<String>, ConfigError> {
    let is = |name, value| given(name).is_some_and(|given| given.eq_ignore_ascii_case(value));
    if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
        return Ok(None);
    }
    let Some((name, endpoint)) = first_given(&ENDPOINTS) else {
        return Ok(None);
    };
    let is_plain = |uri: Uri| {
        uri.scheme() == Some(&Scheme::HTTP) && uri.host().is_some_and(|host| !host.is_empty())
    };
    if !endpoint.parse().is_ok_and(is_plain) {
        let detail = format!(
            "{} is not http://HOST:PORT; this program speaks no TLS, so run a collector beside it",
            shown(&endpoint)
        );
        return Err(ConfigError::new(name, detail));
    }
    for (names, values) in CHOICES {
        let unknown = first_given(names).filter(|(_, value)| !values.contains(&value.as_str()));
        if let Some((name, value)) = unknown {
            let values = values.join(", ");
            let detail = format!("{value:?} is not supported for traces, only {values}");
            return Err(ConfigError::new(name, detail));
        }
    }
    for name in SIZES {
        if let Some(value) = given(name).filter(|value| value.parse() == Ok(0)) {
            let detail = format!("{value:?} would export nothing");
            return Err(ConfigError::new(name, detail));
        }
    }
    let service = given("OTEL_SERVICE_NAME")
        .or_else(|| attribute(&given("OTEL_RESOURCE_ATTRIBUTES")?, "service.name"));
    Ok(Some(service.unwrap_or_else(|| "fly-rpc".to_owned())))
}

/// The value of `name` in a list `name=value,…`, as the exporter reads it: of several, the last.
fn attribute(list: &str, name: &str) -> Option<String> {
    let pairs = list.rsplit(',').filter_map(|pair| pair.split_once('='));
    let mut values = pairs.filter(|(key, _)| key.trim() == name);
    let value = values.next()?.1.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

/// The first of the variables `names` that is set, with its value.
fn first_given<'a>(names: &[&'a str]) -> Option<(&'a str, String)> {
    let mut names = names.iter();
    names.find_map(|name| Some((*name, given(name)?)))
}

/// The value of a variable, which counts for nothing where it is empty.
fn given(name: &str) -> Option<String> {
    variable(name).filter(|value| !value.is_empty())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the environment is read here and in environment.rs"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
