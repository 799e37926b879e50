//! What many peers cost one instance: how long it takes to find them all, its memory, and the processor time that keeping
//! them takes. The peers are one process, this one, which answers on as many addresses of 127.0.0.0/8. Figures for
//! people, nothing is asserted; what choosing among them costs is in the benchmark `micro`.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that cannot start should say so"
)]

#[path = "../tests/it/support/dns.rs"]
#[allow(
    dead_code,
    clippy::expect_used,
    reason = "the tests use more of it than this"
)]
mod dns;
mod support;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{Instant, sleep},
};

use self::{
    dns::DnsServer,
    support::{Instance, client},
};

const COUNTS: [usize; 4] = [10, 100, 1_000, 10_000];
/// How many addresses one name has: an answer of DNS ends at 64 KiB.
const OF_A_NAME: usize = 2_000;
/// How long an instance that has found them all is watched.
const STEADY: Duration = Duration::from_secs(15);
/// The time between two looks at its memory, which is highest when DNS has just answered.
const LOOK: Duration = Duration::from_millis(100);

#[tokio::main]
async fn main() {
    let port = serve_peers().await;
    println!(
        "{:>6} {:>12} {:>26} {:>18}",
        "peers", "all found", "memory, lowest and highest", "processor, steady"
    );
    for count in COUNTS {
        measure(count, port).await;
    }
}

async fn measure(count: usize, port: u16) {
    let dns = DnsServer::start().await;
    let addresses: Vec<IpAddr> = (1..=count).map(address).collect();
    let names = addresses.chunks(OF_A_NAME).enumerate();
    let names: Vec<String> = names
        .map(|(number, chunk)| {
            let name = format!("peers-{number}.internal");
            dns.set_addresses(&name, chunk.iter().copied());
            name
        })
        .collect();
    let started = Instant::now();
    let flags = [
        format!("--dns-name={}", names.join(",")),
        format!("--dns-server={}", dns.address()),
        format!("--peer-port={port}"),
    ];
    let instance = Instance::start("iad", &flags.each_ref().map(String::as_str));
    while instance.ready_peers().await < count {
        sleep(Duration::from_millis(10)).await;
    }
    let found = started.elapsed();
    let (before, began) = (instance.processor_seconds(), Instant::now());
    let (mut lowest, mut highest) = (f64::MAX, 0_f64);
    while began.elapsed() < STEADY {
        sleep(LOOK).await;
        let now = instance.resident_mib();
        (lowest, highest) = (lowest.min(now), highest.max(now));
    }
    let steady = (instance.processor_seconds() - before) / began.elapsed().as_secs_f64();
    println!(
        "{count:>6} {:>9.0} ms {lowest:>13.1} to {highest:>4.1} MiB {:>15.2} %",
        found.as_secs_f64() * 1e3,
        steady * 100.0
    );
}

/// The address of the peer `number`: 127.1.0.0 and up.
fn address(number: usize) -> IpAddr {
    let [.., high, low] = number.to_be_bytes();
    Ipv4Addr::new(127, 1, high, low).into()
}

/// Answers as a peer of its own on each address of the loopback interface; the port.
async fn serve_peers() -> u16 {
    let real = Instance::start("syd", &[]);
    let introduction = real.get("/internal/region").await;
    let functions = real.get("/internal/functions").await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind_device(Some(b"lo")).unwrap();
    socket.bind((Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
    let listener = socket.listen(4096).unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(accept(listener, introduction, functions));
    port
}

async fn accept(listener: TcpListener, introduction: String, functions: String) {
    let (introduction, functions): (&str, &str) = (introduction.leak(), functions.leak());
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(answer(stream, introduction, functions));
    }
}

/// Answers one probe, and a question for the functions if one follows.
async fn answer(mut stream: TcpStream, introduction: &str, functions: &str) {
    let Ok(SocketAddr::V4(here)) = stream.local_addr() else {
        return;
    };
    let mut introduction: serde_json::Value = serde_json::from_str(introduction).unwrap();
    introduction["instance"] = format!("peer-{}", here.ip()).into();
    let mut request = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut request).await {
        let body = match request[..count].starts_with(b"GET /internal/functions") {
            true => functions.to_owned(),
            false => introduction.to_string(),
        };
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

impl Instance {
    async fn get(&self, path: &str) -> String {
        let url = format!("http://{}{path}", self.address);
        let response = client().get(url).send().await.unwrap();
        response.text().await.unwrap()
    }

    /// The peers that it says are ready.
    async fn ready_peers(&self) -> usize {
        let metrics = self.get("/metrics").await;
        let ready = metrics
            .lines()
            .filter(|line| line.starts_with("fly_rpc_peers{") && line.contains("\"ready\""));
        ready
            .map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap())
            .sum()
    }

    /// The processor time that it took so far, in seconds.
    fn processor_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        // In ticks, of which Linux has 100 a second (proc(5), fields 14 and 15).
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }
}
