//! Calls at a steady rate, sent by the clock and not by the answers (an open loop) as far as the machine can, each with its
//! outcome on record.

mod report;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use reqwest::Client;
use serde_json::{Value, json};
use tokio::{
    sync::{Mutex, MutexGuard, Semaphore},
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::support::patience::PATIENCE;

pub(crate) use self::report::Report;

/// The most calls without an answer. While there are as many, none is sent: a machine too busy for the rate would fall behind
/// ever further, and what calls come to would tell of that alone.
const IN_FLIGHT: usize = 256;

static LOADS: AtomicUsize = AtomicUsize::new(0);

/// Held by the one test that measures under load.
static QUIET: Mutex<()> = Mutex::const_new(());

/// Waits until no other test of this program measures under load.
pub(crate) async fn quiet() -> MutexGuard<'static, ()> {
    QUIET.lock().await
}

/// Calls of `Test.run`, each with an id of its own.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// The instances that are asked, in turn.
    pub via: Vec<SocketAddr>,
    /// Where the calls are to run.
    pub region: String,
    /// Calls for each second.
    pub rate: u32,
    /// How long a call runs, in milliseconds.
    pub work_ms: u64,
    /// The timeout of each call.
    pub timeout: Duration,
    /// Whether the calls may run twice.
    pub idempotent: bool,
    /// Whether each call has an idempotency key of its own.
    pub keyed: bool,
    /// Only on this instance.
    pub instance: Option<String>,
}

/// A load that goes on until it is finished.
pub(crate) struct Running {
    stop: CancellationToken,
    task: JoinHandle<Report>,
    started: Instant,
}

/// What came of one call.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// The id that `Test.run` logged if it ran.
    pub id: String,
    /// When it was sent, since the start of the load.
    pub sent: Duration,
    /// How late it was sent, because the machine had other things to do.
    pub lag: Duration,
    /// How long the answer took.
    pub latency: Duration,
    /// How long after its deadline the answer came.
    pub lateness: Duration,
    /// How long the instance that was asked says it took.
    pub elapsed: Duration,
    /// The status; 0 when no answer came.
    pub status: u16,
    /// `ok`, the problem's code, or `no answer`.
    pub code: String,
    /// What the problem says about whether it ran; `yes` for a result.
    pub executed: String,
    /// Where it ran or was tried last.
    pub instance: String,
    /// How many attempts it took.
    pub attempts: u64,
}

impl Load {
    /// 300 calls each second via `via` in `region`, of 20 ms, with five seconds each, not idempotent.
    pub(crate) fn new(via: SocketAddr, region: &str) -> Self {
        Self {
            via: vec![via],
            region: region.to_owned(),
            rate: 300,
            work_ms: 20,
            timeout: Duration::from_secs(5),
            idempotent: false,
            keyed: false,
            instance: None,
        }
    }

    /// Sends calls from now on.
    pub(crate) fn start(self) -> Running {
        let stop = CancellationToken::new();
        let started = Instant::now();
        let task = tokio::spawn(self.run(started, stop.clone()));
        Running {
            stop,
            task,
            started,
        }
    }

    /// Makes `count` calls by `callers` that each wait for an answer before the next (a closed loop).
    pub(crate) async fn closed(self, callers: usize, count: usize) -> Report {
        let (client, started) = (client(), Instant::now());
        let (load, next) = (
            LOADS.fetch_add(1, Ordering::SeqCst),
            Arc::<AtomicUsize>::default(),
        );
        let mut tasks = JoinSet::new();
        for _ in 0..callers {
            let (client, next, this) = (client.clone(), Arc::clone(&next), self.clone());
            tasks.spawn(async move {
                let mut outcomes = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if number >= count {
                        return outcomes;
                    }
                    let (via, id) = (
                        this.via[number % this.via.len()],
                        format!("{load}-{number}"),
                    );
                    outcomes.push(call(client.clone(), via, this.clone(), id, started).await);
                }
            });
        }
        Report(tasks.join_all().await.concat())
    }

    async fn run(self, started: Instant, stop: CancellationToken) -> Report {
        let (client, slots) = (client(), Arc::new(Semaphore::new(IN_FLIGHT)));
        let (load, mut calls) = (LOADS.fetch_add(1, Ordering::SeqCst), JoinSet::new());
        let mut clock = interval(Duration::from_secs(1) / self.rate);
        clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (mut number, mut outcomes) = (0, Vec::new());
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                due = clock.tick() => {
                    let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                        continue;
                    };
                    let (via, id) = (self.via[number % self.via.len()], format!("{load}-{number}"));
                    let call = call(client.clone(), via, self.clone(), id, started);
                    calls.spawn(async move {
                        let _slot = slot;
                        let mut outcome = call.await;
                        outcome.lag = (started + outcome.sent).saturating_duration_since(due);
                        outcome
                    });
                    number += 1;
                }
                Some(outcome) = calls.join_next() => outcomes.push(outcome.unwrap()),
            }
        }
        outcomes.extend(calls.join_all().await);
        Report(outcomes)
    }
}

impl Running {
    /// How long it has been going on.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Lets it go on until it has gone on for `time`.
    pub(crate) async fn until(&self, time: Duration) {
        tokio::time::sleep_until(self.started + time).await;
    }

    /// Lets it go on for `time` from now.
    pub(crate) async fn go_on(&self, time: Duration) {
        self.until(self.elapsed() + time).await;
    }

    /// Sends no more, and waits for every answer.
    pub(crate) async fn finish(self) -> Report {
        self.stop.cancel();
        self.task.await.unwrap()
    }
}

/// A client that closes idle connections well before an instance does.
fn client() -> Client {
    Client::builder()
        .no_proxy()
        .pool_idle_timeout(Duration::from_secs(2))
        .timeout(PATIENCE)
        .build()
        .unwrap()
}

/// Makes one call of `Test.run`.
async fn call(client: Client, via: SocketAddr, load: Load, id: String, epoch: Instant) -> Outcome {
    let timeout_ms = u64::try_from(load.timeout.as_millis()).unwrap();
    let mut body = json!({
        "module": "Test", "function": "run", "args": [id, load.work_ms], "timeout_ms": timeout_ms,
        "idempotent": load.idempotent,
    });
    if let Some(instance) = &load.instance {
        body["instance"] = json!(instance);
    }
    let mut request = client
        .post(format!("http://{via}/rpc/{}", load.region))
        .header("content-type", "application/json")
        .body(body.to_string());
    if load.keyed {
        request = request.header("idempotency-key", &id);
    }
    let sent = Instant::now();
    let (status, body) = match request.send().await {
        Ok(response) => (response.status().as_u16(), response.bytes().await.ok()),
        Err(_) => (0, None),
    };
    let latency = sent.elapsed();
    let answer = body.and_then(|body| serde_json::from_slice::<Value>(&body).ok());
    let text = |pointer: &str| {
        let found = answer.as_ref().and_then(|answer| answer.pointer(pointer));
        found.and_then(Value::as_str).map(str::to_owned)
    };
    let unless_given = |given: &str| if status == 200 { given } else { "no answer" }.to_owned();
    Outcome {
        sent: sent - epoch,
        lag: Duration::ZERO,
        latency,
        lateness: latency.saturating_sub(load.timeout),
        status,
        code: text("/code").unwrap_or_else(|| unless_given("ok")),
        executed: text("/executed").unwrap_or_else(|| unless_given("yes")),
        instance: text("/meta/instance").unwrap_or_default(),
        elapsed: answer
            .as_ref()
            .and_then(|answer| answer.pointer("/meta/elapsed_ms")?.as_f64())
            .map_or(Duration::ZERO, |ms| Duration::from_secs_f64(ms / 1e3)),
        attempts: answer
            .and_then(|answer| answer.pointer("/meta/attempts")?.as_u64())
            .unwrap_or_default(),
        id,
    }
}

impl Outcome {
    /// Whether it has a result.
    pub(crate) fn is_ok(&self) -> bool {
        self.status == 200
    }
}
