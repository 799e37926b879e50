//! `GET /regions/{region}/explain`: what it says of a call is what then happens to it.

use std::collections::BTreeSet;

use reqwest::Client;
use serde_json::{Value, json};

use crate::support::{
    asking::two_regions,
    cluster::{Cluster, NAME},
    patience::eventually,
    process::{Answer, Process, answer},
};

/// `iad-1`, `syd-1`, `syd-2` that was killed, and an address in DNS at which nobody answers.
async fn silent() -> Cluster {
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 2)
        .start()
        .await;
    let mut announced = cluster.addresses();
    announced.push(cluster.free_address().ip());
    cluster.instance("syd-2").kill();
    cluster.instance_mut("syd-2").ended().await;
    cluster.dns.set_addresses(NAME, announced);
    cluster
}

async fn explain(instance: &Process, region: &str, query: &str) -> Answer {
    instance
        .get(&format!("/regions/{region}/explain{query}"))
        .await
}

/// Whether probes were refused by both that do not answer; one that was under way at the kill was reset. And whether who
/// does answer is ready: on a busy machine, it may have come too late for a probe.
fn is_complete(answer: &Answer) -> bool {
    let (candidates, unplaced) = (&answer.body["candidates"], &answer.body["unplaced"]);
    let is_refused = |entry: &Value| {
        let error = entry["last_probe_error"].as_str();
        error.is_some_and(|error| error.contains("refused"))
    };
    candidates[0]["state"] == "ready"
        && candidates[1]["state"] == "suspect"
        && is_refused(&candidates[1])
        && is_refused(&unplaced[0])
}

/// `body` without what differs from one run to the next.
fn timeless(mut body: Value) -> Value {
    let lists = ["candidates", "unplaced"];
    for entry in lists
        .iter()
        .flat_map(|list| body[list].as_array_mut().unwrap().clone())
    {
        assert!(
            entry["last_probe_ms"].is_number() && entry["address"].is_string(),
            "{entry}"
        );
    }
    for list in lists {
        for entry in body[list].as_array_mut().unwrap() {
            (entry["last_probe_ms"], entry["address"]) = (Value::Null, Value::Null);
        }
    }
    for choice in body["choices"].as_array_mut().unwrap() {
        assert!(choice["rtt_ms"].is_number(), "{choice}");
        choice["rtt_ms"] = Value::Null;
    }
    let discovery = &mut body["discovery"];
    assert!(discovery["last_success_ms"].is_number() && discovery["rounds"].is_number());
    (discovery["last_success_ms"], discovery["rounds"]) = (Value::Null, Value::Null);
    body
}

#[tokio::test]
async fn the_example_is_an_answer_of_a_real_cluster() {
    let cluster = silent().await;
    let iad = cluster.instance("iad-1");
    let asked = async || explain(iad, "syd", "?function=String.upcase").await;
    let answer = eventually("a whole explanation", asked, is_complete).await;
    assert_eq!(
        (answer.status, answer.content_type.as_str()),
        (200, "application/json")
    );
    let document: Value = serde_json::from_str(&fly_rpc::openapi_json()).unwrap();
    let answers = &document["paths"]["/regions/{region}/explain"]["get"]["responses"]["200"];
    let example = &answers["content"]["application/json"]["examples"]["silent"]["value"];
    assert_eq!(timeless(answer.body), timeless(example.clone()));
}

/// The candidates of which `chosen` is true.
fn chosen(answer: &Answer) -> BTreeSet<String> {
    let candidates = answer.body["candidates"].as_array().unwrap();
    let chosen = candidates
        .iter()
        .filter(|candidate| candidate["chosen"] == true);
    chosen
        .map(|candidate| candidate["instance"].as_str().unwrap().to_owned())
        .collect()
}

/// The instances at which 40 calls of `function` in `syd` were tried first.
async fn tried(via: &Process, function: &str) -> BTreeSet<String> {
    let mut tried = BTreeSet::new();
    for _ in 0..40 {
        let answer = via.call("syd", function, json!([])).await;
        if answer.body["meta"]["attempts"] == 1 {
            tried.insert(answer.instance().to_owned());
        }
    }
    tried
}

#[tokio::test]
async fn calls_go_where_it_says() {
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 2)
        .functions()
        .start()
        .await;
    cluster.add_without_functions("syd").await;
    cluster.announce_all();
    cluster.until_all_see_all().await;
    let iad = cluster.instance("iad-1");
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let expected: [(&str, BTreeSet<String>); 2] = [
        ("Fly.RPC.my_region", names(&["syd-1", "syd-2", "syd-3"])),
        ("Test.echo", names(&["syd-1", "syd-2"])),
    ];
    for (function, expected) in expected {
        let shown = explain(iad, "syd", &format!("?function={function}")).await;
        assert_eq!(
            (chosen(&shown), tried(iad, function).await),
            (expected.clone(), expected)
        );
    }
    let shown = explain(iad, "syd", "?function=Test.echo").await;
    let reason = &shown.body["candidates"][2]["reason"];
    assert_eq!(reason, "it has no function Test.echo");
    for name in ["syd-1", "syd-2"] {
        cluster.instance(name).kill();
        cluster.instance_mut(name).ended().await;
    }
    let iad = cluster.instance("iad-1");
    let is_doubted = |answer: &Answer| {
        let candidates = &answer.body["candidates"];
        (0..2).all(|number| candidates[number]["state"] == "suspect")
    };
    let asked = async || explain(iad, "syd", "?function=Test.echo").await;
    let shown = eventually("two suspects", asked, is_doubted).await;
    assert_eq!(chosen(&shown), names(&["syd-1", "syd-2"]));
    let reason = &shown.body["candidates"][0]["reason"];
    assert_eq!(reason, "suspect, and no ready one is left");
}

#[tokio::test]
async fn the_own_region_an_unknown_one_and_what_is_no_question() {
    let cluster = Cluster::builder().region("iad", 2).start().await;
    let iad = cluster.instance("iad-1");
    let own = explain(iad, "iad", "?function=None.such").await;
    let shown = |number: usize| {
        let candidate = &own.body["candidates"][number];
        (
            candidate["local"] == true,
            candidate["chosen"] == true,
            candidate["reason"].as_str().unwrap(),
        )
    };
    let here = "a call for the own region runs on the instance that it reaches";
    let missing = format!("{here}: no function None.such on iad-1");
    assert_eq!(
        (shown(0), shown(1)),
        ((true, true, missing.as_str()), (false, false, here))
    );
    assert_eq!(
        explain(iad, "mars", "").await.problem(),
        (404, "region_unknown", "no")
    );
    let of_primary = explain(iad, "primary", "").await;
    assert_eq!(of_primary.body["region"], "iad");
    assert_eq!(
        of_primary.body["candidates"].as_array().map(Vec::len),
        Some(2)
    );
    assert_eq!(
        explain(iad, "IAD", "").await.problem(),
        (400, "invalid_region", "no")
    );
    for query in [
        "?function=upcase",
        "?function=",
        "?function=a.b&function=a.b",
        "?function=a.%20",
    ] {
        let refused = explain(iad, "iad", query).await;
        assert_eq!(refused.problem(), (400, "invalid_request", "no"), "{query}");
        assert_eq!(
            refused.detail(),
            "query parameter \"function\" must be Module.function, given once"
        );
    }
    let encoded = explain(iad, "iad", "?function=Kernel.%2B&other=1").await;
    assert_eq!(encoded.body["function"], "Kernel.+");
}

#[tokio::test]
async fn for_a_client_any_is_one_of_its_regions() {
    const DESK: &str = "desk-0123456789abcdef0123456789abcdef";
    let mut cluster = two_regions().start().await;
    let clients = format!("desk:{DESK}:regions=syd");
    cluster.add_with("iad", "RPC_CLIENT_TOKENS", &clients).await;
    let iad = cluster.instance("iad-2");
    let explained = async |region: &str, function: &str| {
        let url = format!(
            "http://{}/regions/{region}/explain?function={function}",
            iad.address
        );
        let client = Client::builder().no_proxy().build().unwrap();
        answer(client.get(url).bearer_auth(DESK)).await.unwrap()
    };
    let found = async || explained("any", "Fly.RPC.my_region").await.status;
    eventually("the functions of syd found", found, |status| *status == 200).await;
    let shown = explained("any", "Fly.RPC.my_region").await;
    let call = r#"{"module":"Fly.RPC","function":"my_region"}"#;
    let ran = answer(iad.request("/rpc/any", call).bearer_auth(DESK))
        .await
        .unwrap();
    assert_eq!(
        (&shown.body["region"], ran.result()),
        (&json!("syd"), &json!("syd"))
    );
    assert_eq!(chosen(&shown), BTreeSet::from(["syd-1".to_owned()]));
    let nowhere = explained("any", "None.such").await;
    assert_eq!(nowhere.problem(), (404, "function_unknown", "no"));
    assert_eq!(
        nowhere.detail(),
        "no region that this client may call has None.such"
    );
}
