//! A start on Fly: a private network of IPv6 addresses and a DNS server at `fdaa::3`, in a namespace of the test's own,
//! and nothing set but what Fly gives a Machine. The test program runs itself again inside the namespace.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::Path,
    process::Command,
};

use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::support::{
    cluster::ready_instances,
    dns::DnsServer,
    patience::eventually,
    process::{Environment, Process, answer},
};

/// Set inside the namespace: a directory of the test.
const INSIDE: &str = "IT_NAMESPACE";
const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const DNS: Ipv6Addr = Ipv6Addr::new(0xfdaa, 0, 0, 0, 0, 0, 0, 3);

/// Machines have addresses like this one.
fn machine(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfdaa, 0, 0x18, 0xa7b, 0x7d, 0xf066, number, 2)
}

#[test]
fn instances_find_each_other_on_a_private_network_of_fly() {
    let directory = TempDir::new().unwrap();
    fs::write(
        directory.path().join("hosts"),
        format!("{} fly-local-6pn\n", machine(1)),
    )
    .unwrap();
    fs::write(
        directory.path().join("resolv.conf"),
        format!("nameserver {DNS}\n"),
    )
    .unwrap();
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--net", "--mount"]);
    if !unshare
        .arg("true")
        .output()
        .is_ok_and(|output| output.status.success())
    {
        println!("not checked: this machine allows no namespaces");
        return;
    }
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["peers::six_pn::inside", "--exact", "--nocapture"])
        .env(INSIDE, directory.path())
        .output()
        .unwrap();
    let got = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{got}");
}

#[tokio::test]
async fn an_instance_on_all_addresses_serves_both_families_and_names_the_private_one() {
    let environment = Environment::from([
        ("FLY_REGION", "iad".to_owned()),
        ("FLY_PRIVATE_IP", machine(1).to_string()),
        ("RPC_LISTEN", "[::]:0".to_owned()),
        ("RPC_TOKEN", TOKEN.to_owned()),
        ("RPC_ALLOW_ANONYMOUS", "true".to_owned()),
    ]);
    let iad = Process::start(&environment).await;
    let port = iad.address.port();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for host in ["127.0.0.1", "[::1]"] {
        let regions = client.get(format!("http://{host}:{port}/regions"));
        let regions = answer(regions).await.unwrap().body;
        let address = &regions["regions"][0]["instances"][0]["address"];
        assert_eq!(address, &json!(format!("[{}]:{port}", machine(1))));
    }
}

#[tokio::test]
async fn inside() {
    #[expect(
        clippy::disallowed_methods,
        reason = "the switch between the test and what it does inside its namespace"
    )]
    let Ok(directory) = std::env::var(INSIDE) else {
        return;
    };
    set_up(Path::new(&directory));
    let dns = DnsServer::start_at((DNS, 53).into()).await;
    let addresses = [1, 2, 3].map(|number| IpAddr::from(machine(number)));
    dns.set_addresses("shop.internal", addresses);
    let mut syd = start("syd", 2, &[]).await;
    let release = start("syd", 3, &[("RELEASE_COMMAND", "1")]).await;
    let release_address = SocketAddr::from((machine(3), 8081));
    // On Fly every Machine has this name for itself; the Machines of this test share one file of hosts.
    let own_name = ("RPC_INTERNAL_LISTEN", "fly-local-6pn:8081");
    let iad = start("iad", 1, &[own_name, ("RPC_POLL_INTERVAL", "20s")]).await;
    let seen = async || ready_instances(&iad).await;
    let both = |seen: &BTreeSet<String>| seen.iter().eq(["m1", "m2"].iter());
    eventually("both are ready", seen, both).await;
    let regions = iad.get("/regions").await.body;
    let peer = &regions["regions"][1]["instances"][0];
    assert_eq!(
        [
            &regions["discovery"]["source"],
            &peer["address"],
            &peer["release"]
        ],
        [
            &json!("shop.internal"),
            &json!(format!("[{}]:8081", machine(2))),
            &json!("shop:deployment-1")
        ]
    );
    let ran = iad.call("syd", "Fly.RPC.my_region", json!([])).await;
    assert_eq!((ran.result(), ran.instance()), (&json!("syd"), "m2"));
    // The Machine of the release command was asked in the same round, and nobody listens there.
    assert_eq!(
        ready_instances(&release).await,
        BTreeSet::from(["m3".to_owned()])
    );
    TcpStream::connect(release_address).await.unwrap_err();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let introduction = format!("http://{}/internal/region", release.address);
    let missing = answer(client.get(introduction).bearer_auth(TOKEN))
        .await
        .unwrap();
    assert_eq!(missing.problem(), (404, "not_found", "no"));

    // Private addresses move: another Machine of another region now has the one at which syd was.
    syd.kill();
    syd.ended().await;
    let _fra = start("fra", 2, &[]).await;
    let call = || iad.call("syd", "Fly.RPC.my_region", json!([]));
    let refused = eventually("the peer is asked", call, |_| {
        iad.log().contains("did not prove to be the instance")
    })
    .await;
    assert_eq!(refused.problem().2, "no");
}

/// The addresses of the private network, on the loopback interface of this namespace, and the names in it.
fn set_up(directory: &Path) {
    run("ip", &["link", "set", "lo", "up"]);
    for address in [DNS, machine(1), machine(2), machine(3)] {
        run(
            "ip",
            &[
                "address",
                "add",
                &format!("{address}/128"),
                "dev",
                "lo",
                "nodad",
            ],
        );
    }
    for name in ["hosts", "resolv.conf"] {
        let ours = directory.join(name);
        run(
            "mount",
            &["--bind", ours.to_str().unwrap(), &format!("/etc/{name}")],
        );
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
}

/// An instance on the Machine `m<number>`, given what Fly gives it, the two secrets, and `more`.
async fn start(region: &str, number: u16, more: &[(&'static str, &str)]) -> Process {
    let address = SocketAddr::from((machine(number), 8081)).to_string();
    let mut environment = Environment::from([
        ("FLY_APP_NAME", "shop".to_owned()),
        ("FLY_REGION", region.to_owned()),
        ("FLY_MACHINE_ID", format!("m{number}")),
        ("FLY_IMAGE_REF", "shop:deployment-1".to_owned()),
        ("FLY_PRIVATE_IP", machine(number).to_string()),
        ("PRIMARY_REGION", "iad".to_owned()),
        ("RPC_TOKEN", TOKEN.to_owned()),
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("RPC_INTERNAL_LISTEN", address),
        ("RPC_POLL_INTERVAL", "100ms".to_owned()),
    ]);
    environment.extend(
        more.iter()
            .map(|(name, value)| (*name, (*value).to_owned())),
    );
    Process::start(&environment).await
}
