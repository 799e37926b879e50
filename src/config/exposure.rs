//! The start rules of tokens: what other machines can reach needs one, and tokens do not contradict each other.
//! Running functions for whoever asks is remote code execution, so nothing is open by omission.

use std::{collections::BTreeSet, net::SocketAddr};

use super::{Config, ConfigError, values::error};

impl Config {
    /// Checks the tokens against each other.
    ///
    /// # Errors
    /// A token or a client's name given twice, or client tokens that anonymous calls make useless.
    pub(super) fn check_access(&self) -> Result<(), ConfigError> {
        let access = &self.access;
        let tokens = &access.cluster;
        let clients = &access.clients;
        let names: BTreeSet<_> = clients.iter().map(|client| &client.name).collect();
        if names.len() < clients.len() {
            return Err(error("RPC_CLIENT_TOKENS", "has a name twice"));
        }
        let is_twice = |(number, token)| tokens[..number].contains(token);
        if tokens.iter().enumerate().any(is_twice) {
            return Err(error("RPC_TOKEN", "has an entry twice"));
        }
        let borne: Vec<_> = clients.iter().map(|client| &client.token).collect();
        if (0..borne.len()).any(|number| borne[..number].contains(&borne[number])) {
            return Err(error("RPC_CLIENT_TOKENS", "has a token twice"));
        }
        if borne.iter().any(|token| tokens.contains(token)) {
            let detail = "has a token of RPC_TOKEN; clients must not have the cluster's secret";
            return Err(error("RPC_CLIENT_TOKENS", detail));
        }
        if access.allow_anonymous && !clients.is_empty() {
            let detail = "contradicts RPC_CLIENT_TOKENS; unset one of the two";
            return Err(error("RPC_ALLOW_ANONYMOUS", detail));
        }
        Ok(())
    }

    /// Checks that no other machine reaches `public`, which serves the public routes, or `internal`, which serves
    /// `/internal/*`, without a token.
    ///
    /// # Errors
    /// An address that is not loopback without the tokens that keep strangers out.
    pub(crate) fn check_exposure(
        &self,
        public: SocketAddr,
        internal: SocketAddr,
    ) -> Result<(), ConfigError> {
        if is_exposed(internal) && self.access.cluster.is_empty() {
            let detail = format!(
                "is needed, because other machines reach /internal/* at {internal}; make one with \
                 `openssl rand -hex 32` and give it to every instance, or listen on 127.0.0.1"
            );
            return Err(error("RPC_TOKEN", &detail));
        }
        if is_exposed(public) && self.access.clients.is_empty() && !self.access.allow_anonymous {
            let detail = format!(
                "is needed, because other machines reach /rpc/* at {public}; write name:token with a token of \
                 `openssl rand -hex 32`, or set RPC_ALLOW_ANONYMOUS=true to let everybody call, or listen on 127.0.0.1"
            );
            return Err(error("RPC_CLIENT_TOKENS", &detail));
        }
        Ok(())
    }
}

fn is_exposed(address: SocketAddr) -> bool {
    !address.ip().to_canonical().is_loopback()
}
