//! Proof before trust: only who proves to know the cluster's secret is a peer, and nobody else is ever sent it.

use std::net::SocketAddr;

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::json;
use sha2::Sha256;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    asking::two_regions,
    cluster::{Cluster, NAME, ready_instances},
    command::run,
    patience::{eventually, in_time},
    process::Process,
    stranger::{Manner, Stranger},
};

const TOKEN: &str = "the-cluster-secret-of-the-tests-0001";
const OTHER: &str = "a-token-that-this-cluster-never-had-2";

/// What a member of the cluster would say of itself.
fn introduction() -> String {
    json!({
        "region": "syd", "instance": "evil", "app": null, "release": null, "primary": "iad",
        "state": "ready", "protocol": 1, "catalogue": "0".repeat(64),
    })
    .to_string()
}

async fn cluster() -> Cluster {
    Cluster::builder()
        .region("iad", 1)
        .set("RPC_TOKEN", TOKEN)
        .start()
        .await
}

/// Lets DNS know the stranger besides every instance.
fn announce_too(cluster: &Cluster, stranger: &Stranger) {
    let mut addresses = cluster.addresses();
    addresses.push(stranger.address.ip());
    cluster.dns.set_addresses(NAME, addresses);
}

/// Waits until the stranger was asked in three rounds more, so that whatever it did wrong has come to nothing.
async fn until_probed(stranger: &Stranger) {
    let before = stranger.probes();
    let probes = async || stranger.probes();
    eventually("three probes", probes, |probes| *probes >= before + 3).await;
}

fn assert_learned_nothing(stranger: &Stranger) {
    let heard = stranger.heard();
    assert!(!heard.contains(TOKEN), "{heard}");
    assert!(
        !heard.to_ascii_lowercase().contains("authorization"),
        "{heard}"
    );
}

async fn assert_alone(instance: &Process) {
    assert_eq!(ready_instances(instance).await, ["iad-1".to_owned()].into());
    let problem = async || {
        let answer = instance.call("syd", "String.upcase", json!(["fly"])).await;
        let (status, code, executed) = answer.problem();
        (status, code.to_owned(), executed.to_owned())
    };
    // Until its first round has ended.
    eventually("no such region", problem, |seen| {
        *seen == (404, "region_unknown".to_owned(), "no".to_owned())
    })
    .await;
}

#[tokio::test]
async fn a_stranger_is_no_peer_and_learns_nothing() {
    let mut cluster = cluster().await;
    let stranger = Stranger::at(cluster.free_address(), Manner::Answer(introduction())).await;
    announce_too(&cluster, &stranger);
    until_probed(&stranger).await;
    assert_alone(cluster.instance("iad-1")).await;
    assert_learned_nothing(&stranger);
    let log = cluster.instance("iad-1").log();
    assert_eq!(
        log.matches("did not prove that it knows RPC_TOKEN").count(),
        1,
        "{log}"
    );
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let mut cluster = cluster().await;
    let elsewhere = Stranger::at(cluster.free_address(), Manner::Answer(introduction())).await;
    let stranger = Stranger::at(cluster.free_address(), Manner::Redirect(elsewhere.address)).await;
    announce_too(&cluster, &stranger);
    until_probed(&stranger).await;
    assert_alone(cluster.instance("iad-1")).await;
    assert_learned_nothing(&stranger);
    assert_eq!(elsewhere.heard(), "");
}

/// The relay gets a true proof of a true member; it is for the member's own address, and does not serve the relay.
#[tokio::test]
async fn a_relay_to_an_instance_is_no_peer() {
    let mut cluster = cluster().await;
    cluster.add("syd").await;
    let member = cluster.instance("syd-1").address;
    let relay = Stranger::at(cluster.free_address(), Manner::Relay(member)).await;
    let addresses = [cluster.addresses()[0], relay.address.ip()];
    cluster.dns.set_addresses(NAME, addresses);
    until_probed(&relay).await;
    assert_alone(cluster.instance("iad-1")).await;
    assert_learned_nothing(&relay);
}

#[tokio::test]
async fn who_has_another_secret_is_no_peer() {
    let mut cluster = cluster().await;
    cluster.add_with("syd", "RPC_TOKEN", OTHER).await;
    cluster.announce_all();
    let log = async || cluster.instance("iad-1").log();
    eventually("the refusal in the log", log, |log| {
        log.contains("it requires another RPC_TOKEN")
    })
    .await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    assert_alone(iad).await;
    let warning = format!(
        "{} is not a peer: it requires another RPC_TOKEN; every instance needs the same",
        syd.address
    );
    let discovery = iad.get("/regions").await.body["discovery"].clone();
    assert_eq!(discovery["warnings"], json!([warning]));
    let detail = async || {
        let unknown = iad.call("syd", "String.upcase", json!(["fly"])).await;
        unknown.detail().to_owned()
    };
    // At the end of the round.
    let says = "no instance was ever seen in region \"syd\"; 1 address is not a peer, and GET /regions says why; known \
                regions: iad";
    eventually("what is wrong", detail, |detail| detail == says).await;
    let url = format!("http://{}", iad.address);
    let (code, table, said) = run(&["regions", "--url", &url]).await;
    assert_eq!(
        (code, table.lines().count(), said),
        (0, 2, format!("warning: {warning}\n")),
        "{table}"
    );
    let (code, _, said) = run(&["regions", "--json", "--url", &url]).await;
    assert_eq!((code, said.as_str()), (0, ""));
    assert_eq!(ready_instances(syd).await, ["syd-1".to_owned()].into());
}

#[tokio::test]
async fn who_takes_over_an_address_learns_nothing() {
    let mut cluster = cluster().await;
    cluster.add("syd").await;
    cluster.announce_all();
    cluster.until_ready("iad-1", &["iad-1", "syd-1"]).await;
    let address = cluster.instance("syd-1").address;
    let ended = cluster.instance_mut("syd-1");
    ended.kill();
    ended.ended().await;
    let stranger = Stranger::at(address, Manner::Answer(introduction())).await;
    until_probed(&stranger).await;
    let iad = cluster.instance("iad-1");
    let answer = iad.call("syd", "String.upcase", json!(["fly"])).await;
    assert_eq!(answer.problem(), (503, "region_unavailable", "no"));
    assert_learned_nothing(&stranger);
}

/// A cluster in which `iad-1` takes `syd-1` for ready, which has ended, and the address of that.
async fn after_an_end_that_nobody_saw() -> (Cluster, SocketAddr) {
    let mut cluster = Cluster::builder()
        .region("syd", 2)
        .set("RPC_TOKEN", TOKEN)
        .start()
        .await;
    let all = ["iad-1", "syd-1", "syd-2"];
    cluster.add_with_one_round("iad", &all).await;
    let address = cluster.instance("syd-1").address;
    let ended = cluster.instance_mut("syd-1");
    ended.kill();
    ended.ended().await;
    (cluster, address)
}

#[tokio::test]
async fn who_takes_over_an_address_between_two_probes_gets_neither_token_nor_call() {
    for relays in [false, true] {
        let (cluster, address) = after_an_end_that_nobody_saw().await;
        let manner = match relays {
            false => Manner::Answer(introduction()),
            true => Manner::Relay(cluster.instance("syd-2").address),
        };
        let stranger = Stranger::at(address, manner).await;
        let iad = cluster.instance("iad-1");
        let call = json!({
            "module": "String", "function": "upcase", "args": ["for syd-1 alone"], "instance": "syd-1",
        });
        let answer = iad.rpc("syd", &call).await;
        assert_eq!(answer.problem().2, "no", "{answer:?}");
        let heard = stranger.heard();
        assert!(heard.contains("POST /internal/exec"), "{heard}");
        assert!(!heard.contains("for syd-1 alone"), "{heard}");
        assert_learned_nothing(&stranger);
    }
}

/// It refuses as an instance would, for a reason that is the same everywhere, or of a later release.
#[tokio::test]
async fn who_takes_over_an_address_answers_no_call() {
    for (status, code) in [
        (422, "invalid_arguments"),
        (429, "quota_spent"),
        (503, "overloaded"),
    ] {
        let (cluster, address) = after_an_end_that_nobody_saw().await;
        let refusal = json!({
            "type": "x", "title": "x", "status": status, "detail": "what a stranger says", "code": code,
            "executed": "no", "error": null,
            "meta": {"region": "syd", "instance": "syd-1", "attempts": 1, "elapsed_ms": 1.0, "request_id": "r"},
        });
        let _stranger = Stranger::at(address, Manner::Refuse(status, refusal.to_string())).await;
        let iad = cluster.instance("iad-1");
        let ready = async || {
            for _ in 0..8 {
                let answer = iad.call("syd", "String.upcase", json!(["fly"])).await;
                assert_eq!(
                    (answer.result(), answer.instance()),
                    (&json!("FLY"), "syd-2")
                );
            }
            ready_instances(iad).await
        };
        eventually("its end", ready, |ready| !ready.contains("syd-1")).await;
        assert!(!iad.log().contains("what a stranger says"));
    }
}

#[tokio::test]
async fn a_proxy_of_the_environment_is_never_asked() {
    let proxy = Stranger::at(
        "127.0.0.1:0".parse().unwrap(),
        Manner::Answer(introduction()),
    )
    .await;
    let url = format!("http://{}", proxy.address);
    let variables = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
    let builder = two_regions().set("RPC_TOKEN", TOKEN);
    let cluster = variables
        .into_iter()
        .fold(builder, |builder, variable| builder.set(variable, &url))
        .start()
        .await;
    let answer = cluster
        .instance("iad-1")
        .call("syd", "String.upcase", json!(["fly"]))
        .await;
    assert_eq!(
        (answer.result(), answer.instance()),
        (&json!("FLY"), "syd-1")
    );
    assert_eq!(proxy.heard(), "");
}

/// The proof of a statement by one who knows the cluster's secret.
fn proof(statement: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(TOKEN.as_bytes()).unwrap();
    mac.update(format!("fly-rpc 1 {statement}").as_bytes());
    HEXLOWER.encode(&mac.finalize().into_bytes())
}

/// What the instance at `address` sends on a connection for calls, whose first line is made from the instance's nonce and
/// goes before a call; until the call is answered, or the connection ends.
async fn heard(address: SocketAddr, first: impl FnOnce(&str) -> String) -> String {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let own = "0".repeat(32);
    let opens = proof(&format!("opens\n{own}\n{address}"));
    let head = format!(
        "POST /internal/exec HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: fly-rpc-lines\r\n\
         rpc-nonce: {own}\r\nrpc-proof: {opens}\r\n\r\n"
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let read = in_time("the answer's head", connection.read_buf(&mut bytes)).await;
        assert_ne!(read.unwrap(), 0);
    }
    let head = String::from_utf8(std::mem::take(&mut bytes)).unwrap();
    let nonce = head
        .lines()
        .find_map(|line| line.strip_prefix("rpc-nonce: "));
    let call = r#"{"id":1,"region":"iad","module":"String","function":"upcase","args":["a"]}"#;
    let lines = format!("{}{call}\n", first(nonce.unwrap()));
    connection.write_all(lines.as_bytes()).await.unwrap();
    while !bytes.ends_with(b"\n") {
        // Closed with the call unread, the connection may be reset.
        let read = in_time("the end of the connection", connection.read_buf(&mut bytes)).await;
        if !matches!(read, Ok(1..)) {
            break;
        }
    }
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_recorded_connection_sent_once_more_runs_no_call() {
    let cluster = cluster().await;
    let address = cluster.instance("iad-1").address;
    let own = "0".repeat(32);
    let mut recorded = String::new();
    let honest = heard(address, |nonce| {
        let confirms = proof(&format!("confirms\n{own}\n{nonce}\n{address}"));
        recorded = format!("{{\"proof\":\"{confirms}\"}}\n");
        recorded.clone()
    });
    assert_eq!(honest.await, "{\"id\":1,\"result\":\"A\"}\n");
    for first in [
        recorded.as_str(),
        "{\"proof\":\"x\"}\n",
        "{\"ping\":1}\n",
        "",
    ] {
        assert_eq!(heard(address, |_| first.to_owned()).await, "", "{first}");
    }
}
