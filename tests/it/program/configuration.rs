//! Settings that stop the start: exit code 64 and one line that names the setting.

use crate::support::command::run_with;

async fn serve(variables: &[(&str, &str)], flags: &[&str]) -> (i32, String, String) {
    let arguments = [&["serve", "--until-stdin-closes"], flags].concat();
    run_with(&arguments, variables).await
}

async fn refusal(variables: &[(&str, &str)], flags: &[&str]) -> String {
    let (code, stdout, stderr) = serve(variables, flags).await;
    assert_eq!((code, stdout.as_str()), (64, ""), "{stderr}");
    stderr
}

/// Variables, flags, and how the one line begins.
type Case = (
    &'static [(&'static str, &'static str)],
    &'static [&'static str],
    &'static str,
);

#[tokio::test]
async fn wrong_settings_stop_the_start_with_one_line() {
    let cases: [Case; 15] = [
        (
            &[("RPC_LISTEM", "127.0.0.1:0")],
            &[],
            "fly-rpc: RPC_LISTEM: no such setting; did you mean RPC_LISTEN?\n",
        ),
        (
            &[("RPC_POLL_INTERVAL", "5")],
            &[],
            "fly-rpc: RPC_POLL_INTERVAL (--poll-interval): \"5\" has no unit; write 5s or 5ms\n",
        ),
        (
            &[],
            &["--poll-interval=5"],
            "fly-rpc: RPC_POLL_INTERVAL (--poll-interval): \"5\" has no unit; write 5s or 5ms\n",
        ),
        (
            &[("RPC_DEFAULT_TIMEOUT", "2m")],
            &[],
            "fly-rpc: RPC_DEFAULT_TIMEOUT (--default-timeout): is above RPC_MAX_TIMEOUT; lower it or raise \
             RPC_MAX_TIMEOUT\n",
        ),
        (
            &[("MY_REGION", "Sydney")],
            &[],
            "fly-rpc: MY_REGION: \"Sydney\" does not fit: a region must be 1 to 32 characters of [a-z0-9-], not \
             starting with '-', and not \"primary\", \"any\", \"all\" or \"each\"\n",
        ),
        (
            &[("RPC_DNS_SERVER", "127.0.0.1:53")],
            &[],
            "fly-rpc: RPC_DNS_SERVER (--dns-server): has no effect without RPC_DNS_NAME; set that too, or unset \
             this\n",
        ),
        (
            &[("RPC_APP_CONCURRENCY", "2")],
            &[],
            "fly-rpc: RPC_APP_CONCURRENCY (--app-concurrency): has no effect without RPC_APP_URL; set that too, or \
             unset this\n",
        ),
        (
            &[],
            &["--app-url=http://127.0.0.1:3OOO/rpc"],
            "fly-rpc: RPC_APP_URL (--app-url): \"http://127.0.0.1:3OOO/rpc\" has an invalid port; write for example \
             http://127.0.0.1:3000/rpc or unix:/run/app.sock:/rpc\n",
        ),
        (
            &[("RPC_APP_URL", "http://127.0.0.1:3000/rpc?token=secret")],
            &[],
            "fly-rpc: RPC_APP_URL (--app-url): \"http://127.0.0.1:3000/rpc?…\" has more than a host, a port and a path; \
             write for example http://127.0.0.1:3000/rpc or unix:/run/app.sock:/rpc\n",
        ),
        (
            &[("RPC_APP_URL", "http://127.0.0.1:3000/rpc?token=a@secret")],
            &[],
            "fly-rpc: RPC_APP_URL (--app-url): \"http://…\" has more than a host, a port and a path; \
             write for example http://127.0.0.1:3000/rpc or unix:/run/app.sock:/rpc\n",
        ),
        (
            &[("RPC_DNS_NAME", "http://user:secret@host")],
            &[],
            "fly-rpc: RPC_DNS_NAME (--dns-name): \"http://…@host\" has an entry that is a URL, which is no DNS name\n",
        ),
        (
            &[("RPC_MAX_IN_FLIGHT", "+5")],
            &[],
            "fly-rpc: RPC_MAX_IN_FLIGHT (--max-in-flight): \"+5\" is not a whole number of 1 or more\n",
        ),
        (
            &[("RPC_LISTEN", "localhost:+8080")],
            &[],
            "fly-rpc: RPC_LISTEN (--listen): \"localhost:+8080\" is not HOST:PORT; write for example 127.0.0.1:8080 or \
             [::1]:8080\n",
        ),
        (
            &[("RPC_KEY_STORE", "redis://:secret@127.0.0.1:6379?db=5")],
            &[],
            "fly-rpc: RPC_KEY_STORE: must have its database in the path, and no query; write for example \
             redis://127.0.0.1:6379/5\n",
        ),
        (
            &[("RPC_LOG", "warning")],
            &[],
            "fly-rpc: RPC_LOG (--log): \"warning\" is not a filter such as info or fly_rpc=debug: \"warning\" is no \
             level\n",
        ),
    ];
    for (variables, flags, line) in cases {
        let message = refusal(variables, flags).await;
        assert!(
            message.starts_with(line) && message.lines().count() == 1,
            "{message:?} is not {line:?}"
        );
    }
}

#[tokio::test]
async fn a_socket_whose_path_the_system_does_not_take_stops_the_start() {
    let socket = format!("/tmp/{}.sock", "x".repeat(110));
    let line = |setting: &str, shown: &str, example: &str| {
        format!(
            "fly-rpc: {setting}: {shown}has a socket whose path is longer than the system takes; write for example {example}\n"
        )
    };
    let app = format!("unix:{socket}:/rpc");
    let example = "http://127.0.0.1:3000/rpc or unix:/run/app.sock:/rpc";
    let shown = format!("\"{app}\" ");
    assert_eq!(
        refusal(&[("RPC_APP_URL", &app)], &[]).await,
        line("RPC_APP_URL (--app-url)", &shown, example)
    );
    let store = format!("redis+unix://{socket}?db=5");
    assert_eq!(
        refusal(&[("RPC_KEY_STORE", &store)], &[]).await,
        line("RPC_KEY_STORE", "", "redis://127.0.0.1:6379")
    );
}

#[tokio::test]
async fn a_service_of_kubernetes_is_no_setting_and_a_mistyped_one_still_stops_the_start() {
    let links = [
        ("RPC_PUBLIC_PORT", "tcp://10.0.0.1:80"),
        ("RPC_PUBLIC_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("RPC_PUBLIC_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("RPC_PUBLIC_PORT_80_TCP_PORT", "80"),
        ("RPC_PUBLIC_PORT_80_TCP_PROTO", "tcp"),
        ("RPC_PUBLIC_SERVICE_HOST", "10.0.0.1"),
        ("RPC_PUBLIC_SERVICE_PORT", "80"),
        ("RPC_PUBLIC_SERVICE_PORT_HTTP", "80"),
    ];
    let flags = ["--listen=127.0.0.1:0", "--drain-delay=0s", "--log=debug"];
    let (code, _, log) = serve(&links, &flags).await;
    assert_eq!(code, 0, "{log}");
    let ignored = log.lines().filter(|line| line.contains("RPC_PUBLIC"));
    let ignored: Vec<_> = ignored.collect();
    assert_eq!(ignored.len(), 1, "{log}");
    let line: serde_json::Value = serde_json::from_str(ignored[0]).unwrap();
    assert_eq!(
        (&line["level"], &line["message"]),
        (
            &"DEBUG".into(),
            &"variables of a Service of Kubernetes are no settings".into()
        )
    );
    let mistyped = [&links[..], &[("RPC_LISTEM", "127.0.0.1:0")]].concat();
    assert_eq!(
        refusal(&mistyped, &[]).await,
        "fly-rpc: RPC_LISTEM: no such setting; did you mean RPC_LISTEN?\n"
    );
    assert_eq!(
        refusal(&[("RPC_PUBLIC_PORT", "tcp://10.0.0.1:80")], &[]).await,
        "fly-rpc: RPC_PUBLIC_PORT: no such setting; `fly-rpc serve --help` lists them all\n"
    );
}

#[tokio::test]
async fn a_flag_wins_over_its_variable() {
    let message = refusal(&[("RPC_POLL_INTERVAL", "5s")], &["--poll-interval=6"]).await;
    assert!(message.contains("\"6\" has no unit"), "{message}");
}

#[tokio::test]
async fn a_flag_that_does_not_exist_is_wrong_usage() {
    let message = refusal(&[], &["--no-such-flag"]).await;
    assert!(
        message.contains("unexpected argument '--no-such-flag'"),
        "{message}"
    );
}

#[tokio::test]
async fn bodies_for_which_there_is_never_room_are_warned_about() {
    let flags = ["--listen=127.0.0.1:0", "--drain-delay=0s", "--max-body"];
    for (largest, warnings) in [("1MiB", 0), ("64TiB", 1)] {
        let (code, _, log) = serve(&[], &[&flags[..], &[largest]].concat()).await;
        let lines = log.matches("the largest bodies are refused: RPC_MAX_MEMORY is ");
        assert_eq!((code, lines.count()), (0, warnings), "{log}");
    }
}

#[tokio::test]
async fn an_address_in_use_is_a_failure_and_no_wrong_usage() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let (code, _, message) = serve(&[("RPC_LISTEN", &listen)], &[]).await;
    assert_eq!(code, 1, "{message}");
    let line = format!(
        "fly-rpc: RPC_LISTEN (--listen): cannot listen on {listen}: Address already in use"
    );
    assert!(message.starts_with(&line), "{message}");
}

#[tokio::test]
async fn every_setting_is_in_the_help() {
    let (code, help, _) = serve(&[], &["--help"]).await;
    assert_eq!(code, 0);
    for setting in fly_rpc::SETTINGS {
        let name = match setting.flag {
            "" => setting.variable.to_owned(),
            flag => format!("--{flag}"),
        };
        let line = format!("{name} <{}>", setting.value);
        assert!(help.contains(&line), "{line} is not in the help:\n{help}");
    }
}

#[tokio::test]
async fn no_instance_starts_in_a_region_whose_name_stands_for_others() {
    for word in ["primary", "any", "all", "each"] {
        for variable in ["FLY_REGION", "PRIMARY_REGION"] {
            let refusal = refusal(&[(variable, word)], &[]).await;
            assert!(
                refusal.starts_with(&format!("fly-rpc: {variable} "))
                    && refusal.contains(&format!("\"{word}\" does not fit: a region must be")),
                "{refusal}"
            );
        }
    }
}
