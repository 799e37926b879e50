//! The crate as a program uses it: its own functions, calls from its own process, errors that say whether it ran.

use std::time::Duration;

use fly_rpc::{
    CallOptions, Code, Config, Declaration, DnsName, Drained, EachAnswer, Executed, FunctionError,
    Instance, Limits, Per, Registry,
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use tokio::{runtime::Builder, sync::mpsc, task, time::Instant};

use crate::support::{
    asking::{LATE_MS, two_regions},
    patience::{eventually, in_time},
};

#[derive(Serialize)]
struct Span {
    to: i64,
    from: i64,
}

/// An instance in `region` that finds `others` by their addresses.
async fn start(region: &str, others: &[&Instance]) -> Instance {
    let mut config = Config {
        listen: "127.0.0.1:0".to_owned(),
        ..Config::default()
    };
    config.identity.region = region.parse().unwrap();
    config.discovery.names = others
        .iter()
        .map(|other| DnsName::Address(other.address()))
        .collect();
    config.drain.delay = Duration::ZERO;
    let registry = Registry::builtin()
        .function("Math", "add", |(a, b): (i64, i64)| async move { Ok(a + b) })
        .function(
            "Math",
            "echo",
            |(value,): (Value,)| async move { Ok(value) },
        )
        .function("Math", "span", |(from, to): (i64, i64)| async move {
            Ok(to - from)
        })
        .declare(
            "Math",
            "span",
            Declaration::new().params([("from", json!({})), ("to", json!({}))]),
        )
        .function("Math", "div", |(a, b): (i64, i64)| async move {
            let error =
                || FunctionError::new("ArithmeticError", "division by zero").with_data(&(a, b));
            a.checked_div(b).ok_or_else(error)
        })
        .function_with_context("Call", "named", |call, (): ()| async move {
            let key = call.idempotency_key().map(ToString::to_string);
            Ok((call.request_id().to_owned(), key))
        });
    Instance::start(config, registry).await.unwrap()
}

#[tokio::test]
async fn limits_that_no_instance_can_have_make_the_start_fail() {
    let refusal = async |change: fn(&mut Limits)| {
        let mut config = Config {
            listen: "127.0.0.1:0".to_owned(),
            ..Config::default()
        };
        change(&mut config.limits);
        let started = Instance::start(config, Registry::new()).await;
        let error = started.unwrap_err();
        assert_eq!(format!("{error:?}"), error.to_string());
        error.to_string()
    };
    let size = "must be from 1 byte to 256 TiB";
    let count = "must be from 1 to usize::MAX / 8";
    let no_bound = refusal(|limits| limits.max_in_flight = usize::MAX).await;
    assert_eq!(
        no_bound,
        format!("RPC_MAX_IN_FLIGHT (--max-in-flight): {count}")
    );
    let nothing = refusal(|limits| limits.max_in_flight = 0).await;
    assert_eq!(nothing, no_bound);
    let no_bound = refusal(|limits| limits.max_body = usize::MAX).await;
    assert_eq!(no_bound, format!("RPC_MAX_BODY (--max-body): {size}"));
    let nothing = refusal(|limits| limits.max_result = 0).await;
    assert_eq!(nothing, format!("RPC_MAX_RESULT (--max-result): {size}"));
}

#[tokio::test]
async fn a_program_calls_its_own_functions_in_another_region() {
    let syd = start("syd", &[]).await;
    let iad = start("iad", &[&syd]).await;
    let rpc = iad.rpc();
    assert_eq!(
        rpc.call::<i64>("syd", "Math", "add", (1, 2)).await.unwrap(),
        3
    );
    assert_eq!(
        rpc.call::<i64>("iad", "Math", "add", [1, 2]).await.unwrap(),
        3
    );
    assert_eq!(
        rpc.call::<String>("syd", "String", "upcase", "fly")
            .await
            .unwrap(),
        "FLY"
    );
    assert_eq!(
        rpc.call::<Value>("syd", "Math", "echo", Span { to: 3, from: 10 })
            .await
            .unwrap(),
        json!({"to": 3, "from": 10})
    );
    assert_eq!(
        rpc.call::<String>("primary", "Fly.RPC", "my_region", ())
            .await
            .unwrap_err()
            .code(),
        Code::RegionUnknown
    );

    let failed = rpc
        .call::<i64>("syd", "Math", "div", (1, 0))
        .await
        .unwrap_err();
    assert_eq!(
        (failed.code(), failed.executed()),
        (Code::FunctionFailed, Executed::Yes)
    );
    let error = failed.error().unwrap();
    let data = error.data.as_ref().unwrap().get();
    assert_eq!(
        (error.kind.as_str(), error.message.as_str(), data),
        ("ArithmeticError", "division by zero", "[1,0]")
    );
    assert_eq!(
        format!("{error:?}"),
        "ArithmeticError: division by zero; data: [1,0]"
    );

    assert_eq!(format!("{failed:?}"), failed.to_string());
    let request_id = failed.request_id().unwrap();
    assert_eq!(
        failed.to_string(),
        format!(
            "function_failed (executed: yes): ArithmeticError: division by zero (request {request_id})"
        )
    );

    let by_name = || CallOptions {
        by_name: true,
        ..CallOptions::default()
    };
    let args = Span { to: 3, from: 10 };
    let called = rpc.call_with::<i64>(by_name(), "syd", "Math", "span", args);
    assert_eq!(called.await.unwrap(), -7);
    let args = json!({"from": 10});
    let called = rpc.call_with::<i64>(by_name(), "syd", "Math", "span", args);
    let missing = called.await.unwrap_err();
    assert_eq!(
        (missing.code(), missing.executed(), missing.detail()),
        (
            Code::InvalidArguments,
            Executed::No,
            "Math.span: argument \"to\" is missing"
        )
    );
    let called = rpc.call_with::<i64>(by_name(), "syd", "Math", "span", (10, 3));
    let no_names = called.await.unwrap_err();
    assert_eq!(
        (no_names.code(), no_names.detail()),
        (
            Code::InvalidRequest,
            "arguments by name must be a struct or a map"
        )
    );

    let unexpected = rpc
        .call::<bool>("syd", "Math", "add", (1, 2))
        .await
        .unwrap_err();
    assert_eq!(
        (unexpected.code(), unexpected.executed()),
        (Code::FunctionFailed, Executed::Yes)
    );
    assert_eq!(unexpected.error().unwrap().kind, "UnexpectedResult");

    let options = CallOptions {
        timeout: Some(Duration::from_millis(LATE_MS)),
        ..CallOptions::default()
    };
    let late = rpc
        .call_with::<String>(options, "syd", "Process", "sleep", 60_000)
        .await
        .unwrap_err();
    assert_eq!(
        (late.code(), late.executed()),
        (Code::DeadlineExceeded, Executed::Maybe)
    );

    for (region, code) in [("mars", Code::RegionUnknown), ("MARS", Code::InvalidRegion)] {
        let error = rpc
            .call::<i64>(region, "Math", "add", (1, 2))
            .await
            .unwrap_err();
        assert_eq!((error.code(), error.executed()), (code, Executed::No));
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("{code} (executed: no): ")),
            "{text}"
        );
    }
    assert_eq!(
        (iad.shutdown().await, syd.shutdown().await),
        (Drained::Whole, Drained::Whole)
    );
}

#[tokio::test]
async fn who_waits_until_it_is_ready_finds_everybody_who_was_there() {
    let syd = start("syd", &[]).await;
    syd.ready().await;
    let iad = start("iad", &[&syd]).await;
    iad.ready().await;
    let options = CallOptions {
        instance: Some(syd.identity().instance.clone()),
        ..CallOptions::default()
    };
    let rpc = iad.rpc();
    let region = rpc.call_with::<String>(options, "syd", "Fly.RPC", "my_region", ());
    assert_eq!(region.await.unwrap(), "syd");
    iad.shutdown().await;
    syd.shutdown().await;
}

#[tokio::test]
async fn what_a_function_fails_with_through_a_question_mark_is_for_the_log_only() {
    let cluster = two_regions().functions().start().await;
    let path = "/no/such/secret";
    let answer = cluster
        .instance("iad-1")
        .call("syd", "Test.read", json!([path]))
        .await;
    assert_eq!(answer.problem(), (424, "function_failed", "yes"));
    let message =
        "the function failed; the log of the instance has the cause, under the id of the request";
    assert_eq!(
        answer.body["error"],
        json!({"kind": "InternalError", "message": message, "data": null})
    );
    assert!(!answer.body.to_string().contains("No such file"));

    let syd = cluster.instance("syd-1");
    let seen = async || {
        let log = syd.log();
        let lines = log.lines().filter(|line| line.contains("No such file"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let seen = eventually("the cause", seen, |seen| !seen.is_empty()).await;
    assert_eq!(seen.len(), 1, "{seen:?}");
    let line: Value = serde_json::from_str(&seen[0]).unwrap();
    assert_eq!(
        (&line["level"], &line["message"], &line["function"]),
        (
            &json!("ERROR"),
            &json!("function failed"),
            &json!("Test.read")
        )
    );
    assert_eq!(
        line["span"]["request_id"],
        answer.body["meta"]["request_id"]
    );
}

#[tokio::test]
async fn a_program_calls_many_instances_and_lists_of_regions() {
    let syd = start("syd", &[]).await;
    let iad = start("iad", &[&syd]).await;
    iad.ready().await;
    let rpc = iad.rpc();
    let seen = |answers: Vec<EachAnswer<i64>>| -> Vec<_> {
        let seen = answers.into_iter().map(|answer| {
            let result = answer
                .result
                .map_err(|error| (error.code(), error.executed()));
            (answer.region.to_string(), answer.instance.is_some(), result)
        });
        seen.collect()
    };
    let all = rpc.each("all", "Math", "add", (1, 2)).await.unwrap();
    let of = |region: &str, result| (region.to_owned(), true, result);
    assert_eq!(seen(all), [of("iad", Ok(3)), of("syd", Ok(3))]);
    let options = CallOptions {
        idempotent: Some(true),
        ..CallOptions::default()
    };
    let some = rpc.each_with(options, Per::Region, "syd,mars", "Math", "div", (1, 0));
    assert_eq!(
        seen(some.await.unwrap()),
        [
            (
                "mars".to_owned(),
                false,
                Err((Code::RegionUnknown, Executed::No))
            ),
            of("syd", Err((Code::FunctionFailed, Executed::Yes))),
        ]
    );
    let wrong = rpc.each::<i64>("any", "Math", "add", (1, 2)).await;
    assert_eq!(wrong.unwrap_err().code(), Code::InvalidRegion);
    let list = rpc.call::<String>("mars,syd,any", "Fly.RPC", "my_region", ());
    assert_eq!(list.await.unwrap(), "syd");
}

#[tokio::test]
async fn a_program_casts_and_asks_later_by_the_key() {
    let syd = start("syd", &[]).await;
    let iad = start("iad", &[&syd]).await;
    let rpc = iad.rpc();
    let options = || CallOptions {
        idempotency_key: Some("sum".parse().unwrap()),
        ..CallOptions::default()
    };
    let id = rpc.cast_with(options(), "syd", "Math", "add", (1, 2)).await;
    assert_eq!(id.unwrap().len(), 26);
    let answer = rpc.answer_with::<i64>(options(), "syd", "Math", "add", (1, 2));
    let answer = answer.await.unwrap();
    assert_eq!((answer.result, answer.replayed), (3, true));
    let refused = rpc.cast("mars", "Math", "add", (1, 2)).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.executed()),
        (Code::RegionUnknown, Executed::No)
    );
}

#[tokio::test]
async fn a_function_knows_its_request_and_key_and_a_fan_out_what_was_replayed() {
    let syd = start("syd", &[]).await;
    let iad = start("iad", &[&syd]).await;
    iad.ready().await;
    let rpc = iad.rpc();
    let options = || CallOptions {
        idempotency_key: Some("key".parse().unwrap()),
        ..CallOptions::default()
    };
    for region in ["iad", "syd"] {
        let id = rpc.cast_with(options(), region, "Call", "named", ()).await;
        let named = rpc.call_with(options(), region, "Call", "named", ()).await;
        let named: (String, Option<String>) = named.unwrap();
        assert_eq!(named, (id.unwrap(), Some("key".to_owned())));
        let (_, key): (String, Option<String>) =
            rpc.call(region, "Call", "named", ()).await.unwrap();
        assert_eq!(key, None);
    }
    for is_repeat in [false, true] {
        let all = rpc.each_with::<i64>(options(), Per::Region, "all", "Math", "div", (1, 0));
        let replayed = all.await.unwrap().into_iter().map(|it| it.replayed);
        assert_eq!(replayed.collect::<Vec<_>>(), [is_repeat; 2]);
    }
}

#[tokio::test]
async fn a_call_that_an_instance_cuts_when_it_stops_ends_at_once() {
    let (started, mut starts) = mpsc::channel(4);
    let hangs = || {
        let started = started.clone();
        Registry::new().function("Test", "hang", move |(): ()| {
            let started = started.clone();
            async move {
                started.send(()).await?;
                std::future::pending::<()>().await;
                Ok(())
            }
        })
    };
    let config = |region: &str| {
        let mut config = Config {
            listen: "127.0.0.1:0".to_owned(),
            ..Config::default()
        };
        config.identity.region = region.parse().unwrap();
        (config.drain.delay, config.drain.timeout) = (Duration::ZERO, Duration::ZERO);
        config.timeouts.max = Duration::from_secs(3600);
        config
    };
    let syd = [
        Instance::start(config("syd"), hangs()).await.unwrap(),
        Instance::start(config("syd"), hangs()).await.unwrap(),
    ];
    let mut config = config("iad");
    let addresses = syd.iter().map(Instance::address);
    config.discovery.names = addresses.map(DnsName::Address).collect();
    let iad = Instance::start(config, Registry::new()).await.unwrap();
    iad.ready().await;
    let rpc = iad.rpc();
    let call = tokio::spawn(async move {
        let options = CallOptions {
            idempotent: Some(true),
            timeout: Some(Duration::from_secs(3600)),
            ..CallOptions::default()
        };
        rpc.call_with::<()>(options, "syd", "Test", "hang", ())
            .await
    });
    in_time("the call", starts.recv()).await.unwrap();
    assert_eq!(iad.shutdown().await, Drained::Cut);
    let cut = in_time("its end", call).await.unwrap().unwrap_err();
    assert_eq!(
        (cut.code(), cut.executed()),
        (Code::PeerLost, Executed::Maybe)
    );
}

#[tokio::test]
async fn who_shuts_an_instance_down_again_does_not_wait_again() {
    let mut config = Config {
        listen: "127.0.0.1:0".to_owned(),
        ..Config::default()
    };
    let delay = Duration::from_secs(2);
    config.drain.delay = delay;
    let instance = Instance::start(config, Registry::new()).await.unwrap();
    let stop = async || {
        let began = Instant::now();
        (instance.shutdown().await, began.elapsed())
    };
    let later = async {
        tokio::time::sleep(delay / 2).await;
        stop().await
    };
    // One that comes meanwhile waits for the rest, one that comes after it for nothing.
    let (first, meanwhile) = tokio::join!(stop(), later);
    let after = stop().await;
    assert_eq!([first.0, meanwhile.0, after.0], [Drained::Whole; 3]);
    assert!(first.1 >= delay);
    assert!(
        meanwhile.1 < delay && after.1 < delay,
        "{meanwhile:?} {after:?}"
    );
}

/// Arguments that cannot be read.
struct Unreadable;

impl<'de> Deserialize<'de> for Unreadable {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        panic!("a test's panic")
    }
}

#[tokio::test]
async fn a_function_whose_arguments_cannot_be_read_did_not_run() {
    let config = Config {
        listen: "127.0.0.1:0".to_owned(),
        ..Config::default()
    };
    let registry = Registry::new().function("Test", "read", |_: Unreadable| async { Ok(()) });
    let instance = Instance::start(config, registry).await.unwrap();
    let rpc = instance.rpc();
    let called = rpc.call::<()>("local", "Test", "read", 1);
    let error = called.await.unwrap_err();
    assert_eq!(
        (error.code(), error.executed()),
        (Code::InvalidArguments, Executed::No)
    );
}

#[test]
fn a_blocking_function_that_found_no_thread_did_not_run() {
    let mut runtime = Builder::new_multi_thread();
    let runtime = runtime.enable_all().max_blocking_threads(1).build();
    let runtime = runtime.unwrap();
    runtime.block_on(async {
        let config = Config {
            listen: "127.0.0.1:0".to_owned(),
            ..Config::default()
        };
        let (runs, mut ran) = mpsc::channel(2);
        let registry = Registry::new().blocking_function("Test", "block", move |id: u32| {
            runs.blocking_send(id).unwrap();
            Ok(())
        });
        let rpc = Instance::start(config, registry).await.unwrap().rpc();
        // The program has the only thread for itself.
        let (release, held) = std::sync::mpsc::channel::<()>();
        task::spawn_blocking(move || held.recv());
        let options = CallOptions {
            timeout: Some(Duration::from_millis(100)),
            ..CallOptions::default()
        };
        let late = rpc.call_with::<()>(options, "local", "Test", "block", 1);
        let late = late.await.unwrap_err();
        assert_eq!(
            (late.code(), late.executed()),
            (Code::DeadlineExceeded, Executed::No)
        );
        drop(release);
        rpc.call::<()>("local", "Test", "block", 2).await.unwrap();
        assert_eq!(ran.recv().await, Some(2));
    });
}
