//! `fly-rpc completions`: a script by which a shell completes this program's commands and flags.

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Failure, print};

#[derive(Args)]
#[command(after_help = "Examples:
  fly-rpc completions bash > ~/.local/share/bash-completion/completions/fly-rpc
  fly-rpc completions zsh > ~/.zfunc/_fly-rpc
  fly-rpc completions fish > ~/.config/fish/completions/fly-rpc.fish")]
pub(super) struct CompletionsArgs {
    /// The shell to write for
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(
        args.shell,
        &mut offered(&Cli::command()).version(env!("CARGO_PKG_VERSION")),
        "fly-rpc",
        &mut script,
    );
    print(String::from_utf8_lossy(&script).trim_end())
}

/// `command` with what is not hidden: `clap_complete` offers everything, and `clap` takes nothing out again.
fn offered(command: &Command) -> Command {
    let args = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let commands = command.get_subcommands().filter(|it| !it.is_hide_set());
    Command::new(command.get_name().to_owned())
        .about(command.get_about().cloned().unwrap_or_default())
        .args(args.cloned())
        .subcommands(commands.map(offered))
}
