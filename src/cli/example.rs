//! `fly-rpc example LANG`: a whole small app, to be saved and run.

use clap::{Args, ValueEnum};

use super::{Failure, print};

/// Which app to print.
#[derive(Args)]
#[command(after_help = "Example:
  fly-rpc example python > app.py
  fly-rpc dev --regions iad,syd -- python3 app.py")]
pub(super) struct ExampleArgs {
    language: Language,
}

/// The languages of the apps in `examples/apps`.
#[derive(Clone, Copy, ValueEnum)]
enum Language {
    Python,
    Node,
    Go,
}

/// Prints the app.
pub(super) fn run(args: &ExampleArgs) -> Result<(), Failure> {
    let text = match args.language {
        Language::Python => include_str!("../../examples/apps/python/app.py"),
        Language::Go => include_str!("../../examples/apps/go/app.go"),
        Language::Node => include_str!("../../examples/apps/node/app.mjs"),
    };
    print(text.trim_end())
}
