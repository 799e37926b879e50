//! Says when the app beside an instance does not serve its functions, and when it does again: an instance looks the same
//! whether or not its app starts, and what the app printed is somewhere in the log.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anstyle::{AnsiColor, Style};
use futures_util::future;
use tokio::time::{self, Instant};

use super::asked;
use crate::{
    app::AppHealth,
    cli::say,
    http::documents::{AppDocument, FunctionsDocument},
    telemetry::printable,
};

/// The pause before the instances are asked again.
const PAUSE: Duration = Duration::from_millis(500);
/// How long an app may take to start, or to start again, before anything is said.
const PATIENCE: Duration = Duration::from_secs(5);

/// Watches the apps beside the `instances`, as long as it is polled.
pub(super) async fn watch(instances: BTreeMap<String, SocketAddr>, client: reqwest::Client) {
    let mut missing = Missing::default();
    loop {
        let instances = instances.iter();
        let apps = instances.map(|(name, address)| app_beside(&client, name, *address));
        let apps = future::join_all(apps).await;
        if let Some(line) = missing.look(apps, Instant::now()) {
            say(&line);
        }
        time::sleep(PAUSE).await;
    }
}

/// The name of an instance, and the app beside it; `None` where the instance does not say, as one that was killed.
async fn app_beside<'a>(
    client: &reqwest::Client,
    name: &'a str,
    address: SocketAddr,
) -> (&'a str, Option<AppDocument>) {
    let functions: Option<FunctionsDocument> = asked(client, address, "/functions").await;
    (name, functions.and_then(|functions| functions.app))
}

/// The apps that do not serve their functions.
#[derive(Default)]
struct Missing {
    /// Since when, by the name of the instance.
    since: BTreeMap<String, Instant>,
    is_said: bool,
}

impl Missing {
    /// Takes note of how the `apps` are `now`: what to say, which is said once for all of them.
    fn look<'a>(
        &mut self,
        apps: impl IntoIterator<Item = (&'a str, Option<AppDocument>)>,
        now: Instant,
    ) -> Option<String> {
        let (mut late, mut reason, mut are_all_known) = (Vec::new(), None, true);
        for (name, app) in apps {
            let Some(app) = app else {
                are_all_known = false;
                continue;
            };
            if app.state == AppHealth::Up {
                self.since.remove(name);
                continue;
            }
            let since = self.since.entry(name.to_owned()).or_insert(now);
            if now.duration_since(*since) >= PATIENCE {
                late.push(name);
                reason = reason.or(app.reason);
            }
        }
        match self.is_said {
            false if !late.is_empty() => {
                self.is_said = true;
                let reason = reason.unwrap_or_else(|| "no answer yet".to_owned());
                Some(not_there(&late.join(", "), &printable(&reason)))
            }
            true if self.since.is_empty() && are_all_known => {
                self.is_said = false;
                let there = "the app serves its functions beside every instance";
                Some(coloured(AnsiColor::Green, there))
            }
            _ => None,
        }
    }
}

fn not_there(instances: &str, reason: &str) -> String {
    let what = format!("the app beside {instances} does not serve its functions: {reason}");
    let what = coloured(AnsiColor::Red, &what);
    format!(
        "{what}
  look at what it printed above: it must keep running, listen at 127.0.0.1:$PORT, and answer GET /rpc with its list;
  `fly-rpc example python` prints a whole app that does; dev says when it is there"
    )
}

fn coloured(colour: AnsiColor, text: &str) -> String {
    let style: Style = colour.on_default().bold();
    format!("{style}{text}{style:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_that_does_not_answer_is_not_one_whose_app_serves() {
        let app = |state: AppHealth| {
            Some(AppDocument {
                url: String::new(),
                state,
                reason: None,
            })
        };
        let (down, up) = (|| app(AppHealth::Down), || app(AppHealth::Up));
        let (start, mut missing) = (Instant::now(), Missing::default());
        let mut look = |iad, syd, seconds| {
            let now = start + Duration::from_secs(seconds);
            missing.look([("iad", iad), ("syd", syd)], now)
        };
        assert_eq!(look(down(), up(), 0), None);
        assert!(look(down(), up(), 5).is_some_and(|line| line.contains("beside iad does not")));
        // Such as one that was killed, or is slow.
        for (iad, syd) in [(None, up()), (None, None), (up(), None), (down(), up())] {
            assert_eq!(look(iad, syd, 6), None);
        }
        assert!(look(up(), up(), 7).is_some_and(|line| line.contains("beside every instance")));
    }
}
