//! The command line: what can be asked, and with which exit code it ends. Data goes to stdout, messages to stderr.

mod ask;
mod call;
#[cfg(feature = "dev")]
mod dev;
mod functions;
mod ready;
mod regions;
mod run;
mod serve;
mod table;
#[cfg(feature = "https")]
mod tls;

use std::{
    ffi::OsString,
    fmt,
    io::{self, Write},
    process::ExitCode,
};

use clap::{CommandFactory, Parser, ValueEnum, error::ErrorKind};
use clap_complete::Shell;

use crate::{ConfigError, name::FunctionName};

/// Wrong usage or configuration: `EX_USAGE` of sysexits.
const USAGE: u8 = 64;

/// Run a named function in a chosen region.
#[derive(Parser)]
#[command(name = "fly-rpc", version, arg_required_else_help = true)]
#[command(
    after_help = "Data goes to stdout, messages to stderr. Exit codes: 0 done, 1 the call or the command failed, \
    64 wrong usage or configuration."
)]
enum Command {
    /// Run one instance
    #[command(after_help = serve::variables())]
    Serve(serve::ServeArgs),
    /// Run one instance and the app beside it
    Run(run::RunArgs),
    /// For `run`: become the app that it runs
    #[command(name = run::BECOME, hide = true)]
    Become {
        /// The process that starts it
        parent: u32,
        /// How many files it may have open
        files: Option<u64>,
        /// The command of the app
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Run a whole cluster on this machine, to try things out
    #[cfg(feature = "dev")]
    Dev(dev::DevArgs),
    /// Print a whole small app in a language
    #[command(after_help = "Examples:
  fly-rpc example python > app.py      then: fly-rpc dev --regions iad,syd -- python3 app.py
  fly-rpc example flask > app.py       then: fly-rpc dev --regions iad,syd -- python3 app.py
  fly-rpc example node > app.mjs       then: fly-rpc dev --regions iad,syd -- node app.mjs
  fly-rpc example go > app.go          then: go build app.go && fly-rpc dev --regions iad,syd -- ./app
  fly-rpc example ruby > config.ru     then: fly-rpc dev --regions iad,syd -- sh -c 'exec puma -b tcp://127.0.0.1:$PORT'
  fly-rpc example elixir > app.exs     then: fly-rpc dev --regions iad,syd -- elixir app.exs")]
    Example { language: Language },
    /// Call a function in a region
    Call(call::CallArgs),
    /// List the regions and their instances
    Regions(regions::RegionsArgs),
    /// Explain where calls for a region would run, and why not elsewhere
    Explain(regions::ExplainArgs),
    /// List the functions of an instance, or check an app
    Functions(functions::FunctionsArgs),
    /// Check whether an instance takes calls
    Ready(ready::ReadyArgs),
    /// Print the OpenAPI document, of the service or of an app
    Openapi(functions::OpenapiArgs),
    /// Print a script by which a shell completes commands and flags
    #[command(after_help = "Examples:
  fly-rpc completions bash > ~/.local/share/bash-completion/completions/fly-rpc
  fly-rpc completions zsh > ~/.zfunc/_fly-rpc
  fly-rpc completions fish > ~/.config/fish/completions/fly-rpc.fish")]
    Completions {
        /// The shell to write for
        shell: Shell,
    },
}

/// The apps in `examples/apps`.
#[derive(Clone, Copy, ValueEnum)]
enum Language {
    /// Python 3 and nothing else
    Python,
    /// Python with Flask
    Flask,
    /// Node with Express
    Node,
    /// Go's net/http
    Go,
    /// Ruby with Rack and Puma
    Ruby,
    /// Elixir with Plug and Bandit
    Elixir,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Wrong usage or configuration.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Failed(String),
    /// Everything about it is on stderr already; the program ends with this code.
    #[error("")]
    Reported(u8),
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<http::Error> for Failure {
    fn from(error: http::Error) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Runs the program: 0 when it did what it was asked, 1 when that failed, 64 when it was asked wrongly.
pub fn main() -> ExitCode {
    let command = match Command::try_parse() {
        Ok(command) => command,
        Err(error) => {
            // Without a terminal there is nowhere to print it.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(USAGE),
            };
        }
    };
    let done = tokio::runtime::Runtime::new()
        .map_err(Failure::from)
        .and_then(|runtime| {
            let done = runtime.block_on(run(command));
            // A blocking function that outlived its deadline must not hold up the exit.
            runtime.shutdown_background();
            done
        });
    let (code, message) = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => (USAGE, message),
        Err(Failure::Failed(message)) => (1, message),
        Err(Failure::Reported(code)) => return ExitCode::from(code),
    };
    say(&format!("fly-rpc: {message}"));
    ExitCode::from(code)
}

async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => serve::run(args).await,
        Command::Run(args) => run::run(args).await,
        Command::Become {
            parent,
            files,
            command,
        } => run::become_app(parent, files, &command),
        #[cfg(feature = "dev")]
        Command::Dev(args) => dev::run(args).await,
        Command::Example { language } => example(language),
        Command::Call(args) => call::run(args).await,
        Command::Regions(args) => regions::run(args).await,
        Command::Explain(args) => regions::explain(args).await,
        Command::Functions(args) => functions::run(args).await,
        Command::Ready(args) => ready::run(args).await,
        Command::Openapi(args) => functions::openapi(args).await,
        Command::Completions { shell } => completions(shell),
    }
}

/// A whole small app, to be saved and run.
fn example(language: Language) -> Result<(), Failure> {
    let text = match language {
        Language::Python => include_str!("../../examples/apps/python/app.py"),
        Language::Flask => include_str!("../../examples/apps/flask/app.py"),
        Language::Node => include_str!("../../examples/apps/node/app.mjs"),
        Language::Go => include_str!("../../examples/apps/go/app.go"),
        Language::Ruby => include_str!("../../examples/apps/ruby/config.ru"),
        Language::Elixir => include_str!("../../examples/apps/elixir/app.exs"),
    };
    print(text.trim_end())
}

/// A script by which a shell completes the commands and their flags.
fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(
        shell,
        &mut offered(&Command::command()).version(env!("CARGO_PKG_VERSION")),
        "fly-rpc",
        &mut script,
    );
    print(String::from_utf8_lossy(&script).trim_end())
}

/// `command` with what is not hidden: `clap_complete` offers everything, and `clap` takes nothing out again.
fn offered(command: &clap::Command) -> clap::Command {
    let args = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let commands = command.get_subcommands().filter(|it| !it.is_hide_set());
    clap::Command::new(command.get_name().to_owned())
        .about(command.get_about().cloned().unwrap_or_default())
        .args(args.cloned())
        .subcommands(commands.map(offered))
}

/// The function that was typed.
fn function(text: &str) -> Result<FunctionName, Failure> {
    let wrong = || {
        let what = "is not MODULE.FUNCTION, such as String.upcase";
        Failure::Usage(format!("{text:?} {what}"))
    };
    FunctionName::of(text).ok_or_else(wrong)
}

/// Prints data, on stdout.
fn print(text: &str) -> Result<(), Failure> {
    match write_out(format_args!("{text}\n")) {
        // The reader has enough, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}

fn write_out(text: fmt::Arguments<'_>) -> io::Result<()> {
    let mut stdout = anstream::stdout().lock();
    stdout.write_fmt(text)?;
    stdout.flush()
}

/// Prints a message, on stderr.
fn say(text: &str) {
    // Without a stderr there is nowhere to say so.
    let _ = writeln!(anstream::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Command::command().debug_assert();
    }
}
