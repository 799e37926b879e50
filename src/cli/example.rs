//! `fly-rpc example LANG`: a whole small app, to be saved and run.

use clap::{Args, ValueEnum};

use super::{Failure, print};

#[derive(Args)]
#[command(after_help = "Examples:
  fly-rpc example python > app.py      then: fly-rpc dev --regions iad,syd -- python3 app.py
  fly-rpc example flask > app.py       then: fly-rpc dev --regions iad,syd -- python3 app.py
  fly-rpc example node > app.mjs       then: fly-rpc dev --regions iad,syd -- node app.mjs
  fly-rpc example go > app.go          then: go build app.go && fly-rpc dev --regions iad,syd -- ./app
  fly-rpc example ruby > config.ru     then: fly-rpc dev --regions iad,syd -- sh -c 'exec puma -b tcp://127.0.0.1:$PORT'
  fly-rpc example elixir > app.exs     then: fly-rpc dev --regions iad,syd -- elixir app.exs")]
pub(super) struct ExampleArgs {
    language: Language,
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

pub(super) fn run(args: &ExampleArgs) -> Result<(), Failure> {
    let text = match args.language {
        Language::Python => include_str!("../../examples/apps/python/app.py"),
        Language::Flask => include_str!("../../examples/apps/flask/app.py"),
        Language::Node => include_str!("../../examples/apps/node/app.mjs"),
        Language::Go => include_str!("../../examples/apps/go/app.go"),
        Language::Ruby => include_str!("../../examples/apps/ruby/config.ru"),
        Language::Elixir => include_str!("../../examples/apps/elixir/app.exs"),
    };
    print(text.trim_end())
}
