//! Fly.io: replay by its proxy, and `fly.toml`.

mod fly_proxy_rules;
mod fly_toml;
mod replay;
mod replay_to_primary;
