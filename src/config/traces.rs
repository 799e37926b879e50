//! Whether and as whom traces are exported, from the variables of the OpenTelemetry specification; the exporter reads the
//! rest of them itself.

use super::{ConfigError, variable};

/// <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

/// That traces are exported, and as whom.
#[derive(Debug)]
pub(crate) struct TraceExport {
    /// The name of the service.
    pub service: String,
}

impl TraceExport {
    /// What the environment asks for; `None` without an endpoint, or where the SDK is disabled.
    ///
    /// # Errors
    /// An endpoint that is no `http` URL.
    pub(crate) fn from_env() -> Result<Option<Self>, ConfigError> {
        let mut named = ENDPOINTS.iter().map(|name| Some((*name, given(name)?)));
        let endpoint = named.find_map(|endpoint| endpoint);
        let is_disabled = given("OTEL_SDK_DISABLED").as_deref() == Some("true");
        let Some((name, endpoint)) = endpoint.filter(|_| !is_disabled) else {
            return Ok(None);
        };
        if !endpoint.starts_with("http://") {
            let detail = format!(
                "{endpoint:?} is not http://HOST:PORT; this program speaks no TLS, so run a collector beside it"
            );
            return Err(ConfigError::new(name, detail));
        }
        let service = given("OTEL_SERVICE_NAME").unwrap_or_else(|| "fly-rpc".to_owned());
        Ok(Some(Self { service }))
    }
}

/// A variable that is set and not empty.
fn given(name: &str) -> Option<String> {
    variable(name).filter(|value| !value.is_empty())
}
