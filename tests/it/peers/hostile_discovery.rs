//! Discovery among those who mean no good, or are set up wrong: crowds of addresses without an instance, peers that claim
//! what is not so, two processes under one name, a DNS server that answers in part.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{Router, routing::get};
use hickory_server::proto::op::ResponseCode;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{
    asking::two_regions,
    cluster::{Cluster, NAME, instances_in_state, ready_instances, rounds},
    dns::Mood,
    patience::eventually,
    process::{Process, answer},
};

const SERVICE: &str = "_rpc._tcp.cluster.test";

/// Instances that find each other by the SRV records of [`SERVICE`].
async fn by_service(regions: &[&str]) -> Cluster {
    let mut cluster = Cluster::builder()
        .set("RPC_DNS_NAME", SERVICE)
        .set("RPC_POLL_INTERVAL", "1s")
        .start()
        .await;
    for region in regions {
        cluster.add(region).await;
    }
    let services = cluster.instances.iter().map(|instance| {
        let target = format!("{}.test", instance.name);
        cluster.dns.set_addresses(&target, [instance.address.ip()]);
        (target, instance.address.port())
    });
    let services: Vec<_> = services.collect();
    cluster.dns.set_services(SERVICE, services);
    cluster.until_all_see_all().await;
    cluster
}

/// Takes connections at every address of this machine, and says nothing; the port.
async fn hanging() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
            // A probe has given up long before.
            if held.len() > 500 {
                held.drain(..250);
            }
        }
    });
    port
}

#[tokio::test]
async fn a_crowd_of_new_addresses_keeps_no_killed_peer_ready_and_no_new_one_away() {
    let mut cluster = by_service(&["iad", "syd"]).await;
    cluster.dns.set_crowd(400, hanging().await);
    let rounds = async |cluster: &Cluster| {
        let regions = cluster.instance("iad-1").get("/regions").await.body;
        regions["discovery"]["rounds"].as_u64().unwrap()
    };
    let seen = rounds(&cluster).await;
    let later = async || rounds(&cluster).await;
    eventually("three rounds", later, |rounds| *rounds >= seen + 3).await;
    let syd = cluster.instance_mut("syd-1");
    syd.kill();
    syd.ended().await;
    let suspects = async || instances_in_state(cluster.instance("iad-1"), "suspect").await;
    eventually("a suspect", suspects, |seen| seen.contains("syd-1")).await;
    cluster.restart("syd-1").await;
    cluster.until_ready("iad-1", &["iad-1", "syd-1"]).await;
}

#[tokio::test]
async fn an_answer_that_stands_for_more_addresses_than_there_is_room_for_takes_no_peer() {
    let cluster = by_service(&["iad", "syd"]).await;
    let iad = cluster.instance("iad-1");
    cluster.dns.set_flood(400);
    let error = async || iad.get("/regions").await.body["discovery"]["last_error"].clone();
    let too_large = format!("{SERVICE}: its SRV records lead to more than 32768 addresses");
    eventually("an error", error, |error| *error == too_large).await;
    cluster.until_ready("iad-1", &["iad-1", "syd-1"]).await;
}

#[tokio::test]
async fn a_region_is_not_unknown_while_addresses_have_still_to_be_probed() {
    let mut cluster = Cluster::builder()
        .set("RPC_DNS_NAME", SERVICE)
        .start()
        .await;
    cluster.add("syd").await;
    let syd = cluster.instance("syd-1").address;
    let port = hanging().await;
    // Before syd in the order of addresses; no more than 24 are probed at once, for a second each.
    let silent =
        (1..=60).map(|number| (format!("silent-{number}.test"), [127, 0, 1, number], port));
    let mut services = vec![("syd.test".to_owned(), syd.port())];
    cluster.dns.set_addresses("syd.test", [syd.ip()]);
    for (target, ip, port) in silent {
        cluster.dns.set_addresses(&target, [ip.into()]);
        services.push((target, port));
    }
    cluster.dns.set_services(SERVICE, services);
    cluster.add("iad").await;
    let iad = cluster.instance("iad-1");
    let call = async || iad.call("syd", "Fly.RPC.my_region", json!([])).await;
    eventually("an answer of syd", call, |answer| {
        if answer.status != 200 {
            assert_eq!(answer.problem(), (503, "discovery_pending", "no"));
        }
        answer.status == 200
    })
    .await;
    let typo = async || iad.call("mars", "Fly.RPC.my_region", json!([])).await;
    eventually("every address is probed", typo, |answer| {
        answer.problem() == (404, "region_unknown", "no")
    })
    .await;
}

#[tokio::test]
async fn silent_targets_hide_no_good_ones() {
    let cluster = by_service(&["iad", "syd"]).await;
    let silent = (0..100).map(|number| format!("silent-{number}.test"));
    cluster.dns.silence(silent.clone());
    let mut services: Vec<_> = silent.map(|name| (name, 1)).collect();
    let mut good = BTreeSet::from(["iad-1".to_owned(), "syd-1".to_owned()]);
    let mut started = Vec::new();
    for (number, target) in ["a", "m", "silent-50x", "z"].into_iter().enumerate() {
        let name = format!("fra-{number}");
        let listen = ([127, 0, 0, 1], 0).into();
        let instance = Process::start(&cluster.environment("fra", &name, listen)).await;
        let target = format!("{target}.test");
        cluster.dns.set_addresses(&target, [instance.address.ip()]);
        services.push((target, instance.address.port()));
        started.push(instance);
        good.insert(name);
    }
    cluster.dns.set_services(SERVICE, services);
    let iad = cluster.instance("iad-1");
    let seen = async || ready_instances(iad).await;
    eventually("all good ones", seen, |seen| *seen == good).await;
    let discovery = iad.get("/regions").await.body["discovery"].clone();
    assert_eq!(discovery["stale"], true);
}

#[tokio::test]
async fn a_kind_of_address_that_dns_never_answers_does_not_make_discovery_stale() {
    for mood in [
        Mood::Code(ResponseCode::Refused),
        Mood::Code(ResponseCode::ServFail),
        Mood::Code(ResponseCode::NotImp),
        Mood::Silent,
    ] {
        let mut cluster = Cluster::builder().start().await;
        cluster.dns.set_mood_of_a(mood);
        cluster.add("iad").await;
        let port = cluster.instance("iad-1").address.port();
        let listen = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        let mut syd = Process::start(&cluster.environment("syd", "syd-1", listen)).await;
        cluster.dns.set_addresses(NAME, [listen.ip()]);
        cluster.until_ready("iad-1", &["iad-1", "syd-1"]).await;
        let iad = cluster.instance("iad-1");
        let discovery = async || iad.get("/regions").await.body["discovery"].clone();
        eventually("a whole answer", discovery, |seen| seen["stale"] == false).await;
        // Who leaves DNS and dies is no peer any more.
        let other = ([0, 0, 0, 0, 0, 0xffff, 0x7f00, 9]).into();
        cluster
            .dns
            .set_addresses(NAME, [std::net::IpAddr::V6(other)]);
        syd.kill();
        syd.ended().await;
        let gone = async || iad.get("/regions").await.body["regions"].clone();
        eventually("syd is gone", gone, |regions| {
            let instances = |region: &Value| region["instances"].as_array().unwrap().len();
            regions
                .as_array()
                .unwrap()
                .iter()
                .map(instances)
                .sum::<usize>()
                == 1
        })
        .await;
    }
}

#[tokio::test]
async fn that_a_name_is_not_there_yet_is_no_answer_of_a_kind_of_address() {
    let mut cluster = Cluster::builder().start().await;
    // Before the name is there, the server says so of both kinds; once it is, it fails for one of them.
    cluster.dns.set_mood(Mood::Code(ResponseCode::NXDomain));
    cluster.add("iad").await;
    let iad = cluster.instance("iad-1");
    let rounds = async || rounds(iad).await;
    eventually("a round", rounds, |rounds| *rounds >= 1).await;
    cluster
        .dns
        .set_mood_of_a(Mood::Code(ResponseCode::ServFail));
    cluster
        .dns
        .set_addresses(NAME, [Ipv6Addr::LOCALHOST.into()]);
    cluster.dns.set_mood(Mood::Well);
    let mars = async || iad.get("/regions/mars").await.status;
    eventually("a whole answer", mars, |status| *status == 404).await;
    let discovery = iad.get("/regions").await.body["discovery"].clone();
    assert_eq!(
        (&discovery["stale"], &discovery["last_error"]),
        (&json!(false), &Value::Null)
    );
}

/// What answers at `address` as an instance whose introduction `introduce` makes, with the functions of `catalogue`.
async fn pretend(
    address: SocketAddr,
    catalogue: Value,
    introduce: impl Fn() -> Value + Clone + Send + Sync + 'static,
) {
    let introduce = move || {
        let introduce = introduce.clone();
        async move { introduce().to_string() }
    };
    let router = Router::new()
        .route("/internal/region", get(introduce))
        .route(
            "/internal/functions",
            get(async move || catalogue.to_string()),
        );
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
}

#[tokio::test]
async fn a_false_claim_of_functions_says_nothing_about_others() {
    let mut cluster = Cluster::builder().functions().start().await;
    cluster.add_without_functions("iad").await;
    let address = cluster.free_address();
    cluster.add("syd").await;
    let mut claim = cluster.instance("syd-1").get("/internal/region").await.body;
    claim["instance"] = "syd-9".into();
    let nothing = json!({"functions": {}});
    pretend(address, nothing, move || claim.clone()).await;
    let [iad, syd] = [0, 1].map(|number| cluster.addresses()[number]);
    cluster.dns.set_addresses(NAME, [iad, address.ip()]);
    cluster.until_ready("iad-1", &["iad-1", "syd-9"]).await;
    cluster.dns.set_addresses(NAME, [iad, address.ip(), syd]);
    cluster
        .until_ready("iad-1", &["iad-1", "syd-1", "syd-9"])
        .await;
    let asked = "/regions/syd/explain?function=Test.echo";
    let answer = cluster.instance("iad-1").get(asked).await;
    let candidates = answer.body["candidates"].as_array().unwrap().iter();
    let reasons: Vec<_> = candidates
        .map(|one| (&one["instance"], &one["reason"]))
        .collect();
    // What it says of the other may be either: what that one claims is not checked here.
    assert!(
        reasons.contains(&(&json!("syd-1"), &json!("ready"))),
        "{reasons:?}"
    );
}

#[tokio::test]
async fn what_an_instance_says_of_its_app_goes_with_its_functions() {
    const NO_FUNCTIONS: &str = "e3b0c44298fc1c149afbf4c8996fb924";
    let mut cluster = Cluster::builder().region("fra", 1).start().await;
    let mut before = cluster.instance("fra-1").get("/internal/region").await.body;
    before["region"] = "syd".into();
    before["instance"] = "syd-9".into();
    before["catalogue"] = "0".repeat(32).into();
    before["app_state"] = "up".into();
    let mut after = before.clone();
    after["catalogue"] = NO_FUNCTIONS.into();
    after["app_state"] = "down".into();
    let (address, asked) = (cluster.free_address(), AtomicUsize::default());
    let asked = Arc::new(asked);
    // Its app ends between the first introduction and the list of its functions.
    let introduce = move || match asked.fetch_add(1, Ordering::SeqCst) {
        0 => before.clone(),
        _ => after.clone(),
    };
    pretend(address, json!({"functions": {}}), introduce).await;
    cluster.dns.set_addresses(NAME, [address.ip()]);
    let all = ["iad-1", "syd-9"];
    cluster.add_with_one_round("iad", &all).await;
    let explain = "/regions/syd/explain?function=App.run";
    let explained = async || cluster.instance("iad-1").get(explain).await.body;
    let explained = eventually("its functions", explained, |seen| {
        seen["candidates"][0]["app"] != "up"
    });
    let explained = explained.await;
    assert_eq!(explained["candidates"][0]["app"], "down", "{explained}");
}

#[tokio::test]
async fn functions_that_no_peer_has_any_more_take_no_memory() {
    const LISTS: usize = 30;
    let mut cluster = Cluster::builder().region("iad", 1).start().await;
    let introduction = cluster.instance("iad-1").get("/internal/region").await.body;
    let address = cluster.free_address();
    // Others each time that they are read, and larger in memory than on the wire.
    let schema = Value::from(vec![json!({"": 0}); 20_000]);
    let reads = Arc::<AtomicUsize>::default();
    let hash = |reads: &AtomicUsize| format!("{:032x}", reads.load(Ordering::SeqCst));
    let introduce = {
        let reads = Arc::clone(&reads);
        async move || {
            let mut introduction = introduction.clone();
            introduction["region"] = "syd".into();
            introduction["instance"] = "syd-9".into();
            introduction["catalogue"] = hash(&reads).into();
            introduction.to_string()
        }
    };
    let list = {
        let reads = Arc::clone(&reads);
        async move || {
            let hash = hash(&reads);
            reads.fetch_add(1, Ordering::SeqCst);
            let declared = json!({"doc": hash, "result": schema});
            json!({"catalogue": hash, "functions": {"A": ["f"]}, "details": {"A.f": declared}})
                .to_string()
        }
    };
    let router = Router::new()
        .route("/internal/region", get(introduce))
        .route("/internal/functions", get(list));
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let addresses = cluster.addresses().into_iter().chain([address.ip()]);
    cluster.dns.set_addresses(NAME, addresses);
    let iad = cluster.instance("iad-1");
    let read = async || reads.load(Ordering::SeqCst);
    eventually("some lists", read, |reads| *reads > 5).await;
    let before = iad.peak_memory();
    eventually("many lists", read, |reads| *reads > 5 + LISTS).await;
    let of_each = (iad.peak_memory() - before) / LISTS as u64;
    assert!(of_each < 4_000, "{of_each} KiB of each list stay");
}

#[tokio::test]
async fn of_what_a_stranger_says_little_is_kept() {
    let mut cluster = Cluster::builder().region("iad", 1).start().await;
    let introduction = cluster.instance("iad-1").get("/internal/region").await.body;
    let long = "x".repeat(50_000);
    let mut addresses = cluster.addresses();
    for (member, instance) in [("app", "syd-8"), ("release", "syd-9")] {
        let mut introduction = introduction.clone();
        introduction["instance"] = instance.into();
        introduction[member] = long.clone().into();
        let address = cluster.free_address();
        pretend(address, json!({"functions": {}}), move || {
            introduction.clone()
        })
        .await;
        addresses.push(address.ip());
    }
    cluster.dns.set_addresses(NAME, addresses);
    cluster.until_ready("iad-1", &["iad-1", "syd-9"]).await;
    let iad = cluster.instance("iad-1");
    let explained = async || iad.get("/regions/iad/explain").await.body["unplaced"].clone();
    let explained = eventually("an address without a peer", explained, |unplaced| {
        unplaced[0]["last_probe_error"].is_string()
    });
    let why = explained.await[0]["last_probe_error"].clone();
    let why = why.as_str().unwrap();
    assert!(why.starts_with("it belongs to another app: xxx"), "{why}");
    assert_eq!(why.len(), 256);
    let instances = iad.get("/regions/iad").await.body["instances"].clone();
    let releases = instances.as_array().unwrap().iter();
    let releases = releases.filter_map(|one| one["release"].as_str().map(str::len));
    assert_eq!(releases.max(), Some(256));
    let log = iad.log();
    assert!(log.lines().all(|line| line.len() < 1_000), "{log}");
}

#[tokio::test]
async fn functions_that_never_come_hold_up_nobody() {
    let mut cluster = Cluster::builder().functions().start().await;
    cluster.add_without_functions("iad").await;
    cluster.add("syd").await;
    let introduction = cluster.instance("syd-1").get("/internal/region").await.body;
    let given_up = Arc::<AtomicUsize>::default();
    let (mut addresses, mut all) = (cluster.addresses(), vec!["iad-1".to_owned()]);
    // More than are read at once.
    for number in 0..20 {
        let mut introduction = introduction.clone();
        introduction["instance"] = format!("fra-{number}").into();
        introduction["region"] = "fra".into();
        introduction["catalogue"] = "0".repeat(32).into();
        let introduce = async move || introduction.to_string();
        let given_up = Arc::clone(&given_up);
        let keep_silent = async move || {
            let _guard = scopeguard::guard((), |()| {
                given_up.fetch_add(1, Ordering::SeqCst);
            });
            std::future::pending::<()>().await;
        };
        let router = Router::new()
            .route("/internal/region", get(introduce))
            .route("/internal/functions", get(keep_silent));
        let listener = TcpListener::bind(cluster.free_address()).await.unwrap();
        addresses.push(listener.local_addr().unwrap().ip());
        all.push(format!("fra-{number}"));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    }
    let syd = addresses.remove(1);
    cluster.dns.set_addresses(NAME, addresses.clone());
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    let iad = cluster.instance("iad-1");
    let seen = async || {
        let given_up = given_up.load(Ordering::SeqCst);
        (ready_instances(iad).await.len(), given_up)
    };
    let is_early = |(ready, given_up): &(usize, usize)| *ready > given_up + 1;
    eventually("a peer whose list is waited for", seen, is_early).await;
    cluster.until_ready("iad-1", &all).await;
    // Those of another are read meanwhile.
    addresses.push(syd);
    cluster.dns.set_addresses(NAME, addresses);
    let functions = async |region: &str| {
        let region = iad.get(&format!("/regions/{region}")).await.body;
        region["instances"][0]["functions"].clone()
    };
    let known = async || functions("syd").await;
    eventually("the functions of syd", known, Value::is_number).await;
    assert_eq!(functions("fra").await, Value::Null);
}

#[tokio::test]
async fn regions_of_a_peer_that_moves_all_the_time_are_forgotten() {
    let mut cluster = Cluster::builder().region("iad", 1).start().await;
    let probes = Arc::<AtomicUsize>::default();
    let introduction = cluster.instance("iad-1").get("/internal/region").await.body;
    let mut addresses = cluster.addresses();
    for number in 0..20 {
        let address = cluster.free_address();
        addresses.push(address.ip());
        let (probes, mut introduction) = (Arc::clone(&probes), introduction.clone());
        introduction["instance"] = format!("mover-{number}").into();
        let introduce = move || {
            let mut got = introduction.clone();
            got["region"] = format!("r{}", probes.fetch_add(1, Ordering::SeqCst)).into();
            got
        };
        pretend(address, json!({"functions": {}}), introduce).await;
    }
    cluster.dns.set_addresses(NAME, addresses);
    let asked = async || probes.load(Ordering::SeqCst);
    eventually("six hundred regions", asked, |count| *count >= 600).await;
    let iad = cluster.instance("iad-1");
    let regions = async || {
        let regions = iad.get("/regions").await.body["regions"].clone();
        regions.as_array().unwrap().len()
    };
    // 256 that are empty, 20 in which the movers are, and this instance's own. Read while some move, it may be a few more.
    eventually("few regions", regions, |known| *known <= 277).await;
    let metrics = iad.get("/metrics").await.body;
    let labels = metrics.as_str().unwrap().matches("peer_region=").count();
    assert!(labels <= 3 * 280, "{labels} labels of regions");
}

#[tokio::test]
async fn two_processes_under_one_name_are_reported_and_not_chosen_by_it() {
    let mut cluster = two_regions().start().await;
    let address = cluster.free_address();
    let namesake = Process::start(&cluster.environment("syd", "syd-1", address)).await;
    let addresses = cluster.addresses().into_iter().chain([address.ip()]);
    cluster.dns.set_addresses(NAME, addresses);
    let iad = cluster.instance("iad-1");
    let warnings = async || iad.get("/regions").await.body["discovery"]["warnings"].clone();
    let expected = json!([
        "instance syd-1 in region syd: two processes say that they are this instance: neither gets \
        calls with a key, or that name the instance, until each has an id of its own (FLY_MACHINE_ID)"
    ]);
    eventually("a warning", warnings, |seen| *seen == expected).await;
    let said = "two processes say that they are this instance";
    let lines = async || iad.log().matches(said).count();
    eventually("a line of the log", lines, |count| *count == 1).await;
    let shown = async || {
        let instances = iad.get("/regions/syd").await.body["instances"].clone();
        let mut shown = Vec::new();
        for instance in instances.as_array().unwrap() {
            assert_eq!(
                (&instance["instance"], &instance["state"]),
                (&json!("syd-1"), &json!("ready"))
            );
            shown.push(instance["address"].as_str().unwrap().to_owned());
        }
        shown.sort();
        shown
    };
    let mut both = [cluster.instance("syd-1").address, address].map(|it| it.to_string());
    both.sort();
    assert_eq!(shown().await, both);
    let pinned = json!({"module": "Fly.RPC", "function": "my_region", "instance": "syd-1"});
    let refused = iad.rpc("syd", &pinned).await;
    assert_eq!(refused.problem(), (404, "instance_unknown", "no"));
    let why = "two processes of this region say that they are instance \"syd-1\"; give each an id of its own (FLY_MACHINE_ID)";
    assert_eq!(refused.detail(), why);
    let request = iad.request("/rpc/syd/Fly.RPC/my_region", "[]");
    let keyed = answer(request.header("idempotency-key", "a"))
        .await
        .unwrap();
    assert_eq!(keyed.problem(), (503, "region_unavailable", "no"));
    let why = "region \"syd\": each instance shares its id (FLY_MACHINE_ID) with another process";
    assert_eq!(keyed.detail(), why);
    assert_eq!(
        iad.call("syd", "Fly.RPC.my_region", json!([]))
            .await
            .result(),
        "syd"
    );
    // Of the two, each sees that the other says its name.
    eventually(
        "the namesake says so",
        async || namesake.log(),
        |log| log.contains("another process says that it is this instance, syd-1"),
    )
    .await;
    // And they know no better than others which of them has a key, and say so.
    for twin in [cluster.instance("syd-1"), &namesake] {
        let other = [cluster.instance("syd-1").address, address];
        let other = other.into_iter().find(|it| *it != twin.address).unwrap();
        let own = format!(
            "{other} is not a peer: another process says that it is this instance, syd-1: give each an id of its own \
             (FLY_MACHINE_ID)"
        );
        let expected = json!([expected[0], own]);
        let warnings = async || twin.get("/regions").await.body["discovery"]["warnings"].clone();
        eventually("a warning of its own", warnings, |seen| *seen == expected).await;
        let lines = async || twin.log().matches(said).count();
        eventually("its line of the log", lines, |count| *count == 1).await;
        let request = twin.request("/rpc/syd/Fly.RPC/my_region", "[]");
        let keyed = answer(request.header("idempotency-key", "a")).await;
        let keyed = keyed.unwrap();
        assert_eq!(keyed.problem(), (503, "region_unavailable", "no"));
        assert_eq!(keyed.detail(), why);
        let plain = twin.call("syd", "Fly.RPC.my_region", json!([])).await;
        assert_eq!(plain.result(), "syd");
    }
    drop(namesake);
    let left = cluster.instance("syd-1");
    let request = async || {
        let request = left.request("/rpc/syd/Fly.RPC/my_region", "[]");
        let keyed = answer(request.header("idempotency-key", "b")).await;
        keyed.unwrap().status
    };
    eventually("keys", request, |status| *status == 200).await;
    eventually("one is left", warnings, |seen| *seen == json!([])).await;
    let left = cluster.instance("syd-1").address.to_string();
    assert_eq!(shown().await, [left]);
    assert_eq!(iad.rpc("syd", &pinned).await.result(), "syd");
}

#[tokio::test]
async fn under_a_partial_answer_an_unseen_region_is_pending() {
    let mut cluster = Cluster::builder()
        .set("RPC_DNS_NAME", "one.test,two.test")
        .start()
        .await;
    cluster.dns.silence(["two.test".to_owned()]);
    cluster.add("syd").await;
    cluster.dns.set_addresses("one.test", cluster.addresses());
    cluster.add("iad").await;
    cluster.until_ready("iad-1", &["iad-1", "syd-1"]).await;
    let iad = cluster.instance("iad-1");
    let unseen = iad.call("fra", "Fly.RPC.my_region", json!([])).await;
    assert_eq!(unseen.problem(), (503, "discovery_pending", "no"));
    let why = "region \"fra\": DNS has given no whole answer yet: two.test: the DNS server did not answer in time";
    assert_eq!(unseen.detail(), why);
    assert_eq!(
        iad.call("syd", "Fly.RPC.my_region", json!([]))
            .await
            .result(),
        "syd"
    );
}

#[tokio::test]
async fn an_instance_without_dns_is_not_ready_until_dns_answers() {
    let mut cluster = Cluster::builder().start().await;
    cluster.dns.set_mood(Mood::Silent);
    cluster.add("iad").await;
    let iad = cluster.instance("iad-1");
    let rounds = async || iad.get("/regions").await.body["discovery"]["rounds"].as_u64();
    eventually("two rounds", rounds, |rounds| rounds.unwrap() >= 2).await;
    assert_eq!(
        iad.get("/readyz").await.problem(),
        (503, "discovery_pending", "no")
    );
    assert_eq!(
        iad.call("iad", "Fly.RPC.my_region", json!([]))
            .await
            .result(),
        "iad"
    );
    // That there is no such name is an answer.
    cluster.dns.set_mood(Mood::Well);
    let ready = async || iad.get("/readyz").await.status;
    eventually("ready", ready, |status| *status == 200).await;
}
