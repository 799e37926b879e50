//! The commands that ask an instance, as a user runs them: stdout, stderr and exit code.

use std::{io::Read, process::Stdio};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, BufReader, Lines},
    process::Command,
};

use crate::support::{
    asking::two_regions,
    cluster::{Cluster, NAME},
    command::{run, run_with},
    network::Network,
    patience::{eventually, in_time},
    process::{Environment, Process},
    stranger::{Manner, Stranger},
};

async fn fly_rpc(instance: &Process, arguments: &[&str]) -> (i32, String, String) {
    let url = format!("http://{}", instance.address);
    run(&[arguments, &["--url", &url]].concat()).await
}

#[tokio::test]
async fn call_prints_the_result_and_says_where_it_ran() {
    let cluster = two_regions().functions().start().await;
    let iad = cluster.instance("iad-1");
    for (arguments, result) in [
        (
            &["call", "syd", "String.upcase", "\"fly\""][..],
            "\"FLY\"\n",
        ),
        (&["call", "syd", "String.upcase", "fly"], "\"FLY\"\n"),
        (
            &["call", "syd", "Test.pair", "1.10", "a \"b\""],
            "[1.10,\"a \\\"b\\\"\"]\n",
        ),
        (
            &["call", "syd", "Test.pair", "true", " [1, 2]"],
            "[true,[1, 2]]\n",
        ),
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
        let (code, stdout, stderr) = fly_rpc(iad, arguments).await;
        assert_eq!((code, stdout.as_str()), (0, result), "{arguments:?}");
        let parts: Vec<_> = stderr.trim_end().split(" · ").collect();
        let ran_on = if arguments[1] == "syd" {
            "syd-1 in syd"
        } else {
            "iad-1 in iad"
        };
        assert_eq!((parts[0], parts[2]), (ran_on, "1 attempt"));
        assert!(parts[1].ends_with(" ms from here"), "{stderr}");
        assert!(parts[3].starts_with("request 01"), "{stderr}");
        let quiet = [arguments, &["--quiet"]].concat();
        assert_eq!(
            fly_rpc(iad, &quiet).await,
            (0, result.to_owned(), String::new())
        );
    }
    let (code, whole, stderr) =
        fly_rpc(iad, &["call", "syd", "Kernel.+", "1", "2", "--json"]).await;
    let whole: Value = serde_json::from_str(&whole).unwrap();
    assert_eq!(
        (code, &whole["result"], stderr.as_str()),
        (0, &json!(3), "")
    );
    assert_eq!(whole["meta"]["instance"], "syd-1");
}

#[tokio::test]
async fn a_problem_is_reported_on_stderr_and_ends_with_1() {
    let cluster = two_regions().start().await;
    let iad = cluster.instance("iad-1");
    let (code, stdout, stderr) = fly_rpc(iad, &["call", "syd", "Kernel.raise", "boom"]).await;
    assert_eq!((code, stdout.as_str()), (1, ""));
    let (reported, request) = stderr.split_once("request ").unwrap();
    assert_eq!(
        reported,
        "fly-rpc: function_failed: the function returned an error of kind \"RuntimeError\"\n  \
         error: RuntimeError: boom\n  executed: yes · "
    );
    let (id, next) = request.split_once('\n').unwrap();
    assert_eq!(id.len(), 26);
    assert_eq!(
        next,
        "  next: it ran: its own documentation says what to do about the error\n"
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
    let free = Network::free().next_address();
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
        ("localhost:8080", "is no http or https URL"),
        ("ftp://localhost", "is no http or https URL"),
        (
            "https://localhost/#a",
            "has more than a host, a port and a path",
        ),
        (
            "http://user:secret@localhost",
            "has more than a host, a port and a path",
        ),
        (
            "http://localhost/?a=b",
            "has more than a host, a port and a path",
        ),
    ] {
        let shown = url
            .replace("user:secret", "…")
            .replace("a=b", "…")
            .replace("#a", "#…");
        let refusal = |setting| format!("fly-rpc: {setting}: {shown:?} {what}; {hint}\n");
        let (code, _, stderr) = run(&["regions", "--url", url]).await;
        assert_eq!((code, stderr), (64, refusal("--url")));
        let (code, _, stderr) = run_with(&["functions"], &[("FLY_RPC_URL", url)]).await;
        assert_eq!((code, stderr), (64, refusal("FLY_RPC_URL")));
    }
}

#[tokio::test]
async fn a_url_of_an_app_that_does_not_fit_is_refused_without_its_password() {
    for command in ["functions", "openapi"] {
        let url = "http://user:secret@localhost/rpc";
        let (code, _, stderr) = run(&[command, "--app-url", url]).await;
        let refusal = "fly-rpc: --app-url: \"http://…@localhost/rpc\" has more than a host, a port and a path; write for \
                       example http://127.0.0.1:3000/rpc or unix:/run/app.sock:/rpc\n";
        assert_eq!((code, stderr.as_str()), (64, refusal));
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
    let line = format!(
        "fly-rpc: no answer from {url} within 5.001s; what was asked may have been done (request "
    );
    let id = stderr.strip_prefix(&line).unwrap().strip_suffix(")\n");
    // The id under which the log has the call, if it got that far.
    let mut request = [0; 4096];
    let length = silent.accept().unwrap().0.read(&mut request).unwrap();
    let request = str::from_utf8(&request[..length]).unwrap();
    let header = format!("\r\nx-request-id: {}\r\n", id.unwrap());
    assert!(request.contains(&header), "{header} in {request}");
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
async fn a_call_under_a_key_runs_once_however_often_it_is_typed() {
    let cluster = two_regions().functions().start().await;
    let iad = cluster.instance("iad-1");
    let call = |id: &'static str, key: &'static str| {
        ["call", "syd", "Test.run", id, "0", "--idempotency-key", key]
    };
    for is_replayed in [false, true, true] {
        let (code, stdout, stderr) = fly_rpc(iad, &call("one", "order-1234")).await;
        assert_eq!((code, stdout.as_str()), (0, "\"one\"\n"));
        let says_so = stderr.ends_with(" · outcome of an earlier call\n");
        assert_eq!(says_so, is_replayed, "{stderr}");
    }
    assert_eq!(cluster.runs(), [("one".to_owned(), 1)].into());
    let raise = [
        "call",
        "syd",
        "Kernel.raise",
        "boom",
        "--idempotency-key=raise",
    ];
    for is_replayed in [false, true] {
        let (code, stdout, stderr) = fly_rpc(iad, &raise).await;
        assert_eq!((code, stdout.as_str()), (1, ""));
        let says_so = stderr.contains(" · outcome of an earlier call\n");
        assert_eq!(says_so, is_replayed, "{stderr}");
    }
    let (code, stdout, stderr) = fly_rpc(iad, &call("two", "order-1234")).await;
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(
        stderr.starts_with("fly-rpc: idempotency_mismatch: "),
        "{stderr}"
    );
    assert!(
        stderr.ends_with("next: use another key for another call\n"),
        "{stderr}"
    );
}

#[tokio::test]
async fn ready_says_whether_an_instance_takes_calls() {
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let instance = Process::start(&Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        // Whoever asks whether it is ready needs no token.
        ("RPC_CLIENT_TOKENS", format!("shop:{}", "0".repeat(32))),
        ("RPC_DNS_NAME", NAME.to_owned()),
        ("RPC_DNS_SERVER", nobody.local_addr().unwrap().to_string()),
    ]))
    .await;
    let why = "DNS has not answered yet; without it, this instance is ready 15 s after its start";
    let (code, stdout, stderr) = fly_rpc(&instance, &["ready"]).await;
    assert_eq!(
        (code, stdout.as_str(), stderr),
        (1, "", format!("fly-rpc: not ready: {why}\n"))
    );
    let (code, stdout, _) = fly_rpc(&instance, &["ready", "--json"]).await;
    let document: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &document["code"]), (1, &json!("discovery_pending")));
    let cluster = Cluster::builder().region("iad", 1).start().await;
    let ready = (0, "iad-1 in iad is ready\n".to_owned(), String::new());
    assert_eq!(fly_rpc(cluster.instance("iad-1"), &["ready"]).await, ready);
    let nothing = Network::free().next_address();
    let (code, stdout, stderr) = run(&["ready", "--url", &format!("http://{nothing}")]).await;
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.starts_with("fly-rpc: cannot reach "), "{stderr}");
}

#[tokio::test]
async fn what_can_be_no_call_is_wrong_usage() {
    for (arguments, what) in [
        (
            &["call", "SYD", "Kernel.+"][..],
            "invalid value 'SYD' for '<REGION>'",
        ),
        (
            &["call", "syd?x", "Kernel.+"],
            "invalid value 'syd?x' for '<REGION>'",
        ),
        (
            &["call", "syd", "Kernel.+", "--idempotency-key", "a b"],
            "'--idempotency-key <KEY>'",
        ),
        (
            &["call", "syd", "Kernel.+", "--instance", "a/b"],
            "'--instance <INSTANCE>'",
        ),
        (
            &["call", "syd", "Kernel.+", "--timeout", "5"],
            "'--timeout <TIMEOUT>'",
        ),
        (
            &["call", "syd", "Kernel.+", "--timeout", "0s"],
            "must be from 1ms to 24h",
        ),
        (
            &["call", "syd", "Kernel.+", "--timeout", "100us"],
            "must be from 1ms to 24h",
        ),
        (
            &["call", "syd", ".upcase", "a"],
            "fly-rpc: \".upcase\" is not MODULE.FUNCTION, such as String.upcase\n",
        ),
        (
            &["call", "syd", "String.", "a"],
            "fly-rpc: \"String.\" is not MODULE.FUNCTION, such as String.upcase\n",
        ),
        (
            &["explain", "syd", "nope"],
            "fly-rpc: \"nope\" is not MODULE.FUNCTION, such as String.upcase\n",
        ),
        (&["regions", "--watch=x"], "'--watch[=<DURATION>]'"),
        (&["regions", "--watch=0s"], "must be 10ms or more"),
        (&["explain", "all"], "invalid value 'all' for '<REGION>'"),
        (
            &["call", "a,b,c,d", "Kernel.+"],
            "a list of regions must be one to three items",
        ),
        (
            &["call", "syd", "Kernel.+", "--named", "1"],
            "\"1\" is not NAME=VALUE, as --named wants it",
        ),
        (
            &["call", "syd", "Kernel.+", "--named", "a=1", "a=2"],
            "argument \"a\" is given twice",
        ),
        (
            &["call", "syd", "Kernel.+", "--named", "a=[1"],
            "argument \"a\": \"[1\" begins like JSON and is not valid",
        ),
        (
            &["call", "syd", "Kernel.+", "[1,", "2"],
            "fly-rpc: argument 1: \"[1,\" begins like JSON and is not valid (EOF while parsing a value at line 1 column 3); \
             a string that begins so is written as JSON: '\"[1,\"'\n",
        ),
        (
            &["regions", "--watch", "--json"],
            "cannot be used with '--json'",
        ),
        (
            &["completions", "tcsh"],
            "[possible values: bash, elvish, fish, powershell, zsh]",
        ),
    ] {
        let (code, stdout, stderr) = run(arguments).await;
        assert_eq!((code, stdout.as_str()), (64, ""), "{arguments:?}");
        assert!(stderr.contains(what), "{stderr}");
    }
    for argument in [" {a: 1}", "\"fly", "[1] 2", "\"a\" b"] {
        let (code, _, stderr) = run(&["call", "syd", "Kernel.+", argument]).await;
        let what = format!("fly-rpc: argument 1: {argument:?} begins like JSON and is not valid");
        assert!(code == 64 && stderr.starts_with(&what), "{stderr}");
    }
}

#[tokio::test]
async fn what_an_instance_takes_for_no_call_is_wrong_usage_too() {
    let cluster = Cluster::builder().region("iad", 1).start().await;
    let iad = cluster.instance("iad-1");
    let keyed = [
        "call",
        "any",
        "Kernel.+",
        "1",
        "2",
        "--idempotency-key",
        "a",
    ];
    let (code, stdout, stderr) = fly_rpc(iad, &keyed).await;
    assert_eq!((code, stdout.as_str()), (64, ""), "{stderr}");
    let what = "fly-rpc: invalid_request: a call with an idempotency key needs regions by name";
    assert!(stderr.starts_with(what), "{stderr}");
    let long = [
        "call",
        "iad",
        "Kernel.+",
        "1",
        "2",
        "--timeout",
        "24h",
        "--json",
    ];
    let (code, stdout, _) = fly_rpc(iad, &long).await;
    assert!(
        code == 64 && stdout.contains("\"code\":\"invalid_request\""),
        "{stdout}"
    );
}

#[tokio::test]
async fn every_command_explains_itself() {
    let (_, all, _) = run(&["--help"]).await;
    assert!(
        all.contains("Exit codes: 0 done, 1 the call or the command failed, 64 wrong usage"),
        "{all}"
    );
    for command in [
        "serve",
        "dev",
        "call",
        "regions",
        "explain",
        "functions",
        "ready",
        "openapi",
        "completions",
    ] {
        assert!(all.contains(&format!("\n  {command} ")), "{all}");
        let (code, help, stderr) = run(&[command, "--help"]).await;
        assert_eq!((code, stderr.as_str()), (0, ""), "{command}");
        assert!(
            help.contains(&format!("Usage: fly-rpc {command}")),
            "{help}"
        );
    }
}

#[tokio::test]
async fn completions_are_scripts_that_name_every_command() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let (code, script, stderr) = run(&["completions", shell]).await;
        assert_eq!((code, stderr.as_str()), (0, ""), "{shell}");
        assert!(
            script.contains("idempotency-key") && script.contains("regions"),
            "{script}"
        );
        assert!(
            script.contains("drain-timeout") && !script.contains("until-stdin-closes"),
            "a hidden flag in {script}"
        );
        assert!(
            !script.contains("become-app"),
            "a hidden command in {script}"
        );
    }
    // As a user of bash has it: what Tab offers after `fly-rpc re`.
    let offers = r#"source <("$0" completions bash); COMP_WORDS=(fly-rpc re); COMP_CWORD=1;
        "$(complete -p fly-rpc | grep -o '_fly[^ ]*')" fly-rpc re fly-rpc; echo "${COMPREPLY[@]}""#;
    let mut bash = Command::new("bash");
    let output = bash
        .args(["-c", offers, env!("CARGO_BIN_EXE_fly-rpc")])
        .output();
    assert_eq!(output.await.unwrap().stdout, b"regions ready\n");
}

#[tokio::test]
async fn states_have_colour_where_it_is_wanted() {
    let cluster = two_regions().start().await;
    let iad = cluster.instance("iad-1");
    let url = format!("http://{}", iad.address);
    let (_, plain, _) = fly_rpc(iad, &["regions"]).await;
    assert!(!plain.contains('\u{1b}'), "{plain}");
    let wanted = [("CLICOLOR_FORCE", "1")];
    let (_, coloured, _) = run_with(&["regions", "--url", &url], &wanted).await;
    assert_eq!(
        coloured.matches("\u{1b}[32mready\u{1b}[0m").count(),
        2,
        "{coloured}"
    );
}

#[tokio::test]
async fn a_watch_goes_on_until_nobody_reads_it() {
    let mut cluster = two_regions().start().await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_fly-rpc"));
    let url = format!("http://{}", cluster.instance("iad-1").address);
    command.args(["regions", "--watch=10ms", "--url", &url]);
    command
        .env_clear()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut watch = command.spawn().unwrap();
    let mut shown = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut said = BufReader::new(watch.stderr.take().unwrap()).lines();
    until(&mut shown, "syd-1     ready").await;
    cluster.instance("syd-1").kill();
    until(&mut shown, "syd-1     suspect").await;
    cluster.instance("iad-1").kill();
    until(&mut said, "fly-rpc: cannot reach http://").await;
    tokio::spawn(async move { while let Ok(Some(_)) = said.next_line().await {} });
    cluster.restart("syd-1").await;
    cluster.restart("iad-1").await;
    until(&mut shown, "syd-1     ready").await;
    drop(shown);
    let ended = in_time("the end", watch.wait()).await.unwrap();
    assert_eq!(ended.code(), Some(0));
}

#[tokio::test]
async fn what_a_watch_says_is_there_until_the_next_look() {
    let guarded = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        (
            "RPC_CLIENT_TOKENS",
            "shop:the-token-of-the-client-shop-00000003".to_owned(),
        ),
    ]);
    let guarded = Process::start(&guarded).await;
    let stale = Manner::Answer(regions_of_one("1", "no answer").to_string());
    let stale = Stranger::at("127.0.0.1:0".parse().unwrap(), stale).await;
    for (address, said) in [
        (guarded.address, "fly-rpc: unauthenticated: "),
        (stale.address, "stale: no answer\nREGION"),
    ] {
        // Both in the order in which a terminal has them.
        let (mut shown, screen) = std::io::pipe().unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_fly-rpc"));
        command.args([
            "regions",
            "--watch=10ms",
            "--url",
            &format!("http://{address}"),
        ]);
        command.env_clear().env("CLICOLOR_FORCE", "1");
        command.stdout(screen.try_clone().unwrap()).stderr(screen);
        let mut watch = command.spawn().unwrap();
        drop(command);
        let looks = tokio::task::spawn_blocking(move || {
            let (mut looks, mut buffer) = (String::new(), [0; 4096]);
            while looks.matches("\u{1b}[H").count() < 3 {
                let length = shown.read(&mut buffer).unwrap();
                assert!(length > 0, "{looks}");
                looks += str::from_utf8(&buffer[..length]).unwrap();
            }
            looks
        });
        let looks = in_time("three looks", looks).await.unwrap();
        watch.kill().unwrap();
        watch.wait().unwrap();
        let looks: Vec<_> = looks.split("\u{1b}[H\u{1b}[J").collect();
        assert_eq!(looks[0], "");
        let first = anstream::adapter::strip_str(looks[1]).to_string();
        assert!(first.starts_with(said), "{first:?}");
    }
}

/// Reads until a line has `what` in it.
async fn until(lines: &mut Lines<impl AsyncBufRead + Unpin>, what: &str) {
    in_time(what, async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains(what) {
                return;
            }
        }
        panic!("ended before {what}");
    })
    .await;
}

#[tokio::test]
async fn what_comes_next_depends_on_what_was_asked() {
    let token = "the-token-of-the-client-shop-00000003";
    let environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("RPC_DRAIN_DELAY", "0s".to_owned()),
        ("RPC_CLIENT_TOKENS", format!("shop:{token}")),
    ]);
    let local = Process::start(&environment).await;
    let url = format!("http://{}", local.address);
    let next = async |arguments: &[&str], token: Option<&str>| {
        let variables: Vec<_> = [("FLY_RPC_URL", url.as_str())]
            .into_iter()
            .chain(token.map(|token| ("FLY_RPC_TOKEN", token)))
            .collect();
        let (code, _, stderr) = run_with(arguments, &variables).await;
        assert_eq!(code, 1, "{stderr}");
        stderr
            .rsplit_once("  next: ")
            .unwrap()
            .1
            .trim_end()
            .to_owned()
    };
    let upcase = ["call", "local", "String.upcase", "fly"];
    assert_eq!(
        next(&upcase, None).await,
        "set FLY_RPC_TOKEN to a client's token, one of RPC_CLIENT_TOKENS of the instance"
    );
    assert_eq!(
        next(&upcase, Some("a-token-that-nobody-knows-000000000000")).await,
        "the instance does not know the token in FLY_RPC_TOKEN; its RPC_CLIENT_TOKENS lists those that it knows"
    );
    let sleep = ["call", "local", "Process.sleep", "60000", "--timeout=3s"];
    let late = [
        (
            &[][..],
            "it may have run: call again only if it may run twice, then with --idempotent",
        ),
        (
            &["--idempotent"],
            "it may have run: call again, because it may run twice",
        ),
        (
            &["--idempotency-key=order-1234"],
            "it may have run: call again with the same --idempotency-key",
        ),
    ];
    let late = late.map(async |(flags, advice)| {
        let arguments = [&sleep[..], flags].concat();
        assert_eq!(next(&arguments, Some(token)).await, advice);
    });
    join_all(late).await;
    let again = [&sleep[..], &["--idempotency-key=order-1234"]].concat();
    assert_eq!(
        next(&again, Some(token)).await,
        "it may have run, and that stays so under this key for ten minutes: read what it did"
    );
    let unknown = ["call", "local", "Notes.create", "fly"];
    assert_eq!(
        next(&unknown, Some(token)).await,
        "`fly-rpc explain REGION FUNCTION` shows which instances have it; `fly-rpc functions` lists those of the instance asked"
    );
}

#[tokio::test]
async fn explain_shows_who_would_be_chosen_and_who_is_nobody() {
    let mut cluster = two_regions().start().await;
    let nobody = cluster.free_address();
    let addresses = [cluster.addresses(), vec![nobody.ip()]].concat();
    cluster.dns.set_addresses(NAME, addresses);
    let iad = cluster.instance("iad-1");
    let explain = async || fly_rpc(iad, &["explain", "syd", "String.upcase"]).await;
    let is_found = |(_, table, _): &(i32, String, String)| table.contains("NOBODY AT");
    let (code, table, stderr) = eventually("nobody is found", explain, is_found).await;
    assert_eq!((code, stderr.as_str()), (0, ""));
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let address = cluster.instance("syd-1").address.to_string();
    assert_eq!(
        rows[0],
        ["INSTANCE", "CHOSEN", "STATE", "ADDRESS", "PROBED", "WHY"]
    );
    assert_eq!(rows[1][..4], ["syd-1", "yes", "ready", &address]);
    assert_eq!(rows[1][rows[1].len() - 3..], ["s", "ago", "ready"]);
    assert_eq!(rows[4][0], nobody.to_string(), "{table}");

    let (code, table, _) = fly_rpc(iad, &["explain", "syd,any"]).await;
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        (code, &rows[0][..]),
        (0, &["REGION", "CHOSEN", "ITEM", "ROUND", "TRIP", "WHY"][..])
    );
    assert_eq!(rows[1][..4], ["syd", "yes", "1", "syd"]);
    assert_eq!(rows[2][..4], ["iad", "no", "2", "any"]);
    let (code, stdout, _) = fly_rpc(iad, &["call", "mars,syd,any", "Fly.RPC.my_region"]).await;
    assert_eq!((code, stdout.as_str()), (0, "\"syd\"\n"));

    let (code, json, _) = fly_rpc(iad, &["explain", "syd", "--json"]).await;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json["region"]), (0, &json!("syd")));
    let (code, stdout, stderr) = fly_rpc(iad, &["explain", "syd", "a function"]).await;
    assert_eq!((code, stdout.as_str()), (64, ""));
    assert!(stderr.contains("is not MODULE.FUNCTION"), "{stderr}");
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

/// A cluster of one, of a release, whose discovery is stale.
fn regions_of_one(release: &str, error: &str) -> Value {
    json!({
        "local": "iad", "primary": "iad", "is_primary": true,
        "regions": [{"region": "iad", "instances": [{
            "instance": "iad-1", "address": "127.0.0.1:1", "state": "ready", "local": true,
            "release": release, "rtt_ms": null, "last_seen_ms": null,
        }]}],
        "discovery": {"source": "dns", "last_success_ms": null, "stale": true, "last_error": error, "warnings": [], "rounds": 1},
    })
}

#[tokio::test]
async fn what_others_say_moves_no_cursor_and_makes_no_line() {
    // Of what the text is in, a right-to-left override turns the order around, and a tag is not seen.
    let release = "\u{1b}[2J\u{9b}31m\n\u{202e}dys\u{2069}\u{e0041} syd ü 👩\u{200d}💻";
    let said = regions_of_one(release, "no\r\nanswer\u{7}\u{7f}\u{2028}");
    let body = format!("{said:#}");
    let address = "127.0.0.1:0".parse().unwrap();
    let liar = Stranger::at(address, Manner::Answer(body)).await;
    let url = format!("http://{}", liar.address);
    let (code, stdout, stderr) = run(&["regions", "--url", &url]).await;
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(
        (stdout.lines().count(), stderr.lines().count()),
        (2, 1),
        "{stdout}{stderr}"
    );
    assert!(
        stdout.ends_with(
            "\\u{1b}[2J\\u{9b}31m\\n\\u{202e}dys\\u{2069}\\u{e0041} syd ü 👩\u{200d}💻\n"
        ),
        "{stdout}"
    );
    assert_eq!(stderr, "stale: no\\r\\nanswer\\u{7}\\u{7f}\\u{2028}\n");
    let (_, json, _) = run(&["regions", "--json", "--url", &url]).await;
    let obeyed = "\u{1b}\u{9b}\r\u{7}\u{7f}\u{202e}\u{2069}\u{e0041}\u{2028}";
    assert!(!json.contains(|it| obeyed.contains(it)), "{json}");
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), said);
}

#[tokio::test]
async fn a_code_of_a_later_release_is_shown_as_it_came() {
    let problem = json!({
        "type": "/docs/problems#outcome_gone", "title": "From a later release", "status": 424, "detail": "it went\u{1b}[2J",
        "code": "outcome_gone", "executed": "maybe", "error": {"kind": "Gone", "message": "\u{202e}away", "data": null},
        "meta": {"region": "syd", "instance": "syd-1", "attempts": 1, "elapsed_ms": 0.4, "request_id": "r"},
    });
    let address = "127.0.0.1:0".parse().unwrap();
    let later = Stranger::at(address, Manner::Refuse(424, problem.to_string())).await;
    let url = format!("http://{}", later.address);
    let said = "fly-rpc: outcome_gone: it went\\u{1b}[2J\n  error: Gone: \\u{202e}away\n  executed: maybe · request r\n  \
                next: it may have run: call again only if it may run twice, then with --idempotent\n";
    let call = ["call", "syd", "String.upcase", "fly", "--url", &url];
    assert_eq!(run(&call).await, (1, String::new(), said.to_owned()));
}

#[tokio::test]
async fn call_each_shows_what_came_of_each() {
    let cluster = two_regions().start().await;
    let iad = cluster.instance("iad-1");
    let (code, table, stderr) = fly_rpc(iad, &["call", "--each", "all", "Fly.RPC.my_region"]).await;
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows,
        [
            ["REGION", "INSTANCE", "RESULT"],
            ["iad", "iad-1", "\"iad\""],
            ["syd", "syd-1", "\"syd\""]
        ]
    );
    assert_eq!(code, 0);
    assert!(stderr.starts_with("2 of 2 have a result"), "{stderr}");
    let arguments = [
        "call",
        "--each=region",
        "syd,mars",
        "Fly.RPC.my_region",
        "-q",
    ];
    let (code, table, stderr) = fly_rpc(iad, &arguments).await;
    assert_eq!((code, stderr.as_str()), (1, ""));
    assert!(
        table.contains(
            "region_unknown (executed: no): no instance was ever seen in region \"mars\""
        ),
        "{table}"
    );
    for (regions, ends, succeeded) in [("all", 0, 2), ("syd,mars", 1, 1)] {
        let arguments = ["call", "--each", regions, "Fly.RPC.my_region", "--json"];
        let (code, json, _) = fly_rpc(iad, &arguments).await;
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (code, &json["meta"]["succeeded"]),
            (ends, &json!(succeeded))
        );
    }
    for (arguments, what) in [
        (
            &["call", "all", "Fly.RPC.my_region"][..],
            "fly-rpc: \"all\": a region must be \"primary\", \"any\", or 1 to 32",
        ),
        (
            &["call", "--each", "any", "Fly.RPC.my_region"],
            "fly-rpc: \"any\": each item of a fan-out",
        ),
        (
            &["call", "--each=node", "all", "Fly.RPC.my_region"],
            "must be instance or region",
        ),
    ] {
        let (code, stdout, stderr) = fly_rpc(iad, arguments).await;
        assert_eq!((code, stdout.as_str()), (64, ""), "{arguments:?}");
        assert!(stderr.contains(what), "{stderr}");
    }
}

#[tokio::test]
async fn call_async_prints_the_id_under_which_the_log_has_its_end() {
    let cluster = two_regions().start().await;
    let iad = cluster.instance("iad-1");
    let arguments = ["call", "--async", "syd", "Fly.RPC.my_region"];
    let (code, id, stderr) = fly_rpc(iad, &arguments).await;
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("admitted"), "{stderr}");
    let log = async || iad.log();
    let is_there = |log: &String| log.lines().any(|line| line.contains(id.trim()));
    eventually("the end of the call", log, is_there).await;
}
