//! What nginx and `HAProxy` make of answers that come before a request's body was read: none may be lost on its way.

use std::{net::SocketAddr, path::Path, process::Stdio, time::Duration};

use axum::{Router, extract::DefaultBodyLimit, routing::post};
use fly_rpc::{Config, ReplayToPrimary};
use futures_util::future::join_all;
use reqwest::{Client, RequestBuilder};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, UnixStream},
    process::{Child, Command},
};

use crate::support::{patience::eventually, process::answer};

/// A proxy from Debian in front of an application, with its defaults; it listens on a socket file, so that no port is
/// guessed, and is killed when it is dropped.
struct Proxy {
    client: Client,
    _process: Child,
    _folder: TempDir,
}

impl Proxy {
    /// nginx in front of `application`, with `settings` besides its defaults.
    async fn nginx(application: SocketAddr, settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        // One process that stays in the foreground and writes nowhere else; the rest is as nginx has it.
        let configuration = format!(
            "daemon off; master_process off; pid {path}/pid; error_log stderr crit;
            events {{}}
            http {{
                access_log off;
                client_body_temp_path {path}/body; proxy_temp_path {path}/proxy; fastcgi_temp_path {path}/fastcgi;
                uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi;
                server {{
                    listen unix:{path}/socket;
                    {settings}
                    location / {{ proxy_pass http://{application}; }}
                }}
            }}"
        );
        Self::start("nginx", &["-c"], &configuration, folder).await
    }

    /// `HAProxy` in front of `application`.
    async fn haproxy(application: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let configuration = format!(
            "defaults
                mode http
                timeout connect 5s
                timeout client 60s
                timeout server 60s
            frontend front
                bind unix@{path}/socket
                default_backend back
            backend back
                server application {application}\n"
        );
        Self::start("haproxy", &["-db", "-f"], &configuration, folder).await
    }

    async fn start(program: &str, flags: &[&str], configuration: &str, folder: TempDir) -> Self {
        let (file, socket) = (
            folder.path().join("configuration"),
            folder.path().join("socket"),
        );
        std::fs::write(&file, configuration).unwrap();
        let process = Command::new(found(program))
            .args(flags)
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let connect = async || UnixStream::connect(&socket).await;
        eventually(program, connect, Result::is_ok).await.unwrap();
        let client = Client::builder()
            .no_proxy()
            .unix_socket(socket)
            .timeout(Duration::from_secs(60))
            .build()
            .unwrap();
        Self {
            client,
            _process: process,
            _folder: folder,
        }
    }

    fn post(&self, path: &str, length: usize) -> RequestBuilder {
        self.client
            .post(format!("http://localhost{path}"))
            .body(vec![b'x'; length])
    }
}

/// Where Debian puts `program`.
fn found(program: &str) -> &'static Path {
    let path = match program {
        "nginx" => Path::new("/usr/sbin/nginx"),
        _ => Path::new("/usr/sbin/haproxy"),
    };
    assert!(
        path.exists(),
        "these tests need Debian's packages nginx-light and haproxy: apt-get install nginx-light haproxy"
    );
    path
}

/// An application in `syd` whose primary region is `iad`.
async fn application() -> SocketAddr {
    let mut identity = Config::default().identity;
    identity.region = "syd".parse().unwrap();
    identity.primary = "iad".parse().unwrap();
    let app = Router::new()
        .route("/notes", post(async || "written"))
        .layer(DefaultBodyLimit::disable())
        .layer(ReplayToPrimary::new(&identity).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

/// The statuses of `count` answers to `request`, sent all at once; and how many bear `fly-replay`.
async fn answers(count: usize, request: impl Fn() -> RequestBuilder) -> (Vec<u16>, usize) {
    let answers = join_all((0..count).map(|_| answer(request()))).await;
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    let is_replay =
        |answer: &&crate::support::process::Answer| answer.headers.contains_key("fly-replay");
    let replays = answers.iter().filter(is_replay).count();
    (
        answers.iter().map(|answer| answer.status).collect(),
        replays,
    )
}

#[tokio::test]
async fn no_proxy_loses_a_write_that_is_to_be_replayed() {
    let application = application().await;
    for proxy in [
        Proxy::nginx(application, "").await,
        Proxy::haproxy(application).await,
    ] {
        for length in [200_000, 900_000] {
            let replayed = answers(20, || proxy.post("/notes", length)).await;
            assert_eq!(replayed, (vec![409; 20], 20), "{length}");
        }
    }
}

#[tokio::test]
async fn no_proxy_loses_the_reason_why_a_write_is_not_replayed() {
    let application = application().await;
    for proxy in [
        Proxy::nginx(application, "client_max_body_size 0;").await,
        Proxy::haproxy(application).await,
    ] {
        let large = answers(20, || proxy.post("/notes", 5_000_000)).await;
        assert_eq!(large, (vec![413; 20], 0));
        let came_back = || {
            proxy
                .post("/notes", 900_000)
                .header("fly-replay-failed", "reason=timeout")
        };
        assert_eq!(answers(20, came_back).await, (vec![503; 20], 0));
    }
}
