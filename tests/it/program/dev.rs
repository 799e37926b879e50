//! `fly-rpc dev` as a newcomer runs it: the addresses it prints, the curl line it prints, what can be typed, and Ctrl-C.

use std::{
    collections::BTreeMap,
    fs,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
};

use crate::support::{
    command::run,
    patience::{eventually, in_time},
};

/// A cluster that `dev` runs.
struct Dev {
    child: Child,
    stdin: ChildStdin,
    /// What it printed up to the last line of its welcome.
    welcome: Vec<String>,
    /// Where each instance is, by name.
    ports: BTreeMap<String, u16>,
    said: Arc<Mutex<Vec<String>>>,
}

impl Dev {
    async fn start(arguments: &[&str]) -> Self {
        Self::start_at(0, &[], arguments).await
    }

    async fn start_at(port: u16, variables: &[(&str, &str)], arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fly-rpc"));
        command.args(["dev", "--poll-interval", "100ms"]);
        command.arg(format!("--port={port}"));
        command.args(arguments).env_clear();
        command.envs(variables.iter().copied());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let said = Arc::<Mutex<Vec<String>>>::default();
        tokio::spawn(collect(child.stderr.take().unwrap(), Arc::clone(&said)));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut welcome = Vec::new();
        in_time("the welcome", async {
            while let Some(line) = lines.next_line().await.unwrap() {
                let is_last = line.starts_with("Ctrl-C");
                welcome.push(line);
                if is_last {
                    return;
                }
            }
            panic!("ended before its welcome: {said:?}");
        })
        .await;
        let rows = welcome.iter().map(|line| line.split_whitespace());
        let rows = rows.map(Iterator::collect::<Vec<_>>);
        let port = |row: Vec<&str>| {
            let port = row.get(2)?.strip_prefix("http://localhost:")?;
            Some((row[1].to_owned(), port.parse().unwrap()))
        };
        Self {
            ports: rows.filter_map(port).collect(),
            stdin: child.stdin.take().unwrap(),
            child,
            welcome,
            said,
        }
    }

    /// Types a line, and waits until `dev` has said this.
    async fn type_line(&mut self, line: &str, answer: &str) {
        self.stdin
            .write_all(format!("{line}\n").as_bytes())
            .await
            .unwrap();
        self.until_said(answer).await;
    }

    async fn until_said(&self, what: &str) {
        let said = async || self.said.lock().unwrap().join("\n");
        eventually(what, said, |said| said.contains(what)).await;
    }

    /// What the instance `name` answers.
    async fn get(&self, name: &str, path: &str) -> Value {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("http://127.0.0.1:{}{path}", self.ports[name]);
        let answer = client.get(url).send().await.unwrap();
        serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
    }

    /// Waits until `iad-1` sees the instance `name` in `state`.
    async fn until_state(&self, name: &str, state: &str) {
        let region = &name[..3];
        let seen = async || {
            let region = self.get("iad-1", &format!("/regions/{region}")).await;
            // An instance that has just started knows no region yet.
            let instances = region["instances"].as_array().cloned().unwrap_or_default();
            let found = instances.into_iter().find(|it| it["instance"] == name);
            found.map_or(Value::Null, |it| it["state"].clone())
        };
        eventually(state, seen, |seen| *seen == state).await;
    }

    /// Presses Ctrl-C, and waits for the end.
    async fn interrupt(&mut self) -> ExitStatus {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
        in_time("the end", self.child.wait()).await.unwrap()
    }
}

async fn collect(stream: impl AsyncRead + Unpin, said: Arc<Mutex<Vec<String>>>) {
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        said.lock().unwrap().push(line);
    }
}

#[tokio::test]
async fn dev_runs_a_cluster_until_ctrl_c() {
    let mut dev = Dev::start(&["--regions", "syd:2,iad"]).await;
    let names: Vec<_> = dev.ports.keys().cloned().collect();
    assert_eq!(names, ["iad-1", "syd-1", "syd-2"]);
    let curls = dev.welcome.iter().map(|line| line.trim_start());
    let curls: Vec<_> = curls.filter(|line| line.starts_with("curl ")).collect();
    assert_eq!(curls.len(), 3, "{:#?}", dev.welcome);
    let answer = Command::new("sh").args(["-c", curls[0]]).output().await;
    let answer: Value = serde_json::from_slice(&answer.unwrap().stdout).unwrap();
    assert_eq!(
        (&answer["result"], &answer["meta"]["region"]),
        (&json!("FLY"), &json!("iad"))
    );

    let status = dev.interrupt().await;
    let log = dev.said.lock().unwrap().join("\n");
    assert_eq!(status.code(), Some(0), "{log}");
    for (name, port) in &dev.ports {
        assert!(
            log.contains(&format!("{name} ")),
            "{name} has no line in {log}"
        );
        std::net::TcpStream::connect(("127.0.0.1", *port)).unwrap_err();
    }
}

#[tokio::test]
async fn what_an_app_left_running_does_not_hold_up_the_end() {
    let folder = TempDir::new().unwrap();
    let mark = folder.path().join("left");
    let left = "echo $$ >$0.new; mv $0.new $0; exec sleep 600";
    let app = format!("setsid sh -c '{left}' {} & exec sleep 600", mark.display());
    let mut dev = Dev::start(&["--regions", "iad", "--", "sh", "-c", &app]).await;
    let written = async || fs::read_to_string(&mark).ok();
    let id = eventually("what is left", written, Option::is_some).await;
    let id = Pid::from_raw(id.unwrap().trim().parse().unwrap());
    let _left = scopeguard::guard(id, |id| kill(id, Signal::SIGKILL).unwrap());
    let status = dev.interrupt().await;
    let log = dev.said.lock().unwrap().join("\n");
    assert_eq!(status.code(), Some(0), "{log}");
}

#[tokio::test]
async fn what_an_app_started_ends_with_it_whatever_it_ignores() {
    let folder = TempDir::new().unwrap();
    let mark = folder.path().join("started");
    let started = "echo $$ >$0.new; mv $0.new $0; exec sleep 600";
    let app = format!(
        "trap '' TERM; sh -c '{started}' {} & exec sleep 600",
        mark.display()
    );
    let arguments = ["--regions", "iad", "--", "sh", "-c", &app];
    let mut dev = Dev::start_at(0, &[("RPC_APP_STOP_TIMEOUT", "60s")], &arguments).await;
    let written = async || fs::read_to_string(&mark).ok();
    let id = eventually("what was started", written, Option::is_some).await;
    let id = Pid::from_raw(id.unwrap().trim().parse().unwrap());
    let _left = scopeguard::guard(id, |id| {
        let _ = kill(id, Signal::SIGKILL);
    });
    let status = dev.interrupt().await;
    assert_eq!(status.code(), Some(0));
    let is_gone = async || kill(id, None).is_err();
    eventually("its end", is_gone, |is_gone| *is_gone).await;
}

#[tokio::test]
async fn an_app_may_print_anything() {
    let app = r"head -c 100000 /dev/zero | tr '\0' x; echo; printf 'caf\351\n'; echo and so on; exec sleep 600";
    let mut dev = Dev::start(&["--regions", "iad", "--", "sh", "-c", app]).await;
    dev.until_said("and so on").await;
    assert_eq!(dev.interrupt().await.code(), Some(0));
    let said = dev.said.lock().unwrap().join("\n");
    assert!(said.contains("caf\u{fffd}"), "{said}");
    let longest = said.lines().map(|line| line.matches('x').count()).max();
    assert_eq!(longest, Some(64 << 10));
}

#[tokio::test]
async fn an_app_that_does_not_start_is_said_once_and_so_is_that_it_does() {
    let folder = TempDir::new().unwrap();
    let mark = folder.path().join("go");
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/apps/python/app.py");
    // One waits, the other ends again and again.
    let app = format!(
        r#"[ "$FLY_REGION" = iad ] || [ -e {0} ] || exit 3
        until [ -e {0} ]; do sleep 0.05; done
        exec python3 {example}"#,
        mark.display()
    );
    let mut dev = Dev::start(&["--regions", "iad,syd", "--", "sh", "-c", &app]).await;
    let missing = "does not serve its functions: cannot connect to the app: Connection refused";
    dev.until_said(missing).await;
    fs::write(&mark, "").unwrap();
    dev.until_said("the app serves its functions beside every instance")
        .await;
    assert_eq!(dev.interrupt().await.code(), Some(0));
    let said = dev.said.lock().unwrap().join("\n");
    assert_eq!(said.matches(missing).count(), 1, "{said}");
}

#[tokio::test]
async fn an_app_gets_a_port_that_the_kernel_gives_to_nobody_meanwhile() {
    let folder = TempDir::new().unwrap();
    let mark = folder.path().join("port");
    let app = format!(
        "echo $PORT >{0}.new; mv {0}.new {0}; exec sleep 600",
        mark.display()
    );
    let mut dev = Dev::start(&["--regions", "iad", "--", "sh", "-c", &app]).await;
    let written = async || fs::read_to_string(&mark).ok();
    let port = eventually("its port", written, Option::is_some)
        .await
        .unwrap();
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let first: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
    assert!(
        port.trim().parse::<u16>().unwrap() < first,
        "{port} of {range}"
    );
    assert_eq!(dev.interrupt().await.code(), Some(0));
}

#[tokio::test]
async fn a_port_of_another_program_is_named_first_and_the_lines_fit() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    let mut dev = Dev::start_at(port, &[], &["--regions", "iad,syd"]).await;
    let line = format!("another program has port {port}");
    let said = dev.said.lock().unwrap()[0].clone();
    assert!(said.starts_with(&line), "{said}");
    assert!(dev.welcome[1].starts_with(&line), "{:#?}", dev.welcome);
    let iad = dev.ports["iad-1"];
    assert_ne!(iad, port);
    let lines = dev.welcome.iter().map(|line| line.trim_start());
    let lines: Vec<_> = lines
        .filter(|line| line.starts_with("curl ") || line.starts_with("fly-rpc "))
        .collect();
    assert_eq!(lines.len(), 4, "{:#?}", dev.welcome);
    for line in lines {
        assert!(line.contains(&format!("localhost:{iad}")), "{line}");
    }
    assert_eq!(dev.interrupt().await.code(), Some(0));
}

#[tokio::test]
async fn of_the_environment_timeouts_and_limits_hold_for_every_instance() {
    let variables = [
        ("RPC_DEFAULT_TIMEOUT", "1234ms"),
        ("RPC_MAX_MEMORY", "64MiB"),
        // Where an instance is, and what it listens on, is for `dev` to say.
        ("FLY_REGION", "fra"),
        ("RPC_LISTEN", "0.0.0.0:1"),
        ("RPC_TOKEN", "short"),
    ];
    let mut dev = Dev::start_at(0, &variables, &["--regions", "iad,syd"]).await;
    for name in ["iad-1", "syd-1"] {
        let explained = "/regions/primary/explain?function=String.upcase";
        let explained = dev.get(name, explained).await;
        assert_eq!(explained["policy"]["timeout_ms"], 1234, "{explained}");
    }
    assert_eq!(dev.interrupt().await.code(), Some(0));
}

#[tokio::test]
async fn what_is_typed_breaks_the_cluster_and_mends_it() {
    let mut dev = Dev::start(&["--regions", "iad,syd:2", "--chaos", "--latency", "10ms"]).await;
    assert!(
        dev.welcome
            .iter()
            .any(|line| line.starts_with("  kill NAME "))
    );
    dev.type_line("kill syd-1", "syd-1 is killed").await;
    dev.until_said("syd-1 has ended: signal: 9 (SIGKILL)").await;
    dev.until_state("syd-1", "suspect").await;
    dev.type_line("start syd-1", "syd-1 is back").await;
    dev.until_state("syd-1", "ready").await;

    dev.type_line("stop syd-2", "syd-2 hangs").await;
    dev.until_state("syd-2", "suspect").await;
    dev.type_line("start syd-2", "syd-2 has not ended").await;
    dev.type_line("resume syd-2", "syd-2 goes on").await;
    dev.until_state("syd-2", "ready").await;

    dev.type_line("drain syd-2", "syd-2 drains").await;
    dev.until_said("syd-2 has ended: exit status: 0").await;
    dev.until_state("syd-2", "suspect").await;

    dev.type_line("dns down", "DNS is down").await;
    let stale = async || dev.get("iad-1", "/regions").await["discovery"]["stale"].clone();
    eventually("no DNS", stale, |stale| *stale == true).await;
    dev.type_line("dns up", "DNS is up").await;
    let stale = async || dev.get("iad-1", "/regions").await["discovery"]["stale"].clone();
    eventually("DNS again", stale, |stale| *stale == false).await;

    dev.type_line(
        "kill mars-1",
        "no instance mars-1; there are iad-1, syd-1, syd-2",
    )
    .await;
    dev.type_line("help", "Type, while it runs:").await;
    dev.type_line("start syd-2", "syd-2 is back").await;
    dev.until_state("syd-2", "ready").await;
    assert_eq!(dev.interrupt().await.code(), Some(0));
}

/// The address in the first line of the welcome, and the token in its fragment.
fn page(dev: &Dev) -> (String, String) {
    let line = dev.welcome.iter().find(|line| !line.is_empty()).unwrap();
    let page = line.strip_prefix("Look at it: ").unwrap();
    let (page, fragment) = page.split_once('#').unwrap_or((page, ""));
    // A name needs no resolver here.
    let page = page.replace("localhost", "127.0.0.1");
    (page, fragment.replace("control=", ""))
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

#[tokio::test]
async fn the_page_is_that_of_the_first_instance() {
    let dev = Dev::start(&["--regions", "iad,syd"]).await;
    let (page, token) = page(&dev);
    let port = dev.ports["iad-1"];
    assert_eq!(
        (page.as_str(), token.as_str()),
        (format!("http://127.0.0.1:{port}/ui").as_str(), "")
    );
    assert_eq!(client().get(page).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn the_page_of_chaos_does_what_is_typed_for_who_has_its_token() {
    let dev = Dev::start(&["--regions", "iad,syd", "--chaos"]).await;
    let (page, token) = page(&dev);
    let (root, _) = page.split_once("/at/iad-1/ui").unwrap();
    let client = client();
    assert_eq!(client.get(&page).send().await.unwrap().status(), 200);

    let control = format!("{root}/control");
    let kill = || client.post(&control).body("kill syd-1");
    let own = || kill().bearer_auth(&token);
    for (request, status) in [
        (kill(), 401),
        (kill().bearer_auth("another"), 401),
        (client.get(&control), 401),
        (own().header("host", "evil.example"), 403),
        (own().header("origin", "http://evil.example"), 403),
        (own().header("sec-fetch-site", "cross-site"), 403),
        (own().header("sec-fetch-site", "same-site"), 403),
        (client.get(&page).header("host", "evil.example"), 403),
        (client.get(format!("{root}/at/mars-1/ui")), 404),
        (client.get(format!("{root}/")), 404),
    ] {
        assert_eq!(request.send().await.unwrap().status(), status);
    }

    let json = async |request: reqwest::RequestBuilder| -> Value {
        let answer = request.bearer_auth(&token).send().await.unwrap();
        serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
    };
    let shown = async || json(client.get(&control)).await["instances"].clone();
    let instances = |iad: bool, syd: bool| json!([{"name": "iad-1", "has_ended": iad}, {"name": "syd-1", "has_ended": syd}]);
    assert_eq!(shown().await, instances(false, false));
    let say =
        async |line: &'static str| json(client.post(&control).body(line)).await["said"].clone();
    assert_eq!(
        say("kill syd-1").await,
        "syd-1 is killed; `start syd-1` starts it again"
    );
    dev.until_state("syd-1", "suspect").await;
    eventually("an end", shown, |seen| *seen == instances(false, true)).await;
    assert_eq!(
        say("kill mars-1").await,
        "no instance mars-1; there are iad-1, syd-1"
    );

    // The page outlives the instance that it shows.
    say("kill iad-1").await;
    eventually("no instance", shown, |seen| *seen == instances(true, true)).await;
    let gone = client.get(&page).send().await.unwrap();
    assert_eq!(gone.status(), 502);
    assert_eq!(say("start iad-1").await, "iad-1 is back");
    assert_eq!(say("start syd-1").await, "syd-1 is back");
    dev.until_state("syd-1", "ready").await;

    // A call, with its answer as the instance gave it.
    let call = || {
        client
            .post(format!("{root}/at/iad-1/rpc/syd"))
            .header("content-type", "application/json")
            .body(r#"{"module":"Kernel","function":"+","args":[1,2]}"#)
    };
    assert_eq!(json(call()).await["result"], 3);
    // With the headers as the page sent them.
    for (name, value, status) in [
        ("prefer", "respond-async", 202),
        ("rpc-tiemout", "1", 400),
        ("origin", root, 200),
    ] {
        let answer = call().header(name, value).send().await.unwrap();
        assert_eq!(answer.status(), status, "{name}");
    }
    let keyed = async || json(call().header("idempotency-key", "one")).await["meta"].clone();
    keyed().await;
    assert_eq!(keyed().await["replayed"], true);
    let mut events = client
        .get(format!("{root}/at/iad-1/events"))
        .send()
        .await
        .unwrap();
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    let first = in_time("an event", events.chunk()).await.unwrap().unwrap();
    assert!(first.starts_with(b"event: counts"), "{first:?}");
}

#[tokio::test]
async fn between_two_regions_everything_takes_its_way() {
    let dev = Dev::start(&["--regions", "iad,syd", "--latency", "50ms"]).await;
    let call = |region: &'static str| {
        let url = format!("http://127.0.0.1:{}/rpc/{region}", dev.ports["iad-1"]);
        let call = json!({"module": "Fly.RPC", "function": "my_region"}).to_string();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.post(url).header("content-type", "application/json");
        async move {
            let answer = request.body(call).send().await.unwrap();
            let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
            assert_eq!(answer["result"], region);
            answer["meta"]["elapsed_ms"].as_f64().unwrap()
        }
    };
    eventually("no way here", || call("iad"), |took| *took < 50.0).await;
    // The connection takes its way there and back as well; a later call needs none.
    let first = call("syd").await;
    assert!(first >= 200.0, "{first}");
    let later = eventually("no connection", || call("syd"), |took| *took < 200.0).await;
    assert!(later >= 100.0, "{later}");
}

/// An app with one function, named after its region, whose timeout is in a file: python3 -c APP FILE.
const APP: &str = r#"
import http.server, json, os, sys

class App(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        function = "Only." + os.environ["FLY_REGION"]
        with open(sys.argv[1]) as file:
            declared = {"timeout_ms": int(file.read())}
        body = json.dumps({"functions": {function: declared}}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), App).serve_forever()
"#;

#[tokio::test]
async fn what_a_far_region_declares_is_known_and_so_is_each_change() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("timeout");
    fs::write(&file, "1111").unwrap();
    let app = ["python3", "-c", APP, file.to_str().unwrap()];
    // The introduction and the list take a round trip each, and one for the connection: more than a probe may take.
    let arguments = ["--regions", "iad,syd", "--latency", "130ms", "--"];
    let dev = Dev::start(&[&arguments[..], &app].concat()).await;
    let declared = async || {
        let path = "/regions/syd/explain?function=Only.syd";
        dev.get("iad-1", path).await["policy"]["timeout_ms"].clone()
    };
    eventually("the list", declared, |timeout| *timeout == 1111).await;
    fs::write(&file, "2222").unwrap();
    eventually("the next list", declared, |timeout| *timeout == 2222).await;
}

#[tokio::test]
async fn a_cluster_that_cannot_be_is_wrong_usage() {
    for (arguments, what) in [
        (
            &["--regions", "iad:0"][..],
            "\"iad:0\" needs a count from 1 to 64, as in syd:2",
        ),
        (&["--regions", "iad:x"], "\"iad:x\" needs a count"),
        (&["--regions", "iad:+2"], "\"iad:+2\" needs a count"),
        (&["--regions", "iad:65"], "\"iad:65\" needs a count"),
        (&["--regions", ""], "\"\": a region must be"),
        (&["--regions", "IAD"], "\"IAD\": a region must be"),
        (&["--regions", "iad,iad"], "iad is given twice"),
        (
            &["--regions", "iad:40,syd:40"],
            "80 instances are more than 64",
        ),
        (&["--latency", "1s"], "must be 200ms or less"),
        (
            &["--latency", "50"],
            "must be `realistic`, or a duration such as 50ms",
        ),
        (
            &["--regions", "iad,mars", "--latency", "realistic"],
            "fly-rpc: nobody knows where mars is; known are ams, ",
        ),
        // Refused by the instance itself.
        (
            &["--regions", "iad", "--port=0", "--poll-interval", "5"],
            "fly-rpc: instance iad-1 did not start; its own message is above",
        ),
    ] {
        let (code, _, message) = run(&[&["dev"], arguments].concat()).await;
        assert_eq!(code, 64);
        assert!(message.contains(what), "{message}");
    }
}
