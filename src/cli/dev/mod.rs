//! `fly-rpc dev`: a whole cluster on this machine, of real processes that find each other through a real DNS server.

mod apps;
mod cluster;
mod control;
mod dns;
mod latency;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::Duration,
};

use clap::Args;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time};
use tokio_util::task::AbortOnDropHandle;

use self::{
    cluster::{Child, DevCluster, Plan, Shape},
    control::{Order, obey, said_document},
    dns::DevDns,
    latency::Latency,
};
use super::{Failure, print, say, table::table};
use crate::{client, http::documents::RegionsDocument, instance::Signals, region::Region};

/// How long the instances may take to see each other.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);
/// How long a connection to an instance may take, and an answer on it.
const CONNECT: Duration = Duration::from_secs(1);
/// Log lines that wait to be printed.
const LOG_LINES: usize = 1024;
/// How long the end waits for the last of them.
const LAST_LINES: Duration = Duration::from_secs(1);
/// Ends of instances that wait to be noted.
const ENDS: usize = 64;
/// Orders that wait for the loop that has the cluster.
const ORDERS: usize = 16;

#[derive(Args)]
#[command(after_help = "Examples:
  fly-rpc dev
  fly-rpc dev --regions syd:2,iad --latency realistic
  fly-rpc dev --regions iad,syd -- python3 app.py
  fly-rpc dev --regions iad,syd:3 --chaos      then type: kill syd-1

Timeouts, limits, RPC_ROUTE and RPC_KEY_STORE in the environment hold for every instance; dev decides the other settings.")]
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
    /// How long packets take between two regions, one way: `realistic`, by the distance of their cities, or such as 50ms
    #[arg(long, value_name = "realistic|DURATION")]
    latency: Option<Latency>,
    /// Take commands, on stdin and from the page, that kill, stop, drain and start instances, and take DNS down
    #[arg(long)]
    chaos: bool,
    /// The command of an app in any language: one runs beside each instance, and is started again when it ends
    #[arg(last = true, value_name = "COMMAND")]
    app: Vec<OsString>,
}

pub(super) async fn run(args: DevArgs) -> Result<(), Failure> {
    check_latency(&args)?;
    let mut signals = Signals::listen()?;
    // One task prints, so that a terminal that is not read blocks one thread only.
    let (lines, mut printed) = mpsc::channel::<String>(LOG_LINES);
    let printer = tokio::spawn(async move {
        while let Some(line) = printed.recv().await {
            say(&line);
        }
    });
    let mut cluster = DevCluster {
        dns: DevDns::start().await?,
        children: Vec::new(),
        regions: args.regions.regions().cloned().collect(),
        latency: args.latency,
    };
    let ran = tokio::select! {
        ran = run_cluster(&args, lines, &mut cluster) => ran,
        () = signals.next() => Ok(()),
    };
    say("stopping every instance; Ctrl-C again ends them at once");
    tokio::select! {
        () = cluster.stop() => {}
        () = signals.next() => {}
    }
    drop(cluster);
    // The printer ends by itself once nobody is left to write a line, as what an app left running still may.
    let _ = time::timeout(LAST_LINES, printer).await;
    ran
}

async fn run_cluster(
    args: &DevArgs,
    lines: mpsc::Sender<String>,
    cluster: &mut DevCluster,
) -> Result<(), Failure> {
    let (ends, mut ended) = mpsc::channel(ENDS);
    let (sender, mut orders) = mpsc::channel(ORDERS);
    let (listen, taken) = free_addresses(args);
    taken.iter().for_each(|line| say(line));
    for ((region, name), listen) in args.regions.instances().zip(listen) {
        let number = args.regions.regions().position(|it| it == region);
        let plan = Plan {
            region: region.clone(),
            name,
            listen,
            app: args.app.clone(),
            settings: settings(args, region, cluster.dns.address),
            style: cluster::style(number.unwrap_or_default()),
            log: lines.clone(),
            ends: ends.clone(),
        };
        cluster.add(plan).await?;
    }
    drop(lines);
    let built = client::builder(CONNECT).build();
    let client = built.map_err(|error| Failure::Failed(error.to_string()))?;
    let seen = time::timeout(PATIENCE, until_all_see_all(cluster, &client)).await;
    seen.map_err(|_| {
        Failure::Failed(format!(
            "the instances did not see each other within {PATIENCE:?}"
        ))
    })?;
    let watched = (!args.app.is_empty()).then(|| apps::watch(addresses(cluster), client.clone()));
    let plans: Vec<&Plan> = cluster.children.iter().map(|child| &child.plan).collect();
    let mut page = None;
    if let Some(first) = plans.first().filter(|_| args.chaos) {
        control::read_stdin(sender.clone());
        page = Some(control::start(&first.name, addresses(cluster), client, sender).await?);
    }
    print(&welcome(args, &plans, page, taken))?;
    // As long as this future is.
    let _watched = watched.map(|watched| AbortOnDropHandle::new(tokio::spawn(watched)));
    loop {
        // An end is noted before the order that may be its consequence.
        tokio::select! {
            biased;
            Some((name, how)) = ended.recv() => {
                say(&format!("{name} has ended: {how}"));
                if !cluster.ended(&name) && !args.chaos {
                    return Err(Failure::Failed("every instance has ended".to_owned()));
                }
            }
            Some(Order { line, answer }) = orders.recv() => {
                let document = match line {
                    Some(line) => {
                        let done = obey(cluster, &line).await;
                        say(&done);
                        said_document(&done)
                    }
                    None => statuses(cluster),
                };
                // The page may be gone, and a line that was typed wants no answer but what is printed.
                let _ = answer.send(document);
            }
        }
    }
}

fn statuses(cluster: &DevCluster) -> Value {
    let status = |child: &Child| json!({ "name": child.plan.name, "has_ended": child.has_ended });
    let statuses: Vec<_> = cluster.children.iter().map(status).collect();
    json!({ "instances": statuses })
}

fn addresses(cluster: &DevCluster) -> BTreeMap<String, SocketAddr> {
    let plans = cluster.children.iter().map(|child| &child.plan);
    plans.map(|plan| (plan.name.clone(), plan.listen)).collect()
}

fn settings(
    args: &DevArgs,
    region: &Region,
    dns_server: SocketAddr,
) -> Vec<(&'static str, String)> {
    let primary = args.regions.regions().next().unwrap_or(region);
    vec![
        ("primary", primary.to_string()),
        ("app", "dev".to_owned()),
        ("dns-name", dns::service(region)),
        ("dns-server", dns_server.to_string()),
        ("poll-interval", args.poll_interval.clone()),
        // No load balancer has to learn that an instance stops.
        ("drain-delay", "0s".to_owned()),
        ("log", args.log.clone()),
    ]
}

/// Checks that every region is on the map, where the latency depends on it.
fn check_latency(args: &DevArgs) -> Result<(), Failure> {
    for region in args.regions.regions() {
        let delay = args.latency.map(|latency| latency.between(region, region));
        delay.transpose().map_err(Failure::Usage)?;
    }
    Ok(())
}

/// Where each instance is to listen: at one port after the other, or at any free one (0) if another program has its port.
/// Returns also what to say of the ports that are taken, because the documents have commands with them.
fn free_addresses(args: &DevArgs) -> (Vec<SocketAddr>, Option<String>) {
    let (mut addresses, mut taken) = (Vec::new(), Vec::new());
    for number in 0..args.regions.instances().count() {
        let number = u16::try_from(number).ok().filter(|_| args.port != 0);
        let port = number.and_then(|number| args.port.checked_add(number));
        let mut address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.unwrap_or(0)));
        if TcpListener::bind(address).is_err() {
            taken.push(address.port().to_string());
            address.set_port(0);
        }
        addresses.push(address);
    }
    let taken = (!taken.is_empty()).then(|| taken.join(", "));
    let what_it_means = |taken| {
        format!(
            "another program has port {taken}: these instances take other ports, and what is sent to localhost:{taken} does \
             not reach them"
        )
    };
    (addresses, taken.map(what_it_means))
}

async fn until_all_see_all(cluster: &DevCluster, client: &reqwest::Client) {
    let addresses = addresses(cluster);
    let all: BTreeSet<String> = addresses.keys().cloned().collect();
    for address in addresses.into_values() {
        while instances_seen(client, address).await.as_ref() != Some(&all) {
            time::sleep(PAUSE).await;
        }
    }
}

/// The instances that the one at `address` would call, itself included.
async fn instances_seen(client: &reqwest::Client, address: SocketAddr) -> Option<BTreeSet<String>> {
    let seen: RegionsDocument = asked(client, address, "/regions").await?;
    let instances = seen.regions.into_iter().flat_map(|region| region.instances);
    Some(instances.map(|it| it.instance.to_string()).collect())
}

/// What the instance at `address` answers to `GET` of `path`; `None` where it does not.
async fn asked<T: DeserializeOwned>(
    client: &reqwest::Client,
    address: SocketAddr,
    path: &str,
) -> Option<T> {
    let asked = client.get(format!("http://{address}{path}"));
    let asked = asked.timeout(CONNECT).send().await.ok()?;
    let body = client::body(asked, 16 << 20).await.ok()?;
    serde_json::from_slice(&body).ok()
}

fn welcome(args: &DevArgs, plans: &[&Plan], page: Option<String>, taken: Option<String>) -> String {
    let url = |plan: &Plan| format!("http://localhost:{}", plan.listen.port());
    let row = |plan: &&Plan| [(&plan.region).into(), (&plan.name).into(), url(plan).into()];
    let table = table(["REGION", "INSTANCE", "ADDRESS"], plans.iter().map(row));
    let first = plans.first().map(|plan| url(plan)).unwrap_or_default();
    let page = page.unwrap_or_else(|| format!("{first}/ui"));
    // Without `http://`, which curl does not need.
    let host = first.trim_start_matches("http://");
    let name = |region: Option<&Region>| region.map_or("primary", Region::as_str).to_owned();
    let far = name(args.regions.regions().last());
    let other = name(args.regions.regions().nth(1));
    let curl = |region: &str, call: &str| {
        format!("  curl -s {host}/rpc/{region} -H 'content-type: application/json' -d '{call}'")
    };
    let mut parts = Vec::from_iter(taken.map(|line| format!("\n{line}")));
    parts.extend([
        format!("\nLook at it: {page}"),
        format!("\n{} instances see each other:\n", plans.len()),
        table,
        "\nTry:".to_owned(),
    ]);
    if args.app.is_empty() {
        let upcase = r#"{"module":"String","function":"upcase","args":["fly"]}"#;
        parts.extend([
            curl(&other, upcase),
            curl(&far, r#"{"module":"Fly.RPC","function":"my_region"}"#),
            format!("  curl -s {host}/regions"),
            format!("  fly-rpc call {other} String.upcase fly --url {first}"),
        ]);
    } else {
        parts.extend([
            format!("  curl -s {host}/functions"),
            curl(&far, r#"{"module":"Math","function":"add","args":[1,2]}"#)
                + "  # an app of `fly-rpc example` has it",
        ]);
    }
    if args.chaos {
        parts.push(format!("\n{}", control::HELP));
    }
    parts.push("\nCtrl-C stops all of them.".to_owned());
    parts.join("\n")
}
