//! `fly-rpc functions`: the functions of one instance, a line each.

use super::{Failure, ask::AskArgs, print};
use crate::registry::Catalogue;

/// Prints the functions.
pub(super) async fn run(args: AskArgs) -> Result<(), Failure> {
    let answer = args.endpoint.get("/functions").await?;
    if args.json {
        return answer.print_json();
    }
    let catalogue: Catalogue = answer.document()?;
    print(
        &catalogue
            .names()
            .map(|name| name.to_string())
            .collect::<Vec<_>>()
            .join("\n"),
    )
}
