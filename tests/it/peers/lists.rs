//! Calls for a list of regions, and for `any`: which region gets them, and when the next one does.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    asking::{block, broken_cluster, failure, run, two_regions},
    cluster::Cluster,
    fault::{Fault, Scope},
    patience::eventually,
    process::{Answer, Process, answer},
};

const DESK: &str = "desk-0123456789abcdef0123456789abcdef";
const SHOP: &str = "shop-0123456789abcdef0123456789abcdef";

/// The region where a call ran, and in how many attempts.
fn ran(answer: &Answer) -> (&str, u64) {
    answer.result();
    let meta = &answer.body["meta"];
    (
        meta["region"].as_str().unwrap(),
        meta["attempts"].as_u64().unwrap(),
    )
}

/// The counter of calls for a list, by its labels, at `instance`.
async fn choices(instance: &Process) -> BTreeMap<String, String> {
    let metrics = instance.get("/metrics").await.body;
    let lines = metrics.as_str().unwrap().lines();
    let counted = lines.filter_map(|line| line.strip_prefix("fly_rpc_choices_total{"));
    let counted = counted.map(|line| line.split_once("} ").unwrap());
    counted
        .map(|(labels, count)| (labels.to_owned(), count.to_owned()))
        .collect()
}

#[tokio::test]
async fn the_first_region_that_serves_gets_the_call() {
    let cluster = two_regions().start().await;
    let iad = cluster.instance("iad-1");
    for (list, region) in [
        ("syd,iad", "syd"),
        ("iad,syd", "iad"),
        ("mars,syd,any", "syd"),
        ("any", "iad"),
        ("syd,any", "syd"),
        ("any,syd", "iad"),
        ("syd%2Cprimary", "syd"),
        ("primary%2csyd", "iad"),
        ("iad,primary", "iad"),
        ("mars,mars,syd", "syd"),
    ] {
        let here = iad.call(list, "Fly.RPC.my_region", json!([])).await;
        assert_eq!((here.result(), ran(&here)), (&json!(region), (region, 1)));
    }
    let unknown = iad.call("mars,venus", "String.upcase", json!(["x"])).await;
    assert_eq!(unknown.problem(), (404, "region_unknown", "no"));
    assert_eq!(
        unknown.detail(),
        "no instance was ever seen in region \"venus\"; known regions: iad, syd"
    );
    // The region that the detail names, and an instance of it where one was tried.
    let meta = &unknown.body["meta"];
    assert_eq!(
        (&meta["region"], &meta["instance"]),
        (&json!("venus"), &Value::Null)
    );
    for list in ["syd,mars", "mars,syd"] {
        let lacks = iad.call(list, "None.such", json!([])).await;
        assert_eq!(lacks.problem(), (404, "function_unknown", "no"));
        let meta = &lacks.body["meta"];
        assert_eq!(
            (&meta["region"], &meta["instance"]),
            (&json!("syd"), &json!("syd-1"))
        );
    }
    let nowhere = iad.call("any", "None.such", json!([])).await;
    assert_eq!(nowhere.problem(), (404, "function_unknown", "no"));
    assert_eq!(nowhere.body["meta"]["region"], "iad");
    let counted = [
        (r#"item="1",target_region="iad""#, "5"),
        (r#"item="1",target_region="syd""#, "3"),
        (r#"item="2",target_region="syd""#, "2"),
        (r#"item="none",target_region="other""#, "4"),
    ];
    let counted = counted.map(|(labels, count)| (labels.to_owned(), count.to_owned()));
    assert_eq!(choices(iad).await, BTreeMap::from(counted));
}

#[tokio::test]
async fn a_list_that_breaks_the_rule_is_refused() {
    let cluster = two_regions().start().await;
    let iad = cluster.instance("iad-1");
    let no_region = "a region must be \"primary\", \"any\", or 1 to 32 characters of [a-z0-9-], not starting with '-', and not \"all\" \
                     or \"each\" (to run on every instance, POST /each/all)";
    for (list, detail) in [
        ("syd,", no_region),
        (",syd", no_region),
        ("syd,,iad", no_region),
        ("SYD", no_region),
        (",", no_region),
        ("syd,%20iad", no_region),
        ("syd,all", no_region),
        ("each", no_region),
        ("syd,%69ad", no_region),
        ("a,b,c,d", "a list of regions must be one to three items"),
        // One that is named twice takes a place all the same.
        (
            "syd,syd,syd,syd",
            "a list of regions must be one to three items",
        ),
    ] {
        let refused = iad.call(list, "String.upcase", json!(["x"])).await;
        assert_eq!(refused.problem(), (400, "invalid_region", "no"), "{list}");
        assert_eq!(refused.detail(), detail, "{list}");
        assert_eq!(refused.body["meta"]["region"], Value::Null, "{list}");
    }
    for path in ["/regions/any", "/regions/syd,iad"] {
        let refused = iad.get(path).await;
        assert_eq!(refused.problem(), (400, "invalid_region", "no"), "{path}");
    }
}

#[tokio::test]
async fn when_a_region_dies_the_next_of_the_list_gets_what_did_not_run() {
    let cluster = broken_cluster(1).await;
    let iad = cluster.instance("iad-1");
    cluster.proxy("syd-1").break_all(Fault::Refuse).await;
    for list in ["syd,iad", "syd,any", "syd,mars,primary"] {
        let answer = iad.rpc(list, &run(list, &json!({}))).await;
        assert_eq!(ran(&answer).0, "iad", "{list}");
    }
    assert!(cluster.runs().values().all(|runs| *runs == 1));
}

#[tokio::test]
async fn a_call_that_may_have_run_goes_on_only_when_it_is_idempotent() {
    let cluster = broken_cluster(1).await;
    let iad = cluster.instance("iad-1");
    let lines = async || {
        let fault = Fault::CutAnswerAfter(0);
        cluster.proxy("syd-1").set(fault, Scope::Lines).await;
    };
    lines().await;
    let lost = iad.rpc("syd,iad", &run("once", &json!({}))).await;
    assert_eq!(failure(&lost), ("peer_lost", "maybe", 1));
    assert_eq!(lost.body["meta"]["region"], "syd");
    let again = json!({"idempotent": true});
    let answer = iad.rpc("syd,iad", &run("often", &again)).await;
    assert_eq!(ran(&answer), ("iad", 2));
    assert_eq!(cluster.runs()["once"], 1);
    assert!((1..=2).contains(&cluster.runs()["often"]));
    let failed = iad.call("iad,syd", "Test.fail", json!(["failed"])).await;
    assert_eq!(failure(&failed), ("function_failed", "yes", 1));
    let wrong = iad.call("iad,syd", "String.upcase", json!([1])).await;
    assert_eq!(failure(&wrong), ("invalid_arguments", "no", 1));
    // A region that failed a call answered it; one whose answer was lost did not.
    let counted = [
        (r#"item="1",target_region="iad""#, "2"),
        (r#"item="2",target_region="iad""#, "1"),
        (r#"item="none",target_region="other""#, "1"),
    ];
    let counted = counted.map(|(labels, count)| (labels.to_owned(), count.to_owned()));
    assert_eq!(choices(iad).await, BTreeMap::from(counted));
}

#[tokio::test]
async fn each_region_of_a_list_keeps_an_attempt() {
    let cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 3)
        .functions()
        .set("RPC_MAX_IN_FLIGHT", "1")
        .start()
        .await;
    let held: Vec<_> = (1..=3)
        .map(|number| {
            let name = format!("syd-{number}");
            block(cluster.instance(&name), "syd", &name, &json!({}))
        })
        .collect();
    for number in 1..=3 {
        cluster.until_started(&format!("syd-{number}")).await;
    }
    let iad = cluster.instance("iad-1");
    let answer = iad.rpc("syd,iad", &run("moved", &json!({}))).await;
    assert_eq!(ran(&answer), ("iad", 3));
    let full = iad.rpc("syd,mars", &run("full", &json!({}))).await;
    assert_eq!(failure(&full).0, "overloaded");
    assert_eq!((full.status, &*full.headers["retry-after"]), (503, "1"));
    for number in 1..=3 {
        cluster.release(&format!("syd-{number}"));
    }
    for held in held {
        assert_eq!(held.await.unwrap().result(), "released");
    }
}

/// `fra-1` and `syd-1` behind proxies, and `iad-1`, which has no function of the tests.
async fn far() -> Cluster {
    let mut cluster = Cluster::builder()
        .region("fra", 1)
        .region("syd", 1)
        .functions()
        .proxied()
        .start()
        .await;
    cluster.add_without_functions("iad").await;
    cluster.announce_all();
    cluster.until_all_see_all().await;
    cluster
}

#[tokio::test]
async fn any_is_the_nearest_region_that_has_the_function() {
    let cluster = far().await;
    let iad = cluster.instance("iad-1");
    let delay = Fault::Delay(Duration::from_millis(200));
    for (near, far) in [("syd", "fra"), ("fra", "syd")] {
        cluster.proxy(&format!("{near}-1")).heal().await;
        cluster.proxy(&format!("{far}-1")).break_all(delay).await;
        let path = "/regions/any/explain?function=Test.run";
        let explained = async || iad.get(path).await.body;
        // By more than chance.
        let is_near = |body: &Value| {
            let rtt = |place: usize| body["choices"][place]["rtt_ms"].as_f64().unwrap();
            body["region"] == near && rtt(1) + 50.0 < rtt(2)
        };
        let explained = eventually("another distance", explained, is_near).await;
        let choices = explained["choices"].as_array().unwrap();
        let got: Vec<_> = choices
            .iter()
            .map(|choice| (choice["region"].as_str().unwrap(), choice["chosen"] == true))
            .collect();
        assert_eq!(got, [("iad", false), (near, true), (far, false)]);
        let answer = iad.rpc("any", &run(near, &json!({}))).await;
        assert_eq!(ran(&answer), (near, 1));
    }
    // Here it is the own region that serves.
    let own = iad.call("any", "Fly.RPC.my_region", json!([])).await;
    assert_eq!(ran(&own), ("iad", 1));
    // Who is nearest does not answer: the next one does.
    cluster.proxy("fra-1").break_all(Fault::Refuse).await;
    let answer = iad.rpc("any", &run("next", &json!({}))).await;
    assert_eq!(ran(&answer).0, "syd");
}

#[tokio::test]
async fn calls_measure_the_distance_where_they_stand_for_probes() {
    let cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 1)
        .functions()
        .proxied()
        .set("RPC_POLL_INTERVAL", "2s")
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    let rtt = async || {
        let region = iad.get("/regions/syd").await.body;
        region["instances"][0]["rtt_ms"].as_f64().unwrap()
    };
    eventually("a short way", rtt, |now| *now < 150.0).await;
    let delay = Fault::Delay(Duration::from_millis(600));
    cluster.proxy("syd-1").set(delay, Scope::Calls).await;
    let farther = async || {
        let answer = iad.rpc("syd", &run("far", &json!({}))).await;
        assert_eq!(ran(&answer), ("syd", 1));
        rtt().await
    };
    eventually("a longer way", farther, |now| *now > 250.0).await;
}

#[tokio::test]
async fn a_key_needs_regions_by_name() {
    let cluster = two_regions().functions().start().await;
    let iad = cluster.instance("iad-1");
    let keyed = async |list: &str, id: &str, more: Value| {
        let request = iad.request(&format!("/rpc/{list}"), &run(id, &more).to_string());
        answer(request.header("idempotency-key", id)).await.unwrap()
    };
    let refused = keyed("syd,any", "any", json!({})).await;
    assert_eq!(failure(&refused), ("invalid_request", "no", 0));
    assert_eq!(
        refused.detail(),
        "a call with an idempotency key needs regions by name, idempotent: true, or an RPC_KEY_STORE: \"any\" may mean another \
         region when the call is repeated"
    );
    for (list, id, more) in [
        ("syd,iad", "named", json!({})),
        ("any", "twice", json!({"idempotent": true})),
    ] {
        let first = keyed(list, id, more.clone()).await;
        let again = keyed(list, id, more).await;
        assert_eq!(ran(&first), ran(&again));
        assert_eq!(again.headers["idempotency-replayed"], "true");
        assert_eq!(cluster.runs()[id], 1);
    }
}

#[tokio::test]
async fn a_key_whose_instance_hangs_is_not_run_in_the_next_region() {
    let cluster = broken_cluster(1).await;
    let iad = cluster.instance("iad-1");
    let keyed = async |id: &str| {
        let request = iad.request("/rpc/syd,iad", &run(id, &json!({})).to_string());
        answer(request.header("idempotency-key", id)).await.unwrap()
    };
    assert_eq!(ran(&keyed("kept").await), ("syd", 1));
    cluster.proxy("syd-1").break_all(Fault::Hang).await;
    let suspect = async || iad.get("/regions/syd").await.body["instances"][0]["state"].clone();
    eventually("a suspect", suspect, |state| state == "suspect").await;
    let held = keyed("kept").await;
    assert_eq!(held.problem(), (502, "peer_unreachable", "no"));
    assert_eq!(cluster.runs()["kept"], 1);
    // Without a key, who is known to be silent is passed over.
    let answer = iad.rpc("syd,iad", &run("moved", &json!({}))).await;
    assert_eq!(ran(&answer), ("iad", 1));
}

#[tokio::test]
async fn every_region_named_counts_for_a_client_and_any_means_its_regions() {
    let mut cluster = two_regions().start().await;
    let clients = format!("desk:{DESK}:regions=syd,shop:{SHOP}");
    cluster.add_with("iad", "RPC_CLIENT_TOKENS", &clients).await;
    cluster.announce_all();
    let iad = cluster.instance("iad-2");
    let called = async |token: &str, list: &str| {
        let body = json!({"module": "Fly.RPC", "function": "my_region"}).to_string();
        let request = iad.request(&format!("/rpc/{list}"), &body);
        answer(request.bearer_auth(token)).await.unwrap()
    };
    let found = async || called(SHOP, "syd").await.status;
    eventually("syd found", found, |status| *status == 200).await;
    for (token, list, region) in [
        (SHOP, "any", "iad"),
        (DESK, "any", "syd"),
        (DESK, "syd,any", "syd"),
    ] {
        assert_eq!(
            ran(&called(token, list).await),
            (region, 1),
            "{token} {list}"
        );
    }
    for list in ["iad", "syd,iad", "primary,any"] {
        let refused = called(DESK, list).await;
        assert_eq!(refused.problem(), (403, "forbidden", "no"), "{list}");
        assert_eq!(
            refused.detail(),
            "client \"desk\" may not call in region \"iad\""
        );
    }
    let lacks = json!({"module": "None", "function": "such"}).to_string();
    let lacks = iad.request("/rpc/any", &lacks).bearer_auth(DESK);
    let lacks = answer(lacks).await.unwrap();
    assert_eq!(lacks.problem(), (404, "function_unknown", "no"));
    assert_eq!(
        lacks.detail(),
        "no region that the client may call has an instance with None.such"
    );
}

#[tokio::test]
async fn a_sibling_gets_the_last_attempt_of_a_list() {
    let mut cluster = Cluster::builder()
        .functions()
        .set("RPC_POLL_INTERVAL", "20s")
        .start()
        .await;
    for region in ["syd", "fra", "iad"] {
        cluster.add(region).await;
    }
    cluster.announce_all();
    cluster.add_without_functions("iad").await;
    let all = ["fra-1", "iad-1", "iad-2", "syd-1"];
    cluster.until_ready("iad-2", &all).await;
    for name in ["syd-1", "fra-1"] {
        cluster.instance_mut(name).kill();
        cluster.instance_mut(name).ended().await;
    }
    let iad = cluster.instance("iad-2");
    let echoed = iad.call("syd,fra,iad", "Test.echo", json!(["a"])).await;
    assert_eq!(ran(&echoed), ("iad", 3));
    assert_eq!(echoed.body["meta"]["instance"], "iad-1");
}
