//! What the commands that ask an instance read of the environment: where it is, and the token to bear.

use super::{ConfigError, values::error};
use crate::{name::InvalidName, token::Token};

/// The base URL that the commands which call an instance use when they are given none.
pub(crate) fn default_url() -> String {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the file that reads the environment"
    )]
    std::env::var("FLY_RPC_URL").unwrap_or_else(|_| "http://127.0.0.1:8080".to_owned())
}

/// The token that the commands which call an instance bear, if any.
pub(crate) fn client_token() -> Result<Option<Token>, ConfigError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the file that reads the environment"
    )]
    let Ok(text) = std::env::var("FLY_RPC_TOKEN") else {
        return Ok(None);
    };
    let token = text.parse();
    token
        .map(Some)
        .map_err(|invalid: InvalidName| error("FLY_RPC_TOKEN", &invalid.to_string()))
}
