//! `fly-rpc serve`: one instance with the built-in functions.

use std::{future, io, pin::pin, time::Duration};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use tokio::{task, time};
use tokio_util::sync::CancellationToken;

use super::{Failure, print};
use crate::{
    Config, Drained, Instance, Registry, SETTINGS, Setting, StartError, config, instance::Signals,
    server::raise_open_files, telemetry,
};

/// How long the last lines of the log may take after a second signal: they are lost where nobody reads stderr.
const LAST_LINES: Duration = Duration::from_millis(250);

const UNTIL_STDIN_CLOSES: &str = "until-stdin-closes";

/// The flags of `serve`: one for each setting, from the table of settings.
pub(super) struct ServeArgs {
    flags: Vec<(&'static str, String)>,
    until_stdin_closes: bool,
}

fn flags() -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().filter(|setting| !setting.flag.is_empty())
}

/// For the end of the help: the variables that are not flags.
pub(super) fn variables() -> String {
    let row = |setting: &Setting| {
        let Setting {
            variable,
            value,
            default,
            help,
            ..
        } = setting;
        format!("\n  {variable} <{value}>\n          {help} [default: {default}]")
    };
    let rows = SETTINGS.iter().filter(|setting| setting.flag.is_empty());
    let rows: String = rows.map(row).collect();
    format!("Variables without a flag:{rows}")
}

impl Args for ServeArgs {
    fn augment_args(command: Command) -> Command {
        let flags = flags().map(|setting| {
            let (variable, default) = (setting.variable, setting.default);
            let help = format!(
                "{} [variable: {variable}] [default: {default}]",
                setting.help
            );
            Arg::new(variable)
                .long(setting.flag)
                .value_name(setting.value)
                .help(help)
        });
        // For `dev`: a child must not outlive it, however it ends.
        let until_stdin_closes = Arg::new(UNTIL_STDIN_CLOSES)
            .long(UNTIL_STDIN_CLOSES)
            .action(ArgAction::SetTrue)
            .hide(true);
        command.args(flags).arg(until_stdin_closes)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ServeArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |setting: &'static Setting| {
            let value = matches.get_one::<String>(setting.variable)?;
            Some((setting.variable, value.clone()))
        };
        Ok(Self {
            flags: flags().filter_map(given).collect(),
            until_stdin_closes: matches.get_flag(UNTIL_STDIN_CLOSES),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// An instance that serves, and what must last as long.
pub(super) struct Started {
    pub(super) instance: Instance,
    /// How many files the process might have open before it started, if it may have more now.
    pub(super) files: Option<u64>,
    /// Cancelled by a signal while it stops: what is left ends at once.
    pub(super) hurry: CancellationToken,
    signals: Signals,
    until_stdin_closes: bool,
    log: telemetry::Guard,
}

pub(super) async fn run(args: ServeArgs) -> Result<(), Failure> {
    let config = config(&args)?;
    let serving = start(args, config, false).await?;
    serving.until(future::pending(), future::ready(())).await
}

pub(super) fn config(args: &ServeArgs) -> Result<Config, Failure> {
    Ok(Config::from_env_and_flags(args.flags.iter().cloned())?)
}

impl ServeArgs {
    /// The same with `value` for the setting `variable`, unless a flag or the environment has another.
    pub(super) fn set_default(&mut self, variable: &'static str, value: &str) {
        let has_flag = self.flags.iter().any(|(name, _)| *name == variable);
        if !has_flag && !config::is_set(variable) {
            self.flags.push((variable, value.to_owned()));
        }
    }
}

impl Started {
    /// Serves until a signal or `stop`, then drains, and waits for `last` before everything else ends. Another signal hurries
    /// whatever of that is left.
    pub(super) async fn until(
        mut self,
        stop: impl Future<Output = ()> + Send,
        last: impl Future<Output = ()>,
    ) -> Result<(), Failure> {
        // Spawned only when it is polled, which a disabled branch is not.
        let stdin_closes = async {
            let read = || io::copy(&mut io::stdin(), &mut io::sink());
            task::spawn_blocking(read).await
        };
        let stop = async {
            tokio::select! {
                () = stop => {}
                // This read cannot be cancelled; the end of the program does not wait for it.
                _ = stdin_closes, if self.until_stdin_closes => {}
            }
        };
        let drained = self
            .instance
            .drain_after(stop, &mut self.signals, &self.hurry)
            .await;
        let drained_child = {
            let mut rest = pin!(async {
                last.await;
                self.instance.drain_child(&self.hurry).await
            });
            tokio::select! {
                drained = &mut rest => drained,
                () = self.signals.next() => {
                    self.hurry.cancel();
                    rest.await
                }
            }
        };
        self.instance.end().await;
        let is_whole = (drained, drained_child) == (Drained::Whole, Drained::Whole);
        match is_whole {
            true if !self.hurry.is_cancelled() => {}
            true => tracing::warn!("a second signal: stopped at once; no call was in flight"),
            false => tracing::error!("stopped before everything in flight was finished"),
        }
        self.end_log().await;
        match is_whole {
            true => Ok(()),
            false => Err(Failure::Reported(1)),
        }
    }

    /// Waits until the last lines and spans are written; in a hurry only for the lines, and not for long. Another signal ends
    /// the wait.
    async fn end_log(self) {
        let Self {
            log,
            hurry,
            mut signals,
            ..
        } = self;
        // On threads of their own, because they block; the end of the program does not wait for those.
        let flushed = task::spawn_blocking(|| {
            log.flush();
            log
        });
        let ended = async {
            let log = flushed.await;
            let exported = task::spawn_blocking(|| drop(log));
            tokio::select! {
                _ = exported => {}
                () = hurry.cancelled() => {}
            }
        };
        let late = async {
            hurry.cancelled().await;
            time::sleep(LAST_LINES).await;
        };
        tokio::select! {
            () = ended => {}
            () = late => {}
            () = signals.next() => {}
        }
    }
}

/// Says on stdout where the instance listens. It serves also where that cannot be said, as on a disk that is full.
fn announce(text: &str) {
    if let Err(Failure::Failed(error)) = print(text) {
        tracing::warn!(%error, text, "stdout cannot be written");
    }
}

/// Starts to serve, also to a child of this process where it has one.
pub(super) async fn start(
    args: ServeArgs,
    config: Config,
    has_child: bool,
) -> Result<Started, Failure> {
    let (service, untraced) = match config::traced_service() {
        // An app may export its traces as this program cannot.
        Err(why) if has_child => (None, Some(why)),
        service => (service?, None),
    };
    let log = telemetry::init(&config, service).map_err(Failure::Failed)?;
    if let Some(why) = untraced {
        tracing::warn!(%why, "the app may export traces, the instance does not");
    }
    let files = raise_open_files()
        .inspect_err(|error| tracing::warn!(%error, "the limit of open files cannot be raised"));
    // Before the address is printed, so that a signal which comes then drains the instance.
    let signals = Signals::listen()?;
    // The functions of an app take the place of the built-in ones.
    let registry = match &config.app {
        Some(_) => Registry::new(),
        None => Registry::builtin(),
    };
    let started = Instance::launch(config, registry, None, has_child).await;
    let instance = started.map_err(|error| match error {
        StartError::Config(_) | StartError::Registry(_) => Failure::Usage(error.to_string()),
        StartError::Listen { .. } | StartError::Discovery(_) => Failure::Failed(error.to_string()),
    })?;
    let identity = instance.identity();
    announce(&format!(
        "listening on http://{} (region {}, primary {}, instance {})",
        instance.address(),
        identity.region,
        identity.primary,
        identity.instance
    ));
    if instance.internal_address() != instance.address() {
        announce(&format!(
            "listening for instances on http://{}",
            instance.internal_address()
        ));
    }
    if let Some(address) = instance.metrics_address() {
        announce(&format!("listening for scrapers on http://{address}"));
    }
    Ok(Started {
        instance,
        files: files.ok(),
        hurry: CancellationToken::new(),
        signals,
        until_stdin_closes: args.until_stdin_closes,
        log,
    })
}
