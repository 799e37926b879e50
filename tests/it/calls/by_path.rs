//! Calls whose function is in their path: the body is the arguments, in an array or by name, and what else the call says is
//! in headers.

use serde_json::{Value, json};

use crate::{
    app::{App, parts},
    support::{
        asking::{LATE_MS, two_regions},
        command::run,
        fly_proxy::{FlyProxy, Machine},
        patience::eventually,
        process::{Answer, Environment, Process, answer},
        raw,
    },
};

const DESK: &str = "the-token-of-the-client-desk-00000004";

async fn posted(via: &Process, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut request = via.request(path, body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    answer(request).await.unwrap()
}

/// The problem as status, code, executed and detail.
fn refusal(answer: &Answer) -> (u16, &str, &str, &str) {
    let (status, code, executed) = answer.problem();
    (status, code, executed, answer.detail())
}

#[tokio::test]
async fn a_path_names_the_function_and_the_body_is_its_arguments() {
    let cluster = two_regions().functions().start().await;
    let iad = cluster.instance("iad-1");
    for (path, body, result) in [
        ("/rpc/syd/String/upcase", r#"["fly"]"#, "\"FLY\""),
        ("/rpc/syd/Kernel/%2B", "[1, 2]", "3"),
        ("/rpc/syd/Kernel/+", "[1, 2]", "3"),
        ("/rpc/syd/Fly.RPC/my_region", "[]", "\"syd\""),
        ("/rpc/syd/Fly%2eRPC/is_primary%3F", "[]", "false"),
        ("/rpc/primary/Fly.RPC/my_region", "", "\"iad\""),
        (
            "/rpc/syd/Test/pair",
            "[1.10, {\"a\":1}]",
            "[1.10,{\"a\":1}]",
        ),
        (
            "/rpc/syd/Test/pair",
            "{\"second\": [1, 2],\n\"first\":18446744073709551617}",
            "[18446744073709551617,[1, 2]]",
        ),
        (
            "/rpc/syd/Test/pair",
            r#"{"\u0073econd" : [1.10, "}"], "first":{"second":1e400}}"#,
            r#"[{"second":1e400},[1.10, "}"]]"#,
        ),
        ("/rpc/syd/Test/no_params", "{ }", "null"),
    ] {
        // The bytes, because a reader of numbers would round them.
        let answer = answer_text(iad, path, body).await;
        let start = format!("{{\"result\":{result},\"meta\":");
        assert!(answer.starts_with(&start), "{path}: {answer}");
    }
    // Nothing else differs from a call with all of it in its body.
    let mut by_path = iad.post("/rpc/syd/String/upcase", r#"["fly"]"#).await.body;
    let mut by_body = iad.call("syd", "String.upcase", json!(["fly"])).await.body;
    for body in [&mut by_path, &mut by_body] {
        body["meta"]["elapsed_ms"] = Value::Null;
        body["meta"]["request_id"] = Value::Null;
    }
    assert_eq!(by_path, by_body);
    // Names do as well where all is in the body.
    let by_name = json!({"second": 2, "first": 1});
    let answer = iad.call("syd", "Test.pair", by_name).await;
    assert_eq!(answer.result(), &json!([1, 2]));
    // A body that is not there has no type; that of one in chunks is there to be seen at its end.
    for rest in ["\r\n", "transfer-encoding: chunked\r\n\r\n0\r\n\r\n"] {
        let bare = format!(
            "POST /rpc/syd/Fly.RPC/my_region HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{rest}"
        );
        let answer = raw::answer(iad.address, bare.as_bytes()).await;
        assert_eq!(answer.result(), "syd", "{rest}");
    }
}

#[tokio::test]
async fn the_command_line_takes_names() {
    let cluster = two_regions().functions().start().await;
    let url = format!("http://{}", cluster.instance("iad-1").address);
    let call = async |named: &[&str]| {
        let call = ["call", "syd", "Test.pair", "--url", &url, "--named"];
        run(&[&call, named].concat()).await
    };
    let (code, stdout, _) = call(&["second=[2]", "first=a=b"]).await;
    assert_eq!((code, stdout.as_str()), (0, "[\"a=b\",[2]]\n"));
    let (code, _, stderr) = call(&["first=1"]).await;
    assert_eq!(code, 1);
    let got = "fly-rpc: invalid_arguments: Test.pair: argument \"second\" is missing\n";
    assert!(stderr.starts_with(got), "{stderr}");
}

async fn answer_text(via: &Process, path: &str, body: &str) -> String {
    let response = via.request(path, body).send().await.unwrap();
    response.text().await.unwrap()
}

#[tokio::test]
async fn names_that_do_not_fit_are_refused_by_who_would_run_the_function() {
    let cluster = two_regions().functions().start().await;
    let iad = cluster.instance("iad-1");
    for (path, body, detail) in [
        (
            "/rpc/syd/Test/pair",
            r#"{"first":1,"secnod":2}"#,
            "Test.pair: argument \"secnod\" is unknown; expected first, second",
        ),
        (
            "/rpc/iad/Test/pair",
            r#"{"second":2}"#,
            "Test.pair: argument \"first\" is missing",
        ),
        (
            "/rpc/syd/Test/pair",
            r#"{"first":1,"first":1,"second":2}"#,
            "Test.pair: argument \"first\" is given twice",
        ),
        (
            "/rpc/syd/Test/pair",
            r#"{"first":1,"second":2,"\u0066irst":3}"#,
            "Test.pair: argument \"first\" is given twice",
        ),
        (
            "/rpc/syd/Test/no_params",
            r#"{"a":1}"#,
            "Test.no_params: argument \"a\" is unknown; expected none",
        ),
        (
            "/rpc/syd/Test/no_params",
            "[1]",
            "Test.no_params: expected 0 arguments (none), got 1",
        ),
        (
            "/rpc/syd/Test/pair",
            "[1]",
            "Test.pair: expected 2 arguments (first, second), got 1",
        ),
        (
            "/rpc/syd/Test/pair",
            "",
            "Test.pair: expected 2 arguments (first, second), got 0",
        ),
        (
            "/rpc/syd/String/upcase",
            r#"{"text":"fly"}"#,
            "String.upcase: takes its arguments in an array: it declares no names of parameters",
        ),
    ] {
        let answer = iad.post(path, body).await;
        let expected = (422, "invalid_arguments", "no", detail);
        assert_eq!(refusal(&answer), expected, "{path} {body}");
        assert_eq!(answer.body["meta"]["attempts"], 1, "{path} {body}");
    }
}

#[tokio::test]
async fn a_body_path_or_header_of_another_shape_is_refused_by_name() {
    let cluster = two_regions().start().await;
    let iad = cluster.instance("iad-1");
    let rule = "must be 1 to 128 printable ASCII characters without space";
    let long = format!("/rpc/syd/{}/f", "x".repeat(129));
    for (path, what) in [
        ("/rpc/syd/a%20b/f", "module"),
        ("/rpc/syd/M/%C3%A9", "function"),
        ("/rpc/syd/M/%FF", "function"),
        (long.as_str(), "module"),
        ("/rpc/syd//upcase", "module"),
    ] {
        let answer = iad.post(path, "[]").await;
        let detail = format!("the {what} in the path {rule}");
        let expected = (400, "invalid_request", "no", detail.as_str());
        assert_eq!(refusal(&answer), expected, "{path}");
    }
    for body in ["1", "null", "\"fly\""] {
        let answer = iad.post("/rpc/syd/String/upcase", body).await;
        let detail = "the body must be an array, or an object by the names of parameters, of at most 256 arguments";
        assert_eq!(refusal(&answer), (400, "invalid_request", "no", detail));
    }
    let broken = iad.post("/rpc/syd/String/upcase", "[").await;
    assert_eq!(broken.problem(), (400, "invalid_json", "no"));
    for path in ["/rpc/syd/String", "/rpc/syd/String/upcase/"] {
        let answer = iad.post(path, "[]").await;
        assert_eq!(answer.problem(), (404, "not_found", "no"), "{path}");
    }
    let refused = iad.get("/rpc/syd/String/upcase").await;
    assert_eq!(refused.problem(), (405, "method_not_allowed", "no"));
    assert_eq!(refused.headers["allow"], "POST");
    let refused = iad.post("/rpc/SYD/String/upcase", "[]").await;
    assert_eq!(refused.problem(), (400, "invalid_region", "no"));

    let path = "/rpc/syd/String/upcase";
    let timeout = "rpc-timeout-ms must be an integer from 1 to 60000";
    let idempotent = "rpc-idempotent must be true or false";
    let instance = "rpc-instance must be 1 to 128 characters of [A-Za-z0-9._-]";
    for (name, value, rule) in [
        ("rpc-timeout-ms", "0", timeout),
        ("rpc-timeout-ms", "60001", timeout),
        ("rpc-timeout-ms", "5s", timeout),
        ("rpc-timeout-ms", "+5", timeout),
        ("rpc-timeout-ms", "", timeout),
        ("rpc-idempotent", "yes", idempotent),
        ("rpc-instance", "a/b", instance),
        (
            "rpc-route",
            "around",
            "rpc-route must be proxy, replay or auto",
        ),
    ] {
        let answer = posted(iad, path, &[(name, value)], "[]").await;
        let detail = format!("header {rule}");
        let expected = (400, "invalid_request", "no", detail.as_str());
        assert_eq!(refusal(&answer), expected, "{name}: {value}");
    }
    let twice = [("rpc-idempotent", "true"), ("rpc-idempotent", "true")];
    let answer = posted(iad, path, &twice, "[]").await;
    let detail = "header rpc-idempotent is given twice";
    assert_eq!(refusal(&answer), (400, "invalid_request", "no", detail));
}

#[tokio::test]
async fn a_header_of_ours_that_would_have_no_effect_is_refused() {
    let cluster = two_regions().start().await;
    let iad = cluster.instance("iad-1");
    let whole = r#"{"module":"String","function":"upcase","args":["fly"]}"#;
    let (by_path, by_body) = (
        ("/rpc/syd/String/upcase", r#"["fly"]"#),
        ("/rpc/syd", whole),
    );
    let each = ("/each/all", whole);
    let member = |name: &str, member: &str| {
        format!(
            "header {name} is for a path that names the function; here it is the member {member} of the body"
        )
    };
    let unknown = |name: &str| {
        format!(
            "unknown header {name}; a call may have rpc-after and rpc-route, and rpc-timeout-ms, rpc-idempotent and \
             rpc-instance where its path names the function"
        )
    };
    let of_each = |name: &str| {
        format!(
            "header {name} means nothing on /each, where a call may have rpc-after; its options are members of the body"
        )
    };
    for ((path, body), name, detail) in [
        (
            by_body,
            "rpc-timeout-ms",
            member("rpc-timeout-ms", "timeout_ms"),
        ),
        (
            by_body,
            "rpc-idempotent",
            member("rpc-idempotent", "idempotent"),
        ),
        (each, "rpc-instance", of_each("rpc-instance")),
        (each, "rpc-route", of_each("rpc-route")),
        (by_path, "rpc-timeout", unknown("rpc-timeout")),
        (by_body, "RPC-Consistency", unknown("rpc-consistency")),
        (each, "rpc-per", of_each("rpc-per")),
        (
            by_body,
            &format!("rpc-{}", "x".repeat(200)),
            unknown(&format!("rpc-{}", "x".repeat(60))),
        ),
    ] {
        let refused = posted(iad, path, &[(name, "100")], body).await;
        let expected = (400, "invalid_request", "no", detail.as_str());
        assert_eq!(refusal(&refused), expected, "{path} {name}");
    }
    for (path, body) in [by_path, by_body] {
        let headers = [("rpc-route", "proxy"), ("x-rpc-timeout", "1")];
        let answer = posted(iad, path, &headers, body).await;
        assert_eq!(answer.status, 200, "{path}");
    }
}

#[tokio::test]
async fn options_are_headers() {
    let cluster = two_regions().functions().start().await;
    let iad = cluster.instance("iad-1");
    let late = posted(
        iad,
        "/rpc/syd/Process/sleep",
        &[("rpc-timeout-ms", &LATE_MS.to_string())],
        "[60000]",
    )
    .await;
    assert_eq!(late.problem(), (504, "deadline_exceeded", "maybe"));
    let path = "/rpc/syd/Test/run";
    let absent = posted(iad, path, &[("rpc-instance", "syd-9")], "[\"a\",0]").await;
    assert_eq!(absent.problem(), (404, "instance_unknown", "no"));
    let there = posted(iad, path, &[("rpc-instance", "syd-1")], "[\"a\",0]").await;
    assert_eq!(there.instance(), "syd-1");
    // One key, and one call, whichever way it is asked for; by name it is another.
    let key = [("idempotency-key", "one")];
    for (path, body) in [
        (path, "[\"b\",0]"),
        (
            "/rpc/syd",
            r#"{"module":"Test","function":"run","args":["b",0]}"#,
        ),
        (path, " [\"b\", 0]"),
    ] {
        assert_eq!(posted(iad, path, &key, body).await.result(), "b");
    }
    assert_eq!(cluster.runs()["b"], 1);
    let other = posted(iad, path, &key, r#"{"id":"b","ms":0}"#).await;
    assert_eq!(other.problem(), (422, "idempotency_mismatch", "no"));
}

#[tokio::test]
async fn a_clients_limits_hold_on_every_path() {
    let clients = format!("desk:{DESK}:regions=iad:functions=String.upcase");
    let environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("FLY_REGION", "iad".to_owned()),
        ("RPC_CLIENT_TOKENS", clients),
    ]);
    let iad = &Process::start(&environment).await;
    let bearer = format!("Bearer {DESK}");
    for (path, outcome) in [
        ("/rpc/iad/String/upcase", "ok"),
        ("/rpc/iad/String/%75pcase", "ok"),
        ("/rpc/iad/String/downcase", "forbidden"),
        ("/rpc/iad/String/upcase%00", "invalid_request"),
        ("/rpc/syd/String/upcase", "forbidden"),
    ] {
        let answer = posted(iad, path, &[("authorization", &bearer)], r#"["fly"]"#).await;
        assert_eq!(parts(&answer).0, outcome, "{path}");
    }
    let nobody = iad.post("/rpc/iad/String/upcase", r#"["fly"]"#).await;
    assert_eq!(nobody.problem(), (401, "unauthenticated", "no"));
}

#[tokio::test]
async fn who_runs_the_function_orders_the_names() {
    let app = App::start().await;
    let offer = |names: [&str; 2]| {
        let params = names.map(|name| json!({"name": name}));
        app.offer(&json!({"functions": {"App.run": {"params": params}}}));
    };
    offer(["id", "other"]);
    let instance = app.instance(&[]).await;
    let body = r#"{"other":"b","id":"a"}"#;
    let run = async || instance.post("/rpc/iad/App/run", body).await;
    let first = eventually("the first list", run, |answer| answer.status == 200).await;
    assert_eq!(first.result(), "a");
    // The first of the two is what the app gives back.
    offer(["other", "id"]);
    let turned = |answer: &Answer| answer.body["result"] == "b";
    eventually("the second list", run, turned).await;
    let missing = instance.post("/rpc/iad/App/run", r#"{"id":"c"}"#).await;
    let detail = "App.run: argument \"other\" is missing";
    assert_eq!(refusal(&missing), (422, "invalid_arguments", "no", detail));
    assert!(!app.runs().contains_key("c"));
}

#[tokio::test]
async fn a_call_by_its_path_is_replayed() {
    let cluster = two_regions().set("RPC_ROUTE", "auto").start().await;
    let iad = cluster.instance("iad-1");
    let asked = posted(
        iad,
        "/rpc/syd/Fly.RPC/my_region",
        &[("rpc-route", "replay")],
        "",
    )
    .await;
    assert_eq!(asked.problem(), (409, "replay", "no"));
    let replay = &asked.headers["fly-replay"];
    assert!(
        replay.starts_with("region=syd;prefer_instance=syd-1;"),
        "{replay}"
    );
    let machine =
        |instance: &Process| Machine::new(&instance.name, &instance.region, instance.address);
    let machines = cluster.instances.iter().map(machine).collect();
    let proxy = FlyProxy::start("iad", machines).await;
    let request = proxy.post("/rpc/syd/String/upcase", r#"["fly"]"#);
    let replied = answer(request.header("rpc-instance", "syd-1"))
        .await
        .unwrap();
    assert_eq!(
        (replied.result(), replied.instance()),
        (&json!("FLY"), "syd-1")
    );
    let deliveries = proxy.deliveries();
    let way: Vec<_> = deliveries.iter().map(|it| it.machine.as_str()).collect();
    assert_eq!(way, ["iad-1", "syd-1"]);
}

#[tokio::test]
async fn arguments_as_deep_as_may_be_reach_another_region() {
    let cluster = two_regions().functions().start().await;
    let iad = cluster.instance("iad-1");
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    for region in ["iad", "syd"] {
        let path = format!("/rpc/{region}/Test/echo");
        let echoed = posted(iad, &path, &[], &deep(64)).await;
        assert_eq!(echoed.result().to_string(), deep(63), "{region}");
        let refused = posted(iad, &path, &[], &deep(65)).await;
        assert_eq!(refused.problem(), (400, "invalid_json", "no"));
    }
}
