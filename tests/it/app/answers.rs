//! What the caller gets for each answer of an app, and for each failure on the way to it; and that the function ran as
//! often as `executed` says.

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{App, call, outcome, parts, until_state};
use crate::support::{
    asking::LATE_MS,
    patience::{eventually, in_time},
    process::{Answer, Process, answer},
};

fn pair(code: &str, executed: &str) -> (String, String) {
    (code.to_owned(), executed.to_owned())
}

/// What the app writes for a call before it closes the connection, and what the caller gets.
fn rows() -> Vec<(&'static str, (String, String))> {
    let lost = || pair("function_lost", "maybe");
    let failed = || pair("function_failed", "yes");
    vec![
        (
            "HTTP/1.1 200 OK\r\ncontent-type: Application/JSON; charset=utf-8\r\ncontent-length: 2\r\n\r\n{}",
            pair("ok", "{}"),
        ),
        (
            "HTTP/1.1 201 Created\r\ncontent-type: application/problem+json\r\ncontent-length: 2\r\n\r\n[]",
            pair("ok", "[]"),
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 4\r\n\r\n1.10",
            pair("ok", "1.1"),
        ),
        (
            "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n[1]",
            pair("ok", "[1]"),
        ),
        (
            "HTTP/1.1 204 No Content\r\ncontent-type: text/html\r\n\r\n",
            pair("ok", "null"),
        ),
        // A result says that the function ran.
        (
            "HTTP/1.1 200 OK\r\nrpc-executed: no\r\ncontent-length: 0\r\n\r\n",
            pair("ok", "null"),
        ),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
            pair("ok", "null"),
        ),
        (
            "HTTP/1.1 404 X\r\ncontent-type: text/html\r\ncontent-length: 4\r\n\r\n<h1>",
            failed(),
        ),
        ("HTTP/1.1 401 X\r\ncontent-length: 0\r\n\r\n", failed()),
        ("HTTP/1.1 403 X\r\ncontent-length: 0\r\n\r\n", failed()),
        ("HTTP/1.1 405 X\r\ncontent-length: 0\r\n\r\n", failed()),
        (
            "HTTP/1.1 503 X\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
            failed(),
        ),
        (
            "HTTP/1.1 409 X\r\ncontent-type: text/html\r\ncontent-length: 4\r\n\r\n<h1>",
            failed(),
        ),
        (
            "HTTP/1.1 500 X\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
            failed(),
        ),
        (
            "HTTP/1.1 500 X\r\ncontent-type: text/html\r\ncontent-length: 4\r\n\r\n<h1>",
            pair("function_panicked", "yes"),
        ),
        (
            "HTTP/1.1 500 X\r\ncontent-type: application/json\r\ncontent-length: 1\r\n\r\n{",
            pair("function_panicked", "yes"),
        ),
        ("HTTP/1.1 501 X\r\ncontent-length: 0\r\n\r\n", lost()),
        (
            "HTTP/1.1 502 X\r\ncontent-type: text/html\r\ncontent-length: 4\r\n\r\n<h1>",
            lost(),
        ),
        ("HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n", lost()),
        (
            "HTTP/1.1 504 X\r\ncontent-type: text/plain\r\ncontent-length: 4\r\n\r\nlate",
            lost(),
        ),
        (
            "HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
            lost(),
        ),
        (
            "HTTP/1.1 304 X\r\ncontent-type: application/json\r\n\r\n",
            lost(),
        ),
        (
            "HTTP/1.1 302 X\r\nlocation: /rpc\r\ncontent-length: 0\r\n\r\n",
            lost(),
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 1\r\n\r\n3",
            lost(),
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 4\r\n\r\n<h1>",
            lost(),
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1\r\n\r\n{",
            lost(),
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n[1",
            lost(),
        ),
        ("HTTP/1.1 200 OK\r\ncontent-le", lost()),
        ("SSH-2.0-OpenSSH_9.2\r\n", lost()),
        ("", lost()),
    ]
}

/// An answer with a body.
fn said(status: u64, content_type: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// The answer with the word that the connection ends with it, so that no next call takes it.
fn closing(answer: &str) -> String {
    match answer.rsplit_once("\r\n\r\n") {
        Some((head, body)) => format!("{head}\r\nconnection: close\r\n\r\n{body}"),
        None => answer.to_owned(),
    }
}

#[tokio::test]
async fn each_answer_is_what_the_table_says_and_the_function_ran_once() {
    let app = App::start().await;
    let instance = app.instance(&[]).await;
    for (number, (bytes, expected)) in rows().into_iter().enumerate() {
        let id = number.to_string();
        let got = outcome(&instance, "App.raw", json!([id, closing(bytes)])).await;
        assert_eq!(got, expected, "{bytes:?}");
        assert_eq!(app.runs()[&id], 1, "{bytes:?}");
    }
    // A result that is JSON is passed on as it came, if it is no deeper than a body may be.
    let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    for (result, is_passed_on) in [
        ("{\"a\": 1.10}", true),
        (&deep(64), true),
        (&deep(65), false),
    ] {
        let bytes = closing(&said(200, "application/json", result));
        let call = json!({"module": "App", "function": "raw", "args": ["raw", bytes]});
        let request = instance.request("/rpc/iad", &call.to_string());
        let answer = request.send().await.unwrap().text().await.unwrap();
        let start = match is_passed_on {
            true => format!("{{\"result\":{result},\"meta\":"),
            false => "{\"type\":\"/docs/problems#function_lost\"".to_owned(),
        };
        assert!(answer.starts_with(&start), "{answer}");
    }
}

#[tokio::test]
async fn what_an_app_refuses_did_not_run() {
    let app = App::start().await;
    let instance = app.instance(&[]).await;
    let refused = async |head: &str| {
        let bytes = format!("HTTP/1.1 {head}content-length: 0\r\n\r\n");
        outcome(&instance, "App.refuse", json!(["a", closing(&bytes)])).await
    };
    let refusals = [
        (400, "invalid_arguments"),
        (404, "function_unknown"),
        (409, "overloaded"),
        (422, "invalid_arguments"),
        (503, "overloaded"),
    ];
    for (status, code) in refusals {
        for no in ["no", "No"] {
            let got = refused(&format!("{status} X\r\nrpc-executed: {no}\r\n")).await;
            assert_eq!(got, pair(code, "no"), "{status}");
        }
    }
    // Its list says that the function is not there any more.
    let has_it = async || {
        let functions = instance.get("/functions").await.body;
        !functions["details"]["App.refuse"].is_null()
    };
    for status in [401, 403, 404, 405] {
        app.offer(&json!({"functions": {"App.refuse": {"doc": status.to_string()}}}));
        eventually("the function", &has_it, |has_it| *has_it).await;
        app.offer(&json!({"functions": {}}));
        let got = refused(&format!("{status} X\r\n")).await;
        assert_eq!(got, pair("function_unknown", "no"), "{status}");
    }
    assert_eq!(app.runs(), [].into());
}

#[tokio::test]
async fn an_error_of_the_function_reaches_the_caller_as_it_gave_it() {
    let app = App::start().await;
    let instance = app.instance(&[]).await;
    let answer = call(&instance, "App.fail", json!(["a"]), 5_000).await;
    assert_eq!(answer.status, 424);
    let error = json!({"kind": "Refusal", "message": "a", "data": [1]});
    assert_eq!(answer.body["error"], error);
    let (json, html) = ("application/json", "text/html");
    for row in [
        // An error page is not passed on.
        json!([410, html, "<h1>secret</h1>", {"kind": "http_410", "message": "the app answered 410 Gone", "data": null}]),
        json!([401, html, "<h1>", {"kind": "http_401", "message": "the app answered 401 Unauthorized", "data": null}]),
        json!([404, json, r#"{"detail":"Not Found"}"#, {"kind": "http_404", "message": "Not Found", "data": null}]),
        json!([500, json, r#"{"kind":"Boom","message":"boom"}"#, {"kind": "Boom", "message": "boom", "data": null}]),
        // JSON that has no text is the data.
        json!([
            422, json, r#"{"detail":[{"loc":1}]}"#,
            {"kind": "http_422", "message": "the app answered 422 Unprocessable Entity", "data": {"detail": [{"loc": 1}]}},
        ]),
        json!([400, json, r#""no""#, {"kind": "http_400", "message": "the app answered 400 Bad Request", "data": "no"}]),
        json!([503, json, "{}", {"kind": "http_503", "message": "the app answered 503 Service Unavailable", "data": {}}]),
    ] {
        let text = |place: usize| row[place].as_str().unwrap();
        let bytes = closing(&said(row[0].as_u64().unwrap(), text(1), text(2)));
        let answer = call(&instance, "App.raw", json!(["b", bytes]), 5_000).await;
        assert_eq!(answer.problem(), (424, "function_failed", "yes"), "{row}");
        assert_eq!(answer.body["error"], row[3], "{row}");
    }
    // An answer before the request was read.
    app.offer(&json!({"functions": {"App.early": {}}}));
    let has_it = async || outcome(&instance, "App.early", json!([])).await.0;
    eventually("the new list", has_it, |code| code == "function_failed").await;
    let large = json!(["x".repeat(900_000)]);
    assert_eq!(
        outcome(&instance, "App.early", large).await,
        pair("function_failed", "yes")
    );
}

#[tokio::test]
async fn the_app_gets_what_the_caller_sent_and_who_asked() {
    let app = App::start().await;
    let instance = app.instance(&[]).await;
    let (url, key) = ("/rpc/iad", "a-key");
    let body =
        r#"{"module":"App","function":"headers","args":[1.10, {"b":1,"a":2}],"timeout_ms":4000}"#;
    let request = instance.request(url, body).header("x-request-id", "r-1");
    let request = request
        .header("idempotency-key", key)
        .header("authorization", "Bearer of-the-client");
    let answer = answer(request).await.unwrap();
    let headers = &answer.body["result"];
    let of = |name: &str| headers[name].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        (of("x-request-id"), of("idempotency-key")),
        ("r-1".to_owned(), key.to_owned())
    );
    assert_eq!(of("content-type"), "application/json");
    assert_eq!(
        of("content-length"),
        r#"{"args":[1.10, {"b":1,"a":2}]}"#.len().to_string()
    );
    let left: u64 = of("rpc-timeout-ms").parse().unwrap();
    assert!((1..=4000).contains(&left), "{left}");
    assert_eq!(of("host"), format!("127.0.0.1:{}", app.place));
}

#[tokio::test]
async fn a_function_that_answers_404_ran_also_when_the_app_is_not_offered_any_more() {
    let app = App::start().await;
    let instance = app.instance(&[]).await;
    let missing = closing(&said(404, "text/plain", "no such note"));
    let mut held = started_with(&instance, "hold", &[json!(["a", missing])]);
    app.until_runs("a").await;
    // A new list, and from now on to anybody.
    app.set("open");
    app.offer(&json!({"functions": {"App.hold": {}}}));
    until_state(&instance, "open").await;
    app.set("release");
    assert_eq!(next(&mut held).await, pair("function_failed", "yes"));
}

#[tokio::test]
async fn names_stay_in_their_segments() {
    let app = App::start().await;
    app.offer(
        &json!({"functions": {"a/b.c?#%2e": {}, "..f": {}, "x/../y.f": {}, "Fly.RPC.now": {}}}),
    );
    let instance = app.instance(&[]).await;
    let functions = instance.get("/functions").await.body["functions"].clone();
    assert_eq!(functions["a/b"], json!(["c?#%2e"]));
    assert_eq!(functions["x/../y"], Value::Null);
    outcome(&instance, "a/b.c?#%2e", json!([])).await;
    outcome(&instance, "Fly.RPC.now", json!([])).await;
    let posts: Vec<_> = app
        .lines("paths")
        .into_iter()
        .filter(|line| line.starts_with("POST"))
        .collect();
    assert_eq!(
        posts,
        ["POST /rpc/a%2Fb/c%3F%23%252e", "POST /rpc/Fly.RPC/now"]
    );
}

#[tokio::test]
async fn arguments_are_counted_where_parameters_are_declared() {
    let app = App::start().await;
    let instance = app.instance(&[]).await;
    assert_eq!(
        outcome(&instance, "Math.add", json!([1, 2])).await,
        pair("ok", "3")
    );
    let answer = call(&instance, "Math.add", json!([1]), 5_000).await;
    assert_eq!(answer.problem(), (422, "invalid_arguments", "no"));
    assert_eq!(
        answer.body["detail"],
        "Math.add: expected 2 arguments (a, b), got 1"
    );
    let paths = app.lines("paths");
    let posts = paths.iter().filter(|path| path.starts_with("POST"));
    assert_eq!(posts.count(), 1, "the app sees the call that fits");
    // With an app, the built-in functions are not there, except those that are about the instance.
    assert_eq!(
        outcome(&instance, "String.upcase", json!(["a"])).await,
        pair("function_unknown", "no")
    );
    assert_eq!(
        outcome(&instance, "Fly.RPC.my_region", json!([])).await,
        pair("ok", "\"iad\"")
    );
}

#[tokio::test]
async fn at_the_deadline_the_app_sees_the_end_of_the_connection() {
    let app = App::start().await;
    let instance = app.instance(&[]).await;
    let held = call(&instance, "App.hold", json!(["a"]), LATE_MS);
    let dripping = call(&instance, "App.drip", json!(["b"]), LATE_MS);
    for late in join_all([held, dripping]).await {
        assert_eq!(late.problem(), (504, "deadline_exceeded", "maybe"));
    }
    let cancelled = async || app.lines("cancelled");
    eventually("the cancellation", cancelled, |lines| lines == &["a"]).await;
    assert_eq!(app.runs()["a"], 1);
}

#[tokio::test]
async fn an_endless_answer_is_cut_at_the_limit() {
    let app = App::start().await;
    let instance = app.instance(&[("RPC_MAX_RESULT", "1MiB")]).await;
    let before = instance.peak_memory();
    for id in 0..20 {
        let answer = call(&instance, "App.endless", json!([id]), 20_000).await;
        assert_eq!(answer.problem(), (424, "function_failed", "yes"));
        let limit = "has more than the 1048576 bytes of RPC_MAX_RESULT";
        let error = json!({"kind": "ResultTooLarge", "message": format!("the result {limit}"), "data": null});
        assert_eq!(answer.body["error"], error);
    }
    let grown = instance.peak_memory() - before;
    // Each may be held twice: once read, once written.
    assert!(grown < 40 * 1024, "{grown} KiB");
}

#[tokio::test]
async fn an_error_is_cut_at_the_limit_too() {
    let app = App::start().await;
    let instance = app.instance(&[("RPC_MAX_RESULT", "1KiB")]).await;
    let bytes = closing(&said(403, "text/html", &"x".repeat(1025)));
    let answer = call(&instance, "App.raw", json!(["a", bytes]), 5_000).await;
    assert_eq!(answer.problem(), (424, "function_failed", "yes"));
    let message = "the error has more than the 1024 bytes of RPC_MAX_RESULT";
    let error = json!({"kind": "ErrorTooLarge", "message": message, "data": null});
    assert_eq!(answer.body["error"], error);
}

#[tokio::test]
async fn what_is_too_long_to_be_read_means_what_its_head_says() {
    let app = App::start().await;
    let instance = app.instance(&[("RPC_MAX_RESULT", "1KiB")]).await;
    let (html, json) = ("text/html", "application/json");
    for (status, content_type, (code, executed)) in [
        (200, json, ("function_failed", "yes")),
        (200, html, ("function_lost", "maybe")),
        (404, html, ("function_failed", "yes")),
        (409, json, ("function_failed", "yes")),
        (500, html, ("function_panicked", "yes")),
        (500, json, ("function_failed", "yes")),
        (502, html, ("function_lost", "maybe")),
        (503, html, ("function_lost", "maybe")),
        (503, json, ("function_failed", "yes")),
        (504, html, ("function_lost", "maybe")),
    ] {
        let bytes = closing(&said(status, content_type, &"x".repeat(1025)));
        let got = outcome(&instance, "App.raw", json!(["a", bytes])).await;
        assert_eq!(got, pair(code, executed), "{status} {content_type}");
    }
}

#[tokio::test]
async fn answers_count_in_the_memory_budget_while_they_are_read() {
    let app = App::start().await;
    let memory = ("RPC_MAX_MEMORY", "32MiB");
    let instance = app.instance(&[memory, ("RPC_MAX_RESULT", "64MiB")]).await;
    let before = instance.peak_memory();
    let answer = call(&instance, "App.endless", json!(["a"]), 60_000).await;
    assert_eq!(answer.problem(), (424, "function_failed", "yes"));
    let error = json!({
        "kind": "ResultDropped", "message": "the result found no room in RPC_MAX_MEMORY", "data": null,
    });
    assert_eq!(answer.body["error"], error);
    // What was read grows by doubling, and so is held twice for a moment.
    let grown = instance.peak_memory() - before;
    assert!(grown < 3 * 32 * 1024, "{grown} KiB");
    let after = outcome(&instance, "App.run", json!(["b"])).await;
    assert_eq!(after, pair("ok", "\"b\""));
}

/// Calls of `function`, which holds until it is released, one for each of `ids`, under way.
fn started(instance: &Process, function: &str, ids: &[&str]) -> JoinSet<Answer> {
    let args: Vec<_> = ids.iter().map(|id| json!([id])).collect();
    started_with(instance, function, &args)
}

/// The same, one for each of `args`.
fn started_with(instance: &Process, function: &str, args: &[Value]) -> JoinSet<Answer> {
    let call = |args: &Value| {
        let body =
            json!({"module": "App", "function": function, "args": args, "timeout_ms": 60_000});
        let request = instance.request("/rpc/iad", &body.to_string());
        async move { answer(request).await.unwrap() }
    };
    args.iter().map(call).collect()
}

async fn next(calls: &mut JoinSet<Answer>) -> (String, String) {
    let answer = in_time("an answer", calls.join_next()).await;
    parts(&answer.unwrap().unwrap())
}

#[tokio::test]
async fn as_many_calls_wait_as_run_and_more_are_refused() {
    let app = App::start().await;
    let instance = app.instance(&[("RPC_APP_CONCURRENCY", "2")]).await;
    let mut calls = started(&instance, "hold", &["a", "b"]);
    app.until_runs("a").await;
    app.until_runs("b").await;
    let late = call(&instance, "App.run", json!(["late"]), 100).await;
    assert_eq!(parts(&late), pair("deadline_exceeded", "no"));
    // Two of three find a place to wait, and the third is refused while they do.
    let mut waiting = started(&instance, "hold", &["c", "d", "e"]);
    assert_eq!(next(&mut waiting).await, pair("overloaded", "no"));
    // A function of its own limit does not get around the app's.
    let full = outcome(&instance, "App.one", json!(["f"])).await;
    assert_eq!(full, pair("overloaded", "no"));
    app.set("release");
    for calls in [&mut calls, &mut waiting] {
        assert_eq!(next(calls).await.0, "ok");
        assert_eq!(next(calls).await.0, "ok");
    }
    let runs = app.runs();
    assert_eq!((runs.len(), runs.values().sum()), (4, 4), "{runs:?}");
    assert!(!runs.contains_key("late") && !runs.contains_key("f"));
}

#[tokio::test]
async fn a_function_that_declares_a_concurrency_leaves_room_for_others() {
    let app = App::start().await;
    let instance = app.instance(&[("RPC_APP_CONCURRENCY", "2")]).await;
    let mut calls = started(&instance, "one", &["a", "b", "c"]);
    assert_eq!(next(&mut calls).await, pair("overloaded", "no"));
    let other = outcome(&instance, "App.run", json!(["other"])).await;
    assert_eq!(other, pair("ok", "\"other\""));
    app.set("release");
    assert_eq!(next(&mut calls).await.0, "ok");
    assert_eq!(next(&mut calls).await.0, "ok");
    assert_eq!(app.runs().len(), 3);
}

#[tokio::test]
async fn a_function_that_is_listed_again_has_its_calls_still() {
    let app = App::start().await;
    let instance = app.instance(&[]).await;
    let mut calls = started(&instance, "one", &["a"]);
    app.until_runs("a").await;
    // As when servers of two releases answer in turn.
    for other in [
        json!({"functions": {"App.run": {}}}),
        json!({"functions": {"App.one": {"concurrency": 1}, "App.run": {}}}),
    ] {
        app.offer(&other);
        let listed = async || instance.get("/functions").await.body["details"].clone();
        let is_taken = |now: &Value| now["App.one"] == other["functions"]["App.one"];
        eventually("the new list", listed, is_taken).await;
    }
    let late = call(&instance, "App.one", json!(["b"]), 300).await;
    assert_eq!(parts(&late), pair("deadline_exceeded", "no"));
    app.set("release");
    assert_eq!(next(&mut calls).await, pair("ok", "\"a\""));
    let after = call(&instance, "App.one", json!(["c"]), 60_000).await;
    assert_eq!(parts(&after), pair("ok", "\"c\""));
    assert_eq!(
        app.runs(),
        [("a".to_owned(), 1), ("c".to_owned(), 1)].into()
    );
}

/// Has the app list App.one with this `concurrency`, and waits until `instance` has that list.
async fn offer_one(app: &App, instance: &Process, concurrency: u32) {
    app.offer(&json!({"functions": {"App.run": {}, "App.one": {"concurrency": concurrency}}}));
    let listed = async || instance.get("/functions").await.body["details"].clone();
    let is_taken = |now: &Value| now["App.one"]["concurrency"] == concurrency;
    eventually("the new list", listed, is_taken).await;
}

#[tokio::test]
async fn a_concurrency_that_is_listed_anew_holds_for_the_calls_that_run() {
    let app = App::start().await;
    let instance = app.instance(&[]).await;
    let offer = async |concurrency| offer_one(&app, &instance, concurrency).await;
    offer(2).await;
    let mut calls = started(&instance, "one", &["a", "b"]);
    app.until_runs("a").await;
    app.until_runs("b").await;
    offer(1).await;
    let refused = call(&instance, "App.one", json!(["c"]), 3_000).await;
    assert_eq!(parts(&refused), pair("overloaded", "no"));
    offer(3).await;
    let mut third = started(&instance, "one", &["d"]);
    app.until_runs("d").await;
    offer(1).await;
    app.set("release");
    assert_eq!(next(&mut calls).await.0, "ok");
    assert_eq!(next(&mut calls).await.0, "ok");
    assert_eq!(next(&mut third).await, pair("ok", "\"d\""));
    app.unset("release");
    let mut last = started(&instance, "one", &["e"]);
    app.until_runs("e").await;
    let late = call(&instance, "App.one", json!(["f"]), 300).await;
    assert_eq!(parts(&late), pair("deadline_exceeded", "no"));
    app.set("release");
    assert_eq!(next(&mut last).await, pair("ok", "\"e\""));
}

#[tokio::test]
async fn a_lower_concurrency_holds_for_the_calls_that_wait_in_their_order() {
    let app = App::start().await;
    let instance = app.instance(&[]).await;
    offer_one(&app, &instance, 3).await;
    let mut calls = started(&instance, "one", &["a", "b", "c"]);
    let runs = async || app.runs().len();
    eventually("three calls", runs, |runs| *runs == 3).await;
    let mut waiting = JoinSet::new();
    for (id, all) in [("d", 4), ("e", 5), ("f", 6)] {
        let call = json!({"module": "App", "function": "one", "args": [id], "timeout_ms": 60_000});
        waiting.spawn(answer(instance.request("/rpc/iad", &call.to_string())));
        let running = async || instance.running().await;
        eventually("one that waits", running, |running| *running == all).await;
    }
    offer_one(&app, &instance, 1).await;
    for id in ["a", "b", "c"] {
        app.set(&format!("release-{id}"));
        assert_eq!(next(&mut calls).await, pair("ok", &format!("{id:?}")));
    }
    for id in ["d", "e", "f"] {
        app.until_runs(id).await;
        // What started together with it is there as well.
        let after = call(&instance, "App.run", json!([format!("after {id}")]), 60_000).await;
        assert_eq!(after.status, 200);
        assert_eq!(app.runs().keys().next_back().unwrap(), id);
        app.set(&format!("release-{id}"));
        let ended = waiting.join_next().await.unwrap().unwrap().unwrap();
        assert_eq!(parts(&ended), pair("ok", &format!("{id:?}")));
    }
}

#[tokio::test]
async fn over_a_unix_socket_it_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("app.sock");
    let app = App::start_at(folder, socket.to_str().unwrap()).await;
    let instance = app.instance(&[]).await;
    assert_eq!(
        outcome(&instance, "Math.add", json!([1, 2])).await,
        pair("ok", "3")
    );
    assert_eq!(
        outcome(&instance, "App.raw", json!(["a", ""])).await,
        pair("function_lost", "maybe")
    );
    assert_eq!(app.runs()["a"], 1);
}
