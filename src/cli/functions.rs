//! `fly-rpc functions`: the functions of one instance, a line each.

use super::{
    Failure,
    ask::{AskArgs, Endpoint},
    print,
};
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

/// The function of the instance asked whose name is most like `name`, if one is much like it.
pub(super) async fn nearest(endpoint: &Endpoint, name: &str) -> Option<String> {
    let catalogue: Catalogue = endpoint.get("/functions").await.ok()?.found()?;
    let like = |function: String| {
        (
            strsim::jaro_winkler(&function.to_lowercase(), &name.to_lowercase()),
            function,
        )
    };
    let all = catalogue.names().map(|function| like(function.to_string()));
    let (likeness, nearest) = all.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (likeness > 0.9).then_some(nearest)
}
