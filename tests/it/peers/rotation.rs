//! Replacing the cluster's token in a running cluster: no call fails at any step.

use std::{net::SocketAddr, sync::Arc};

use serde_json::{Value, json};
use tokio::{
    sync::RwLock,
    task::{JoinSet, yield_now},
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    cluster::Cluster,
    process::{Process, answer},
};

const OLD: &str = "the-cluster-secret-of-the-tests-old1";
const NEW: &str = "the-cluster-secret-of-the-tests-new2";
const CALLERS: usize = 4;

/// Callers of `Kernel.+` in `syd` through whichever entries are open, one call after the other each.
struct Load {
    entries: Arc<RwLock<Vec<SocketAddr>>>,
    stop: CancellationToken,
    callers: JoinSet<Vec<Value>>,
}

impl Load {
    fn start(entries: Vec<SocketAddr>) -> Self {
        let entries = Arc::new(RwLock::new(entries));
        let stop = CancellationToken::new();
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            callers.spawn(call_until(stop.clone(), Arc::clone(&entries), caller));
        }
        Self {
            entries,
            stop,
            callers,
        }
    }

    /// Closes an entry, once no call is under way through it.
    async fn close(&self, entry: SocketAddr) {
        self.entries.write().await.retain(|other| *other != entry);
    }

    async fn open(&self, entry: SocketAddr) {
        self.entries.write().await.push(entry);
    }

    /// Every answer.
    async fn stop(self) -> Vec<Value> {
        self.stop.cancel();
        self.callers
            .join_all()
            .await
            .into_iter()
            .flatten()
            .collect()
    }
}

async fn call_until(
    stop: CancellationToken,
    entries: Arc<RwLock<Vec<SocketAddr>>>,
    caller: usize,
) -> Vec<Value> {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let body = json!({"module": "Kernel", "function": "+", "args": [20, 22]}).to_string();
    let mut answers = Vec::new();
    while !stop.is_cancelled() {
        let open = entries.read().await;
        let entry = open[(caller + answers.len()) % open.len()];
        let request = client
            .post(format!("http://{entry}/rpc/syd"))
            .header("content-type", "application/json")
            .body(body.clone());
        answers.push(answer(request).await.unwrap().body);
        drop(open);
        yield_now().await;
    }
    answers
}

/// Stops the instance and starts it again at its address with other tokens, once every instance sees it again.
async fn restart(cluster: &mut Cluster, number: usize, tokens: &str) {
    let old = &mut cluster.instances[number];
    let (region, name, address) = (old.region.clone(), old.name.clone(), old.address);
    old.terminate();
    assert_eq!(old.ended().await.code(), Some(0));
    let mut environment = cluster.environment(&region, &name, address);
    environment.insert("RPC_TOKEN", tokens.to_owned());
    cluster.instances[number] = Process::start(&environment).await;
    cluster.until_all_see_all().await;
}

#[tokio::test]
async fn the_token_is_replaced_under_load_without_a_failure() {
    let mut cluster = Cluster::builder()
        .region("iad", 2)
        .region("syd", 2)
        .set("RPC_TOKEN", OLD)
        .set("RPC_DRAIN_DELAY", "500ms")
        .start()
        .await;
    let entries: Vec<SocketAddr> = cluster.instances[..2]
        .iter()
        .map(|entry| entry.address)
        .collect();
    let load = Load::start(entries);
    for tokens in [
        format!("{OLD},{NEW}"),
        format!("{NEW},{OLD}"),
        NEW.to_owned(),
    ] {
        for number in 0..cluster.instances.len() {
            let address = cluster.instances[number].address;
            if number < 2 {
                load.close(address).await;
            }
            restart(&mut cluster, number, &tokens).await;
            if number < 2 {
                load.open(address).await;
            }
        }
    }
    let answers = load.stop().await;
    let failures: Vec<_> = answers
        .iter()
        .filter(|answer| answer["result"] != 42)
        .collect();
    assert_eq!(failures, Vec::<&Value>::new(), "of {}", answers.len());
    // Else it would be no test of what is called meanwhile.
    assert!(answers.len() > 100, "{} calls", answers.len());
}
