//! Finding peers through a real DNS server: who enters, who leaves, who is no peer, and DNS that fails.

use std::net::SocketAddr;

use axum::{Router, routing::get};
use hickory_server::proto::op::ResponseCode;
use serde_json::json;
use tokio::net::TcpListener;

use crate::support::{
    asking::two_regions,
    cluster::{Cluster, NAME, instances_in_state, known_instances, ready_instances},
    dns::Mood,
    patience::eventually,
    process::{Environment, Process, answer},
};

#[tokio::test]
async fn a_peer_is_callable_once_dns_has_it_and_gone_once_neither_does() {
    let mut cluster = two_regions().start().await;
    cluster.add("fra").await;
    let iad = cluster.instance("iad-1");
    assert_eq!(
        iad.call("fra", "Fly.RPC.my_region", json!([]))
            .await
            .problem()
            .1,
        "region_unknown"
    );

    cluster.announce_all();
    let call = async || {
        cluster
            .instance("iad-1")
            .call("fra", "Fly.RPC.my_region", json!([]))
            .await
    };
    eventually("fra is callable", call, |answer| answer.status == 200).await;

    let mut fra = cluster.instances.pop().unwrap();
    cluster.announce_all();
    let rounds = async || {
        cluster.instance("iad-1").get("/regions").await.body["discovery"]["rounds"].as_u64()
    };
    let seen = rounds().await.unwrap();
    eventually("three more rounds", rounds, |rounds| {
        rounds.unwrap() >= seen + 3
    })
    .await;
    // It still answers, so it is still a peer.
    assert_eq!(
        cluster
            .instance("iad-1")
            .call("fra", "Fly.RPC.my_region", json!([]))
            .await
            .result(),
        "fra"
    );

    fra.kill();
    fra.ended().await;
    let left = async || ready_instances(cluster.instance("iad-1")).await;
    eventually("fra is gone", left, |seen| !seen.contains("fra-1")).await;
}

#[tokio::test]
async fn a_peer_that_dns_still_lists_is_suspect_until_it_answers_again() {
    let mut cluster = two_regions().start().await;
    let address = cluster.instance("syd-1").address;
    let mut syd = cluster.instances.pop().unwrap();
    syd.kill();
    syd.ended().await;
    let suspects = async || instances_in_state(cluster.instance("iad-1"), "suspect").await;
    eventually("syd is suspect", suspects, |seen| seen.contains("syd-1")).await;
    let _again = Process::start(&cluster.environment("syd", "syd-2", address)).await;
    let ready = async || ready_instances(cluster.instance("iad-1")).await;
    eventually("the new one is ready", ready, |seen| {
        seen.contains("syd-2") && !seen.contains("syd-1")
    })
    .await;
}

#[tokio::test]
async fn addresses_of_others_are_no_harm() {
    let mut cluster = two_regions().start().await;
    let other_app = Environment::from([("FLY_APP_NAME", "other".to_owned())]);
    let mut environment = cluster.environment("mars", "mars-1", cluster.instance("iad-1").address);
    environment.extend(other_app);
    environment.insert("RPC_LISTEN", cluster.free_address().to_string());
    let other = Process::start(&environment).await;
    let website = cluster.free_address();
    serve(
        website,
        Router::new().route("/internal/region", get(async || "<html>Welcome</html>")),
    )
    .await;
    let empty_site = cluster.free_address();
    serve(empty_site, Router::new()).await;
    let nobody = cluster.free_address();

    let strangers = [other.address, website, empty_site, nobody].map(|address| address.ip());
    cluster
        .dns
        .set_addresses(NAME, cluster.addresses().into_iter().chain(strangers));
    let iad = cluster.instance("iad-1");
    let logged = async || iad.log().matches("not a peer; it is asked again").count();
    eventually("four addresses are mentioned", logged, |count| *count == 4).await;
    let rounds = async || {
        iad.get("/regions").await.body["discovery"]["rounds"]
            .as_u64()
            .unwrap()
    };
    let seen = rounds().await;
    eventually("three more rounds", rounds, |rounds| *rounds >= seen + 3).await;

    assert_eq!(logged().await, 4, "each is mentioned once: {}", iad.log());
    assert!(
        iad.log()
            .contains("it belongs to another app: other, not none"),
        "{}",
        iad.log()
    );
    assert!(
        iad.log().contains("it answered with 404 Not Found"),
        "{}",
        iad.log()
    );
    assert!(
        iad.log().contains("its answer is not ours"),
        "{}",
        iad.log()
    );
    assert!(iad.log().contains("Connection refused"), "{}", iad.log());
    assert_eq!(known_instances(iad).await.len(), 2);
    assert_eq!(
        iad.call("mars", "Fly.RPC.my_region", json!([]))
            .await
            .problem()
            .1,
        "region_unknown"
    );
    assert_eq!(
        iad.call("syd", "Fly.RPC.my_region", json!([]))
            .await
            .result(),
        "syd"
    );
}

#[tokio::test]
async fn a_stranger_that_becomes_a_peer_is_found() {
    let mut cluster = Cluster::builder().region("iad", 1).start().await;
    let address = cluster.free_address();
    let stranger = serve(address, Router::new()).await;
    cluster
        .dns
        .set_addresses(NAME, cluster.addresses().into_iter().chain([address.ip()]));
    let iad = cluster.instance("iad-1");
    eventually(
        "the stranger is mentioned",
        async || iad.log(),
        |log| log.contains("not a peer"),
    )
    .await;
    stranger.abort();
    assert!(stranger.await.unwrap_err().is_cancelled());
    let _syd = Process::start(&cluster.environment("syd", "syd-1", address)).await;
    eventually(
        "syd is ready",
        async || ready_instances(iad).await,
        |seen| seen.contains("syd-1"),
    )
    .await;
}

#[tokio::test]
async fn srv_records_carry_the_port_also_when_all_share_one_address() {
    let cluster = Cluster::builder()
        .region("iad", 1)
        .set("RPC_DNS_NAME", "_rpc._tcp.cluster.test")
        .start()
        .await;
    let mut environment = cluster.environment("syd", "syd-1", ([127, 0, 0, 1], 0).into());
    let syd = Process::start(&environment).await;
    environment.insert("FLY_REGION", "fra".to_owned());
    environment.insert("FLY_MACHINE_ID", "fra-1".to_owned());
    let fra = Process::start(&environment).await;
    cluster
        .dns
        .set_addresses("localhost.cluster.test", [syd.address.ip()]);
    let services =
        [&syd, &fra].map(|instance| ("localhost.cluster.test".to_owned(), instance.address.port()));
    cluster.dns.set_services("_rpc._tcp.cluster.test", services);
    let iad = cluster.instance("iad-1");
    eventually(
        "both are ready",
        async || ready_instances(iad).await,
        |seen| seen.len() == 3,
    )
    .await;
    for region in ["syd", "fra"] {
        assert_eq!(
            iad.call(region, "Fly.RPC.my_region", json!([]))
                .await
                .result(),
            region
        );
    }
}

#[tokio::test]
async fn aaaa_records_are_peers_over_ipv6() {
    let cluster = Cluster::builder().region("iad", 1).start().await;
    let port = cluster.instance("iad-1").address.port();
    let listen = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
    let syd = Process::start(&cluster.environment("syd", "syd-1", listen)).await;
    cluster.dns.set_addresses(
        NAME,
        cluster.addresses().into_iter().chain([syd.address.ip()]),
    );
    let iad = cluster.instance("iad-1");
    eventually(
        "syd is ready",
        async || ready_instances(iad).await,
        |seen| seen.contains("syd-1"),
    )
    .await;
    assert_eq!(
        iad.call("syd", "Fly.RPC.my_region", json!([]))
            .await
            .result(),
        "syd"
    );
    let regions = iad.get("/regions/syd").await.body;
    assert_eq!(regions["instances"][0]["address"], format!("[::1]:{port}"));
}

#[tokio::test]
async fn peers_serve_on_while_dns_fails_and_regions_says_why() {
    let cluster = two_regions().start().await;
    let iad = cluster.instance("iad-1");
    let why = async || {
        let discovery = iad.get("/regions").await.body["discovery"].clone();
        (
            discovery["stale"].as_bool().unwrap(),
            discovery["last_error"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        )
    };
    for (mood, reason) in [
        (
            Mood::Code(ResponseCode::ServFail),
            "the DNS server answered Server Failure",
        ),
        (
            Mood::Code(ResponseCode::Refused),
            "the DNS server answered Query Refused",
        ),
        (
            Mood::Code(ResponseCode::NXDomain),
            "the DNS server answered Non-Existent Domain",
        ),
        (
            Mood::Code(ResponseCode::NoError),
            "the answer has no records",
        ),
        (Mood::Silent, "the DNS server did not answer in time"),
    ] {
        cluster.dns.set_mood(mood);
        let expected = (true, format!("{NAME}: {reason}"));
        eventually("discovery is stale", why, |seen| *seen == expected).await;
        assert_eq!(
            iad.call("syd", "Fly.RPC.my_region", json!([]))
                .await
                .result(),
            "syd"
        );
        assert_eq!(known_instances(iad).await.len(), 2);
    }
    cluster.dns.set_mood(Mood::Well);
    eventually("DNS answers again", why, |seen| {
        *seen == (false, String::new())
    })
    .await;
}

#[tokio::test]
async fn a_partial_answer_takes_nobody_away() {
    let cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 2)
        .start()
        .await;
    cluster
        .dns
        .set_addresses(NAME, [cluster.instance("syd-1").address.ip()]);
    let iad = cluster.instance("iad-1");
    let rounds = async || {
        iad.get("/regions").await.body["discovery"]["rounds"]
            .as_u64()
            .unwrap()
    };
    let seen = rounds().await;
    eventually("three more rounds", rounds, |rounds| *rounds >= seen + 3).await;
    assert_eq!(known_instances(iad).await.len(), 3);
}

#[tokio::test]
async fn a_truncated_answer_is_asked_for_again_over_tcp() {
    let cluster = Cluster::builder().region("iad", 1).start().await;
    cluster.dns.set_mood(Mood::OnlyTcp);
    cluster.dns.set_ttl(0);
    let mut cluster = cluster;
    cluster.add("syd").await;
    cluster.announce_all();
    cluster.until_all_see_all().await;
}

#[tokio::test]
async fn the_first_round_holds_up_neither_the_start_nor_local_calls() {
    let cluster = Cluster::builder().start().await;
    cluster.dns.set_mood(Mood::Silent);
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let iad = Process::start(&cluster.environment("iad", "iad-1", listen)).await;
    assert_eq!(
        iad.call("iad", "Fly.RPC.my_region", json!([]))
            .await
            .result(),
        "iad"
    );
    let hasty = json!({"module": "Fly.RPC", "function": "my_region", "timeout_ms": 1});
    let pending = iad.rpc("syd", &hasty).await;
    assert_eq!(pending.problem(), (503, "discovery_pending", "no"));
    let not_ready = iad.get("/readyz").await;
    assert_eq!(not_ready.problem(), (503, "discovery_pending", "no"));

    // Ready once the first round was tried; a region stays pending, not unknown, until DNS has answered.
    eventually(
        "ready",
        async || iad.get("/readyz").await.status,
        |status| *status == 200,
    )
    .await;
    let pending = iad.call("syd", "Fly.RPC.my_region", json!([])).await;
    assert_eq!(pending.problem(), (503, "discovery_pending", "no"));
    let why = format!(
        "region \"syd\": DNS has given no whole answer yet: {NAME}: the DNS server did not answer in time"
    );
    assert_eq!(pending.detail(), why);
}

/// A call as soon as the instance listens, in each of the ways that need to know who is there.
#[tokio::test]
async fn calls_wait_for_the_first_round_and_for_no_other() {
    let mut cluster = Cluster::builder().region("syd", 1).start().await;
    let silent = cluster.free_address();
    let _never_answers = TcpListener::bind(silent).await.unwrap();
    cluster
        .dns
        .set_addresses(NAME, [cluster.addresses()[0], silent.ip()]);
    let call = json!({"module": "Fly.RPC", "function": "my_region"});
    let pinned = json!({"module": "Fly.RPC", "function": "my_region", "instance": "syd-1"});
    for (region, body, key, expected) in [
        ("syd", &call, None, (200, json!("syd"))),
        ("syd", &pinned, None, (200, json!("syd"))),
        ("syd", &call, Some("order-1234"), (200, json!("syd"))),
        ("iad", &call, Some("order-1234"), (200, json!("iad"))),
        ("mars", &call, None, (404, json!("region_unknown"))),
    ] {
        // The one before may still be dying at its address.
        let listen = cluster.free_address();
        let mut environment = cluster.environment("iad", "iad-1", listen);
        environment.insert("RPC_POLL_INTERVAL", "60s".to_owned());
        environment.insert("RPC_DEFAULT_TIMEOUT", "60s".to_owned());
        let iad = Process::start(&environment).await;
        let mut request = iad.request(&format!("/rpc/{region}"), &body.to_string());
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let answer = answer(request).await.unwrap();
        let word = ["result", "code"].map(|member| answer.body[member].clone());
        let word = word.into_iter().find(|word| !word.is_null()).unwrap();
        assert_eq!((answer.status, word), expected, "{region} {body} {key:?}");
    }
}

#[tokio::test]
async fn a_round_asks_dns_once_and_calls_never_do() {
    let mut cluster = Cluster::builder().start().await;
    let nobody = cluster.free_address();
    cluster.dns.set_addresses(NAME, [nobody.ip()]);
    cluster.add_with("iad", "RPC_POLL_INTERVAL", "60s").await;
    let iad = cluster.instance("iad-1");
    eventually(
        "the first round",
        async || iad.get("/readyz").await.status,
        |status| *status == 200,
    )
    .await;
    for _ in 0..50 {
        iad.call("iad", "Fly.RPC.my_region", json!([]))
            .await
            .result();
        iad.call("mars", "Fly.RPC.my_region", json!([]))
            .await
            .problem();
    }
    // A and AAAA of one name, in one round.
    assert_eq!(cluster.dns.queries(), 2);
}

#[tokio::test]
async fn fly_app_name_gives_the_dns_name() {
    let cluster = Cluster::builder().region("iad", 1).start().await;
    let mut environment = cluster.environment("syd", "syd-1", ([127, 0, 0, 1], 0).into());
    environment.remove("RPC_DNS_NAME");
    environment.insert("FLY_APP_NAME", "shop".to_owned());
    let syd = Process::start(&environment).await;
    let discovery = syd.get("/regions").await.body["discovery"].clone();
    assert_eq!(discovery["source"], "shop.internal");
}

/// A web server of somebody else at `address`.
async fn serve(address: SocketAddr, router: Router) -> tokio::task::JoinHandle<()> {
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() })
}
