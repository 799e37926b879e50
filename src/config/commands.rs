//! What the program reads from variables that are no settings of an instance: where its commands find one, the app that they
//! start or check, and whether traces are exported.

use super::{
    ConfigError,
    settings::{parsed, port},
};
use crate::token::Token;

/// <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

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
/// `None` without an endpoint, or where the SDK is disabled.
///
/// # Errors
/// An endpoint that is no `http` URL.
pub(crate) fn traced_service() -> Result<Option<String>, ConfigError> {
    let given = |name| variable(name).filter(|value| !value.is_empty());
    let endpoint = ENDPOINTS
        .iter()
        .find_map(|name| Some((*name, given(name)?)));
    let disabled = given("OTEL_SDK_DISABLED");
    let is_disabled = disabled.is_some_and(|it| it.eq_ignore_ascii_case("true"));
    let Some((name, endpoint)) = endpoint.filter(|_| !is_disabled) else {
        return Ok(None);
    };
    if !endpoint.starts_with("http://") {
        let detail = format!(
            "{endpoint:?} is not http://HOST:PORT; this program speaks no TLS, so run a collector beside it"
        );
        return Err(ConfigError::new(name, detail));
    }
    let service = given("OTEL_SERVICE_NAME");
    Ok(Some(service.unwrap_or_else(|| "fly-rpc".to_owned())))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the environment is read here and in environment.rs"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
