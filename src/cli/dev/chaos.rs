//! What may be done to a running cluster, a line each, typed or sent by the page: so that anybody can watch what happens
//! then.

use nix::sys::signal::Signal;
use tokio::sync::{mpsc, oneshot};

use super::{cluster::Cluster, control::Order};
use crate::cli::Failure;

pub(super) const HELP: &str = "Type, while it runs:
  kill NAME    ends an instance at once, as a crash does
  stop NAME    lets it hang: it keeps its sockets, and does nothing
  resume NAME  lets a stopped instance go on
  drain NAME   lets it finish what it does and end, as a deploy does
  start NAME   starts it again
  dns down     takes the DNS server down
  dns up       brings it up again";

/// Does what a line says; what there is to say then.
pub(super) async fn obey(cluster: &mut Cluster, line: &str) -> String {
    match try_to(cluster, line).await {
        Ok(done) => done,
        Err(failure) => failure.to_string(),
    }
}

async fn try_to(cluster: &mut Cluster, line: &str) -> Result<String, Failure> {
    let words: Vec<_> = line.split_whitespace().collect();
    Ok(match words[..] {
        ["kill", name] => {
            cluster.child(name)?.signal(Signal::SIGKILL).await;
            format!("{name} is killed; `start {name}` starts it again")
        }
        ["stop", name] => {
            cluster.child(name)?.signal(Signal::SIGSTOP).await;
            format!("{name} hangs; `resume {name}` lets it go on")
        }
        ["resume", name] => {
            cluster.child(name)?.signal(Signal::SIGCONT).await;
            format!("{name} goes on")
        }
        ["drain", name] => {
            cluster.child(name)?.drain();
            format!("{name} drains; `start {name}` starts it again")
        }
        ["start", name] => {
            cluster.start_again(name).await?;
            format!("{name} is back")
        }
        ["dns", "down"] => {
            cluster.dns.take_down();
            "DNS is down; `dns up` brings it up again".to_owned()
        }
        ["dns", "up"] => {
            cluster.dns.bring_up().await?;
            "DNS is up".to_owned()
        }
        _ => HELP.to_owned(),
    })
}

/// Sends the lines of stdin. In a thread of its own, because a read of stdin cannot be cancelled.
pub(super) fn read_stdin(orders: mpsc::Sender<Order>) {
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let (answer, _) = oneshot::channel();
            let line = Some(line);
            if orders.blocking_send(Order { line, answer }).is_err() {
                return;
            }
        }
    });
}
