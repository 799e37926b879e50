//! The app as a child of `fly-rpc run`: started, kept running where that is wanted, and stopped with what it started.

use std::{
    env,
    ffi::OsString,
    io,
    os::{fd::AsFd, unix::process::CommandExt},
    process::{self, ExitStatus, Stdio},
    time::Duration,
};

use clap::Args;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{Failure, say};
use crate::config::SETTINGS;

/// The subcommand that becomes the app.
pub(super) const BECOME: &str = "become-app";
/// What runs this very program on Linux, also after its file was replaced.
const MYSELF: &str = "/proc/self/exe";
/// The pause before an app that ended is started again; each one is twice as long as the one before.
const PAUSE: Duration = Duration::from_millis(200);
/// The longest of these.
const LONGEST: Duration = Duration::from_secs(10);
/// How long an app runs that did not end because of how it starts: the next pause is the first again.
const STEADY: Duration = Duration::from_secs(10);
/// What a shell says of a command that cannot be run.
const NOT_RUN: u8 = 127;

/// How an app is run.
pub(super) struct AppChild {
    pub(super) command: Vec<OsString>,
    pub(super) environment: Vec<(&'static str, String)>,
    /// For `dev`: it is started again when it ends, and what it prints goes to stderr.
    pub(super) again: bool,
    pub(super) stop_timeout: Duration,
}

/// Stops an app.
#[derive(Clone, Default)]
pub(super) struct Stop {
    /// Cancelled to let it stop within `stop_timeout`.
    pub(super) soon: CancellationToken,
    /// Cancelled to kill it.
    pub(super) now: CancellationToken,
}

impl AppChild {
    /// Runs it until it ends or is stopped; how it ended.
    pub(super) async fn keep(self, stop: Stop) -> io::Result<ExitStatus> {
        let mut pause = PAUSE;
        loop {
            let started = Instant::now();
            let mut child = self.start()?;
            let status = tokio::select! {
                status = child.wait() => status?,
                () = stop.soon.cancelled() => return self.stop(child, &stop.now).await,
            };
            if !self.again {
                tracing::error!(%status, "the app has ended");
                return Ok(status);
            }
            if started.elapsed() >= STEADY {
                pause = PAUSE;
            }
            tracing::warn!(%status, "the app has ended; it is started again in {pause:?}");
            tokio::select! {
                () = time::sleep(pause) => {}
                () = stop.soon.cancelled() => return Ok(ExitStatus::default()),
            }
            pause = (pause * 2).min(LONGEST);
        }
    }

    fn start(&self) -> io::Result<Child> {
        // This program, which becomes the command: a process must ask for itself to be killed when its parent ends.
        let mut command = match cfg!(target_os = "linux") {
            true => Command::new(MYSELF),
            false => Command::new(env::current_exe()?),
        };
        command.arg(BECOME).arg(process::id().to_string()).arg("--");
        // The instance's own settings, and the secrets among them, are not for the app.
        for variable in SETTINGS.iter().map(|setting| setting.variable) {
            if variable.starts_with("RPC_") && variable != "RPC_APP_TOKEN" {
                command.env_remove(variable);
            }
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
        command.spawn()
    }

    /// SIGTERM to the app and what it started; SIGKILL when that takes too long, or is to end `now`.
    async fn stop(&self, mut child: Child, now: &CancellationToken) -> io::Result<ExitStatus> {
        let group = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .map(Pid::from_raw);
        let send = |signal| group.map(|group| killpg(group, signal));
        // What ends at this very moment needs no signal.
        let _ = send(Signal::SIGTERM);
        let timeout = self.stop_timeout;
        tokio::select! {
            status = child.wait() => return status,
            () = time::sleep(timeout) => tracing::warn!("the app did not stop within {timeout:?}: killed"),
            () = now.cancelled() => tracing::warn!("a second signal: the app is killed"),
        }
        let _ = send(Signal::SIGKILL);
        child.wait().await
    }
}

#[derive(Args)]
pub(super) struct BecomeArgs {
    /// The process that starts it
    parent: u32,
    /// The command of the app
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes the app, which the system ends when its parent has ended, however that did: an app that was left behind would
/// hold the port that its next one needs.
pub(super) fn become_app(args: &BecomeArgs) -> Result<(), Failure> {
    end_with_parent(args.parent)?;
    let Some((program, rest)) = args.command.split_first() else {
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
