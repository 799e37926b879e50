//! Instances that die, stop and are replaced under load: what callers lose, and that nothing runs twice.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep};

use crate::support::{
    cluster::{Cluster, instances_in_state, ready_instances},
    fault::{Fault, Scope},
    load::{Load, Outcome, Report, quiet},
    patience::eventually,
};

const SYD: [&str; 3] = ["syd-1", "syd-2", "syd-3"];

async fn three() -> Cluster {
    let cluster = Cluster::builder().region("iad", 1).region("syd", 3);
    cluster.functions().start().await
}

/// Nothing ran twice, and every answer is true.
fn assert_truth(report: &Report, cluster: &Cluster) {
    let runs = cluster.runs();
    assert_eq!(report.double_runs(&runs), 0, "{report}");
    let lies = report.lies(&runs);
    assert_eq!(lies.count(), 0, "{lies}");
    assert_eq!(report.only(|call| call.status == 0).count(), 0, "{report}");
}

/// What callers see when one of three instances is killed under load.
async fn killed(idempotent: bool) -> (Report, Cluster) {
    let mut cluster = three().await;
    let mut load = Load::new(cluster.instance("iad-1").address, "syd");
    load.idempotent = idempotent;
    let load = load.start();
    load.until(Duration::from_millis(700)).await;
    cluster.instance("syd-1").kill();
    cluster.instance_mut("syd-1").ended().await;
    load.go_on(Duration::from_millis(1_300)).await;
    let report = load.finish().await;
    println!("one of three killed, idempotent {idempotent}: {report}");
    (report, cluster)
}

#[tokio::test]
async fn a_killed_instance_fails_no_idempotent_call() {
    let _quiet = quiet().await;
    let (report, _cluster) = killed(true).await;
    assert_eq!(report.failures().count(), 0, "{}", report.failures());
}

#[tokio::test]
async fn a_killed_instance_fails_few_other_calls_and_runs_none_twice() {
    let _quiet = quiet().await;
    let (report, cluster) = killed(false).await;
    let failures = report.failures();
    // Those that it ran are lost: more, when a busy machine takes longer for each than the 40 ms of an idle one.
    let took = failures.percentile(1.0, |call| call.latency).as_millis();
    let slowness = usize::try_from(took / 40).unwrap().max(1);
    assert!(failures.count() <= 10 * slowness, "{failures}");
    assert_eq!(
        failures.only(|call| call.executed != "maybe").count(),
        0,
        "{failures}"
    );
    assert_truth(&report, &cluster);
}

#[tokio::test]
async fn a_stopped_instance_makes_no_answer_late_and_is_used_again() {
    let _quiet = quiet().await;
    let cluster = three().await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    let mut load = Load::new(iad.address, "syd");
    (load.rate, load.timeout) = (100, Duration::from_secs(1));
    let load = load.start();
    load.until(Duration::from_millis(500)).await;
    syd.pause().await;
    let paused = load.elapsed();
    let suspects = async || instances_in_state(iad, "suspect").await;
    eventually("a suspect", suspects, |seen| seen.contains("syd-1")).await;
    let suspect = load.elapsed();
    load.go_on(Duration::from_millis(2_500)).await;
    let resumed = load.elapsed();
    syd.resume();
    let ready = async || ready_instances(iad).await;
    eventually("ready again", ready, |seen| seen.contains("syd-1")).await;
    load.go_on(Duration::from_millis(300)).await;
    let report = load.finish().await;

    let late = report.lateness();
    let stopped = report.only(|call| (suspect..resumed).contains(&call.sent));
    let back = report.only(|call| call.sent > resumed && call.is_ok() && call.instance == "syd-1");
    let back = back.0.iter().map(|call| call.sent - resumed).min();
    println!(
        "one of three stopped: {report}; late p99 {:.1?} max {:.1?}; suspect after {:.1?}, then {:.4} failed; \
         used again {back:.1?} after it went on",
        late[0],
        late[1],
        suspect - paused,
        stopped.failure_rate()
    );
    assert!(late[1] <= Duration::from_secs(10), "{late:?}");
    let taken = stopped.only(|call| call.instance == "syd-1" && call.executed != "no");
    assert_eq!(taken.count(), 0, "{taken}");
    assert!(back.is_some(), "never used again: {report}");
    let failures = report.failures();
    // Nothing but waiting for it failed; a machine too busy for the others lets a call's time pass before it is sent.
    let expected = [
        "deadline_exceeded/maybe",
        "deadline_exceeded/no",
        "peer_unreachable/no",
    ];
    let expected =
        |call: &Outcome| expected.contains(&&*format!("{}/{}", call.code, call.executed));
    let others = failures.only(|call| !expected(call));
    assert_eq!(others.count(), 0, "{others}");
    assert_truth(&report, &cluster);
}

#[tokio::test]
async fn rolling_all_instances_fails_no_call() {
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 3)
        .functions()
        .set("RPC_DRAIN_DELAY", "400ms")
        .start()
        .await;
    let iad = cluster.instance("iad-1").address;
    let loads = [false, true].map(|idempotent| {
        let mut load = Load::new(iad, "syd");
        (load.rate, load.idempotent) = (30, idempotent);
        load.timeout = Duration::from_secs(30);
        load.start()
    });
    for name in SYD {
        cluster.instance(name).terminate();
        cluster.restart(name).await;
        cluster
            .until_ready("iad-1", &["iad-1", "syd-1", "syd-2", "syd-3"])
            .await;
        loads[0].go_on(Duration::from_millis(300)).await;
    }
    for load in loads {
        let report = load.finish().await;
        println!("all three rolled: {report}");
        assert_eq!(report.failures().count(), 0, "{}", report.failures());
        assert_truth(&report, &cluster);
    }
}

/// How many calls are made while instances die, stop and are cut off.
const CALLS: usize = 20_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_no_call_runs_twice() {
    let _quiet = quiet().await;
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::builder()
        .region("iad", 2)
        .region("syd", 3)
        .functions()
        .proxied()
        .start()
        .await;
    let via = ["iad-1", "iad-2"].map(|name| cluster.instance(name).address);
    let mut load = Load::new(via[0], "syd");
    (load.via, load.work_ms, load.timeout) = (via.into(), 1, Duration::from_secs(1));
    let calls = tokio::spawn(load.closed(48, CALLS));
    let started = Instant::now();
    let mut blows = [0; 3];
    while !calls.is_finished() {
        let (victim, blow) = (SYD[random.random_range(0..3)], random.random_range(0..3));
        let time = Duration::from_millis(random.random_range(20..200));
        blows[blow] += 1;
        match blow {
            0 => {
                cluster.instance(victim).kill();
                sleep(time).await;
                cluster.restart(victim).await;
            }
            1 => {
                cluster.instance(victim).pause().await;
                sleep(time).await;
                cluster.instance(victim).resume();
            }
            _ => {
                let faults = [
                    Fault::Refuse,
                    Fault::ResetAfter(random.random_range(0..400)),
                    Fault::CutAnswerAfter(random.random_range(0..400)),
                ];
                let proxy = cluster.proxy(victim);
                proxy
                    .set(faults[random.random_range(0..3)], Scope::All)
                    .await;
                sleep(time).await;
                proxy.heal().await;
            }
        }
        sleep(time / 2).await;
    }
    let report = calls.await.unwrap();
    println!(
        "{blows:?} kills, stops and resets in {:.1?}: {report}",
        started.elapsed()
    );
    assert_eq!(report.count(), CALLS);
    assert!(blows.iter().all(|count| *count > 0), "{blows:?}");
    // Else it would be no test of what runs.
    assert!(report.failure_rate() < 0.9, "{report}");
    assert_truth(&report, &cluster);
}
