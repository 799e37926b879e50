//! Functions that block their thread: they hold up each other, and nothing else.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
    task::{JoinHandle, JoinSet},
    time,
};

use crate::support::{
    asking::{LATE_MS, failure, run, two_regions},
    cluster::Cluster,
    patience::{eventually, in_time},
    process::{Answer, Process, answer},
};

/// How many blocking functions an instance runs at once.
const THREADS: usize = 64;

/// A blocking call under way in `syd`, which returns its id once the latch `free` is released.
fn hold(via: &Process, id: &str, timeout_ms: u64) -> JoinHandle<Answer> {
    let call = json!({"module": "Test", "function": "hold_thread", "args": [id, "free"], "timeout_ms": timeout_ms});
    let request = via.request("/rpc/syd", &call.to_string());
    tokio::spawn(async { answer(request).await.unwrap() })
}

async fn cluster() -> Cluster {
    let cluster = two_regions();
    cluster.functions().start().await
}

async fn until_runs(cluster: &Cluster, count: usize) {
    let runs = async || cluster.runs().len();
    eventually("the runs", runs, |runs| *runs == count).await;
}

#[tokio::test]
async fn more_blocking_calls_than_threads_stop_nothing_else() {
    let cluster = cluster().await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let ids: Vec<String> = (0..THREADS + 16).map(|id| format!("call-{id}")).collect();
    let calls: Vec<_> = ids.iter().map(|id| hold(iad, id, 60_000)).collect();
    until_runs(&cluster, THREADS).await;

    assert_eq!(syd.get("/healthz").await.status, 200);
    assert_eq!(syd.get("/readyz").await.status, 200);
    assert_eq!(syd.get("/internal/region").await.status, 200);
    for via in [iad, syd] {
        let answer = via.call("syd", "Kernel.+", json!([1, 2])).await;
        assert_eq!(answer.result(), 3);
    }
    // No thread gets free before its deadline.
    let late = hold(syd, "late", 1000).await.unwrap();
    assert_eq!(failure(&late), ("deadline_exceeded", "no", 1));
    assert_eq!(cluster.runs().len(), THREADS);

    cluster.release("free");
    for (id, call) in ids.iter().zip(calls) {
        assert_eq!(call.await.unwrap().result(), &json!(id));
    }
    assert_eq!(cluster.runs(), ids.into_iter().map(|id| (id, 1)).collect());
}

#[tokio::test]
async fn the_answer_comes_at_the_deadline_and_the_function_stays_in_flight() {
    let cluster = two_regions()
        .functions()
        .set("RPC_MAX_IN_FLIGHT", "1")
        .start()
        .await;
    for via in ["iad-1", "syd-1"] {
        let via = cluster.instance(via);
        let late = async || hold(via, &via.name, LATE_MS).await.unwrap();
        let ran = |answer: &Answer| answer.body["code"] == "deadline_exceeded";
        let late = eventually("a free slot", late, ran).await;
        assert_eq!(failure(&late), ("deadline_exceeded", "maybe", 1));
        let elapsed = late.body["meta"]["elapsed_ms"].as_f64().unwrap();
        assert!((3_000.0..30_000.0).contains(&elapsed), "{elapsed} ms");
        let refused = via.rpc("syd", &run("never", &json!({}))).await;
        assert_eq!(failure(&refused), ("overloaded", "no", 1));
        cluster.release("free");
        let again = async || via.rpc("syd", &run("again", &json!({}))).await;
        eventually("a free slot", again, |answer| answer.status == 200).await;
        cluster.hold("free");
    }
    assert_eq!(cluster.runs().get("never"), None);
}

#[tokio::test]
async fn a_blocking_function_that_outlived_its_deadline_does_not_hold_up_the_exit() {
    let mut cluster = two_regions()
        .functions()
        .set("RPC_DRAIN_TIMEOUT", "200ms")
        .start()
        .await;
    let late = hold(cluster.instance("iad-1"), "one", LATE_MS);
    let late = late.await.unwrap();
    assert_eq!(failure(&late), ("deadline_exceeded", "maybe", 1));
    cluster.instance("syd-1").terminate();
    cluster.instance_mut("syd-1").ended().await;
    assert!(!cluster.is_marked("free.released"));
}

#[tokio::test]
async fn a_panic_on_a_thread_is_reported_and_harms_nothing() {
    let cluster = cluster().await;
    let iad = cluster.instance("iad-1");
    for region in ["iad", "syd"] {
        let call = json!({"module": "Test", "function": "panic_thread"});
        let answer = iad.rpc(region, &call).await;
        assert_eq!(answer.problem(), (500, "function_panicked", "yes"));
        let expected = "Test.panic_thread panicked; the instance's log has the cause";
        assert_eq!(
            (answer.detail(), &answer.body["error"]),
            (expected, &Value::Null)
        );
        assert_eq!(
            iad.call(region, "Kernel.+", json!([1, 2])).await.result(),
            3
        );
    }
}

#[tokio::test]
async fn a_declared_concurrency_holds_for_functions_in_rust() {
    let cluster = cluster().await;
    let iad = cluster.instance("iad-1");
    let mut calls: JoinSet<Answer> = (0..5)
        .map(|number| {
            let name = format!("few-{number}");
            let call =
                json!({"module": "Test", "function": "few", "args": [name], "timeout_ms": 60_000});
            let request = iad.request("/rpc/syd", &call.to_string());
            async { answer(request).await.unwrap() }
        })
        .collect();
    // Two run, two wait, and the fifth is refused while they do.
    let refused = in_time("a refusal", calls.join_next()).await.unwrap();
    assert_eq!(refused.unwrap().problem(), (503, "overloaded", "no"));
    until_runs(&cluster, 2).await;
    cluster.release("few");
    for answer in calls.join_all().await {
        assert_eq!(answer.status, 200);
    }
    assert_eq!(cluster.runs().len(), 4);
}

/// Asks `iad` over a connection of its own, and reads nothing of the answers: two calls that wait for their turn, and then
/// more than the sockets hold. Returns once nothing more goes in.
async fn ask_and_read_nothing(iad: &Process) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut connection = socket.connect(iad.address).await.unwrap();
    let head = format!(
        "POST /internal/exec HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: fly-rpc-lines\r\n\r\n",
        iad.address
    );
    let line = |id: u64, module: &str, function: &str, text: &str| {
        let call = json!({"id": id, "region": "iad", "module": module, "function": function, "args": [text], "timeout_ms": 60_000});
        format!("{call}\n")
    };
    let waiting = line(1, "Test", "few", "c") + &line(2, "Test", "few", "d");
    connection
        .write_all((head + &waiting).as_bytes())
        .await
        .unwrap();
    let text = "x".repeat(500_000);
    for id in 3.. {
        let large = line(id, "String", "upcase", &text);
        let written = connection.write_all(large.as_bytes());
        if time::timeout(Duration::from_secs(2), written)
            .await
            .is_err()
        {
            break;
        }
    }
    connection
}

/// What waits on a connection that is clogged gets its turn, and gives it back.
#[tokio::test]
async fn who_reads_no_answers_keeps_no_turn_from_others() {
    let cluster = cluster().await;
    let iad = cluster.instance("iad-1");
    let few = |name: &str| {
        let call =
            json!({"module": "Test", "function": "few", "args": [name], "timeout_ms": 60_000});
        let request = iad.request("/rpc/iad", &call.to_string());
        tokio::spawn(async { answer(request).await.unwrap() })
    };
    let running = [few("a"), few("b")];
    until_runs(&cluster, 2).await;
    let _connection = ask_and_read_nothing(iad).await;
    cluster.release("few");
    for answer in running {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    until_runs(&cluster, 4).await;
    assert_eq!(few("e").await.unwrap().result(), "e");
}
