//! `fly-rpc ready`: whether an instance takes calls, for health checks.

use clap::Args;

use super::{Failure, ask::AskArgs, print};
use crate::{http::health::StatusDocument, reply::ProblemDocument, telemetry::printable};

#[derive(Args)]
#[command(
    after_help = "It asks GET /readyz, which needs no token. Exit codes: 0 ready, 1 not ready, with the reason on stderr."
)]
pub(super) struct ReadyArgs {
    #[command(flatten)]
    ask: AskArgs,
}

pub(super) async fn run(args: ReadyArgs) -> Result<(), Failure> {
    let answer = args.ask.get("/readyz").await?;
    if args.ask.json {
        return answer.print_json();
    }
    if let Some(ProblemDocument { problem, .. }) = answer.found() {
        let detail = printable(&problem.detail);
        return Err(Failure::Failed(format!("not ready: {detail}")));
    }
    let StatusDocument {
        instance, region, ..
    } = answer.document()?;
    print(&format!("{instance} in {region} is ready"))
}
