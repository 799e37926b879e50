//! `fly-rpc run`: the app as a child of its instance, how it starts and how both end. And the app in
//! `examples/apps/python`, under `fly-rpc dev` in two regions; `.ci/apps` does the same with those that need packages.

use std::{
    process::{ExitStatus, Stdio},
    time::Duration,
};

use futures_util::future::join_all;
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines},
    net::TcpSocket,
    process::{Child, ChildStdout, Command},
    time::Instant,
};

use crate::support::{
    cluster::Cluster,
    command::{run, run_with},
    patience::{eventually, in_time},
    process::Environment,
};

/// `fly-rpc run` with a shell script as its app.
struct Run {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Run {
    async fn start(flags: &[&str], script: &str) -> Self {
        let mut environment = Environment::new();
        environment.insert("RPC_LISTEN", "127.0.0.1:0".to_owned());
        environment.insert("RPC_DRAIN_DELAY", "0s".to_owned());
        environment.insert("FLY_REGION", "syd".to_owned());
        environment.insert("RPC_CLIENT_TOKENS", format!("ci:{}", "c".repeat(32)));
        Self::start_in(&environment, flags, script).await
    }

    async fn start_in(environment: &Environment, flags: &[&str], script: &str) -> Self {
        Self::of(Self::command(environment, flags, script))
    }

    fn command(environment: &Environment, flags: &[&str], script: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fly-rpc"));
        command.arg("run").args(flags);
        command.args(["--", "sh", "-c", script]).envs(environment);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    fn of(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next line on stdout, of the instance or of its app.
    async fn line(&mut self) -> String {
        in_time("a line", self.lines.next_line())
            .await
            .unwrap()
            .unwrap()
    }

    async fn until(&mut self, line: &str) {
        while self.line().await != line {}
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    async fn ended(&mut self) -> ExitStatus {
        in_time("the end", self.child.wait()).await.unwrap()
    }

    /// What it logged until its end, where its command has stderr piped.
    async fn log(&mut self) -> String {
        let (mut stderr, mut log) = (self.child.stderr.take().unwrap(), String::new());
        let read = in_time("the log", stderr.read_to_string(&mut log)).await;
        read.unwrap();
        log
    }
}

#[tokio::test]
async fn it_ends_with_the_code_of_the_app() {
    for (script, code) in [("exit 7", 7), ("kill -9 $$", 137), ("exit 0", 0)] {
        let mut run = Run::start(&[], script).await;
        assert_eq!(run.ended().await.code(), Some(code), "{script}");
    }
    let mut run = Run::start(&[], "exec /no/such/program 2>/dev/null").await;
    assert_eq!(run.ended().await.code(), Some(127));
}

#[tokio::test]
async fn the_app_gets_what_it_needs_and_none_of_the_secrets() {
    let script = "echo $PORT $FLY_REGION $PRIMARY_REGION ${#RPC_APP_TOKEN} ${#FLY_RPC_TOKEN}; echo [$RPC_CLIENT_TOKENS]; echo $FLY_RPC_URL";
    let mut run = Run::start(&["--primary=iad"], script).await;
    let listening = run.line().await;
    assert!(listening.starts_with("listening on "), "{listening}");
    assert_eq!(run.line().await, "3000 syd iad 64 64");
    assert_eq!(run.line().await, "[]");
    let url = run.line().await;
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
}

#[tokio::test]
async fn what_is_secret_in_the_environment_is_not_for_the_app() {
    let secrets = ["RPC_TOKEN", "RPC_KEY_STORE", "FLY_RPC_TOKEN"];
    let mut environment = Environment::from([("RPC_LISTEN", "127.0.0.1:0".to_owned())]);
    environment.extend(secrets.map(|name| (name, "s".repeat(32))));
    environment.insert("RPC_KEY_STORE", "redis://:secret@127.0.0.1:1".to_owned());
    // For the exporters of both.
    environment.insert("OTEL_EXPORTER_OTLP_HEADERS", "key=value".to_owned());
    let script = secrets
        .map(|name| format!("echo \"{name} [${name}]\"; "))
        .concat();
    let script = format!("{script}echo $OTEL_EXPORTER_OTLP_HEADERS");
    let mut run = Run::start_in(&environment, &[], &script).await;
    let listening = run.line().await;
    assert!(listening.starts_with("listening on "), "{listening}");
    for name in secrets {
        assert_eq!(run.line().await, format!("{name} []"));
    }
    assert_eq!(run.line().await, "key=value");
}

#[tokio::test]
async fn the_app_may_open_as_many_files_as_usual() {
    let mut command = Command::new("sh");
    let run = "ulimit -Sn 250; exec \"$0\" run --listen 127.0.0.1:0 -- sh -c 'ulimit -Sn'";
    command.args(["-c", run, env!("CARGO_BIN_EXE_fly-rpc")]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut run = Run::of(command);
    run.until("250").await;
    assert_eq!(run.ended().await.code(), Some(0));
}

#[tokio::test]
async fn an_app_may_export_traces_as_its_instance_cannot() {
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector.test"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ];
    let script = "echo $OTEL_EXPORTER_OTLP_ENDPOINT $OTEL_EXPORTER_OTLP_PROTOCOL";
    let run = ["run", "--listen=127.0.0.1:0", "--", "sh", "-c", script];
    let (code, said, log) = run_with(&run, &variables).await;
    assert_eq!(
        (code, said.lines().last()),
        (0, Some("https://collector.test grpc"))
    );
    assert!(
        log.contains("the app may export traces, the instance does not"),
        "{log}"
    );
}

#[tokio::test]
async fn no_client_has_the_name_of_the_app() {
    let variables = [(
        "RPC_CLIENT_TOKENS",
        "fly-rpc-run:0123456789abcdef0123456789abcdef",
    )];
    let (code, _, said) =
        run_with(&["run", "--listen=127.0.0.1:0", "--", "true"], &variables).await;
    let wrong = "fly-rpc: RPC_CLIENT_TOKENS: fly-rpc-run is what the app's own client is called; choose another name\n";
    assert_eq!((code, said.as_str()), (64, wrong));
}

#[tokio::test]
async fn the_calls_of_the_app_are_forwarded_until_it_has_ended() {
    let mut cluster = Cluster::builder().region("iad", 1).start().await;
    let address = cluster.free_address();
    let environment = cluster.environment("syd", "syd-1", address);
    let script = r#"
        call() {
            curl -s "$FLY_RPC_URL/rpc/iad/Fly.RPC/my_region" -H 'content-type: application/json' -d '[]' | cut -d, -f1
        }
        until call | grep -q '"iad"'; do sleep 0.05; done
        trap 'echo "stopping: $(call)"; exit 5' TERM
        echo up
        while :; do sleep 0.05; done"#;
    let mut run = Run::start_in(&environment, &[], script).await;
    run.until("up").await;
    run.signal(Signal::SIGTERM);
    run.until(r#"stopping: {"result":"iad""#).await;
    assert_eq!(run.ended().await.code(), Some(5));
}

#[tokio::test]
async fn the_calls_of_the_app_are_among_those_in_flight() {
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .functions()
        .start()
        .await;
    let address = cluster.free_address();
    let environment = cluster.environment("syd", "syd-1", address);
    let script = r#"
        echo "$FLY_RPC_URL"
        call() {
            curl -s "$FLY_RPC_URL/rpc/iad/$1" -H 'content-type: application/json' -H 'rpc-timeout-ms: 60000' -d "$2"
        }
        until call Kernel/%2B '[1,2]' | grep -q '"result":3'; do sleep 0.05; done
        call Test/block '["x"]'"#;
    let mut run = Run::start_in(&environment, &[], script).await;
    let of_app = loop {
        let line = run.line().await;
        if line.starts_with("http://") {
            break line;
        }
    };
    cluster.until_started("x").await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for url in [format!("http://{address}"), of_app] {
        let counts = async || {
            let events = client.get(format!("{url}/events")).send().await.unwrap();
            let first = { events }.chunk().await.unwrap().unwrap();
            String::from_utf8(first.to_vec()).unwrap()
        };
        let is_one = |counts: &String| counts.contains(r#"data: {"in_flight":1,"#);
        eventually("one call in flight", counts, is_one).await;
    }
    cluster.release("x");
}

#[tokio::test]
async fn a_kill_of_the_instance_ends_the_app_too() {
    let script = "trap '' TERM; echo up; while :; do sleep 0.05; done";
    let mut run = Run::start(&[], script).await;
    run.until("up").await;
    run.signal(Signal::SIGKILL);
    // The app holds the other end as long as it runs.
    in_time("the end of the output", async {
        while let Ok(Some(_)) = run.lines.next_line().await {}
    })
    .await;
}

#[tokio::test]
async fn an_app_that_ends_again_and_again_is_started_after_longer_pauses() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fly-rpc"));
    command.args(["run", "--listen=127.0.0.1:0", "--again", "--", "sh", "-c"]);
    command.arg("echo started; exit 3").kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let before = Instant::now();
    let mut run = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(run.stderr.take().unwrap()).lines();
    let (mut starts, mut pauses) = (0, Vec::new());
    in_time("four starts", async {
        while starts < 4 || pauses.len() < 3 {
            let line = lines.next_line().await.unwrap().unwrap();
            let pause = line.split_once("it is started again in ");
            match pause {
                Some((_, pause)) => pauses.push(pause.split('"').next().unwrap().to_owned()),
                None if line == "started" => starts += 1,
                None => {}
            }
        }
    })
    .await;
    assert_eq!(pauses[..3], ["200ms", "400ms", "800ms"]);
    // They are made, too.
    let took = before.elapsed();
    assert!(took >= Duration::from_millis(1_400), "{took:?}");
}

#[tokio::test]
async fn sigterm_reaches_the_app_after_the_drain_and_its_code_is_the_end() {
    let mut run = Run::start(
        &[],
        "trap 'echo stopping; exit 5' TERM; echo up; while :; do sleep 0.05; done",
    )
    .await;
    run.until("up").await;
    run.signal(Signal::SIGTERM);
    run.until("stopping").await;
    assert_eq!(run.ended().await.code(), Some(5));
}

#[tokio::test]
async fn an_app_that_does_not_stop_is_killed_with_what_it_started() {
    let script = "trap '' TERM; (trap '' TERM; echo $$; while :; do sleep 0.05; done) & echo up; wait; while :; do sleep 0.05; done";
    let mut run = Run::start(&["--app-stop-timeout=300ms"], script).await;
    run.until("up").await;
    run.signal(Signal::SIGTERM);
    assert_eq!(run.ended().await.code(), Some(137));
    // Its child held the pipe too.
    in_time("the end of the output", async {
        while let Ok(Some(_)) = run.lines.next_line().await {}
    })
    .await;
}

/// As `npm start` is: a first process that ends at SIGTERM at once, and another that is the server.
#[tokio::test]
async fn all_of_the_app_may_take_its_time_and_call_out_while_it_stops() {
    let mut cluster = Cluster::builder().region("iad", 1).start().await;
    let script = |once_up: &str| {
        format!(
            r#"
            call() {{
                curl -s "$FLY_RPC_URL/rpc/iad/Fly.RPC/my_region" -H 'content-type: application/json' -d '[]' | cut -d, -f1
            }}
            stop() {{
                while kill -0 $$ 2>/dev/null; do sleep 0.05; done
                sleep 1
                echo "stopping: $(call)"
                exit 0
            }}
            (
                until call | grep -q '"iad"'; do sleep 0.05; done
                trap stop TERM
                echo up
                {once_up}
                while :; do sleep 0.05; done
            ) &
            wait"#
        )
    };
    // At a signal to the instance, and when the first process ends by itself: with the code of that one, but for the SIGTERM
    // that it was sent.
    for (once_up, code) in [("", 0), ("kill -KILL $$", 137)] {
        let address = cluster.free_address();
        let environment = cluster.environment("syd", "syd-1", address);
        // Longer than a test waits.
        let flags = ["--app-stop-timeout=10m"];
        let mut run = Run::start_in(&environment, &flags, &script(once_up)).await;
        run.until("up").await;
        if once_up.is_empty() {
            run.signal(Signal::SIGTERM);
        }
        run.until(r#"stopping: {"result":"iad""#).await;
        assert_eq!(run.ended().await.code(), Some(code));
    }
}

/// An app whose first process ends at SIGTERM at once, and another does not: with the ids of both.
async fn start_stubborn(stop_timeout: &str) -> (Run, [Pid; 2]) {
    let script = r#"sh -c 'trap "" TERM; echo up $PPID $$; while :; do sleep 0.05; done' & wait"#;
    let mut run = Run::start(&[&format!("--app-stop-timeout={stop_timeout}")], script).await;
    loop {
        if let Some(pids) = run.line().await.strip_prefix("up ") {
            let pids = pids
                .split(' ')
                .map(|pid| Pid::from_raw(pid.parse().unwrap()));
            let pids = Vec::from_iter(pids).try_into().unwrap();
            return (run, pids);
        }
    }
}

#[tokio::test]
async fn nothing_of_the_app_outlives_the_program() {
    let (mut run, [_, other]) = start_stubborn("300ms").await;
    run.signal(Signal::SIGTERM);
    assert_eq!(run.ended().await.code(), Some(0));
    assert_eq!(kill(other, Signal::SIGKILL), Err(Errno::ESRCH));
    // Longer than a test waits: a second signal is what ends it.
    let (mut run, [first, other]) = start_stubborn("10m").await;
    run.signal(Signal::SIGTERM);
    let is_gone = async || kill(first, None).is_err();
    eventually("the end of the first", is_gone, |is_gone| *is_gone).await;
    run.signal(Signal::SIGINT);
    assert_eq!(run.ended().await.code(), Some(0));
    assert_eq!(kill(other, Signal::SIGKILL), Err(Errno::ESRCH));
}

#[tokio::test]
async fn an_app_is_started_again_when_all_of_the_one_before_has_ended() {
    let held = TcpSocket::new_v4().unwrap();
    held.set_reuseaddr(true).unwrap();
    held.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("RPC_DRAIN_DELAY", "0s".to_owned()),
        ("PORT", held.local_addr().unwrap().port().to_string()),
    ]);
    // The server is no first process: it ends that one, and goes on with the port.
    let script = r#"python3 -c '
import os, signal, socket, time
server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
def stop(*_):
    time.sleep(0.5)
    print("stopped", flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
print("serving", flush=True)
os.kill(os.getppid(), signal.SIGKILL)
while True:
    signal.pause()
'; true"#;
    let mut command = Run::command(&environment, &["--again"], script);
    command.stderr(Stdio::piped());
    let mut run = Run::of(command);
    let mut log = BufReader::new(run.child.stderr.take().unwrap()).lines();
    let mut said = Vec::new();
    while said.len() < 5 {
        let line = in_time("a line", log.next_line()).await.unwrap().unwrap();
        // Of Python's error too, should there be one.
        if !line.starts_with('{') {
            said.push(line);
        }
    }
    run.signal(Signal::SIGTERM);
    // With any code: that of its first process, should the signal come first.
    run.ended().await;
    assert_eq!(
        said,
        ["serving", "stopped", "serving", "stopped", "serving"]
    );
}

#[tokio::test]
async fn a_second_signal_kills_the_app_and_ends_the_program() {
    let script = "trap 'echo stopping' TERM; echo up; while :; do sleep 0.05; done";
    // Longer than a test waits, as long as there is to wait for anything.
    let patient = "--app-stop-timeout=10m";
    let mut run = Run::start(&[patient], script).await;
    run.until("up").await;
    run.signal(Signal::SIGTERM);
    run.until("stopping").await;
    run.signal(Signal::SIGINT);
    assert_eq!(run.ended().await.code(), Some(137));
    // Also while the instance still drains.
    let mut run = Run::start(&[patient, "--drain-delay=10m"], script).await;
    let listening = run.line().await;
    let url = listening.split(' ').nth(2).unwrap();
    run.until("up").await;
    run.signal(Signal::SIGTERM);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let code = async || {
        let answer = client.get(format!("{url}/readyz")).send().await.unwrap();
        answer.text().await.unwrap()
    };
    eventually("the drain", code, |answer| answer.contains("draining")).await;
    run.signal(Signal::SIGTERM);
    assert_eq!(run.ended().await.code(), Some(137));
}

#[tokio::test]
async fn a_second_signal_cuts_nothing_where_nothing_is_in_flight_and_the_log_says_so() {
    let script = "trap 'echo stopping' TERM; echo up; while :; do sleep 0.05; done";
    let environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("RPC_DRAIN_DELAY", "0s".to_owned()),
    ]);
    let mut command = Run::command(&environment, &["--app-stop-timeout=10m"], script);
    command.stderr(Stdio::piped());
    let mut run = Run::of(command);
    run.until("up").await;
    run.signal(Signal::SIGTERM);
    run.until("stopping").await;
    run.signal(Signal::SIGTERM);
    assert_eq!(run.ended().await.code(), Some(137));
    let log = run.log().await;
    let line = "a second signal: stopped at once; no call was in flight";
    assert_eq!(log.matches(line).count(), 1, "{log}");
    assert!(!log.contains("in flight was finished"), "{log}");
}

#[tokio::test]
async fn what_the_app_began_and_did_not_wait_for_goes_on_without_it_for_a_while() {
    let mut cluster = Cluster::builder()
        .region("iad", 1)
        .functions()
        .set("RPC_MAX_TIMEOUT", "1h")
        .start()
        .await;
    let address = cluster.free_address();
    let environment = cluster.environment("syd", "syd-1", address);
    let script = |name: &str, at_sigterm: &str| {
        format!(
            r#"
            begin() {{
                curl -s "$FLY_RPC_URL/rpc/iad/Test/block" -H 'content-type: application/json' -H 'prefer: respond-async' -H 'rpc-timeout-ms: 3600000' -d '["{name}"]'
            }}
            until begin | grep -q request_id; do sleep 0.05; done
            {at_sigterm}
            echo "up $$"
            while :; do sleep 0.05; done"#
        )
    };
    // What is cut when the time is up is said, also where the app ended by the signal.
    let mut run = Run::start_in(&environment, &["--drain-timeout=200ms"], &script("x", "")).await;
    while !run.line().await.starts_with("up ") {}
    cluster.until_started("x").await;
    run.signal(Signal::SIGTERM);
    assert_eq!(run.ended().await.code(), Some(1));
    // A second signal waits for nothing, also when the app has ended, and the log says what that cut.
    let mut command = Run::command(
        &environment,
        &["--drain-timeout=1h"],
        &script("y", "trap 'exit 0' TERM"),
    );
    command.stderr(Stdio::piped());
    let mut run = Run::of(command);
    let app = loop {
        if let Some(pid) = run.line().await.strip_prefix("up ") {
            break Pid::from_raw(pid.parse().unwrap());
        }
    };
    cluster.until_started("y").await;
    run.signal(Signal::SIGTERM);
    let is_gone = async || kill(app, None).is_err();
    eventually("the end of the app", is_gone, |is_gone| *is_gone).await;
    run.signal(Signal::SIGTERM);
    assert_eq!(run.ended().await.code(), Some(1));
    let log = run.log().await;
    let line = "stopped before everything in flight was finished";
    assert_eq!(log.matches(line).count(), 1, "{log}");
}

/// As in a container: process 1 of its own table of processes. `None` where the machine allows no namespaces.
#[cfg(target_os = "linux")]
async fn start_as_process_1(flags: &[&str], script: &str) -> Option<Run> {
    let isolated = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--pid", "--fork"]);
        command.args(["--kill-child", "--mount-proc"]);
        command
    };
    let allowed = isolated().arg("true").output().await;
    if !allowed.is_ok_and(|output| output.status.success()) {
        println!("not checked: this machine allows no namespaces");
        return None;
    }
    let environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("RPC_DRAIN_DELAY", "0s".to_owned()),
    ]);
    let inner = Run::command(&environment, flags, script);
    let mut command = isolated();
    let inner = inner.as_std();
    command.arg(inner.get_program()).args(inner.get_args());
    command.envs(&environment).stdin(Stdio::null());
    command.stdout(Stdio::piped()).kill_on_drop(true);
    Some(Run::of(command))
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn as_process_1_it_waits_for_all_of_the_app_to_stop_and_for_no_zombie() {
    // The first process ends at SIGTERM at once. The other then is an orphan, as are those that have ended before.
    let script = r#"
        sh -c '
            trap "sleep 0.5; echo stopped; exit 0" TERM
            for _ in 1 2 3; do (true &); done
            echo up
            kill -TERM 1
            while :; do sleep 0.05; done' &
        wait"#;
    // Longer than a test waits.
    let Some(mut run) = start_as_process_1(&["--app-stop-timeout=10m"], script).await else {
        return;
    };
    run.until("stopped").await;
    assert_eq!(run.ended().await.code(), Some(0));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn as_process_1_it_reaps_what_its_app_left_behind_and_ends_with_its_code() {
    // Each of the two kinds outlives who started it, and the app itself is a child of process 1 as well.
    let script = r#"
        children() { grep -lsx 'PPid:.1' /proc/[0-9]*/status | wc -l; }
        for _ in 1 2 3 4 5; do (sleep 0.1 &); (true &); done
        for _ in $(seq 500); do
            [ "$(children)" = 1 ] && break
            sleep 0.02
        done
        echo "children: $(children)"
        exit 7"#;
    let Some(mut run) = start_as_process_1(&[], script).await else {
        return;
    };
    run.until("children: 1").await;
    assert_eq!(run.ended().await.code(), Some(7));
}

#[tokio::test]
async fn the_port_of_the_app_is_not_that_of_the_instance() {
    for listen in ["--listen=127.0.0.1:3000", "--listen=127.0.0.1:03000"] {
        let (code, _, said) = run(&["run", listen, "--", "true"]).await;
        assert_eq!(code, 64);
        assert_eq!(
            said,
            "fly-rpc: PORT: 3000 is the port of RPC_LISTEN (--listen); the app needs one of its own\n"
        );
    }
}

#[tokio::test]
async fn the_port_of_the_app_is_a_number() {
    let variables = [("PORT", "+3000")];
    let (code, _, said) = run_with(&["run", "--", "true"], &variables).await;
    assert_eq!(code, 64);
    assert_eq!(
        said,
        "fly-rpc: PORT: \"+3000\" is not a port from 1 to 65535\n"
    );
}

#[tokio::test]
async fn the_python_example_runs_in_two_regions() {
    example("python/app.py", &["python3"], "ValueError").await;
}

#[tokio::test]
async fn the_python_example_takes_as_many_calls_at_once_as_it_is_sent() {
    // Held as long as the test runs, so that nobody else gets it: the app may bind it too, because this does not listen.
    let held = TcpSocket::new_v4().unwrap();
    held.set_reuseaddr(true).unwrap();
    held.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let port = held.local_addr().unwrap().port();
    let environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("FLY_REGION", "syd".to_owned()),
        ("PORT", port.to_string()),
    ]);
    let app = concat!(
        "exec python3 ",
        env!("CARGO_MANIFEST_DIR"),
        "/examples/apps/python/app.py 2>/dev/null"
    );
    let mut run = Run::start_in(&environment, &[], app).await;
    let listening = run.line().await;
    let url = listening.split(' ').nth(2).unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let call = async |_: u32| {
        let request = client
            .post(format!("{url}/rpc/syd/Math/add"))
            .header("content-type", "application/json")
            .header("rpc-timeout-ms", 60_000);
        let answer = request.body("[1,2]").send().await.unwrap();
        answer.status().as_u16()
    };
    eventually("a sum", async || call(0).await, |status| *status == 200).await;
    for _ in 0..5 {
        // As many as RPC_APP_CONCURRENCY lets through.
        let all = async || join_all((0..64).map(&call)).await;
        // On a busy machine, its list may be late three times: then it is down, and none is sent.
        let statuses = eventually("calls", all, |statuses| *statuses != [503; 64]).await;
        assert_eq!(statuses, [200; 64]);
    }
}

/// Runs an example under `dev`, and calls each of its functions from one region in the other.
async fn example(file: &str, program: &[&str], kind: &str) {
    let folder = TempDir::new().unwrap();
    let path = format!("{}/examples/apps/{file}", env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_fly-rpc"));
    command
        .args([
            "dev",
            "--port=0",
            "--poll-interval=100ms",
            "--regions=iad,syd",
            "--",
        ])
        .args(program)
        .arg(path);
    command
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut dev = command.spawn().unwrap();
    let mut lines = BufReader::new(dev.stdout.take().unwrap()).lines();
    let url = in_time("the welcome", async {
        loop {
            let line = lines.next_line().await.unwrap().unwrap();
            if let Some((_, url)) = line.split_once("iad-1     ") {
                return url.to_owned();
            }
        }
    });
    let url = url.await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let call = async |function: &str, args: Value| -> Value {
        let (module, function) = function.rsplit_once('.').unwrap();
        let body =
            json!({"module": module, "function": function, "args": args, "timeout_ms": 20_000})
                .to_string();
        let request = client
            .post(format!("{url}/rpc/syd"))
            .header("content-type", "application/json")
            .body(body);
        serde_json::from_str(&request.send().await.unwrap().text().await.unwrap()).unwrap()
    };
    let add = async || call("Math.add", json!([1, 2])).await["result"].clone();
    eventually("a sum", add, |sum| *sum == 3).await;
    let failed = call("Demo.fail", json!(["no"])).await;
    assert_eq!(
        failed["error"],
        json!({"kind": kind, "message": "no", "data": null})
    );
    assert_eq!(call("Demo.sleep", json!([20])).await["result"], Value::Null);
    // The app in iad may start later.
    let add_in = async || call("Demo.add_in", json!(["iad", 3, 4])).await["result"].clone();
    eventually("a sum across", add_in, |sum| *sum == 7).await;
    let pid = i32::try_from(dev.id().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
    let status = in_time("the end", dev.wait()).await;
    assert_eq!(status.unwrap().code(), Some(0));
}
