//! `fly-rpc completions`: a script by which a shell completes this program's commands and flags.

use clap::{Arg, Args, Command, CommandFactory};
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
        &mut offered(Cli::command()),
        "fly-rpc",
        &mut script,
    );
    print(String::from_utf8_lossy(&script).trim_end())
}

/// `command` with what is not hidden: `clap_complete` offers everything, and `clap` takes nothing out again.
fn offered(mut command: Command) -> Command {
    let shown = |arg: &&Arg| !arg.is_hide_set();
    for subcommand in command.get_subcommands_mut() {
        let args: Vec<Arg> = subcommand.get_arguments().filter(shown).cloned().collect();
        let about = subcommand.get_about().cloned().unwrap_or_default();
        *subcommand = Command::new(subcommand.get_name().to_owned())
            .about(about)
            .args(args);
    }
    command
}
