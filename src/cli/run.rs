//! `fly-rpc run -- COMMAND`: one instance, and the app beside it as a child process, started and stopped with it.

use std::{
    ffi::OsString, net::SocketAddr, os::unix::process::ExitStatusExt, sync::Arc, time::Duration,
};

use clap::Args;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Failure,
    child::AppChild,
    serve::{self, ServeArgs},
};
use crate::{Client, Config, Identity, Token, config};

/// What the instance calls its app as a client.
const CLIENT: &str = "fly-rpc-run";

/// An instance and its app.
#[derive(Args)]
#[command(
    after_help = "The command gets PORT (3000 unless set), FLY_RPC_URL, FLY_RPC_TOKEN, RPC_APP_TOKEN, FLY_REGION and \
                        PRIMARY_REGION. It serves its functions at http://127.0.0.1:$PORT/rpc.

Example:
  fly-rpc run --region iad -- python3 app.py"
)]
pub(super) struct RunArgs {
    #[command(flatten)]
    serve: ServeArgs,
    /// For `dev`: start the command again when it ends, send what it prints to stderr, and only warn of an app that lets
    /// anybody in
    #[arg(long, hide = true)]
    again: bool,
    /// The command of the app
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Serves, and runs the app, until a signal or the end of the app.
pub(super) async fn run(args: RunArgs) -> Result<(), Failure> {
    let RunArgs {
        mut serve,
        again,
        command,
    } = args;
    let usage = |error: config::ConfigError| Failure::Usage(error.to_string());
    let port = config::app_port().map_err(usage)?;
    let is_given = |serve: &ServeArgs, variable| serve.sets(variable) || config::is_set(variable);
    if !is_given(&serve, "RPC_APP_URL") {
        serve.set("RPC_APP_URL", format!("http://127.0.0.1:{port}/rpc"));
    }
    let token = secret();
    if !is_given(&serve, "RPC_APP_TOKEN") {
        serve.set("RPC_APP_TOKEN", token.clone());
    }
    if again && !is_given(&serve, "RPC_APP_ALLOW_ANONYMOUS") {
        serve.set("RPC_APP_ALLOW_ANONYMOUS", "true".to_owned());
    }
    let mut config = serve::config(&serve)?;
    check_port(&config, port)?;
    let stop_timeout = config
        .app
        .as_ref()
        .map_or(Duration::ZERO, |app| app.stop_timeout);
    let mut environment = vec![("PORT", port.to_string())];
    if !config::is_set("RPC_APP_TOKEN") {
        environment.push(("RPC_APP_TOKEN", token));
    }
    environment.extend(own_client(&mut config)?);
    let serving = serve::start(serve, config, true).await?;
    environment.extend(whereabouts(
        serving.instance.identity(),
        serving.instance.child_address(),
    ));
    let app = AppChild {
        command,
        environment,
        again,
        stop_timeout,
    };
    let (stop, over) = (CancellationToken::new(), CancellationToken::new());
    let kept = {
        let (stop, over) = (stop.clone(), over.clone());
        async move {
            let _over = over.drop_guard();
            app.keep(stop).await
        }
    };
    let kept = AbortOnDropHandle::new(tokio::spawn(kept));
    // It is stopped once the instance has drained, and may still call others until it has ended.
    let last = async {
        stop.cancel();
        over.cancelled().await;
    };
    let drained = serving.until(over.clone().cancelled_owned(), last).await;
    let ended = kept.await;
    let status = ended.map_err(|error| Failure::Failed(error.to_string()))??;
    match status.code() {
        Some(0) => drained,
        Some(code) => Err(Failure::Ended(u8::try_from(code).unwrap_or(1))),
        None => {
            let signal = u8::try_from(status.signal().unwrap_or(0)).unwrap_or(0);
            Err(Failure::Ended(128 + signal))
        }
    }
}

/// Who listens at the app's port cannot be this instance.
fn check_port(config: &Config, port: u16) -> Result<(), Failure> {
    let own = [
        ("RPC_LISTEN (--listen)", Some(&config.listen)),
        (
            "RPC_INTERNAL_LISTEN (--internal-listen)",
            config.internal_listen.as_ref(),
        ),
        (
            "RPC_METRICS_LISTEN (--metrics-listen)",
            config.metrics_listen.as_ref(),
        ),
    ];
    let has_port = |address: &String| {
        address
            .rsplit_once(':')
            .is_some_and(|(_, it)| it == port.to_string())
    };
    match own
        .iter()
        .find(|(_, address)| address.is_some_and(has_port))
    {
        Some((setting, _)) => Err(Failure::Usage(format!(
            "PORT: {port} is the port of {setting}; the app needs one of its own"
        ))),
        None => Ok(()),
    }
}

/// The token by which the app calls its own instance, where that knows its clients.
fn own_client(config: &mut Config) -> Result<Option<(&'static str, String)>, Failure> {
    if config.access.clients.is_empty() {
        return Ok(None);
    }
    let secret = secret();
    let invalid = |error: crate::InvalidName| Failure::Failed(error.to_string());
    let token: Token = secret.parse().map_err(invalid)?;
    config.access.clients.push(Arc::new(Client {
        name: CLIENT.parse().map_err(invalid)?,
        token,
        regions: None,
        functions: None,
    }));
    Ok(Some(("FLY_RPC_TOKEN", secret)))
}

/// Where the app finds its instance, and in which region it is.
fn whereabouts(identity: &Identity, address: SocketAddr) -> Vec<(&'static str, String)> {
    vec![
        ("FLY_RPC_URL", format!("http://{address}")),
        ("FLY_REGION", identity.region.to_string()),
        ("PRIMARY_REGION", identity.primary.to_string()),
    ]
}

/// A fresh token.
pub(super) fn secret() -> String {
    format!(
        "{:032x}{:032x}",
        rand::random::<u128>(),
        rand::random::<u128>()
    )
}
