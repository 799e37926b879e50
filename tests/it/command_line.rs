//! The commands that ask an instance, as a user runs them: stdout, stderr and exit code.

use std::process::Output;

use tokio::process::Command;

use crate::{
    asking::two_regions,
    process::{Environment, Process},
};

async fn fly_rpc(instance: &Process, arguments: &[&str]) -> (i32, String, String) {
    let url = format!("http://{}", instance.address);
    run(&[arguments, &["--url", &url]].concat()).await
}

async fn run(arguments: &[&str]) -> (i32, String, String) {
    run_with(arguments, &[]).await
}

async fn run_with(arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fly-rpc"));
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .await
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[tokio::test]
async fn call_prints_the_result_and_nothing_else() {
    let cluster = two_regions().start().await;
    let iad = cluster.instance("iad-1");
    for (arguments, result) in [
        (
            &["call", "syd", "String.upcase", "\"fly\""][..],
            "\"FLY\"\n",
        ),
        (&["call", "syd", "String.upcase", "fly"], "\"FLY\"\n"),
        (&["call", "syd", "Kernel.+", "1", "-2"], "-1\n"),
        (&["call", "primary", "Fly.RPC.is_primary?"], "true\n"),
        (
            &[
                "call",
                "syd",
                "String.split",
                "a,b",
                ",",
                "--timeout",
                "2s",
                "--instance",
                "syd-1",
            ],
            "[\"a\",\"b\"]\n",
        ),
    ] {
        assert_eq!(
            fly_rpc(iad, arguments).await,
            (0, result.to_owned(), String::new()),
            "{arguments:?}"
        );
    }
    let (code, whole, _) = fly_rpc(iad, &["call", "syd", "Kernel.+", "1", "2", "--json"]).await;
    assert!(
        code == 0 && whole.starts_with("{\"result\":3,\"meta\":{\"region\":\"syd\""),
        "{whole}"
    );
}

#[tokio::test]
async fn a_problem_is_told_on_stderr_and_ends_with_1() {
    let cluster = two_regions().start().await;
    let iad = cluster.instance("iad-1");
    let (code, stdout, stderr) = fly_rpc(iad, &["call", "syd", "Kernel.raise", "boom"]).await;
    assert_eq!((code, stdout.as_str()), (1, ""));
    let (told, request) = stderr.split_once("request ").unwrap();
    assert_eq!(
        told,
        "fly-rpc: function_failed: the function returned an error of kind \"RuntimeError\"\n  \
         error: RuntimeError: boom\n  executed: yes · "
    );
    let (id, next) = request.split_once('\n').unwrap();
    assert_eq!(id.len(), 26);
    assert_eq!(
        next,
        "  next: it ran: what to do about its error is the function's affair\n"
    );
    let (code, stdout, stderr) =
        fly_rpc(iad, &["call", "mars", "Kernel.+", "1", "2", "--json"]).await;
    assert!(
        code == 1 && stdout.contains("\"code\":\"region_unknown\"") && stderr.is_empty(),
        "{stdout}{stderr}"
    );
}

#[tokio::test]
async fn wrong_usage_ends_with_64_and_an_instance_that_is_not_there_with_1() {
    let (code, _, stderr) = run(&["call", "syd", "upcase"]).await;
    assert_eq!(
        (code, stderr.as_str()),
        (
            64,
            "fly-rpc: \"upcase\" is not MODULE.FUNCTION, such as String.upcase\n"
        )
    );
    let (code, _, stderr) = run(&["fly"]).await;
    assert!(
        code == 64 && stderr.contains("unrecognized subcommand 'fly'"),
        "{stderr}"
    );
    assert_eq!(run(&["--help"]).await.0, 0);
    assert_eq!(
        run(&["--version"]).await.1,
        concat!("fly-rpc ", env!("CARGO_PKG_VERSION"), "\n")
    );
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (code, _, stderr) = run(&["regions", "--url", &format!("http://{free}")]).await;
    assert_eq!(code, 1);
    assert!(
        stderr.starts_with(&format!("fly-rpc: cannot reach http://{free}: ")),
        "{stderr}"
    );
    assert!(
        stderr.ends_with("is an instance running there? see --url and FLY_RPC_URL\n"),
        "{stderr}"
    );
}

#[tokio::test]
async fn a_url_that_is_none_is_wrong_usage() {
    let hint = "write for example http://127.0.0.1:8080";
    for (url, what) in [
        ("", "is no URL"),
        ("localhost", "is no URL"),
        ("localhost:8080", "is no http URL"),
        ("ftp://localhost", "is no http URL"),
        (
            "https://localhost",
            "needs TLS, which this program does not speak",
        ),
        (
            "http://localhost/?a=b",
            "has more than a host, a port and a path",
        ),
    ] {
        let told = |setting| format!("fly-rpc: {setting}: {url:?} {what}; {hint}\n");
        let (code, _, stderr) = run(&["regions", "--url", url]).await;
        assert_eq!((code, stderr), (64, told("--url")));
        let (code, _, stderr) = run_with(&["functions"], &[("FLY_RPC_URL", url)]).await;
        assert_eq!((code, stderr), (64, told("FLY_RPC_URL")));
    }
}

#[tokio::test]
async fn an_instance_that_never_answers_is_given_up() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let arguments = [
        "call",
        "syd",
        "Kernel.+",
        "1",
        "2",
        "--timeout",
        "1ms",
        "--url",
        &url,
    ];
    let (code, stdout, stderr) = run(&arguments).await;
    assert_eq!((code, stdout.as_str()), (1, ""));
    let url = url.trim_end_matches('/');
    let line =
        format!("fly-rpc: no answer from {url} within 5.001s; what was asked may have been done\n");
    assert_eq!(stderr, line);
}

#[tokio::test]
async fn regions_and_functions_are_printed_for_people_and_for_scripts() {
    let cluster = two_regions().start().await;
    let iad = cluster.instance("iad-1");
    let (code, table, stderr) = fly_rpc(iad, &["regions"]).await;
    assert_eq!((code, stderr.as_str()), (0, ""));
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().take(4).collect())
        .collect();
    assert_eq!(rows[0], ["REGION", "INSTANCE", "STATE", "ADDRESS"]);
    assert_eq!(rows[1], ["iad", "(primary)", "iad-1", "ready"]);
    assert_eq!(rows[2][..3], ["syd", "syd-1", "ready"]);
    assert_eq!(rows.len(), 3);

    let (code, functions, _) = fly_rpc(iad, &["functions"]).await;
    assert!(
        code == 0 && functions.starts_with("Fly.RPC.is_primary?\nFly.RPC.my_region\n"),
        "{functions}"
    );
    for command in ["regions", "functions"] {
        let (code, json, _) = fly_rpc(iad, &[command, "--json"]).await;
        assert!(
            code == 0
                && serde_json::from_str::<serde_json::Value>(&json)
                    .unwrap()
                    .is_object()
        );
    }
}

#[tokio::test]
async fn a_signal_as_soon_as_an_instance_listens_drains_it() {
    let environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("RPC_DRAIN_DELAY", "0s".to_owned()),
    ]);
    for _ in 0..5 {
        let mut local = Process::start(&environment).await;
        local.terminate();
        assert_eq!(local.ended().await.code(), Some(0));
    }
}
