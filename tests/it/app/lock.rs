//! That an app lets in nobody without its token, what follows when it does, and lists that are no lists.

use serde_json::{Map, Value, json};

use super::{App, TOKEN, outcome, until_state};
use crate::support::{
    command::{run, run_with},
    patience::eventually,
    process::Process,
};

#[tokio::test]
async fn functions_of_an_app_that_lets_anybody_in_are_not_offered() {
    let app = App::start().await;
    app.set("open");
    let instance = Process::start(&app.environment()).await;
    until_state(&instance, "open").await;
    let functions = instance.get("/functions").await.body;
    assert_eq!(functions["functions"]["App"], Value::Null);
    let reason = functions["app"]["reason"].as_str().unwrap();
    assert!(
        reason.contains("without checking RPC_APP_TOKEN"),
        "{reason}"
    );
    let (code, executed) = outcome(&instance, "App.run", json!(["a"])).await;
    assert_eq!(
        (code.as_str(), executed.as_str()),
        ("function_unavailable", "no")
    );
    let ready = instance.get("/readyz").await;
    assert_eq!(ready.problem(), (503, "function_unavailable", "no"));
    let why = "the app beside this instance serves its list without checking RPC_APP_TOKEN";
    assert_eq!(ready.detail(), why);
    // Locked since, with the same list.
    app.unset("open");
    until_state(&instance, "up").await;
    assert_eq!(instance.get("/readyz").await.status, 200);
    assert_eq!(app.runs(), [].into());
}

#[tokio::test]
async fn an_app_that_answers_nobody_without_its_token_is_not_offered_and_why_is_said() {
    let app = App::start().await;
    app.set("mute");
    let instance = Process::start(&app.environment()).await;
    let reason = async || instance.get("/functions").await.body["app"]["reason"].clone();
    let expected = "asked without RPC_APP_TOKEN: the connection to the app was lost after the call";
    eventually("the reason", reason, |reason| reason == expected).await;
    app.unset("mute");
    until_state(&instance, "up").await;
}

#[tokio::test]
async fn it_is_offered_all_the_same_where_that_is_said() {
    let app = App::start().await;
    app.set("open");
    let instance = app.instance(&[("RPC_APP_ALLOW_ANONYMOUS", "true")]).await;
    let (code, _) = outcome(&instance, "App.run", json!(["a"])).await;
    assert_eq!(code, "ok");
    let log = async || instance.log();
    eventually("a warning", log, |log| {
        log.contains("because RPC_APP_ALLOW_ANONYMOUS is true")
    })
    .await;
}

#[tokio::test]
async fn the_token_is_in_no_log_and_in_no_answer() {
    let mut app = App::start().await;
    let instance = app.instance(&[("RPC_LOG", "trace")]).await;
    outcome(&instance, "App.run", json!(["a"])).await;
    app.kill().await;
    outcome(&instance, "App.run", json!(["b"])).await;
    until_state(&instance, "down").await;
    let answers = [
        instance.get("/functions").await.body,
        instance.get("/regions").await.body,
    ];
    assert!(
        !answers
            .iter()
            .any(|answer| answer.to_string().contains(TOKEN))
    );
    assert!(!instance.log().contains(TOKEN));
}

#[tokio::test]
async fn what_is_no_list_is_said_and_nothing_is_offered() {
    let app = App::start().await;
    let many: Map<String, Value> = (0..1001)
        .map(|number| (format!("M.f{number}"), json!({})))
        .collect();
    let cases = [
        ("[]".to_owned(), "the list is no JSON object"),
        ("{}".to_owned(), "the list has no object \"functions\""),
        (json!({"functions": many}).to_string(), "more than 1000"),
        (
            format!("{{\"functions\":{{}},\"x\":\"{}\"}}", "x".repeat(1 << 20)),
            "more than 1048576 bytes",
        ),
        (
            json!("é".repeat(100_000)).to_string(),
            "the list is no JSON object: invalid type: string \"éé",
        ),
    ];
    for (list, reason) in cases {
        std::fs::write(app.folder.path().join("list.json"), list).unwrap();
        let instance = Process::start(&app.environment()).await;
        let look = async || instance.get("/functions").await.body["app"].clone();
        let is_reported = |app: &Value| {
            app["reason"]
                .as_str()
                .is_some_and(|got| got.contains(reason))
        };
        let app = eventually(reason, look, is_reported).await;
        assert!((1..=256).contains(&app["reason"].as_str().unwrap().len()));
        assert!(instance.log().len() < 10_000, "{}", instance.log());
        assert_eq!(instance.get("/readyz").await.status, 503);
    }
}

#[tokio::test]
async fn an_app_at_a_port_needs_a_token() {
    let app = App::start().await;
    let mut environment = app.environment();
    environment.remove("RPC_APP_TOKEN");
    let environment: Vec<_> = environment.into_iter().collect();
    let (code, _, got) = run_with(&["serve"], &environment).await;
    assert_eq!(code, 64);
    assert!(
        got.starts_with("fly-rpc: RPC_APP_TOKEN: is needed with RPC_APP_URL"),
        "{got}"
    );
}

#[tokio::test]
async fn the_command_line_says_what_is_wrong_with_an_app() {
    let mut app = App::start().await;
    app.offer(&json!({"functions": {"Math.add": {"timeout_ms": 2000}, "plain": {}}}));
    let check = async |app: &App| {
        let url = &app.environment()["RPC_APP_URL"];
        run_with(
            &["functions", "--app-url", url],
            &[("RPC_APP_TOKEN", TOKEN)],
        )
        .await
    };
    let (code, listed, said) = check(&app).await;
    assert_eq!(
        (code, listed.as_str()),
        (1, "Math.add {\"timeout_ms\":2000}\n")
    );
    assert_eq!(
        said,
        "fly-rpc: \"plain\" is left out: a name has a module, as in Math.add\n"
    );
    let url = &app.environment()["RPC_APP_URL"];
    let (code, _, said) = run(&["functions", "--app-url", url]).await;
    let why =
        format!("fly-rpc: {url}: it answered 401 Unauthorized, and RPC_APP_TOKEN is not set; ");
    assert!(code == 1 && said.starts_with(&why), "{said}");
    // What a terminal obeys is escaped.
    app.offer(&json!({"functions": {"Math.add": {"doc": "\u{9b}31m\u{202e}"}}}));
    let listed = "Math.add {\"doc\":\"\\u009b31m\\u202e\"}\n".to_owned();
    assert_eq!(check(&app).await, (0, listed, String::new()));
    app.set("open");
    let (code, _, said) = check(&app).await;
    assert_eq!(code, 1);
    assert!(said.contains("have it answer 401"), "{said}");
    app.kill().await;
    let (code, _, said) = check(&app).await;
    assert_eq!(code, 1);
    assert!(said.contains("cannot connect to the app"), "{said}");
}

#[tokio::test]
async fn what_is_wrong_with_an_app_is_said_in_few_words() {
    let app = App::start().await;
    let long = "x".repeat(100_000);
    app.offer(&json!({long.clone(): 1, "functions": {long.clone(): {}, "A.f": {"timeout_ms": long}, "A.g": {"doc": long}}}));
    let url = &app.environment()["RPC_APP_URL"];
    let asked = ["functions", "--app-url", url];
    let (code, _, said) = run_with(&asked, &[("RPC_APP_TOKEN", TOKEN)]).await;
    assert_eq!((code, said.lines().count()), (1, 3), "{said}");
    let prefix = "fly-rpc: ".len();
    assert!(
        said.lines().all(|line| line.len() <= prefix + 256),
        "{said}"
    );
}
