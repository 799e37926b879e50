//! `fly-rpc completions`: a script by which a shell completes this program's commands and flags.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Failure, print};

/// Which shell.
#[derive(Args)]
#[command(after_help = "Examples:
  fly-rpc completions bash > ~/.local/share/bash-completion/completions/fly-rpc
  fly-rpc completions zsh > ~/.zfunc/_fly-rpc
  fly-rpc completions fish > ~/.config/fish/completions/fly-rpc.fish")]
pub(super) struct CompletionsArgs {
    /// The shell to write for
    shell: Shell,
}

/// Prints the script.
pub(super) fn run(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "fly-rpc", &mut script);
    print(String::from_utf8_lossy(&script).trim_end())
}
