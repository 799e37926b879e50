//! The connections between two instances: what makes another one, what ends one, and what that means for the calls.

use std::time::Duration;

use serde_json::json;
use tokio::{
    task::JoinHandle,
    time::{Instant, interval},
};

use crate::support::{
    asking::{broken_cluster, run},
    fault::{Fault, Scope},
    patience::eventually,
    process::{Answer, Process, answer},
};

/// A large result, and how much of it comes in a second, in bytes: it takes four times as long as a connection has for a whole
/// line before the next calls make another.
const LARGE: usize = 2 << 20;
const SLOWLY: usize = LARGE / 8;

/// A call of `Test.block_large` under way, in syd.
fn block_large(via: &Process, name: &str, timeout_ms: u64) -> JoinHandle<Answer> {
    let call = json!({
        "module": "Test", "function": "block_large", "args": [name, 2 * LARGE], "timeout_ms": timeout_ms,
    });
    let request = via.request("/rpc/syd", &call.to_string());
    tokio::spawn(async { answer(request).await.unwrap() })
}

/// A result that comes slowly is known to be large before it is whole: the next ones wait for their own way only.
#[tokio::test]
async fn while_a_large_result_comes_slowly_the_next_calls_of_its_function_travel_alone() {
    let cluster = broken_cluster(1).await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.proxy("syd-1"));
    syd.set(Fault::Narrow(SLOWLY), Scope::Lines).await;
    cluster.release("first");
    let first = block_large(iad, "first", 60_000);
    cluster.until_started("first").await;
    // Two at once would share the connection that follows one which is not heard for a while.
    let connections = async || {
        let before = syd.posts();
        for hasty in [0; 2].map(|_| block_large(iad, "hasty", 300)) {
            hasty.await.unwrap();
        }
        syd.posts() - before
    };
    eventually("one each", connections, |connections| *connections == 2).await;
    // Once it is whole, they travel alone in any case.
    assert!(!first.is_finished());
}

/// Two connections with results that come slowly, one after the other: a third one ends neither.
#[tokio::test]
async fn a_connection_on_which_bytes_come_is_not_given_up_for_another() {
    // A busy machine may keep one from being heard; to give up what is heard loses all.
    let mut lost = Vec::new();
    while lost.len() < 5 && lost.iter().all(|lost| *lost > 0) {
        lost.push(lost_on_three_connections().await);
    }
    assert_eq!(lost.last(), Some(&0), "{lost:?}");
}

/// How many of two large results, which come slowly on a connection each, are lost while a third connection is made.
async fn lost_on_three_connections() -> usize {
    let cluster = broken_cluster(1).await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.proxy("syd-1"));
    syd.set(Fault::Narrow(SLOWLY), Scope::Lines).await;
    let large = |function: &str| -> JoinHandle<Answer> {
        let call = json!({
            "module": "Test", "function": function, "args": [function, LARGE], "timeout_ms": 60_000,
        });
        let request = iad.request("/rpc/syd", &call.to_string());
        tokio::spawn(async { answer(request).await.unwrap() })
    };
    let small = async || {
        iad.rpc("syd", &run("small", &json!({"timeout_ms": 300})))
            .await;
        syd.posts()
    };
    let mut results = Vec::new();
    cluster.release("block_large");
    for function in ["large", "block_large"] {
        results.push(large(function));
        let before = small().await;
        eventually("another connection", small, |posts| *posts > before).await;
    }
    let mut lost = 0;
    for result in results {
        let answer = result.await.unwrap();
        match answer.body["result"].as_str() {
            Some(text) => assert_eq!(text.len(), LARGE),
            None => lost += 1,
        }
    }
    lost
}

/// Longer than a connection stays without calls.
const STEADY: Duration = Duration::from_secs(6);

#[tokio::test]
async fn short_calls_one_after_the_other_keep_their_connection() {
    let cluster = broken_cluster(1).await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.proxy("syd-1"));
    let call = async || iad.call("syd", "Test.echo", json!(["short"])).await;
    assert_eq!(call().await.result(), "short");
    let (before, started) = (syd.posts(), Instant::now());
    // Few enough that hardly any is under way when the connection looks.
    let mut beat = interval(Duration::from_millis(50));
    while started.elapsed() < STEADY {
        beat.tick().await;
        assert_eq!(call().await.result(), "short");
    }
    assert_eq!(syd.posts(), before);
}
