//! The settings of the commands that call an instance: its URL, and the token that they send.

use std::time::Duration;

use super::{AppConfig, AppUrl, ConfigError, variable};
use crate::token::Token;

/// The base URL that the commands which call an instance use when they are given none.
pub(crate) fn default_url() -> String {
    variable("FLY_RPC_URL").unwrap_or_else(|| "http://127.0.0.1:8080".to_owned())
}

/// The port that an app is to listen at: `PORT`, else 3000.
pub(crate) fn app_port() -> Result<u16, ConfigError> {
    let Some(text) = variable("PORT") else {
        return Ok(3000);
    };
    let port = text.parse().ok().filter(|port| *port != 0);
    port.ok_or_else(|| ConfigError::new("PORT", format!("{text:?} is not a port from 1 to 65535")))
}

/// The app that `fly-rpc functions` checks: its URL, and the token in `RPC_APP_TOKEN`.
pub(crate) fn app_to_check(url: AppUrl) -> Result<AppConfig, ConfigError> {
    let token = variable("RPC_APP_TOKEN").map(|text| text.parse());
    let token = token.transpose();
    let token = token.map_err(|invalid: crate::name::InvalidName| {
        ConfigError::new("RPC_APP_TOKEN", invalid.to_string())
    })?;
    Ok(AppConfig {
        url,
        token,
        concurrency: 1,
        stop_timeout: Duration::ZERO,
        allow_anonymous: false,
    })
}

/// Whether the environment sets `variable`.
pub(crate) fn is_set(name: &str) -> bool {
    variable(name).is_some()
}

/// The token that the commands which call an instance send, if any.
pub(crate) fn client_token() -> Result<Option<Token>, ConfigError> {
    let token = variable("FLY_RPC_TOKEN").map(|text| text.parse());
    let token = token.transpose();
    token.map_err(|invalid: crate::name::InvalidName| {
        ConfigError::new("FLY_RPC_TOKEN", invalid.to_string())
    })
}
