//! What a function returns and nobody can be sent: too much, or no JSON. It ran, and the answer says so.

use serde_json::{Value, json};

use crate::support::{asking::two_regions, cluster::Cluster, process::Answer};

const LIMIT: usize = 1024;

/// A JSON string of so many bytes, its quotes counted.
fn text(bytes: usize) -> String {
    "x".repeat(bytes - 2)
}

#[tokio::test]
async fn what_cannot_be_sent_is_the_functions_failure() {
    let cluster = two_regions()
        .functions()
        .set("RPC_MAX_RESULT", "1KiB")
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    let cases = [
        (
            "Test.echo",
            json!([text(LIMIT + 1)]),
            "ResultTooLarge",
            "the result has 1025 bytes, more than the 1024 of RPC_MAX_RESULT",
        ),
        (
            "Kernel.raise",
            json!([text(LIMIT)]),
            "ErrorTooLarge",
            "the function's error is larger than the 1024 bytes of RPC_MAX_RESULT",
        ),
        (
            "Test.not_json",
            json!([]),
            "ResultNotJson",
            "key must be a string",
        ),
    ];
    for region in ["iad", "syd"] {
        for (function, args, kind, message) in &cases {
            let answer = iad.call(region, function, args.clone()).await;
            assert_eq!(
                answer.problem(),
                (424, "function_failed", "yes"),
                "{function} in {region}"
            );
            assert_eq!(
                answer.body["error"],
                json!({"kind": kind, "message": message, "data": null})
            );
            assert_eq!(
                answer.detail(),
                format!("the function returned an error of kind {kind:?}")
            );
            assert_eq!(answer.instance(), format!("{region}-1"));
        }
        let most = Value::from(text(LIMIT));
        let answer = iad.call(region, "Test.echo", json!([most])).await;
        assert_eq!(answer.result(), &most);
    }
}

#[tokio::test]
async fn an_error_that_is_too_large_only_as_json_is_one_too() {
    let cluster = two_regions().set("RPC_MAX_RESULT", "128KiB").start().await;
    let iad = cluster.instance("iad-1");
    for region in ["syd", "iad"] {
        let text = "\u{1}".repeat(120 << 10);
        let failed = iad.call(region, "Kernel.raise", json!([text])).await;
        assert_eq!(failed.problem(), (424, "function_failed", "yes"));
        assert_eq!(failed.body["error"]["kind"], "ErrorTooLarge");
    }
}

#[tokio::test]
async fn a_result_that_only_the_peer_allows_ends_no_other_call() {
    let builder = Cluster::builder().region("iad", 1).functions();
    let mut cluster = builder.set("RPC_MAX_RESULT", "1KiB").start().await;
    cluster.add_with("syd", "RPC_MAX_RESULT", "8MiB").await;
    cluster.announce_all();
    cluster.until_all_see_all().await;
    let iad = cluster.instance("iad-1");
    let held = iad.call("syd", "Test.block", json!(["x"]));
    let large = async {
        cluster.until_started("x").await;
        let large = iad.call("syd", "Test.large", json!(["l", 256 << 10])).await;
        cluster.release("x");
        large
    };
    let (held, large) = tokio::join!(held, large);
    assert_eq!(held.result(), "released");
    assert_eq!(large.problem(), (424, "function_failed", "yes"));
    let error = json!({
        "kind": "ResultTooLarge", "message": "the result is longer than RPC_MAX_RESULT allows", "data": null,
    });
    assert_eq!(large.body["error"], error);
}

/// The whole answer to a call of `Test.fail_large` in `syd`, whose error became one of this kind on the way.
fn lost(answer: &Answer, kind: &str, message: &str) -> Value {
    let meta = &answer.body["meta"];
    json!({
        "type": "/docs/problems#function_failed", "title": "Function returned an error", "status": 424,
        "detail": format!("the function returned an error of kind {kind:?}"), "code": "function_failed",
        "executed": "yes",
        "meta": {
            "region": "syd", "instance": "syd-1", "attempts": 1, "elapsed_ms": meta["elapsed_ms"],
            "consistency": "failed", "request_id": meta["request_id"],
        },
        "error": {"kind": kind, "message": message, "data": null},
    })
}

#[tokio::test]
async fn an_error_that_only_the_peer_allows_or_has_room_for_says_that_the_function_ran() {
    let builder = Cluster::builder().region("syd", 1).functions();
    let mut cluster = builder.start().await;
    cluster.add_with("iad", "RPC_MAX_RESULT", "1KiB").await;
    cluster.add_with("iad", "RPC_MAX_MEMORY", "4MiB").await;
    cluster.announce_all();
    cluster.until_all_see_all().await;
    let cases = [
        (
            "iad-1",
            256 << 10,
            "ErrorTooLarge",
            "the error is longer than RPC_MAX_RESULT allows",
        ),
        (
            "iad-2",
            6 << 20,
            "ErrorDropped",
            "the error found no room in RPC_MAX_MEMORY",
        ),
    ];
    for (via, size, kind, message) in cases {
        let via = cluster.instance(via);
        let failed = via.call("syd", "Test.fail_large", json!(["x", size])).await;
        assert_eq!(failed.problem(), (424, "function_failed", "yes"));
        assert_eq!(failed.body, lost(&failed, kind, message));
        let small = via.call("syd", "Fly.RPC.my_region", json!([])).await;
        assert_eq!(small.result(), "syd");
    }
}
