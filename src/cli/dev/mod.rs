//! `fly-rpc dev`: a whole cluster on this machine, of real processes that find each other through a real DNS server.

mod child;
mod dns;
mod log;
mod regions;

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::Duration,
};

use clap::Args;
use tokio::{sync::mpsc, time};

use self::{child::Child, dns::Dns, regions::Shape};
use super::{Failure, print, say};
use crate::{client, http::RegionsDocument, region::Region, signal::Signals};

/// How long the instances may take to see each other.
const PATIENCE: Duration = Duration::from_secs(30);
/// The pause between two looks at who sees whom.
const PAUSE: Duration = Duration::from_millis(50);
/// Log lines that wait to be printed.
const LOG_LINES: usize = 1024;

/// The cluster to run.
#[derive(Args)]
pub(super) struct DevArgs {
    /// The regions, each with its number of instances, such as `syd:2,iad`; the first is the primary
    #[arg(long, value_name = "REGION[:COUNT],…", default_value = "iad,syd,fra")]
    regions: Shape,
    /// The first port; each instance takes the next one, or any free one where that is taken; 0 is any free one for all
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// The time between two discovery rounds
    #[arg(long, value_name = "DURATION", default_value = "1s")]
    poll_interval: String,
    /// The tracing filter of the instances
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
}

/// Runs the cluster until Ctrl-C.
pub(super) async fn run(args: DevArgs) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let dns = Dns::start().await?;
    let (lines, printed) = mpsc::channel(LOG_LINES);
    let printer = tokio::spawn(log::print_all(printed));
    let mut children = Vec::new();
    let ran = tokio::select! {
        ran = run_cluster(&args, &dns, lines, &mut children) => ran,
        () = signals.next() => Ok(()),
    };
    say("stopping every instance; Ctrl-C again ends them at once");
    tokio::select! {
        () = child::stop_all(&mut children) => {}
        () = signals.next() => {}
    }
    drop(children);
    // The printer ends by itself once no instance is left to write a line.
    let _ = printer.await;
    ran
}

async fn run_cluster(
    args: &DevArgs,
    dns: &Dns,
    lines: mpsc::Sender<log::Line>,
    children: &mut Vec<Child>,
) -> Result<(), Failure> {
    let Some(primary) = args.regions.primary() else {
        return Ok(());
    };
    for (number, (region, name)) in args.regions.instances().enumerate() {
        let listen = preferred_address(args.port, number);
        let settings = [
            ("region", region.to_string()),
            ("primary", primary.to_string()),
            ("instance", name.clone()),
            ("app", "dev".to_owned()),
            ("listen", listen.to_string()),
            ("dns-name", dns::SERVICE.to_owned()),
            ("dns-server", dns.address().to_string()),
            ("poll-interval", args.poll_interval.clone()),
            ("drain-delay", "0s".to_owned()),
            ("log", args.log.clone()),
        ];
        // Announced before it starts where its port is known, so that its first question already has an answer.
        dns.announce(&name, listen.port()).await;
        let child = Child::spawn(region, &name, &settings, lines.clone()).await?;
        dns.announce(&name, child.address().port()).await;
        children.push(child);
    }
    drop(lines);
    let seen = time::timeout(PATIENCE, until_all_see_all(children)).await;
    seen.map_err(|_| {
        Failure::Failed(format!(
            "the instances did not see each other within {PATIENCE:?}"
        ))
    })??;
    print(&welcome(&args.regions, children))?;
    child::until_all_ended(children).await;
    Err(Failure::Failed("every instance has ended".to_owned()))
}

/// The address at `first` + `number`, or at any free port where that one is taken.
fn preferred_address(first: u16, number: usize) -> SocketAddr {
    let port = u16::try_from(number)
        .ok()
        .filter(|_| first != 0)
        .and_then(|number| first.checked_add(number));
    let preferred = SocketAddr::from((Ipv4Addr::LOCALHOST, port.unwrap_or(0)));
    if TcpListener::bind(preferred).is_ok() {
        preferred
    } else {
        (Ipv4Addr::LOCALHOST, 0).into()
    }
}

async fn until_all_see_all(children: &[Child]) -> Result<(), Failure> {
    let all: BTreeSet<String> = children
        .iter()
        .map(|child| child.name().to_owned())
        .collect();
    let built = client::builder(Duration::from_secs(1))
        .timeout(Duration::from_secs(1))
        .build();
    let client = built.map_err(|error| Failure::Failed(error.to_string()))?;
    for child in children {
        while instances_seen(&client, child.address()).await.as_ref() != Some(&all) {
            time::sleep(PAUSE).await;
        }
    }
    Ok(())
}

/// The instances that the one at `address` would call, itself included.
async fn instances_seen(client: &reqwest::Client, address: SocketAddr) -> Option<BTreeSet<String>> {
    let response = client
        .get(format!("http://{address}/regions"))
        .send()
        .await
        .ok()?;
    let body = client::body(response, 16 << 20).await.ok()?;
    let seen: RegionsDocument = serde_json::from_slice(&body).ok()?;
    let instances = seen.regions.into_iter().flat_map(|region| region.instances);
    Some(
        instances
            .map(|instance| instance.instance.to_string())
            .collect(),
    )
}

fn welcome(shape: &Shape, children: &[Child]) -> String {
    let mut rows = vec![
        ["REGION", "INSTANCE", "ADDRESS"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(children.iter().map(|child| {
        vec![
            child.region().to_string(),
            child.name().to_owned(),
            format!("http://localhost:{}", child.address().port()),
        ]
    }));
    let port = children.first().map_or(0, |child| child.address().port());
    let far = shape
        .instances()
        .last()
        .map_or("primary", |(region, _)| Region::as_str(region));
    let other = shape.regions().nth(1).map_or("primary", Region::as_str);
    let curl = |region: &str, call: &str| {
        format!(
            "  curl -s localhost:{port}/rpc/{region} -H 'content-type: application/json' -d '{call}'"
        )
    };
    [
        format!("\n{} instances see each other:\n", children.len()),
        super::table(&rows),
        "\nTry:".to_owned(),
        curl(
            other,
            r#"{"module":"String","function":"upcase","args":["fly"]}"#,
        ),
        curl(far, r#"{"module":"Fly.RPC","function":"my_region"}"#),
        format!("  curl -s localhost:{port}/regions"),
        "\nCtrl-C stops all of them.".to_owned(),
    ]
    .join("\n")
}
