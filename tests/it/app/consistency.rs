//! Consistency tokens: what a function, or an app, says of its data comes back to the caller, and what a caller names
//! reaches the function, on every way there is.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{App, call, parts};
use crate::support::{
    cluster::Cluster,
    command::run,
    patience::eventually,
    process::{Answer, Process, answer},
    redis::Redis,
};

/// The answer to a call after `token`.
async fn after(via: &Process, region: &str, token: &str, function: &str, args: &Value) -> Answer {
    let call = json!({"module": "Test", "function": function, "args": args, "timeout_ms": 8000});
    let request = via.request(&format!("/rpc/{region}"), &call.to_string());
    answer(request.header("rpc-after", token)).await.unwrap()
}

/// The token of an answer, which its header and its `meta` agree on.
fn token(answer: &Answer) -> Option<&str> {
    let header = answer.headers.get("rpc-consistency").map(String::as_str);
    assert_eq!(answer.body["meta"]["consistency"].as_str(), header);
    header
}

fn attempts(answer: &Answer) -> u64 {
    answer.body["meta"]["attempts"].as_u64().unwrap()
}

async fn cluster() -> Cluster {
    let cluster = Cluster::builder().region("iad", 1).region("syd", 1);
    cluster.functions().start().await
}

#[tokio::test]
async fn a_token_goes_to_the_function_and_its_own_comes_back_here_and_from_a_peer() {
    let cluster = cluster().await;
    let via = cluster.instance("iad-1");
    for region in ["iad", "syd"] {
        let wrote = via.call(region, "Test.token", json!(["0/16B3748"])).await;
        assert_eq!(
            (wrote.result(), token(&wrote)),
            (&Value::Null, Some("0/16B3748"))
        );
        let read = after(via, region, "0/16B3748", "token", &json!(["\"\\~"])).await;
        assert_eq!(
            (read.result(), token(&read)),
            (&json!("0/16B3748"), Some("\"\\~"))
        );
        // One that failed ran too, and may have written.
        let failed = after(via, region, "1", "token_fail", &json!(["2"])).await;
        assert_eq!(failed.problem(), (424, "function_failed", "yes"));
        assert_eq!(token(&failed), Some("2"));
        let none = via.call(region, "String.upcase", json!(["fly"])).await;
        assert_eq!(token(&none), None);
    }
}

#[tokio::test]
async fn a_call_alone_between_instances_bears_tokens_too() {
    let cluster = cluster().await;
    let exec = json!({
        "module": "Test", "function": "token", "args": ["2"], "region": "syd", "after": "1", "later": "ignored",
    });
    let got = cluster
        .instance("syd-1")
        .post("/internal/exec", &exec.to_string())
        .await;
    assert_eq!((got.result(), token(&got)), (&json!("1"), Some("2")));
    let wrong = json!({
        "module": "Test", "function": "token", "args": ["2"], "region": "syd", "after": "a b",
    });
    let refused = cluster
        .instance("syd-1")
        .post("/internal/exec", &wrong.to_string())
        .await;
    assert_eq!(refused.problem(), (400, "invalid_request", "no"));
}

#[tokio::test]
async fn who_is_behind_says_that_it_did_not_run() {
    let cluster = cluster().await;
    let via = cluster.instance("iad-1");
    for region in ["iad", "syd"] {
        let behind = after(via, region, "0/2", "behind", &json!([5])).await;
        assert_eq!(behind.problem(), (503, "overloaded", "no"));
        assert_eq!(
            behind.detail(),
            "Test.behind: the data here is behind, after 5 ms"
        );
        assert_eq!(token(&behind), None);
        let ran = via.call(region, "Test.behind", json!([5])).await;
        assert_eq!(ran.result(), "read");
    }
    // It waits for no more than half of what the call has left: there is time to ask another.
    let half = after(via, "syd", "0/2", "behind", &json!([60_000])).await;
    assert_eq!(half.problem(), (503, "overloaded", "no"));
    let metrics = cluster.instance("syd-1").get("/metrics").await.body;
    let metrics = metrics.as_str().unwrap();
    for line in [
        "fly_rpc_token_executions_total{code=\"overloaded\",executed=\"no\"} 2",
        "fly_rpc_token_wait_seconds_count 2",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn an_instance_that_is_behind_asks_another_of_its_region() {
    let cluster = Cluster::builder().region("syd", 2).functions();
    let cluster = cluster.start().await;
    let via = cluster.instance("syd-1");
    let read = after(via, "syd", "1", "behind_in", &json!(["syd-1"])).await;
    assert_eq!(
        (read.result(), read.instance(), attempts(&read)),
        (&json!("read"), "syd-2", 2)
    );
    // Both are, after each waited for half of the time that was left.
    for (function, args) in [("behind_in", json!(["syd"])), ("behind", json!([60_000]))] {
        let behind = after(via, "syd", "1", function, &args).await;
        assert_eq!(behind.problem(), (503, "overloaded", "no"));
        assert_eq!((behind.instance(), attempts(&behind)), ("syd-2", 2));
    }
    let pinned = json!({
        "module": "Test", "function": "behind_in", "args": ["syd-1"], "instance": "syd-1",
    });
    let pinned = via.request("/rpc/syd", &pinned.to_string());
    let pinned = answer(pinned.header("rpc-after", "1")).await.unwrap();
    assert_eq!(pinned.problem(), (503, "overloaded", "no"));
    assert_eq!(attempts(&pinned), 1);
}

#[tokio::test]
async fn a_replica_that_is_behind_passes_the_call_on_to_the_next_region_of_the_list() {
    let cluster = Cluster::builder().region("iad", 1).region("syd", 2);
    let cluster = cluster.functions().start().await;
    for via in ["syd-1", "iad-1"] {
        let via = cluster.instance(via);
        let read = after(via, "syd,primary", "1", "behind_in", &json!(["syd"])).await;
        let meta = &read.body["meta"];
        assert_eq!(
            (read.result(), &meta["region"]),
            (&json!("read"), &json!("iad"))
        );
        // Both of `syd` were asked first.
        assert_eq!(meta["attempts"], 3, "{meta}");
        let metrics = via.get("/metrics").await.body;
        let count = "fly_rpc_token_passed_on_total{target_region=\"iad\"} 1";
        assert!(metrics.as_str().unwrap().contains(count), "{metrics}");
        // Whoever names nothing reads at once, where it is nearest.
        let read = via
            .call("syd,primary", "Test.behind_in", json!(["syd"]))
            .await;
        assert_eq!(read.body["meta"]["region"], "syd");
        // By a path for the function too.
        let request = via.request("/rpc/syd,primary/Test/behind_in", "[\"syd\"]");
        let read = answer(request.header("rpc-after", "1")).await.unwrap();
        assert_eq!(read.body["meta"]["region"], "iad");
    }
}

#[tokio::test]
async fn a_call_with_a_key_is_passed_on_only_where_a_repeat_is_harmless_or_known() {
    let redis = Redis::start().await;
    let call = |idempotent: bool| {
        let args = ["syd"];
        json!({"module": "Test", "function": "behind_in", "args": args, "idempotent": idempotent})
    };
    for store in [None, Some(redis.url())] {
        let mut cluster = Cluster::builder().region("iad", 1).region("syd", 2);
        if let Some(url) = &store {
            cluster = cluster.set("RPC_KEY_STORE", url);
        }
        let cluster = cluster.functions().start().await;
        let via = cluster.instance("iad-1");
        for idempotent in [false, true] {
            let asked = async || {
                let request = via.request("/rpc/syd,primary", &call(idempotent).to_string());
                let request = request.header("rpc-after", "1");
                let key = format!("key-{idempotent}");
                answer(request.header("idempotency-key", key))
                    .await
                    .unwrap()
            };
            if store.is_none() && !idempotent {
                let behind = asked().await;
                assert_eq!(behind.problem(), (503, "overloaded", "no"));
                let meta = &behind.body["meta"];
                assert_eq!((&meta["region"], attempts(&behind)), (&json!("syd"), 1));
                continue;
            }
            // Each instance connects to the store by itself, and refuses keys before.
            let read = eventually("an answer", asked, |got| got.status == 200).await;
            assert_eq!(read.result(), "read");
            assert_eq!(read.body["meta"]["region"], "iad");
        }
    }
}

#[tokio::test]
async fn a_fan_out_bears_the_token_to_each_and_gives_that_of_each() {
    let cluster = cluster().await;
    let via = cluster.instance("iad-1");
    let call = json!({"module": "Test", "function": "token", "args": ["2"]}).to_string();
    let request = via.request("/each/all", &call).header("rpc-after", "1");
    let got = answer(request).await.unwrap();
    let entry = |region: &str| {
        json!({
            "region": region, "instance": format!("{region}-1"), "result": "1", "problem": null, "consistency": "2",
        })
    };
    assert_eq!(got.body["results"], json!([entry("iad"), entry("syd")]));
}

#[tokio::test]
async fn what_is_no_token_is_refused() {
    let cluster = cluster().await;
    let via = cluster.instance("iad-1");
    let long = "x".repeat(257);
    for wrong in ["", "a b", long.as_str()] {
        let refused = after(via, "syd", wrong, "token", &json!(["1"])).await;
        assert_eq!(refused.problem(), (400, "invalid_request", "no"));
        assert_eq!(
            refused.detail(),
            "header rpc-after must be 1 to 256 visible ASCII characters"
        );
    }
    let call = json!({"module": "Test", "function": "token", "args": ["1"]}).to_string();
    let twice = via.request("/rpc/syd", &call);
    let twice = answer(twice.header("rpc-after", "1").header("rpc-after", "2"));
    assert_eq!(
        twice.await.unwrap().detail(),
        "header rpc-after is given twice"
    );
    let longest = after(via, "syd", &long[1..], "token", &json!([&long[1..]])).await;
    assert_eq!(token(&longest), Some(&long[1..]));
}

#[tokio::test]
async fn the_command_names_a_token_and_shows_the_one_that_came_back() {
    let cluster = cluster().await;
    let url = format!("http://{}", cluster.instance("iad-1").address);
    let call = ["call", "syd", "Test.token", "\"0/2\"", "--url", &url];
    let (code, result, account) = run(&[&call[..], &["--after", "0/1"]].concat()).await;
    assert_eq!((code, result.as_str()), (0, "\"0/1\"\n"), "{account}");
    assert!(account.contains(" · consistency 0/2"), "{account}");
    let (code, _, refusal) = run(&[&call[..], &["--after", "a b"]].concat()).await;
    assert!(
        code == 64 && refusal.contains("1 to 256 visible ASCII characters"),
        "{refusal}"
    );
}

#[tokio::test]
async fn a_remembered_outcome_bears_its_token() {
    let cluster = cluster().await;
    for (key, function, status) in [("a", "token", 200), ("b", "token_fail", 424)] {
        let call = json!({"module": "Test", "function": function, "args": ["0/7"]}).to_string();
        for is_repeat in [false, true] {
            let request = cluster.instance("iad-1").request("/rpc/syd", &call);
            // A repeat that names another token is the same call.
            let request = request.header("idempotency-key", key);
            let request = request.header("rpc-after", if is_repeat { "2" } else { "1" });
            let got = answer(request).await.unwrap();
            let replayed = got.headers.contains_key("idempotency-replayed");
            assert_eq!(
                (got.status, token(&got), replayed),
                (status, Some("0/7"), is_repeat)
            );
        }
    }
}

#[tokio::test]
async fn an_app_is_sent_tokens_and_gives_them() {
    let app = App::start().await;
    let instance = app.instance(&[]).await;
    let body = json!({"module": "App", "function": "headers", "args": []}).to_string();
    let request = instance
        .request("/rpc/iad", &body)
        .header("rpc-after", "0/3");
    assert_eq!(answer(request).await.unwrap().result()["rpc-after"], "0/3");
    let mut rows = vec![
        (
            "200",
            "rpc-consistency: 0/4\r\n".to_owned(),
            Some("0/4"),
            "ok",
        ),
        (
            "409",
            "rpc-consistency: 0/4\r\n".to_owned(),
            Some("0/4"),
            "function_failed",
        ),
        // Nothing ran.
        (
            "503",
            "rpc-consistency: 0/4\r\nrpc-executed: no\r\n".to_owned(),
            None,
            "overloaded",
        ),
    ];
    for wrong in [
        "a b",
        "",
        "\u{e9}",
        &"x".repeat(257),
        "1\r\nrpc-consistency: 2",
    ] {
        rows.push(("200", format!("rpc-consistency: {wrong}\r\n"), None, "ok"));
    }
    for (status, headers, expected, code) in rows {
        let mut raw = format!(
            "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-type: application/json\r\n"
        );
        write!(
            raw,
            "rpc-waited-ms: 30\r\n{headers}content-length: 1\r\n\r\n1"
        )
        .unwrap();
        let got = call(&instance, "App.raw", json!(["a", raw]), 5000).await;
        assert_eq!(
            (token(&got), parts(&got).0.as_str()),
            (expected, code),
            "{raw}"
        );
    }
    // What it gives wrongly is said once.
    let warning = "rpc-consistency is ignored";
    let warnings = async || instance.log().matches(warning).count();
    eventually("the warning", warnings, |count| *count == 1).await;
    assert_eq!(warnings().await, 1);
}
