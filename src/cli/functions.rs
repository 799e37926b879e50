//! `fly-rpc functions`: the functions of one instance, a line each; or a look at an app before an instance has one.
//! `fly-rpc openapi`: the document of the service, or of an app, with an operation for each function that it declares.

use clap::Args;

use super::{Failure, ask::AskArgs, print, say};
use crate::{
    AppUrl,
    app::{self, Listing},
    config::{self, settings::shown},
    http::openapi_with,
    json, openapi_json,
    protocol::Catalogue,
    telemetry::printable_json,
};

#[derive(Args)]
#[command(after_help = "Examples:
  fly-rpc functions
  RPC_APP_TOKEN=… fly-rpc functions --app-url http://127.0.0.1:3000/rpc")]
pub(super) struct FunctionsArgs {
    #[command(flatten)]
    ask: AskArgs,
    /// Check the app at this URL instead: what it lists, what is wrong with the list, and whether it lets anybody in. It is
    /// sent the token in `RPC_APP_TOKEN`
    #[arg(long, value_name = "URL", conflicts_with_all = ["url", "json"])]
    app_url: Option<String>,
}

#[derive(Args)]
#[command(after_help = "Examples:
  fly-rpc openapi
  RPC_APP_TOKEN=… fly-rpc openapi --app-url http://127.0.0.1:3000/rpc > openapi.json")]
pub(super) struct OpenapiArgs {
    /// Add an operation for each function of the app at this URL that declares its parameters. It is sent the token in
    /// `RPC_APP_TOKEN`
    #[arg(long, value_name = "URL")]
    app_url: Option<String>,
}

pub(super) async fn run(args: FunctionsArgs) -> Result<(), Failure> {
    match args.app_url {
        Some(url) => check(&url).await,
        None => list(args.ask).await,
    }
}

pub(super) async fn openapi(args: OpenapiArgs) -> Result<(), Failure> {
    let Some(url) = args.app_url else {
        return print(&openapi_json());
    };
    let (listing, _) = listed(&url).await?;
    remark(&listing);
    let functions = listing.functions.iter();
    let functions = functions.map(|(name, declared)| (name.clone(), declared));
    print(&printable_json(&format!("{:#}", openapi_with(functions))))
}

/// What the app at `url` lists; whether it gives its list without the token too.
async fn listed(url: &str) -> Result<(Listing, bool), Failure> {
    // Read here and not by clap, whose error would show a password in it.
    let url: AppUrl = url
        .parse()
        .map_err(|wrong| Failure::Usage(format!("--app-url: {} {wrong}", shown(url))))?;
    let token = config::token("RPC_APP_TOKEN")?;
    app::check(&url, token).await.map_err(|why| {
        let hint = "GET of it must answer 200, application/json and {\"functions\":{\"Math.add\":{}}} to `authorization: \
                    Bearer $RPC_APP_TOKEN`";
        Failure::Failed(format!("{url}: {why}; {hint}"))
    })
}

fn remark(listing: &Listing) {
    for remark in &listing.remarks {
        say(&format!("fly-rpc: {remark}"));
    }
}

/// Prints what the app lists and declares, and says what is wrong.
async fn check(url: &str) -> Result<(), Failure> {
    let (listing, is_open) = listed(url).await?;
    for (name, declared) in &listing.functions {
        let declared = String::from_utf8_lossy(&json::to_vec(declared)).into_owned();
        print(&format!("{name} {}", printable_json(&declared)))?;
    }
    remark(&listing);
    if is_open {
        return Err(Failure::Failed(
            "the app serves its list without checking RPC_APP_TOKEN: have it answer 401 to each request without `authorization: Bearer \
             $RPC_APP_TOKEN`"
                .to_owned(),
        ));
    }
    match listing.remarks.is_empty() {
        true => Ok(()),
        false => Err(Failure::Reported(1)),
    }
}

async fn list(args: AskArgs) -> Result<(), Failure> {
    let answer = args.get("/functions").await?;
    if args.json {
        return answer.print_json();
    }
    let catalogue: Catalogue = answer.document()?;
    let names: Vec<_> = catalogue.iter().map(|(name, _)| name.to_string()).collect();
    print(&names.join("\n"))
}
