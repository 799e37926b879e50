//! What fails for many at once, under load: DNS, a whole region, the way between two, and more calls than there is room.

use std::time::Duration;

use hickory_server::proto::op::ResponseCode;
use serde_json::json;
use tokio::time::Instant;

use crate::support::{
    asking::block,
    cluster::{Cluster, instances_in_state, ready_instances},
    dns::Mood,
    fault::Fault,
    load::{Load, Report, Running, quiet},
    patience::eventually,
};

/// How much longer than it should anything may take on a busy machine.
const NOISE: Duration = Duration::from_secs(10);
/// How long a call waits while a way is cut.
const TIMEOUT: Duration = Duration::from_secs(3);
const SYD: [&str; 3] = ["syd-1", "syd-2", "syd-3"];

#[tokio::test]
async fn without_dns_no_call_fails_and_a_new_instance_is_found_soon_after() {
    let interval = Duration::from_millis(500);
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 2)
        .functions()
        .set("RPC_POLL_INTERVAL", "500ms")
        .start()
        .await;
    let mut load = Load::new(cluster.instance("iad-1").address, "syd");
    load.rate = 100;
    let load = load.start();
    let rounds = async |cluster: &Cluster| {
        let regions = cluster.instance("iad-1").get("/regions").await.body;
        regions["discovery"]["rounds"].as_u64().unwrap()
    };
    for mood in [Mood::Silent, Mood::Code(ResponseCode::ServFail)] {
        cluster.dns.set_mood(mood);
        let seen = rounds(&cluster).await;
        let later = async || rounds(&cluster).await;
        eventually("rounds", later, |rounds| *rounds >= seen + 2).await;
    }
    cluster.add("syd").await;
    cluster.announce_all();
    let iad = cluster.instance("iad-1");
    assert_eq!(iad.get("/regions").await.body["discovery"]["stale"], true);
    assert_eq!(ready_instances(iad).await.len(), 3);
    let healed = Instant::now();
    cluster.dns.set_mood(Mood::Well);
    let found = async || ready_instances(iad).await;
    eventually("the new one", found, |seen| seen.contains("syd-3")).await;
    let found = healed.elapsed();
    let report = load.finish().await;
    println!("DNS dead: {report}; a new instance found {found:.1?} after, interval {interval:?}");
    assert!(found <= 2 * interval + NOISE, "{found:?}");
    assert_eq!(report.failures().count(), 0, "{}", report.failures());
}

#[tokio::test]
async fn a_region_that_refuses_for_a_while_is_not_hammered_and_comes_back() {
    let _quiet = quiet().await;
    let cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 3)
        .functions()
        .proxied()
        .start()
        .await;
    let load = Load::new(cluster.instance("iad-1").address, "syd").start();
    load.until(Duration::from_millis(500)).await;
    let broken = load.elapsed();
    for name in SYD {
        cluster.proxy(name).break_all(Fault::Refuse).await;
    }
    load.go_on(Duration::from_secs(2)).await;
    let healed = load.elapsed();
    for name in SYD {
        cluster.proxy(name).heal().await;
    }
    let all = ["iad-1", "syd-1", "syd-2", "syd-3"];
    cluster.until_ready("iad-1", &all).await;
    let ready = load.elapsed();
    load.go_on(Duration::from_millis(500)).await;
    let windows = load.elapsed().as_secs() / 10 + 1;
    let report = load.finish().await;
    let during = report.only(|call| (broken..healed).contains(&call.sent));
    let after = report.only(|call| call.sent > healed);
    let last = after
        .failures()
        .0
        .iter()
        .map(|call| call.sent - healed)
        .max();
    println!("all refuse: {report}; meanwhile {during}; last failure {last:.1?} after healing");
    // A fifth of the calls, and three for each second of the ten that count.
    let calls = report.count();
    let allowed = calls + calls / 5 + 30 * usize::try_from(windows).unwrap();
    assert!(report.attempts() <= allowed, "{allowed}: {report}");
    let settled = after.only(|call| call.sent > ready).failures();
    assert_eq!(settled.count(), 0, "{settled}");
    // A machine that is too busy lets a call's time pass before it is sent.
    let expected = [
        "peer_unreachable/no",
        "region_unavailable/no",
        "deadline_exceeded/no",
    ];
    let is_expected =
        |code: &str, executed: &str| expected.contains(&&*format!("{code}/{executed}"));
    // What was under way when the connections were reset may have run.
    let others = during
        .failures()
        .only(|call| !is_expected(&call.code, &call.executed));
    // More, when a busy machine takes longer for each than the 40 ms of an idle one.
    let took = others.percentile(1.0, |call| call.latency).as_millis();
    let slowness = usize::try_from(took / 40).unwrap().max(1);
    assert!(others.count() <= 20 * slowness, "{others}");
    assert_eq!(
        others.only(|call| call.executed != "maybe").count(),
        0,
        "{others}"
    );
    assert_eq!(report.double_runs(&cluster.runs()), 0);
    assert_eq!(report.lies(&cluster.runs()).count(), 0);
}

#[tokio::test]
async fn three_times_as_many_calls_as_there_is_room_are_refused_and_none_waits() {
    let _quiet = quiet().await;
    let cluster = Cluster::builder()
        .region("iad", 1)
        .functions()
        .set("RPC_MAX_IN_FLIGHT", "8")
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    let mut load = Load::new(iad.address, "iad");
    load.work_ms = 50;
    let peak = peak(load.clone()).await;
    let before = iad.peak_memory();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate"
    )]
    {
        load.rate = (peak * 3.0).ceil() as u32;
    }
    let (time, again) = (Duration::from_secs(2), load.clone());
    let load = load.start();
    load.until(time).await;
    assert_eq!(iad.get("/healthz").await.status, 200);
    let report = load.finish().await;
    // The machine may have had more time for it before than meanwhile.
    let peak = peak.min(self::peak(again).await);
    let refused = report.failures();
    let (goodput, after) = (rate(&report, time), iad.peak_memory());
    let elapsed = refused.percentile(0.99, |call| call.elapsed);
    println!(
        "three times the capacity: {report}; peak {peak:.0}/s, goodput {goodput:.0}/s; refusals p99 {elapsed:.2?} on \
         the instance; memory {before} to {after} KiB"
    );
    assert!(goodput > 0.0 && refused.count() > 0, "{report}");
    let is_expected = |code: &str, executed: &str| (code, executed) == ("overloaded", "no");
    let others = refused.only(|call| !is_expected(&call.code, &call.executed));
    assert_eq!(others.count(), 0, "{others}");
    assert_eq!(report.lies(&cluster.runs()).count(), 0);
    assert!(after - before <= 16 << 10, "{before} to {after} KiB");
}

#[tokio::test]
async fn a_full_instance_costs_no_call_while_others_are_idle() {
    let _quiet = quiet().await;
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 2)
        .functions()
        .start()
        .await;
    cluster.add_with("syd", "RPC_MAX_IN_FLIGHT", "1").await;
    cluster.announce_all();
    cluster.until_all_see_all().await;
    let (iad, full) = (cluster.instance("iad-1"), cluster.instance("syd-3"));
    let held = block(full, "syd", "full", &json!({"instance": "syd-3"}));
    cluster.until_marked("full.started").await;
    let load = Load::new(iad.address, "syd").start();
    load.until(Duration::from_secs(3)).await;
    let report = load.finish().await;
    println!("one of three full: {report}");
    assert_eq!(report.failures().count(), 0, "{}", report.failures());
    // Without the rest that a full instance is given, a third of the calls would try it first.
    assert!(report.attempts_per_call() <= 1.2, "{report}");
    cluster.release("full");
    held.await.unwrap().result();
    assert_eq!(report.lies(&cluster.runs()).count(), 0);
}

#[tokio::test]
async fn keyed_calls_pass_over_an_instance_that_is_dead() {
    let _quiet = quiet().await;
    let mut cluster = region_of_three().await;
    cluster.instance("syd-1").kill();
    cluster.instance_mut("syd-1").ended().await;
    for rate in [100, 300] {
        let mut load = Load::new(cluster.instance("iad-1").address, "syd");
        (load.rate, load.keyed) = (rate, true);
        let load = load.start();
        load.until(Duration::from_secs(2)).await;
        let report = load.finish().await;
        println!("one of three dead, keyed, {rate}/s: {report}");
        let failures = report.failures();
        // An instance of a busy machine misses a probe, and then its keys have to wait. A third of the keys is the dead
        // one's.
        let is_expected =
            |code: &str, executed: &str| (code, executed) == ("peer_unreachable", "no");
        let others = failures.only(|call| !is_expected(&call.code, &call.executed));
        assert_eq!(others.count(), 0, "{others}");
        assert!(report.failure_rate() < 0.25, "{report}");
        assert_eq!(report.lies(&cluster.runs()).count(), 0);
        assert_eq!(report.double_runs(&cluster.runs()), 0);
    }
}

#[tokio::test]
async fn keyed_calls_are_answered_at_once_while_their_instance_hangs() {
    let _quiet = quiet().await;
    let cluster = region_of_three().await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    syd.pause().await;
    // Calls find out that it hangs, by waiting for it.
    let mut load = Load::new(iad.address, "syd");
    load.timeout = TIMEOUT;
    let load = load.start();
    let suspects = async || instances_in_state(iad, "suspect").await;
    eventually("a suspect", suspects, |seen| seen.contains("syd-1")).await;
    load.finish().await;
    for idempotent in [false, true] {
        let mut load = Load::new(iad.address, "syd");
        (load.rate, load.keyed, load.idempotent) = (100, true, idempotent);
        load.timeout = Duration::from_secs(20);
        let timeout = load.timeout;
        let load = load.start();
        load.until(Duration::from_secs(2)).await;
        let report = load.finish().await;
        println!("one of three hangs, keyed, idempotent {idempotent}: {report}");
        let failures = report.failures();
        let is_expected =
            |code: &str, executed: &str| (code, executed) == ("peer_unreachable", "no");
        let others = failures.only(|call| !is_expected(&call.code, &call.executed));
        assert_eq!(others.count(), 0, "{others}");
        // A third of the keys is its own.
        let expected = if idempotent { 0.0..0.001 } else { 0.1..0.6 };
        assert!(expected.contains(&report.failure_rate()), "{report}");
        let longest = report.percentile(1.0, |call| call.elapsed);
        assert!(longest < timeout / 2, "{report}");
        assert_eq!(report.lies(&cluster.runs()).count(), 0);
    }
    syd.resume();
}

async fn region_of_three() -> Cluster {
    let cluster = Cluster::builder().region("iad", 1).region("syd", 3);
    cluster.functions().start().await
}

/// What eight callers get done in a second, who each wait for an answer before the next call.
async fn peak(load: Load) -> f64 {
    let started = Instant::now();
    let report = load.closed(8, 120).await;
    rate(&report, started.elapsed())
}

/// Results for each second.
fn rate(report: &Report, time: Duration) -> f64 {
    let results = report.count() - report.failures().count();
    f64::from(u32::try_from(results).unwrap()) / time.as_secs_f64()
}

/// Two regions of two instances each: those of the own region are met directly, the others through their proxies.
async fn two_sides() -> Cluster {
    let mut cluster = Cluster::builder()
        .functions()
        .proxied()
        .set("RPC_POLL_INTERVAL", "500ms")
        .set("RPC_CONNECT_TIMEOUT", "300ms")
        .set("PRIMARY_REGION", "iad")
        .start()
        .await;
    for (region, name) in [("iad", "iad.test"), ("syd", "syd.test")] {
        for _ in 0..2 {
            cluster.add_with(region, "RPC_DNS_NAME", name).await;
        }
    }
    for (region, name) in [("iad", "iad.test"), ("syd", "syd.test")] {
        let seen = cluster.instances.iter().map(|instance| {
            let own = instance.region == region;
            let proxy = cluster.proxy(&instance.name);
            if own { instance.address } else { proxy.address }.ip()
        });
        cluster.dns.set_addresses(name, seen);
    }
    cluster.until_all_see_all().await;
    cluster
}

/// Loads in both regions, and between them in both directions; calls to the regions `cut` wait no longer than they have to.
fn crossing(cluster: &Cluster, cut: &[&str]) -> [(&'static str, Running); 4] {
    let ways = [
        ("iad-1", "iad", Some("iad-2")),
        ("syd-1", "syd", Some("syd-2")),
        ("iad-1", "syd", None),
        ("syd-1", "iad", None),
    ];
    let names = ["within iad", "within syd", "iad to syd", "syd to iad"];
    let load = |(via, region, instance): (&str, &str, Option<&str>)| {
        let mut load = Load::new(cluster.instance(via).address, region);
        load.rate = 10;
        load.timeout = match instance.is_none() && cut.contains(&region) {
            true => TIMEOUT,
            false => Duration::from_secs(30),
        };
        load.instance = instance.map(str::to_owned);
        load.start()
    };
    let mut number = 0;
    ways.map(|way| {
        number += 1;
        (names[number - 1], load(way))
    })
}

/// Breaks the way to the regions `cut` under load, and heals it.
async fn cut_off(cut: &[&str]) {
    let cluster = two_sides().await;
    let loads = crossing(&cluster, cut);
    let clock = &loads[0].1;
    clock.until(Duration::from_millis(500)).await;
    let proxies = || {
        let behind = |region: &&str| ["1", "2"].map(|number| format!("{region}-{number}"));
        cut.iter().flat_map(behind).collect::<Vec<_>>()
    };
    for name in proxies() {
        cluster.proxy(&name).break_all(Fault::BlackHole).await;
    }
    let broken = clock.elapsed();
    clock.go_on(TIMEOUT + Duration::from_secs(1)).await;
    let mended = clock.elapsed();
    for name in proxies() {
        cluster.proxy(&name).heal().await;
    }
    // Two intervals of half a second.
    clock.go_on(Duration::from_secs(1)).await;
    cluster.until_all_see_all().await;
    let whole = clock.elapsed();
    clock.go_on(Duration::from_millis(500)).await;
    for (way, load) in loads {
        let report = load.finish().await;
        println!("no way to {cut:?}: {way}: {report}");
        let is_cut = cut
            .iter()
            .any(|region| way.ends_with(&format!(" to {region}")));
        if !is_cut {
            assert_eq!(report.failures().count(), 0, "{way}: {report}");
        }
        let [_, late] = report.lateness();
        assert!(late <= NOISE, "{way}: {late:?}");
        // What is held up can still be answered once the way is healed.
        let doomed = report.only(|call| call.sent >= broken && call.sent + call.latency < mended);
        let stood = doomed.only(|call| call.is_ok()).count();
        assert!(
            !is_cut || (doomed.count() > 0 && stood == 0),
            "{way}: {doomed}"
        );
        let after = report.only(|call| call.sent > whole);
        assert_eq!(after.failures().count(), 0, "{way}: {after}");
        assert_eq!(report.double_runs(&cluster.runs()), 0);
        assert_eq!(report.lies(&cluster.runs()).count(), 0);
    }
}

#[tokio::test]
async fn a_one_way_cut_between_regions_fails_one_way_only() {
    cut_off(&["syd"]).await;
}

#[tokio::test]
async fn a_full_cut_between_regions_leaves_both_working() {
    cut_off(&["iad", "syd"]).await;
}
