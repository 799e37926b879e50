//! `fly-rpc openapi`: the document of the service, or that of an app, with an operation for each of its functions that
//! declares its parameters.

use clap::Args;

use super::{
    Failure,
    functions::{listed, remark},
    print,
};
use crate::{AppUrl, http::openapi_with, openapi_json};

#[derive(Args)]
#[command(after_help = "Examples:
  fly-rpc openapi
  RPC_APP_TOKEN=… fly-rpc openapi --app-url http://127.0.0.1:3000/rpc > openapi.json")]
pub(super) struct OpenapiArgs {
    /// Add an operation for each function of the app at this URL that declares its parameters. It is sent the token in
    /// `RPC_APP_TOKEN`
    #[arg(long, value_name = "URL")]
    app_url: Option<AppUrl>,
}

pub(super) async fn run(args: OpenapiArgs) -> Result<(), Failure> {
    let Some(url) = args.app_url else {
        return print(&openapi_json());
    };
    let (listing, _) = listed(&url).await?;
    remark(&listing);
    let functions = listing.functions.iter();
    let functions = functions.map(|(name, declared)| (name.clone(), declared));
    print(&format!("{:#}", openapi_with(functions)))
}
