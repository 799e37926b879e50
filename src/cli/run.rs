//! `fly-rpc run -- COMMAND`: one instance, and the app beside it as a child process: started, kept running where that is
//! wanted, and stopped with what it started.

use std::{
    convert::Infallible,
    env,
    ffi::OsString,
    io,
    os::{
        fd::AsFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{self, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
#[cfg(target_os = "linux")]
use tokio::signal::unix::{SignalKind, signal};
use tokio::{
    process::{Child, Command},
    time::{self, Instant},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Failure, say,
    serve::{self, ServeArgs, Started},
};
use crate::{
    Config, InvalidName,
    config::{self, SETTINGS},
    name::random_word,
    server::lower_open_files,
};

/// The subcommand that becomes the app.
pub(super) const BECOME: &str = "become-app";
/// What runs this very program on Linux, also after its file was replaced.
const MYSELF: &str = "/proc/self/exe";
/// The pause before an app that ended is started again; each one is twice as long as the one before.
const PAUSE: Duration = Duration::from_millis(200);
/// The longest of these.
const LONGEST: Duration = Duration::from_secs(10);
/// An app that ran for so long did not end because of how it starts: the next pause is the first again.
const STEADY: Duration = Duration::from_secs(10);
/// The pause before another look at processes whose end nothing announces.
const LOOK: Duration = Duration::from_millis(20);
/// How long what was killed may take to be gone; what another user runs cannot be killed.
const KILLED: Duration = Duration::from_secs(1);
/// What a shell says of a command that cannot be run.
const NOT_RUN: u8 = 127;
/// What a shell, or the command itself, says of one that SIGTERM ended.
const TERMINATED: i32 = 128 + 15;

/// The variable with the token by which the app calls its instance.
const CLIENT_TOKEN: &str = "FLY_RPC_TOKEN";
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
    // A client for the app is added before the instance starts: who it lets in does not change later.
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
        files: serving.files,
        again,
        stop_timeout: stop_timeout.unwrap_or_default(),
    };
    let (ended, drained) = beside(serving, app).await?;
    match ended.code() {
        0 => drained,
        code => Err(Failure::Reported(code)),
    }
}

/// Serves with `app` beside the instance, until a signal or the end of the app. Returns how the app ended, and how the
/// instance did.
async fn beside(serving: Started, app: AppChild) -> Result<(AppEnd, Result<(), Failure>), Failure> {
    // `over` is cancelled when the app has ended, however it did: the guard goes with its task.
    let (stop, over) = (CancellationToken::new(), CancellationToken::new());
    let kept = app.keep(stop.clone(), serving.hurry.clone());
    let ended = over.clone().drop_guard();
    let kept = AbortOnDropHandle::new(tokio::spawn(async move {
        let _ended = ended;
        kept.await
    }));
    // It is stopped once the instance has drained, and may still call others until it has ended.
    let last = async {
        stop.cancel();
        over.cancelled().await;
    };
    let drained = serving.until(over.clone().cancelled_owned(), last).await;
    let ended = kept.await;
    let ended = ended.map_err(|error| Failure::Failed(error.to_string()))??;
    Ok((ended, drained))
}

/// Refuses a port for the app at which this instance listens itself.
fn check_port(config: &Config, port: u16) -> Result<(), Failure> {
    let (internal, metrics) = (&config.internal_listen, &config.metrics_listen);
    let own = [
        ("RPC_LISTEN (--listen)", Some(&config.listen)),
        ("RPC_INTERNAL_LISTEN (--internal-listen)", internal.as_ref()),
        ("RPC_METRICS_LISTEN (--metrics-listen)", metrics.as_ref()),
    ];
    for (setting, address) in own {
        let own_port = address.and_then(|address| address.rsplit(':').next()?.parse().ok());
        if own_port == Some(port) {
            return Err(Failure::Usage(format!(
                "PORT: {port} is the port of {setting}; the app needs one of its own"
            )));
        }
    }
    Ok(())
}

/// The token by which the app calls its own instance, if that asks its clients for one.
fn own_client(config: &mut Config) -> Result<Option<(&'static str, String)>, Failure> {
    if config.access.clients.is_empty() {
        return Ok(None);
    }
    if config
        .access
        .clients
        .iter()
        .any(|client| client.name.as_str() == CLIENT)
    {
        let wrong = format!(
            "RPC_CLIENT_TOKENS: {CLIENT} is what the app's own client is called; choose another name"
        );
        return Err(Failure::Usage(wrong));
    }
    let secret = secret();
    let client = format!("{CLIENT}:{secret}").parse();
    let client = client.map_err(|invalid: InvalidName| Failure::Failed(invalid.to_string()))?;
    config.access.clients.push(Arc::new(client));
    Ok(Some((CLIENT_TOKEN, secret)))
}

pub(super) fn secret() -> String {
    random_word() + &random_word()
}

/// How the app ended.
#[derive(Default)]
struct AppEnd {
    status: ExitStatus,
    /// Whether it was sent SIGTERM before.
    was_stopped: bool,
}

impl AppEnd {
    /// The exit code that says so: its own, or 128 and the number of its signal. An app that ended by the SIGTERM that it was
    /// sent ended well, as most programs do.
    fn code(&self) -> u8 {
        let by_signal = self.status.signal().map(|signal| 128 + signal);
        match self.status.code().or(by_signal) {
            Some(TERMINATED) if self.was_stopped => 0,
            code => code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
        }
    }
}

struct AppChild {
    command: Vec<OsString>,
    environment: Vec<(&'static str, String)>,
    /// How many files it may have open, where that is less than this process may.
    files: Option<u64>,
    /// For `dev`: it is started again when it ends, and what it prints goes to stderr.
    again: bool,
    stop_timeout: Duration,
}

impl AppChild {
    /// Runs the app until it ends. It is ended by `stop`, for which it has its stop timeout, and by `hurry` at once. Returns
    /// how it ended.
    async fn keep(self, stop: CancellationToken, hurry: CancellationToken) -> io::Result<AppEnd> {
        let mut pause = PAUSE;
        loop {
            let (child, group) = self.start()?;
            let (status, ran) = tokio::select! {
                ended = self.run(child, group, &stop, &hurry) => ended?,
                Err(error) = reap_orphans(group) => return Err(error),
            };
            let ended = AppEnd {
                status,
                was_stopped: ran.is_none(),
            };
            let Some(ran) = ran else {
                return Ok(ended);
            };
            if !self.again {
                tracing::error!(%status, "the app has ended");
                return Ok(ended);
            }
            if ran >= STEADY {
                pause = PAUSE;
            }
            tracing::warn!(%status, "the app has ended; it is started again in {pause:?}");
            tokio::select! {
                () = time::sleep(pause) => {}
                () = stop.cancelled() => return Ok(AppEnd::default()),
            }
            pause = (pause * 2).min(LONGEST);
        }
    }

    /// Waits until the app ends or is to `stop`, and then stops what is left of its `group`. Returns how it ended, and how
    /// long it ran if it ended by itself.
    async fn run(
        &self,
        mut child: Child,
        group: Pid,
        stop: &CancellationToken,
        hurry: &CancellationToken,
    ) -> io::Result<(ExitStatus, Option<Duration>)> {
        let started = Instant::now();
        let ran = tokio::select! {
            status = child.wait() => {
                let status = status?;
                if !is_empty(group) {
                    tracing::warn!(%status, "the app has ended, and what it started has not: that is stopped");
                }
                Some(started.elapsed())
            }
            () = stop.cancelled() => None,
        };
        Ok((self.stop(child, group, hurry).await?, ran))
    }

    /// Starts it as the first process of a group, whose id is its own.
    fn start(&self) -> io::Result<(Child, Pid)> {
        // This program, which becomes the command: a process must ask for itself to be killed when its parent ends.
        let mut command = match cfg!(target_os = "linux") {
            true => Command::new(MYSELF),
            false => Command::new(env::current_exe()?),
        };
        command.arg(BECOME).arg(process::id().to_string());
        command
            .args(self.files.map(|files| files.to_string()))
            .arg("--");
        // The instance's own settings, and the secrets among them, are not for the app; nor is a token for another instance than
        // the app is told to ask. What exporters of traces read is for both.
        let settings = SETTINGS.iter().map(|setting| setting.variable);
        let own = settings.filter(|name| name.starts_with("RPC_") && *name != "RPC_APP_TOKEN");
        for variable in own.chain([CLIENT_TOKEN]) {
            command.env_remove(variable);
        }
        command
            .args(&self.command)
            .envs(self.environment.iter().cloned());
        // A group of its own: Ctrl-C reaches this process alone, which stops the app in order.
        command
            .process_group(0)
            .kill_on_drop(true)
            .stdin(Stdio::null());
        if self.again {
            command.stdout(io::stderr().as_fd().try_clone_to_owned()?);
        }
        let child = command.spawn()?;
        let group = pid_of(&child).ok_or_else(|| io::Error::other("the app has no process id"))?;
        Ok((child, group))
    }

    /// SIGTERM to the app and what it started, or to what is left of them; SIGKILL when that takes too long, or the program is in
    /// a `hurry`. None of them runs any more when this returns.
    async fn stop(
        &self,
        mut child: Child,
        group: Pid,
        hurry: &CancellationToken,
    ) -> io::Result<ExitStatus> {
        // What has ended needs no signal.
        let _ = killpg(group, Signal::SIGTERM);
        let ended = async {
            let status = child.wait().await;
            until_empty(group).await;
            status
        };
        let timeout = self.stop_timeout;
        tokio::select! {
            status = ended => return status,
            () = time::sleep(timeout) => tracing::warn!("the app did not stop within {timeout:?}: killed"),
            () = hurry.cancelled() => tracing::warn!("a second signal: the app is killed"),
        }
        let _ = killpg(group, Signal::SIGKILL);
        let status = child.wait().await;
        if time::timeout(KILLED, until_empty(group)).await.is_err() {
            tracing::error!("a process that the app started cannot be killed");
        }
        status
    }
}

/// Waits until a group of processes is empty. It looks again and again: most of them are not children of this process.
async fn until_empty(group: Pid) {
    while !is_empty(group) {
        time::sleep(LOOK).await;
    }
}

/// Whether a group of processes is empty. A process that has ended counts until it was waited for. No other process gets the
/// id of a group that is not empty.
fn is_empty(group: Pid) -> bool {
    killpg(group, None) == Err(Errno::ESRCH)
}

/// The id of a process, as long as it was not waited for.
pub(super) fn pid_of(child: &Child) -> Option<Pid> {
    let id = child.id()?;
    Some(Pid::from_raw(i32::try_from(id).ok()?))
}

/// Adopts the orphans of the `app`, as process 1 of a container does, and reaps each that has ended. Until it is reaped it
/// counts in its group, and whoever is process 1 may take its time.
#[cfg(target_os = "linux")]
async fn reap_orphans(app: Pid) -> io::Result<Infallible> {
    use nix::sys::{
        prctl::set_child_subreaper,
        wait::{Id, WaitPidFlag, waitid, waitpid},
    };

    set_child_subreaper(true)?;
    // Without reaping it: the app itself is left to `Child::wait`.
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    let mut ends = signal(SignalKind::child())?;
    loop {
        match waitid(Id::All, look).ok().and_then(|ended| ended.pid()) {
            // Orphans may be behind it in the queue, and no signal tells when it was reaped.
            Some(pid) if pid == app => time::sleep(LOOK).await,
            Some(orphan) => {
                let _ = waitpid(orphan, Some(WaitPidFlag::WNOHANG));
            }
            None => {
                ends.recv().await;
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
async fn reap_orphans(_: Pid) -> io::Result<Infallible> {
    std::future::pending().await
}

/// Becomes the app, in a process that the system kills when its parent ends, however that ends: an app that was left behind
/// would hold the port that the next one needs.
pub(super) fn become_app(
    parent: u32,
    files: Option<u64>,
    command: &[OsString],
) -> Result<(), Failure> {
    end_with_parent(parent)?;
    files.map(lower_open_files).transpose()?;
    let Some((program, rest)) = command.split_first() else {
        return Err(Failure::Reported(NOT_RUN));
    };
    let error = process::Command::new(program).args(rest).exec();
    say(&format!("fly-rpc: {}: {error}", program.display()));
    Err(Failure::Reported(NOT_RUN))
}

#[cfg(target_os = "linux")]
fn end_with_parent(parent: u32) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have ended before that call.
    match nix::unistd::getppid().as_raw() == i32::try_from(parent).unwrap_or(0) {
        true => Ok(()),
        false => Err(io::Error::other(
            "the process that started this one has ended",
        )),
    }
}

#[cfg(not(target_os = "linux"))]
fn end_with_parent(_: u32) -> io::Result<()> {
    Ok(())
}
