//! Places for connections, where a process may have few files open: strangers who hold theirs idle give way, and calls,
//! forwards, probes and health checks go on.

use serde_json::json;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
};

use crate::support::{
    cluster::Cluster,
    open_files::open_files,
    patience::{eventually, in_time},
    process::{Environment, Process},
    raw,
};

/// How many files an instance of these tests may have open.
const FILES: usize = 128;
/// More connections than it has files.
const STRANGERS: usize = 3 * FILES;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_strangers_stop_neither_calls_nor_forwards_nor_probes() {
    let mut cluster = Cluster::builder().region("syd", 1).start().await;
    let address = cluster.free_address();
    let environment = cluster.environment("iad", "iad-1", address);
    let limited = Process::start_with_open_files(&environment, FILES).await;
    cluster.instances.push(limited);
    cluster.announce_all();
    cluster.until_all_see_all().await;
    let (syd, iad) = (cluster.instance("syd-1"), cluster.instance("iad-1"));
    let files = open_files(iad);

    let mut strangers = Vec::new();
    for number in 0..STRANGERS {
        let mut stranger = TcpStream::connect(iad.address).await.unwrap();
        match number % 3 {
            0 => {}
            // One that gave way already resets what it is sent.
            1 => drop(
                stranger
                    .write_all(b"POST /rpc/iad HTTP/1.1\r\nhost: localhost")
                    .await,
            ),
            _ => {
                let request = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
                stranger.write_all(request).await.unwrap();
                assert_eq!(raw::next(&mut stranger).await.status, 200);
            }
        }
        strangers.push(stranger);
        if number % 8 == 0 {
            assert_eq!(iad.get("/healthz").await.status, 200);
            assert_eq!(iad.call("syd", "Kernel.+", json!([1, 2])).await.result(), 3);
            assert_eq!(syd.call("iad", "Kernel.+", json!([1, 2])).await.result(), 3);
            assert!(open_files(iad) < FILES * 7 / 8, "{}", open_files(iad));
        }
    }
    let rounds = async || syd.get("/regions").await.body["discovery"]["rounds"].as_u64();
    let before = rounds().await;
    eventually("five more rounds", rounds, |now| {
        *now > before.map(|rounds| rounds + 5)
    })
    .await;
    cluster.until_ready("syd-1", &["iad-1", "syd-1"]).await;

    drop(strangers);
    let open = async || open_files(iad);
    eventually("the files of before", open, |open| *open <= files + 2).await;
}

#[tokio::test]
async fn clients_that_keep_every_place_busy_leave_some_to_health_checks() {
    let environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("FLY_REGION", "iad".to_owned()),
    ]);
    let instance = Process::start_with_open_files(&environment, FILES).await;
    let head = b"POST /rpc/iad HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
    let mut busy = Vec::new();
    let refused = loop {
        let mut client = TcpStream::connect(instance.address).await.unwrap();
        client.write_all(head).await.unwrap();
        busy.push(client);
        assert!(busy.len() < FILES, "none is refused");
        // A body that comes no further is waited for ten seconds: the first must not be given up before the last is there.
        if busy.len() < FILES / 2 {
            continue;
        }
        let answer = instance.call("iad", "Kernel.+", json!([1, 2])).await;
        if answer.status != 200 {
            break answer;
        }
    };
    assert_eq!(refused.problem(), (503, "overloaded", "no"));
    assert_eq!(refused.detail(), "all connections for clients are busy");
    assert_eq!(instance.get("/healthz").await.status, 200);
    assert_eq!(instance.get("/internal/region").await.status, 200);
    drop(busy);
    let again = async || instance.call("iad", "Kernel.+", json!([1, 2])).await.status;
    eventually("served again", again, |status| *status == 200).await;
}

#[tokio::test]
async fn strangers_that_do_not_read_large_documents_leave_places_to_health_checks() {
    let environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("FLY_REGION", "iad".to_owned()),
    ]);
    let instance = Process::start_with_open_files(&environment, FILES).await;
    for path in ["/openapi.json", "/docs/swagger-ui-bundle.js"] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        let mut strangers = Vec::new();
        let refused = loop {
            let socket = TcpSocket::new_v4().unwrap();
            // What the kernel takes of a document nobody waits for.
            socket.set_recv_buffer_size(4 << 10).unwrap();
            let mut stranger = socket.connect(instance.address).await.unwrap();
            stranger.write_all(request.as_bytes()).await.unwrap();
            let mut status = [0; b"HTTP/1.1 200".len()];
            in_time("an answer", stranger.peek(&mut status))
                .await
                .unwrap();
            if status != *b"HTTP/1.1 200" {
                break raw::next(&mut stranger).await;
            }
            strangers.push(stranger);
            assert!(strangers.len() < FILES, "none is refused");
        };
        assert_eq!(refused.problem(), (503, "overloaded", "no"));
        assert_eq!(refused.detail(), "all connections for clients are busy");
        assert_eq!(instance.get("/healthz").await.status, 200);
        assert_eq!(instance.get("/internal/region").await.status, 200);
        drop(strangers);
        let again = async || instance.get(path).await.status;
        eventually("shown again", again, |status| *status == 200).await;
    }
}
