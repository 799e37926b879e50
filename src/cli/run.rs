//! `fly-rpc run -- COMMAND`: one instance, and the app beside it as a child process, started and stopped with it.

use std::{ffi::OsString, os::unix::process::ExitStatusExt, process::ExitStatus, sync::Arc};

use clap::Args;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Failure,
    child::{AppChild, Stop},
    serve::{self, ServeArgs, Serving},
};
use crate::{Config, InvalidName, config};

/// What the instance calls its app as a client.
const CLIENT: &str = "fly-rpc-run";

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
    let port = config::app_port()?;
    let token = secret();
    serve.set_default("RPC_APP_URL", &format!("http://127.0.0.1:{port}/rpc"));
    serve.set_default("RPC_APP_TOKEN", &token);
    if again {
        serve.set_default("RPC_APP_ALLOW_ANONYMOUS", "true");
    }
    let mut config = serve::config(&serve)?;
    check_port(&config, port)?;
    let stop_timeout = config.app.as_ref().map(|app| app.stop_timeout);
    let mut environment = vec![("PORT", port.to_string())];
    if !config::is_set("RPC_APP_TOKEN") {
        environment.push(("RPC_APP_TOKEN", token));
    }
    environment.extend(own_client(&mut config)?);
    let serving = serve::start(serve, config, true).await?;
    let identity = serving.instance.identity();
    environment.extend([
        (
            "FLY_RPC_URL",
            format!("http://{}", serving.instance.child_address()),
        ),
        ("FLY_REGION", identity.region.to_string()),
        ("PRIMARY_REGION", identity.primary.to_string()),
    ]);
    let app = AppChild {
        command,
        environment,
        again,
        stop_timeout: stop_timeout.unwrap_or_default(),
    };
    let (status, drained) = beside(serving, app).await?;
    let by_signal = status.signal().map(|signal| 128 + signal);
    match status.code().or(by_signal) {
        Some(0) => drained,
        code => {
            let code = code.and_then(|code| u8::try_from(code).ok());
            Err(Failure::Reported(code.unwrap_or(1)))
        }
    }
}

/// Serves with `app` beside the instance, until a signal or the end of the app: how that ended, and how the instance did.
async fn beside(
    serving: Serving,
    app: AppChild,
) -> Result<(ExitStatus, Result<(), Failure>), Failure> {
    // `over` is cancelled when the app has ended, however it did: the guard goes with its task.
    let (stop, over) = (Stop::default(), CancellationToken::new());
    let kept = {
        let (stop, over) = (stop.clone(), over.clone());
        async move {
            let _over = over.drop_guard();
            app.keep(stop).await
        }
    };
    let kept = AbortOnDropHandle::new(tokio::spawn(kept));
    // It is stopped once the instance has drained, and may still call others until it has ended.
    let last = async |hurry: CancellationToken| {
        stop.soon.cancel();
        tokio::select! {
            () = over.cancelled() => {}
            () = hurry.cancelled() => stop.now.cancel(),
        }
        over.cancelled().await;
    };
    let drained = serving.until(over.clone().cancelled_owned(), last).await;
    let ended = kept.await;
    let status = ended.map_err(|error| Failure::Failed(error.to_string()))??;
    Ok((status, drained))
}

/// Who listens at the app's port cannot be this instance.
fn check_port(config: &Config, port: u16) -> Result<(), Failure> {
    let (internal, metrics) = (&config.internal_listen, &config.metrics_listen);
    let own = [
        ("RPC_LISTEN (--listen)", Some(&config.listen)),
        ("RPC_INTERNAL_LISTEN (--internal-listen)", internal.as_ref()),
        ("RPC_METRICS_LISTEN (--metrics-listen)", metrics.as_ref()),
    ];
    let end = format!(":{port}");
    for (setting, address) in own {
        if address.is_some_and(|address| address.ends_with(&end)) {
            return Err(Failure::Usage(format!(
                "PORT: {port} is the port of {setting}; the app needs one of its own"
            )));
        }
    }
    Ok(())
}

/// The token by which the app calls its own instance, where that knows its clients.
fn own_client(config: &mut Config) -> Result<Option<(&'static str, String)>, Failure> {
    if config.access.clients.is_empty() {
        return Ok(None);
    }
    let secret = secret();
    let client = format!("{CLIENT}:{secret}").parse();
    let client = client.map_err(|invalid: InvalidName| Failure::Failed(invalid.to_string()))?;
    config.access.clients.push(Arc::new(client));
    Ok(Some(("FLY_RPC_TOKEN", secret)))
}

pub(super) fn secret() -> String {
    let [high, low]: [u128; 2] = rand::random();
    format!("{high:032x}{low:032x}")
}
