//! `prefer: respond-async`: calls whose client does not wait, also when the instance stops, is full, or is asked again.

use serde_json::{Value, json};

use crate::support::{
    asking::{blocking, run, two_regions},
    cluster::Cluster,
    patience::eventually,
    process::{Answer, Process, answer},
};

async fn sent(via: &Process, region: &str, call: &Value, headers: &[(&str, &str)]) -> Answer {
    let mut request = via.request(&format!("/rpc/{region}"), &call.to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    answer(request).await.unwrap()
}

async fn admitted(via: &Process, region: &str, call: &Value) -> Answer {
    sent(via, region, call, &[("prefer", "respond-async")]).await
}

fn is_admitted(answer: &Answer) -> bool {
    answer.status == 202 && answer.headers["preference-applied"] == "respond-async"
}

/// A line of the log under the id of `answer` that says `what`.
async fn until_logged(instance: &Process, answer: &Answer, what: &str) {
    let id = &answer.headers["x-request-id"];
    let log = async || instance.log();
    let is_reported = |log: &String| {
        let mut lines = log.lines();
        lines.any(|line| line.contains(id.as_str()) && line.contains(what))
    };
    eventually(what, log, is_reported).await;
}

#[tokio::test]
async fn the_answer_comes_once_the_call_is_admitted_and_the_log_has_its_end() {
    let cluster = two_regions().functions().start().await;
    let iad = cluster.instance("iad-1");
    for region in ["syd", "iad", "mars,syd"] {
        let name = region.replace(',', "-");
        let answer = admitted(iad, region, &blocking(&name, &json!({}))).await;
        assert!(is_admitted(&answer), "{answer:?}");
        let elapsed = answer.body["meta"]["elapsed_ms"].clone();
        let first = region.split(',').next();
        assert_eq!(
            answer.body,
            json!({"meta": {
                "region": first, "instance": null, "attempts": 0, "elapsed_ms": elapsed,
                "request_id": answer.headers["x-request-id"],
            }})
        );
        cluster.until_started(&name).await;
        assert!(iad.in_flight().await > 0);
        cluster.release(&name);
        until_logged(iad, &answer, r#""message":"call""#).await;
        let none = async || iad.in_flight().await;
        eventually("nothing in flight", none, |count| *count == 0).await;
    }
    let failed = json!({"module": "Test", "function": "fail", "args": ["failed"]});
    let failed = admitted(iad, "syd", &failed).await;
    assert!(is_admitted(&failed));
    until_logged(iad, &failed, r#""message":"call failed""#).await;
    // As one of several preferences, by path, and in other letters.
    let request = iad.request("/rpc/syd/Test/run", &json!(["by path", 0]).to_string());
    let request = request.header("prefer", "wait=10, Respond-Async; foo");
    assert!(is_admitted(&answer(request).await.unwrap()));
    let ran = async || cluster.runs().get("by path").copied();
    eventually("the run", ran, |runs| *runs == Some(1)).await;
    let waits = sent(
        iad,
        "syd",
        &run("waits", &json!({})),
        &[("prefer", "wait=10")],
    )
    .await;
    assert_eq!(waits.result(), "waits");
}

#[tokio::test]
async fn what_is_refused_at_once_is_answered_at_once() {
    let cluster = two_regions()
        .functions()
        .set("RPC_MAX_IN_FLIGHT", "2")
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    let unknown = admitted(iad, "mars", &run("none", &json!({}))).await;
    assert_eq!(unknown.problem(), (404, "region_unknown", "no"));
    let wrong = json!({"module": "String", "function": "upcase", "args": [1]});
    let wrong = admitted(iad, "iad", &wrong).await;
    assert_eq!(wrong.problem(), (422, "invalid_arguments", "no"));
    // As many as may go on, and no more.
    for name in ["one", "two"] {
        assert!(is_admitted(
            &admitted(iad, "syd", &blocking(name, &json!({}))).await
        ));
    }
    let full = admitted(iad, "syd", &run("three", &json!({}))).await;
    assert_eq!(full.problem(), (503, "overloaded", "no"));
    assert_eq!(
        full.detail(),
        "2 calls run here for which nobody waits, as many as RPC_MAX_IN_FLIGHT allows"
    );
    for name in ["one", "two"] {
        cluster.until_started(name).await;
        cluster.release(name);
    }
    let again = async || admitted(iad, "syd", &run("again", &json!({}))).await.status;
    eventually("a place", again, |status| *status == 202).await;
    assert_eq!(cluster.runs().get("three"), None);
}

#[tokio::test]
async fn the_same_call_sent_later_waits_for_the_outcome() {
    let cluster = two_regions().functions().start().await;
    let iad = cluster.instance("iad-1");
    let call = blocking("kept", &json!({}));
    let key = ("idempotency-key", "kept");
    let first = sent(iad, "syd", &call, &[("prefer", "respond-async"), key]).await;
    assert!(is_admitted(&first));
    cluster.until_started("kept").await;
    let later = iad.request("/rpc/syd", &call.to_string());
    let later = later.header(key.0, key.1);
    let later = tokio::spawn(async { answer(later).await.unwrap() });
    cluster.release("kept");
    let later = later.await.unwrap();
    assert_eq!(
        (later.result(), &*later.headers["idempotency-replayed"]),
        (&json!("released"), "true")
    );
    assert_eq!(cluster.starts("kept").len(), 1);
}

#[tokio::test]
async fn a_drain_waits_for_what_was_admitted() {
    let mut cluster = two_regions().functions().start().await;
    let iad = cluster.instance("iad-1");
    let drained = admitted(iad, "syd", &blocking("drained", &json!({}))).await;
    assert!(is_admitted(&drained));
    cluster.until_started("drained").await;
    iad.terminate();
    let refuses = async || admitted(iad, "syd", &run("new", &json!({}))).await.status;
    eventually("refusal", refuses, |status| *status == 503).await;
    cluster.release("drained");
    assert!(cluster.instance_mut("iad-1").ended().await.success());
    let iad = cluster.instance("iad-1");
    until_logged(iad, &drained, r#""message":"call""#).await;
}

#[tokio::test]
async fn what_a_drain_cuts_is_logged_as_abandoned() {
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 1)
        .functions()
        .set("RPC_DRAIN_TIMEOUT", "200ms")
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    let mut cut = Vec::new();
    for (region, name) in [("syd", "there"), ("iad", "here")] {
        cut.push(admitted(iad, region, &blocking(name, &json!({}))).await);
        cluster.until_started(name).await;
    }
    iad.terminate();
    cluster.instance_mut("iad-1").ended().await;
    for answer in &cut {
        assert!(is_admitted(answer));
        until_logged(cluster.instance("iad-1"), answer, "call abandoned").await;
    }
    // What runs on another instance runs on.
    cluster.release("there");
    cluster.until_marked("there.finished").await;
}
