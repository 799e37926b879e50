//! `executed` for every way in which a call can end: what the caller reads, and what the log of runs says.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    asking::{LATE_MS, block, broken_cluster, failure, run, two_regions},
    cluster::instances_in_state,
    fault::{Fault, Scope},
    patience::{eventually, in_time},
};

#[tokio::test]
async fn what_breaks_on_the_way_to_the_only_instance_is_reported_as_it_is() {
    let cluster = broken_cluster(1).await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.proxy("syd-1"));
    let html =
        "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 15\r\n\r\n<html>Hi</html>";
    let text =
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 12\r\n\r\n{\"result\":1}";
    let bare = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let moved = "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/internal/exec\r\ncontent-length: 0\r\n\r\n";
    let problem = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\ncontent-length: 19\r\n\r\n{\"code\":\"draining\"}";
    let short = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{\"result\":1";
    let unmade = ("peer_unreachable", "no", 1);
    let lost = ("peer_lost", "maybe", 1);
    let late = ("deadline_exceeded", "maybe", 1);
    let delay = Fault::Delay(Duration::from_secs(60));
    let drip = Fault::Drip(Duration::from_millis(200));
    // What breaks and where, what the caller gets, and how often it ran. Before a connection stands, whatever happens,
    // nothing of the call was sent.
    let cases = [
        (Fault::ResetAfter(1), Scope::Calls, unmade, 0),
        (Fault::ResetAfter(20), Scope::Calls, unmade, 0),
        (Fault::CutAnswerAfter(0), Scope::Calls, unmade, 0),
        (Fault::CutAnswerAfter(20), Scope::Calls, unmade, 0),
        (Fault::Answer(""), Scope::Calls, unmade, 0),
        (
            Fault::Answer("220 mail.test ESMTP ready, no HTTP here\r\n"),
            Scope::Calls,
            unmade,
            0,
        ),
        (Fault::Answer(html), Scope::Calls, unmade, 0),
        (Fault::Answer(text), Scope::Calls, unmade, 0),
        (Fault::Answer(bare), Scope::Calls, unmade, 0),
        (Fault::Answer(moved), Scope::Calls, unmade, 0),
        (Fault::Answer(problem), Scope::Calls, unmade, 0),
        (Fault::Answer(short), Scope::Calls, unmade, 0),
        (Fault::Mute, Scope::Calls, unmade, 0),
        (delay, Scope::Calls, unmade, 0),
        (drip, Scope::Calls, unmade, 0),
        (Fault::ResetAfter(1), Scope::Lines, lost, 0),
        (Fault::ResetAfter(20), Scope::Lines, lost, 0),
        (Fault::CutAnswerAfter(0), Scope::Lines, lost, 1),
        (Fault::CutAnswerAfter(20), Scope::Lines, lost, 1),
        (
            Fault::Answer("220 mail.test ESMTP ready\r\n"),
            Scope::Lines,
            lost,
            0,
        ),
        (Fault::Answer(html), Scope::Lines, lost, 0),
        (Fault::Mute, Scope::Lines, late, 1),
        (delay, Scope::Lines, late, 1),
        (drip, Scope::Lines, late, 1),
    ];
    let again = async || iad.rpc("syd", &run("again", &json!({}))).await;
    for (number, (fault, scope, expected, ran)) in cases.into_iter().enumerate() {
        let what = format!("{fault:?} for {scope:?}");
        if scope == Scope::Calls {
            // With no connection open, the call has to make one.
            syd.set(Fault::ResetAfter(1), Scope::Lines).await;
            again().await;
        }
        syd.set(fault, scope).await;
        let (id, posts) = (format!("call-{number}"), syd.posts());
        // Nothing but a late answer waits for it.
        let timeout_ms = if expected == late { LATE_MS } else { 30_000 };
        let call = run(&id, &json!({"timeout_ms": timeout_ms}));
        let answer = iad.rpc("syd", &call).await;
        assert_eq!(failure(&answer), expected, "{what}");
        assert_eq!(answer.instance(), "syd-1", "{what}");
        assert!(syd.posts() - posts <= 1, "{what}: sent twice");
        let runs = async || cluster.runs().get(&id).copied().unwrap_or_default();
        eventually("the run", runs, |runs| *runs >= ran).await;
        assert_eq!(runs().await, ran, "{what}");
        syd.heal().await;
        eventually("a call after it", again, |answer| answer.status == 200).await;
        let ready = async || instances_in_state(iad, "ready").await;
        eventually("it is ready again", ready, |seen| seen.contains("syd-1")).await;
    }
}

#[tokio::test]
async fn a_slow_way_and_lost_probes_are_no_failure() {
    let cluster = broken_cluster(1).await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.proxy("syd-1"));
    syd.set(Fault::Hang, Scope::Probes).await;
    let suspects = async || instances_in_state(iad, "suspect").await;
    eventually("a suspect", suspects, |seen| seen.contains("syd-1")).await;
    let answer = iad.rpc("syd", &run("suspect", &json!({}))).await;
    assert_eq!(answer.result(), "suspect");
    syd.set(Fault::Delay(Duration::from_millis(100)), Scope::Calls)
        .await;
    let answer = iad.rpc("syd", &run("slow", &json!({}))).await;
    assert_eq!(answer.result(), "slow");
    assert!(answer.body["meta"]["elapsed_ms"].as_f64().unwrap() >= 100.0);
    assert_eq!(answer.body["meta"]["attempts"], 1);
}

#[tokio::test]
async fn what_is_held_up_beyond_its_deadline_never_starts() {
    let cluster = broken_cluster(1).await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.proxy("syd-1"));
    assert_eq!(iad.rpc("syd", &run("well", &json!({}))).await.status, 200);
    syd.set(Fault::Hang, Scope::Lines).await;
    // The second is held up for so much longer that the first is late beyond any doubt when the way is free again.
    let held_up = [("held up", LATE_MS), ("held up longer", 2 * LATE_MS)];
    let held_up = held_up.map(async |(id, timeout_ms)| {
        let call = run(id, &json!({"timeout_ms": timeout_ms}));
        let answer = iad.rpc("syd", &call).await;
        assert_eq!(failure(&answer), ("deadline_exceeded", "maybe", 1));
    });
    join_all(held_up).await;
    syd.heal().await;
    let again = async || iad.rpc("syd", &run("again", &json!({}))).await;
    eventually("a call after it", again, |answer| answer.status == 200).await;
    assert_eq!(cluster.runs().get("held up"), None);
}

#[tokio::test]
async fn a_connection_that_dies_in_silence_is_given_up_for_a_new_one() {
    let cluster = broken_cluster(1).await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.proxy("syd-1"));
    let call = async |id: &str| {
        let call = run(id, &json!({"timeout_ms": LATE_MS}));
        iad.rpc("syd", &call).await
    };
    let well = async || call("well").await;
    eventually("a connection", well, |answer| answer.status == 200).await;
    syd.set(Fault::Forget, Scope::Calls).await;
    let first = call("first").await;
    assert_eq!(failure(&first), ("deadline_exceeded", "maybe", 1));
    // Silence, not the number of lost calls, ends the connection.
    let again = async || call("again").await;
    eventually("a call on another", again, |answer| answer.status == 200).await;
}

#[tokio::test]
async fn without_a_connection_nothing_ran() {
    let cluster = broken_cluster(1).await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.proxy("syd-1"));
    let unreachable = [
        ("peer_unreachable", "no", 1),
        ("region_unavailable", "no", 1),
    ];
    // On a busy machine the time is over before the first attempt.
    let late = [0, 1].map(|attempts| ("deadline_exceeded", "no", attempts));
    for (fault, timeout_ms, expected) in [
        (Fault::Refuse, 30_000, unreachable),
        (Fault::BlackHole, 30_000, unreachable),
        (Fault::BlackHole, 100, late),
    ] {
        // The connection that stood is reset; a call that leaves on it before iad knows is lost, which is the truth.
        syd.break_all(Fault::Refuse).await;
        syd.break_all(fault).await;
        let call = run("never", &json!({"timeout_ms": timeout_ms}));
        let without = async || {
            let answer = iad.rpc("syd", &call).await;
            let got = failure(&answer);
            assert!(
                expected.contains(&got) || got == ("peer_lost", "maybe", 1),
                "{fault:?}: {answer:?}"
            );
            got.1.to_owned()
        };
        eventually("no connection", without, |executed| executed == "no").await;
        syd.heal().await;
        let again = async || iad.rpc("syd", &run("again", &json!({}))).await;
        eventually("a call after it", again, |answer| answer.status == 200).await;
        cluster.until_ready("iad-1", &["iad-1", "syd-1"]).await;
    }
    assert_eq!(cluster.runs().get("never"), None);
}

#[tokio::test]
async fn a_reset_before_anything_arrived_is_never_reported_as_run() {
    let cluster = broken_cluster(1).await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.proxy("syd-1"));
    for _ in 0..20 {
        syd.break_all(Fault::Refuse).await;
        syd.break_all(Fault::ResetAfter(0)).await;
        let answer = iad.rpc("syd", &run("never", &json!({}))).await;
        let possible = [
            ("peer_lost", "maybe", 1),
            ("peer_unreachable", "no", 1),
            ("region_unavailable", "no", 1),
        ];
        assert!(possible.contains(&failure(&answer)), "{answer:?}");
    }
    assert_eq!(cluster.runs().get("never"), None);
}

#[tokio::test]
async fn a_call_on_an_instance_that_dies_may_have_run() {
    let mut cluster = broken_cluster(2).await;
    let (iad, syd) = (cluster.instance("iad-1"), "syd-1");
    let once = block(iad, "syd", "once", &json!({"instance": syd}));
    cluster.until_marked("once.started").await;
    cluster.instance(syd).kill();
    let once = once.await.unwrap();
    assert_eq!(
        (once.status, failure(&once)),
        (502, ("peer_lost", "maybe", 1))
    );
    cluster.instance_mut(syd).ended().await;
}

#[tokio::test]
async fn a_deadline_that_passed_before_the_call_was_whole_starts_nothing() {
    let cluster = broken_cluster(1).await;
    let iad = cluster.instance("iad-1");
    for region in ["iad", "syd"] {
        let body = run(region, &json!({"timeout_ms": 50})).to_string();
        let head = format!(
            "POST /rpc/{region} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\nconnection: close\r\n\
             expect: 100-continue\r\ncontent-length: {}\r\n\r\n",
            iad.address,
            body.len()
        );
        let mut stream = TcpStream::connect(iad.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut read = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
        let head_is_read = stream.read_exact(&mut read);
        in_time("the look at the body", head_is_read).await.unwrap();
        // The deadline counts from the head, and time passes by itself only.
        tokio::time::sleep(Duration::from_millis(300)).await;
        stream.write_all(body.as_bytes()).await.unwrap();
        let mut answer = String::new();
        in_time("the answer", stream.read_to_string(&mut answer))
            .await
            .unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 504 "), "{head}");
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(
            (&body["code"], &body["executed"]),
            (&json!("deadline_exceeded"), &json!("no"))
        );
    }
    assert_eq!(cluster.runs(), [].into());
}

#[tokio::test]
async fn a_deadline_that_passes_while_it_runs_may_have_run_here_and_there() {
    let cluster = broken_cluster(1).await;
    let iad = cluster.instance("iad-1");
    for region in ["iad", "syd"] {
        let call = json!({
            "module": "Test", "function": "run", "args": [region, 60_000], "timeout_ms": LATE_MS,
        });
        let answer = iad.rpc(region, &call).await;
        assert_eq!(
            (answer.status, failure(&answer)),
            (504, ("deadline_exceeded", "maybe", 1))
        );
        let elapsed = answer.body["meta"]["elapsed_ms"].as_f64().unwrap();
        assert!((3_000.0..30_000.0).contains(&elapsed), "{elapsed} ms");
    }
    assert_eq!(
        cluster.runs(),
        ["iad", "syd"].map(|id| (id.to_owned(), 1)).into()
    );
}

#[tokio::test]
async fn the_largest_body_that_is_taken_is_forwarded() {
    let cluster = two_regions()
        .functions()
        .set("RPC_MAX_BODY", "1KiB")
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    let call = |size: usize| {
        let empty = r#"{"module":"Test","function":"echo","args":[""],"timeout_ms":60000,"idempotent":true}"#;
        empty.replace("\"\"", &format!("\"{}\"", "x".repeat(size - empty.len())))
    };
    for region in ["iad", "syd"] {
        let path = format!("/rpc/{region}");
        let whole = iad.post(&path, &call(1024)).await;
        assert_eq!(whole.result().as_str().unwrap().len(), 1024 - 84);
        let beyond = iad.post(&path, &call(1025)).await;
        assert_eq!(beyond.problem(), (413, "body_too_large", "no"));
    }
}

#[tokio::test]
async fn the_shortest_deadline_is_no_failed_connection() {
    let cluster = two_regions().start().await;
    let iad = cluster.instance("iad-1");
    for _ in 0..300 {
        let body = json!({"module": "Fly.RPC", "function": "my_region", "timeout_ms": 1});
        let answer = iad.rpc("syd", &body).await;
        assert!(answer.status == 200 || answer.status == 504, "{answer:?}");
    }
    // A probe may, on a busy machine.
    assert!(!iad.log().contains("a call could not connect"));
}
