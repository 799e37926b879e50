//! `fly-rpc regions`: the cluster as one instance knows it, as a table.

use super::{Failure, ask::AskArgs, print, say, table};
use crate::http::{InstanceDocument, RegionsDocument};

/// Prints the regions and their instances.
pub(super) async fn run(args: AskArgs) -> Result<(), Failure> {
    let answer = args.endpoint.get("/regions").await?;
    if args.json {
        return answer.print_json();
    }
    let regions: RegionsDocument = answer.document()?;
    let header = [
        "REGION", "INSTANCE", "STATE", "ADDRESS", "RTT", "SEEN", "RELEASE",
    ]
    .map(str::to_owned)
    .to_vec();
    let mut rows = vec![header];
    for region in &regions.regions {
        let mark = if region.region == regions.primary {
            " (primary)"
        } else {
            ""
        };
        let name = format!("{}{mark}", region.region);
        rows.extend(region.instances.iter().map(|instance| row(&name, instance)));
        if region.instances.is_empty() {
            rows.push(vec![name, "none now".to_owned()]);
        }
    }
    print(&table(&rows))?;
    if let Some(error) = &regions.discovery.last_error {
        say(&format!("stale: {error}"));
    }
    Ok(())
}

fn row(region: &str, instance: &InstanceDocument) -> Vec<String> {
    let seen = match (instance.local, instance.last_seen_ms) {
        (true, _) => "this one".to_owned(),
        (false, Some(ms)) => format!("{:.1} s ago", ms / 1e3),
        (false, None) => String::new(),
    };
    vec![
        region.to_owned(),
        instance.instance.to_string(),
        instance.state.to_string(),
        instance.address.to_string(),
        instance
            .rtt_ms
            .map(|ms| format!("{ms:.1} ms"))
            .unwrap_or_default(),
        seen,
        instance.release.clone().unwrap_or_default(),
    ]
}
