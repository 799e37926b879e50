//! Answers of DNS that are whole and still odd: thousands of records, another part each time, no life at all, addresses
//! that changed hands. And how often DNS is asked.

use std::{net::IpAddr, time::Duration};

use hickory_server::proto::op::ResponseCode;
use serde_json::json;
use tokio::time::Instant;

use crate::support::{
    asking::two_regions,
    cluster::{Cluster, NAME, instances_in_state, known_instances, ready_instances, rounds},
    dns::Mood,
    patience::eventually,
    process::Process,
};

/// How many records the largest answer of the test has: UDP has room for a few dozen, TCP for 65,535 bytes.
const RECORDS: u32 = 2_000;

#[tokio::test]
async fn thousands_of_records_hide_no_peer() {
    let mut cluster = Cluster::builder().region("iad", 1).start().await;
    cluster.add("syd").await;
    // Nobody listens there: a network of its own, which no test gives out.
    let nobody = (0..RECORDS).map(|number| {
        let [.., third, fourth] = number.to_be_bytes();
        IpAddr::from([127, 255, third, fourth])
    });
    let real = cluster.addresses();
    let (first, last) = real.split_at(1);
    let records: Vec<_> = [first, &nobody.collect::<Vec<_>>(), last].concat();
    cluster.dns.set_addresses(NAME, records);
    cluster.until_ready("iad-1", &["iad-1", "syd-1"]).await;
    let iad = cluster.instance("iad-1");
    let answer = iad.call("syd", "Fly.RPC.my_region", json!([])).await;
    assert_eq!(answer.result(), "syd");
    let discovery = iad.get("/regions").await.body["discovery"].clone();
    assert_eq!(
        (&discovery["stale"], &discovery["last_error"]),
        (&json!(false), &json!(null))
    );
}

#[tokio::test]
async fn answers_that_rotate_take_nobody_away() {
    let cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 4)
        .start()
        .await;
    cluster.dns.set_mood(Mood::Rotating(1));
    let iad = cluster.instance("iad-1");
    let seen = rounds(iad).await;
    while rounds(iad).await < seen + 10 {
        assert_eq!(known_instances(iad).await.len(), 5);
    }
}

#[tokio::test]
async fn a_peer_that_stops_while_dns_fails_is_used_again() {
    let cluster = two_regions().start().await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    cluster.dns.set_mood(Mood::Code(ResponseCode::ServFail));
    let seen = rounds(iad).await;
    let later = async || rounds(iad).await;
    eventually("two rounds", later, |rounds| *rounds >= seen + 2).await;
    syd.pause().await;
    let suspects = async || instances_in_state(iad, "suspect").await;
    eventually("a suspect", suspects, |seen| seen.contains("syd-1")).await;
    syd.resume();
    cluster.until_ready("iad-1", &["iad-1", "syd-1"]).await;
    let answer = iad.call("syd", "Fly.RPC.my_region", json!([])).await;
    assert_eq!(answer.result(), "syd");
}

#[tokio::test]
async fn answers_that_rotate_are_gathered() {
    let mut cluster = Cluster::builder().region("iad", 1).start().await;
    cluster.dns.set_mood(Mood::Rotating(1));
    for _ in 0..3 {
        cluster.add("syd").await;
    }
    cluster.announce_all();
    cluster
        .until_ready("iad-1", &["iad-1", "syd-1", "syd-2", "syd-3"])
        .await;
}

#[tokio::test]
async fn records_without_a_life_are_asked_for_once_a_round() {
    let interval = Duration::from_millis(200);
    let cluster = Cluster::builder().start().await;
    cluster.dns.set_ttl(0);
    let mut cluster = cluster;
    let nobody = cluster.free_address();
    cluster.add_with("iad", "RPC_POLL_INTERVAL", "200ms").await;
    let own = cluster.addresses();
    cluster
        .dns
        .set_addresses(NAME, own.into_iter().chain([nobody.ip()]));
    let iad = cluster.instance("iad-1");
    let (asked, first, started) = (cluster.dns.queries(), rounds(iad).await, Instant::now());
    let later = async || rounds(iad).await;
    let last = eventually("ten rounds", later, |rounds| *rounds >= first + 10).await;
    let asked = u64::try_from(cluster.dns.queries() - asked).unwrap();
    // A and AAAA; a round may be under way at either end.
    assert!(
        asked <= 2 * (last - first + 2),
        "{asked} in {}",
        last - first
    );
    // Intervals vary by 20 %.
    let shortest = interval.mul_f64(0.8) * u32::try_from(last - first - 1).unwrap();
    assert!(started.elapsed() >= shortest, "{:?}", started.elapsed());
}

#[tokio::test]
async fn an_address_that_now_belongs_to_another_region_costs_no_call() {
    let mut cluster = Cluster::builder().region("syd", 2).start().await;
    // So that only the calls can tell it.
    let all = ["iad-1", "syd-1", "syd-2"];
    cluster.add_with_one_round("iad", &all).await;
    let address = cluster.instance("syd-1").address;
    let mut moved = cluster.instances.remove(0);
    moved.kill();
    moved.ended().await;
    let fra = Process::start(&cluster.environment("fra", "fra-1", address)).await;
    let iad = cluster.instance("iad-1");
    let pinned = json!({"module": "Fly.RPC", "function": "my_region", "instance": "syd-1"});
    let pinned = iad.rpc("syd", &pinned).await;
    assert_eq!(pinned.problem(), (503, "region_unavailable", "no"));
    let mut attempts = Vec::new();
    let found = async || {
        let answer = iad.call("syd", "Fly.RPC.my_region", json!([])).await;
        assert_eq!(
            (answer.result(), answer.instance()),
            (&json!("syd"), "syd-2")
        );
        attempts.push(answer.body["meta"]["attempts"].as_u64().unwrap());
        ready_instances(iad).await
    };
    eventually("fra is found", found, |seen| {
        seen.contains("fra-1") && !seen.contains("syd-1")
    })
    .await;
    assert!(attempts.iter().all(|count| *count <= 2), "{attempts:?}");
    let answer = iad.call("fra", "Fly.RPC.my_region", json!([])).await;
    assert_eq!(
        (answer.result(), answer.instance()),
        (&json!("fra"), "fra-1")
    );
    drop(fra);
}
