//! `fly-rpc run -- COMMAND`: one instance, and the app beside it as a child process, started and stopped with it.

use std::{
    ffi::OsString,
    io,
    net::{Ipv4Addr, SocketAddr},
    os::{fd::AsFd, unix::process::ExitStatusExt},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    time,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Failure,
    serve::{self, ServeArgs},
};
use crate::{
    Client, Config, Identity, Token,
    config::{self, SETTINGS},
};

/// The pause before an app that ended is started again.
const AGAIN: Duration = Duration::from_secs(1);
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

/// What the app is started with.
struct App {
    command: Vec<OsString>,
    environment: Vec<(&'static str, String)>,
    again: bool,
    stop_timeout: Duration,
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
    let stop_timeout = config.app.as_ref().map_or(AGAIN, |app| app.stop_timeout);
    let mut environment = vec![("PORT", port.to_string())];
    if !config::is_set("RPC_APP_TOKEN") {
        environment.push(("RPC_APP_TOKEN", token));
    }
    environment.extend(own_client(&mut config)?);
    let serving = serve::start(serve, config).await?;
    environment.extend(whereabouts(
        serving.instance.identity(),
        serving.instance.address(),
    ));
    let app = App {
        command,
        environment,
        again,
        stop_timeout,
    };
    let stop = CancellationToken::new();
    let mut kept = AbortOnDropHandle::new(tokio::spawn(app.keep(stop.clone())));
    let mut ended = None;
    let drained = serving
        .until(async {
            ended = Some((&mut kept).await);
        })
        .await;
    stop.cancel();
    let ended = match ended {
        Some(ended) => ended,
        None => kept.await,
    };
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
    let mut reached = address;
    if address.ip().is_unspecified() {
        reached.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    vec![
        ("FLY_RPC_URL", format!("http://{reached}")),
        ("FLY_REGION", identity.region.to_string()),
        ("PRIMARY_REGION", identity.primary.to_string()),
    ]
}

fn secret() -> String {
    format!(
        "{:032x}{:032x}",
        rand::random::<u128>(),
        rand::random::<u128>()
    )
}

impl App {
    /// Runs it until it ends or is stopped; how it ended.
    async fn keep(self, stop: CancellationToken) -> io::Result<ExitStatus> {
        loop {
            let mut child = self.start()?;
            let status = tokio::select! {
                status = child.wait() => status?,
                () = stop.cancelled() => return self.stop(child).await,
            };
            if !self.again {
                tracing::error!(%status, "the app has ended");
                return Ok(status);
            }
            tracing::warn!(%status, "the app has ended; it is started again");
            tokio::select! {
                () = time::sleep(AGAIN) => {}
                () = stop.cancelled() => return Ok(ExitStatus::default()),
            }
        }
    }

    fn start(&self) -> io::Result<Child> {
        let (program, args) = self
            .command
            .split_first()
            .ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        // The instance's own settings, and the secrets among them, are none of the app's.
        let own = SETTINGS.iter().map(|setting| setting.variable);
        own.filter(|variable| variable.starts_with("RPC_") && *variable != "RPC_APP_TOKEN")
            .for_each(|variable| {
                command.env_remove(variable);
            });
        command.args(args).envs(self.environment.iter().cloned());
        // A group of its own: Ctrl-C reaches this process alone, which stops the app in order.
        command
            .process_group(0)
            .kill_on_drop(true)
            .stdin(Stdio::null());
        if self.again {
            command.stdout(io::stderr().as_fd().try_clone_to_owned()?);
        }
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", program.display()))
        };
        command.spawn().map_err(named)
    }

    /// SIGTERM to the app and what it started; SIGKILL when that takes too long.
    async fn stop(&self, mut child: Child) -> io::Result<ExitStatus> {
        let group = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .map(Pid::from_raw);
        let send = |signal| group.map(|group| killpg(group, signal));
        // What ends at this very moment needs no signal.
        let _ = send(Signal::SIGTERM);
        if let Ok(status) = time::timeout(self.stop_timeout, child.wait()).await {
            return status;
        }
        tracing::warn!(
            "the app did not stop within {:?}: killed",
            self.stop_timeout
        );
        let _ = send(Signal::SIGKILL);
        child.wait().await
    }
}
