//! `POST /rpc/{region}`: where calls run, and every problem as the whole document that clients see.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    asking::{LATE_MS, block, two_regions},
    cluster::Cluster,
    patience::eventually,
    process::{Environment, Process, answer},
};

/// One instance in `iad`, alone.
async fn alone() -> Process {
    let listen = ("RPC_LISTEN", "127.0.0.1:0".to_owned());
    let region = [
        ("FLY_REGION", "iad".to_owned()),
        ("FLY_MACHINE_ID", "iad-1".to_owned()),
    ];
    Process::start(&Environment::from_iter(region.into_iter().chain([listen]))).await
}

#[tokio::test]
async fn a_call_runs_where_it_is_asked_to_run() {
    let cluster = two_regions().start().await;
    let (iad, syd) = (cluster.instance("iad-1"), cluster.instance("syd-1"));
    for (asked, region, ran_on) in [
        (iad, "syd", "syd-1"),
        (iad, "iad", "iad-1"),
        (iad, "primary", "iad-1"),
        (syd, "primary", "iad-1"),
        (syd, "syd", "syd-1"),
    ] {
        let answer = asked.call(region, "Fly.RPC.my_region", json!([])).await;
        assert_eq!(answer.result(), &ran_on[..3]);
        let meta = &answer.body["meta"];
        assert_eq!(
            (&meta["region"], &meta["instance"]),
            (&json!(ran_on[..3]), &json!(ran_on))
        );
        assert_eq!(
            (&meta["attempts"], meta["elapsed_ms"].is_f64()),
            (&json!(1), true)
        );
        assert_eq!(meta["request_id"], answer.headers["x-request-id"].as_str());
    }
}

#[tokio::test]
async fn the_answer_to_curl_is_as_in_the_readme() {
    let cluster = two_regions().start().await;
    let request = cluster.instance("iad-1").request(
        "/rpc/syd",
        r#"{"module":"String","function":"upcase","args":["fly"]}"#,
    );
    let answer = answer(request.header("x-request-id", "my.request_1-2"))
        .await
        .unwrap();
    let elapsed = answer.body["meta"]["elapsed_ms"].clone();
    assert_eq!(
        answer.body,
        json!({
            "result": "FLY",
            "meta": {
                "region": "syd", "instance": "syd-1", "attempts": 1, "elapsed_ms": elapsed,
                "request_id": "my.request_1-2",
            },
        })
    );
    assert_eq!(answer.headers["x-request-id"], "my.request_1-2");
    eventually(
        "the request id in the peer's answer",
        async || cluster.instance("iad-1").log(),
        |log| log.contains("my.request_1-2"),
    )
    .await;
}

#[tokio::test]
async fn a_request_id_that_breaks_the_rule_is_replaced() {
    let iad = alone().await;
    for id in ["", "a b", "a/b", &"x".repeat(129)] {
        let request = iad.request(
            "/rpc/iad",
            r#"{"module":"String","function":"upcase","args":["fly"]}"#,
        );
        let answer = answer(request.header("x-request-id", id)).await.unwrap();
        let given = answer.headers["x-request-id"].as_str();
        assert_eq!(
            (given.len(), &answer.body["meta"]["request_id"]),
            (26, &json!(given))
        );
    }
}

#[tokio::test]
async fn instances_of_a_region_are_chosen_uniformly() {
    let cluster = Cluster::builder()
        .region("iad", 1)
        .region("syd", 3)
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    let counts = async || {
        let suspects = || iad.log().matches(r#""state":"suspect""#).count();
        let before = suspects();
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..600 {
            let answer = iad.call("syd", "Fly.RPC.my_region", json!([])).await;
            *counts.entry(answer.instance().to_owned()).or_default() += 1;
        }
        (suspects() == before).then_some(counts)
    };
    // Where one is too late for a probe, on a busy machine, the others get its calls.
    let counts = eventually("all ready all the time", counts, Option::is_some).await;
    let counts = counts.unwrap();
    // 200 expected, standard deviation 11.5: six of them are no accident.
    assert_eq!(counts.len(), 3);
    assert!(
        counts.values().all(|count| count.abs_diff(200) < 70),
        "{counts:?}"
    );
}

#[tokio::test]
async fn a_pinned_call_runs_on_that_instance_only() {
    let cluster = Cluster::builder()
        .region("iad", 2)
        .region("syd", 2)
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    for pinned in ["syd-1", "syd-2", "iad-1", "iad-2"] {
        for _ in 0..5 {
            let body = json!({"module": "Fly.RPC", "function": "my_region", "instance": pinned});
            let answer = iad.rpc(&pinned[..3], &body).await;
            assert_eq!(
                (answer.result(), answer.instance()),
                (&json!(pinned[..3]), pinned)
            );
        }
    }
    for (region, pinned) in [("syd", "iad-1"), ("iad", "syd-1"), ("syd", "nobody")] {
        let body = json!({"module": "Fly.RPC", "function": "my_region", "instance": pinned});
        let answer = iad.rpc(region, &body).await;
        assert_eq!(answer.problem(), (404, "instance_unknown", "no"));
        assert_eq!(
            answer.detail(),
            format!("instance \"{pinned}\" is not in this region")
        );
    }
}

#[tokio::test]
async fn what_a_function_does_reaches_the_caller_from_here_and_from_there() {
    let cluster = two_regions().functions().start().await;
    let iad = cluster.instance("iad-1");
    for region in ["iad", "syd"] {
        let failed = iad.call(region, "Kernel.raise", json!(["boom"])).await;
        assert_eq!(failed.problem(), (424, "function_failed", "yes"));
        assert_eq!(
            failed.body["error"],
            json!({"kind": "RuntimeError", "message": "boom", "data": null})
        );
        assert_eq!(
            (failed.instance(), &failed.body["meta"]["attempts"]),
            (&*format!("{region}-1"), &json!(1))
        );

        let panicked = iad.call(region, "Test.panic", json!([])).await;
        assert_eq!(panicked.problem(), (500, "function_panicked", "yes"));
        assert_eq!(
            panicked.detail(),
            "Test.panic panicked; the instance's log has the cause"
        );

        let misfit = iad.call(region, "String.upcase", json!([1])).await;
        assert_eq!(misfit.problem(), (422, "invalid_arguments", "no"));
        assert_eq!(
            misfit.detail(),
            "String.upcase: argument 1: expected a string"
        );
        let arity = iad.call(region, "Kernel.+", json!([1])).await;
        assert_eq!(
            (arity.problem().1, arity.detail()),
            ("invalid_arguments", "Kernel.+: takes 2 arguments, 1 given")
        );

        let unknown = iad.call(region, "String.shout", json!(["fly"])).await;
        assert_eq!(unknown.problem(), (404, "function_unknown", "no"));
        let nowhere = format!("no function String.shout on {region}-1");
        assert_eq!(unknown.detail(), nowhere);
        // Once the list of a peer was read.
        let mistyped = async || iad.call(region, "String.upcas", json!(["fly"])).await;
        let is_meant =
            format!("no function String.upcas on {region}-1; did you mean String.upcase?");
        let mistyped = eventually("a hint", mistyped, |answer| answer.detail() == is_meant).await;
        assert_eq!(mistyped.problem(), (404, "function_unknown", "no"));

        let body = json!({
            "module": "Process", "function": "sleep", "args": [60_000], "timeout_ms": LATE_MS,
        });
        let late = iad.rpc(region, &body).await;
        assert_eq!(late.problem(), (504, "deadline_exceeded", "maybe"));

        let after = iad
            .call(region, "String.upcase", json!(["still here"]))
            .await;
        assert_eq!(after.result(), "STILL HERE");
    }
}

#[tokio::test]
async fn args_and_results_pass_through_as_they_are() {
    let cluster = two_regions().functions().start().await;
    let value =
        "[18446744073709551617, 1.10, 1e400, {\"a\":1,\"a\":2}, \"\\u00e9\\ud83d\\ude00\",\n -0.0]";
    let body = format!("{{\"module\":\"Test\",\"function\":\"echo\",\"args\":[{value}]}}");
    for region in ["iad", "syd"] {
        let response = cluster
            .instance("iad-1")
            .request(&format!("/rpc/{region}"), &body)
            .send()
            .await
            .unwrap();
        let text = response.text().await.unwrap();
        // Between instances a newline, which can only be white space, becomes a space.
        let expected = format!("{{\"result\":{value},\"meta\":").replace('\n', " ");
        assert!(text.replace('\n', " ").starts_with(&expected), "{text}");
    }
}

#[tokio::test]
async fn a_region_nobody_was_seen_in_is_unknown() {
    let cluster = two_regions().start().await;
    let answer = cluster
        .instance("iad-1")
        .call("mars", "Fly.RPC.my_region", json!([]))
        .await;
    assert_eq!(answer.problem(), (404, "region_unknown", "no"));
    let detail = "no instance was ever seen in region \"mars\"; known regions: iad, syd";
    assert_eq!(answer.detail(), detail);
    let read = cluster.instance("iad-1").get("/regions/mars").await;
    assert_eq!(read.problem(), (404, "region_unknown", "no"));
    assert_eq!(read.detail(), detail);
    let meta = &answer.body["meta"];
    assert_eq!(
        (&meta["region"], &meta["instance"], &meta["attempts"]),
        (&json!("mars"), &Value::Null, &json!(0))
    );
}

#[tokio::test]
async fn a_region_that_dies_is_unreachable_then_unavailable() {
    let mut cluster = Cluster::builder().region("syd", 1).start().await;
    let all = ["iad-1", "syd-1"];
    cluster.add_with_one_round("iad", &all).await;
    cluster.instance("syd-1").kill();
    cluster.instance_mut("syd-1").ended().await;
    let iad = cluster.instance("iad-1");

    let first = iad.call("syd", "Fly.RPC.my_region", json!([])).await;
    assert_eq!(first.problem(), (502, "peer_unreachable", "no"));
    let detail = "region \"syd\": 1 attempt, none could connect; no connection to instance syd-1";
    assert_eq!(first.detail(), detail);

    let unavailable = async || iad.call("syd", "Fly.RPC.my_region", json!([])).await;
    let later = eventually("region_unavailable", unavailable, |answer| {
        answer.problem().1 == "region_unavailable"
    })
    .await;
    assert_eq!(later.problem(), (503, "region_unavailable", "no"));
    let detail = "region \"syd\": 1 known instance, none reachable; last seen ";
    assert!(later.detail().starts_with(detail), "{}", later.detail());
    assert_eq!(
        (later.instance(), &later.body["meta"]["attempts"]),
        ("syd-1", &json!(1))
    );
}

#[tokio::test]
async fn a_region_whose_instances_left_is_known_and_unavailable() {
    let mut cluster = two_regions().start().await;
    let syd = cluster.instances.pop().unwrap();
    cluster.announce_all();
    drop(syd);
    let iad = cluster.instance("iad-1");
    let empty = json!({"region": "syd", "instances": []});
    eventually(
        "the region is empty",
        async || iad.get("/regions/syd").await,
        |answer| answer.body == empty,
    )
    .await;
    let answer = iad.call("syd", "Fly.RPC.my_region", json!([])).await;
    assert_eq!(answer.problem(), (503, "region_unavailable", "no"));
    assert_eq!(answer.detail(), "region \"syd\": no instance is left");
}

#[tokio::test]
async fn requests_of_another_shape_are_refused_by_the_member() {
    let iad = alone().await;
    let call = |members: &str| {
        format!(r#"{{"module":"String","function":"upcase","args":["fly"]{members}}}"#)
    };
    let cases = [
        (String::new(), 400, "invalid_json"),
        (call("").replace('}', ""), 400, "invalid_json"),
        (format!("{} x", call("")), 400, "invalid_json"),
        ("[]".to_owned(), 400, "invalid_request"),
        (r#"{"module":"String"}"#.to_owned(), 400, "invalid_request"),
        (call(r#","timeout":1"#), 400, "invalid_request"),
        (call(r#","timeout_ms":0"#), 400, "invalid_request"),
        (call(r#","timeout_ms":60001"#), 400, "invalid_request"),
        (call(r#","module":"String""#), 400, "invalid_request"),
    ];
    for (body, status, code) in &cases {
        assert_eq!(
            iad.post("/rpc/iad", body).await.problem(),
            (*status, *code, "no"),
            "{body}"
        );
    }
    let name = "must be 1 to 128 printable ASCII characters without space";
    let deep = "[".repeat(65) + &"]".repeat(65);
    for (body, detail) in [
        ("[]", "the body must be a JSON object"),
        (&deep, "the body is nested deeper than 64"),
        (r#"{"module":"String"}"#, r#"member "function" is missing"#),
        (r#"{"function":"upcase"}"#, r#"member "module" is missing"#),
        (
            r#"{"module":"a b","function":"f"}"#,
            &format!(r#"member "module" {name}"#),
        ),
        (
            r#"{"module":"m","function":1}"#,
            &format!(r#"member "function" {name}"#),
        ),
        (
            r#"{"module":"m","function":"f","args":"a"}"#,
            r#"member "args" must be an array, or an object by the names of parameters, of at most 256 arguments"#,
        ),
        (&call(r#","timeout":1"#), r#"unknown member "timeout""#),
        (
            &call(r#","module":"String""#),
            r#"member "module" is given twice"#,
        ),
        (
            &call(r#","timeout_ms":1.5"#),
            r#"member "timeout_ms" must be an integer from 1 to 60000"#,
        ),
        (
            &call(r#","idempotent":1"#),
            r#"member "idempotent" must be true or false"#,
        ),
        (
            &call(r#","instance":"""#),
            r#"member "instance" must be 1 to 128 characters of [A-Za-z0-9._-]"#,
        ),
    ] {
        let refused = iad.post("/rpc/iad", body).await;
        assert_eq!(refused.detail(), detail, "{body}");
    }
    // What is wrong as JSON is told before what is wrong in it.
    let broken = iad.post("/rpc/iad", r#"{"unknown":1,}"#).await;
    let detail = broken.detail();
    assert!(
        detail.starts_with("the body is not one JSON value"),
        "{detail}"
    );
    let plain = iad
        .request("/rpc/iad", &call(""))
        .header("content-encoding", "gzip");
    assert_eq!(
        answer(plain).await.unwrap().problem(),
        (415, "unsupported_media_type", "no")
    );
    // A whole number may be written as any number is.
    for members in ["", r#","timeout_ms":5000.0"#, r#","timeout_ms":5e3"#] {
        let called = iad.post("/rpc/iad", &call(members)).await;
        assert_eq!(called.result(), "FLY", "{members}");
    }
}

#[tokio::test]
async fn a_body_is_json_by_its_only_content_type() {
    let iad = alone().await;
    let typed = async |types: &[&str]| {
        let call = r#"{"module":"String","function":"upcase","args":["fly"]}"#;
        let request = iad.request("/rpc/iad", call);
        let (client, request) = request.build_split();
        let mut request = request.unwrap();
        request.headers_mut().remove("content-type");
        for content_type in types {
            let value = content_type.parse().unwrap();
            request.headers_mut().append("content-type", value);
        }
        answer(reqwest::RequestBuilder::from_parts(client, request))
            .await
            .unwrap()
    };
    for good in [
        "application/json",
        "Application/JSON; charset=UTF-8",
        "application/json;charset=\"utf-8\"",
        "application/json; profile=x",
    ] {
        assert_eq!(typed(&[good]).await.result(), "FLY", "{good}");
    }
    let bad: [&[&str]; 8] = [
        &[],
        &["application/json", "application/json"],
        &["application/json", "text/plain"],
        &["application/json, application/json"],
        &["application/json; charset=latin1"],
        &["application/vnd.fly+json"],
        &["text/json"],
        &["application/x-www-form-urlencoded"],
    ];
    for types in bad {
        assert_eq!(
            typed(types).await.problem(),
            (415, "unsupported_media_type", "no"),
            "{types:?}"
        );
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_as_a_problem() {
    let iad = alone().await;
    let call = r#"{"module":"Fly.RPC","function":"my_region"}"#;
    let with = |count: usize, size: usize| {
        let add = |request: reqwest::RequestBuilder, number| {
            request.header(format!("x-{number}"), "v".repeat(size))
        };
        (0..count).fold(iad.request("/rpc/iad", call), add)
    };
    for fits in [with(80, 1), with(3, 16 << 10)] {
        assert_eq!(answer(fits).await.unwrap().result(), "iad");
    }
    for too_large in [with(120, 1), with(1, 70 << 10)] {
        let answer = answer(too_large).await.unwrap();
        assert_eq!(answer.problem(), (431, "headers_too_large", "no"));
    }
    let long = "r".repeat(10 << 10);
    let answer = iad.post(&format!("/rpc/{long}"), call).await;
    assert_eq!(answer.problem(), (414, "target_too_long", "no"));
    let answer = iad.get(&format!("/regions?{long}")).await;
    assert_eq!(answer.problem(), (414, "target_too_long", "no"));
}

#[tokio::test]
async fn regions_are_taken_from_the_path_as_it_was_sent() {
    let iad = alone().await;
    let call = r#"{"module":"Fly.RPC","function":"my_region"}"#;
    for region in [
        "IAD",
        "a%2Fb",
        "%69ad",
        "-iad",
        "%ff%fe",
        "%20iad",
        "all",
        &"r".repeat(33),
    ] {
        let answer = iad.post(&format!("/rpc/{region}"), call).await;
        assert_eq!(answer.problem(), (400, "invalid_region", "no"), "{region}");
    }
    for region in ["a", "0", "us-east-1", &"r".repeat(32)] {
        let answer = iad.post(&format!("/rpc/{region}"), call).await;
        assert_eq!(answer.problem(), (404, "region_unknown", "no"), "{region}");
    }
    for path in ["/rpc/", "/rpc", "/rpc/iad/", "/rpc/iad/x", "/nothing"] {
        assert_eq!(
            iad.post(path, call).await.problem(),
            (404, "not_found", "no"),
            "{path}"
        );
    }
    let root = iad.get("/").await;
    assert_eq!(root.problem(), (404, "not_found", "no"));
    assert_eq!(
        root.body["detail"],
        "no such route here; the public listener has /ui, a page that shows the cluster, and /docs and /openapi.json, \
         which list its routes"
    );
    for path in ["/rpc/all/String/upcase", "/rpc/each/String/upcase"] {
        let answer = iad.post(path, r#"["fly"]"#).await;
        assert_eq!(answer.problem(), (400, "invalid_region", "no"), "{path}");
        let detail = answer.body["detail"].as_str().unwrap();
        assert!(
            detail.ends_with("(to run on every instance, POST /each/all)"),
            "{detail}"
        );
    }
    let calls =
        "POST /rpc/{region} and POST /rpc/{region}/{module}/{function}, which run a function";
    let each =
        "POST /each/{regions}, which runs the function that its body names on every instance";
    for (path, routes) in [
        ("/rpc", calls),
        ("/rpc/iad/", calls),
        ("/rpc/iad/String", calls),
        ("/rpc/iad/String/upcase/", calls),
        ("/each", each),
        ("/each/all/String/upcase", each),
        (
            "/regions/iad/x",
            "GET /regions, /regions/{region} and /regions/{region}/explain",
        ),
        (
            "/functions/iad",
            "GET /functions, the functions of the instance that is asked",
        ),
    ] {
        let none = iad.post(path, call).await;
        assert_eq!(none.problem(), (404, "not_found", "no"), "{path}");
        assert_eq!(
            none.body["detail"],
            format!("no such route here; the public listener has {routes}"),
            "{path}"
        );
    }
    let wrong_method = iad.get("/rpc/iad").await;
    assert_eq!(wrong_method.problem(), (405, "method_not_allowed", "no"));
    assert_eq!(wrong_method.headers["allow"], "POST");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("RPC_MAX_BODY", "1KiB".to_owned()),
    ]);
    let local = Process::start(&environment).await;
    let call = |size: usize| {
        let text =
            "x".repeat(size - r#"{"module":"String","function":"length","args":[""]}"#.len());
        format!(r#"{{"module":"String","function":"length","args":["{text}"]}}"#)
    };
    assert_eq!(local.post("/rpc/local", &call(1024)).await.result(), 973);
    let answer = local.post("/rpc/local", &call(1025)).await;
    assert_eq!(answer.problem(), (413, "body_too_large", "no"));
    assert_eq!(
        answer.detail(),
        "the body is larger than the 1024 bytes of RPC_MAX_BODY"
    );
}

#[tokio::test]
async fn a_call_that_was_forwarded_is_not_forwarded_again() {
    let iad = alone().await;
    let request = iad.request("/rpc/iad", r#"{"module":"Fly.RPC","function":"my_region"}"#);
    let answer = answer(request.header("rpc-forwarded", "1")).await.unwrap();
    assert_eq!(answer.problem(), (508, "loop_detected", "no"));
}

#[tokio::test]
async fn a_function_is_dropped_at_the_deadline_on_the_instance_that_runs_it() {
    let cluster = two_regions().functions().start().await;
    for region in ["iad", "syd"] {
        let body = json!({
            "module": "Test", "function": "witness", "args": [region], "timeout_ms": LATE_MS,
        });
        let answer = cluster.instance("iad-1").rpc(region, &body).await;
        assert_eq!(answer.problem(), (504, "deadline_exceeded", "maybe"));
        cluster.until_marked(&format!("{region}.dropped")).await;
    }
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_stop_its_function() {
    let cluster = two_regions().functions().start().await;
    for region in ["iad", "syd"] {
        let client = block(cluster.instance("iad-1"), region, region, &json!({}));
        cluster.until_marked(&format!("{region}.started")).await;
        client.abort();
        assert!(client.await.unwrap_err().is_cancelled());
        // The instances have noticed when they answer others: they are not blocked by the call that goes on.
        assert_eq!(
            cluster
                .instance("iad-1")
                .call(region, "Kernel.+", json!([1, 2]))
                .await
                .result(),
            3
        );
        cluster.release(region);
        cluster.until_marked(&format!("{region}.finished")).await;
    }
}

#[tokio::test]
async fn more_calls_than_may_run_are_refused_at_once() {
    let cluster = two_regions()
        .functions()
        .set("RPC_MAX_IN_FLIGHT", "1")
        .start()
        .await;
    let iad = cluster.instance("iad-1");
    for region in ["iad", "syd"] {
        let held = block(iad, region, region, &json!({}));
        cluster.until_marked(&format!("{region}.started")).await;
        let refused = iad.call(region, "Kernel.+", json!([1, 2])).await;
        assert_eq!(refused.problem(), (503, "overloaded", "no"));
        assert_eq!(refused.headers["retry-after"], "1");
        assert_eq!(iad.get("/healthz").await.status, 200);
        cluster.release(region);
        assert_eq!(held.await.unwrap().result(), "released");
        assert_eq!(
            iad.call(region, "Kernel.+", json!([1, 2])).await.result(),
            3
        );
    }
}

#[tokio::test]
async fn a_timeout_bounds_the_answer_also_when_the_default_does() {
    let environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("RPC_DEFAULT_TIMEOUT", format!("{LATE_MS}ms")),
    ]);
    let local = Process::start(&environment).await;
    let answer = local.call("local", "Process.sleep", json!([60_000])).await;
    assert_eq!(answer.problem(), (504, "deadline_exceeded", "maybe"));
    let elapsed =
        Duration::from_secs_f64(answer.body["meta"]["elapsed_ms"].as_f64().unwrap() / 1e3);
    assert!(elapsed >= Duration::from_millis(LATE_MS), "{elapsed:?}");
}
