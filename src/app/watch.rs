//! Asks the app for its list every second: whether it answers, which functions it has, and whether it refuses requests
//! without its token. The only writer of an app's status.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time,
};
use tokio_util::sync::CancellationToken;

use super::{
    App, AppHealth, Listing, Status,
    answer::is_json,
    channel::{Answer, Broken, Unread},
};
use crate::token::Token;

/// How long the app has to answer with its list.
const LIST_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause until the first list.
const FIRST: Duration = Duration::from_millis(100);
/// The pause after it.
const LATER: Duration = Duration::from_secs(1);
/// How many failures in a row make an app down.
const FAILURES: u32 = 3;
/// The largest list, in bytes.
const MAX_LIST: usize = 1 << 20;

/// The task that asks for the list.
pub(super) struct Watch {
    pub(super) app: Arc<App>,
    /// Whether its functions are offered although it gives its list without the token.
    pub(super) allow_anonymous: bool,
    pub(super) asked: mpsc::Receiver<oneshot::Sender<Asked>>,
    /// The last list, as it came.
    pub(super) body: Option<Vec<u8>>,
    pub(super) failures: u32,
}

/// What came of asking for the list.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Asked {
    /// The app gave it.
    Listed,
    /// The app refused, as it does where it does not have a function or does not let this instance in.
    Refused,
    /// Nothing listens there.
    Unreachable,
    /// No list came in time, or something else did, from which nothing follows for a call.
    Unusable,
}

/// Why there is no list, in words.
#[derive(Debug, thiserror::Error)]
#[error("{1}")]
pub(super) struct NoList(Asked, String);

impl NoList {
    fn unusable(why: impl Into<String>) -> Self {
        Self(Asked::Unusable, why.into())
    }
}

impl Watch {
    /// Asks until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut waiting: Vec<oneshot::Sender<Asked>> = Vec::new();
        loop {
            while let Ok(waiter) = self.asked.try_recv() {
                waiting.push(waiter);
            }
            let asked = tokio::select! {
                asked = self.ask() => asked,
                () = stop.cancelled() => return,
            };
            // A call whose deadline has passed waits no more.
            waiting.drain(..).for_each(|waiter| _ = waiter.send(asked));
            self.app.channel.close_idle();
            let pause = match self.body {
                Some(_) => LATER,
                None => FIRST,
            };
            tokio::select! {
                () = time::sleep(pause) => {}
                Some(waiter) = self.asked.recv() => waiting.push(waiter),
                () = stop.cancelled() => return,
            }
        }
    }

    async fn ask(&mut self) -> Asked {
        let listed = match self.app.list().await {
            Ok(body) => self.listed(body).await,
            Err(why) => Err(why),
        };
        match listed {
            Ok(()) => {
                self.failures = 0;
                Asked::Listed
            }
            Err(why) => {
                self.failed(&why);
                why.0
            }
        }
    }

    async fn listed(&mut self, body: Vec<u8>) -> Result<(), NoList> {
        let is_new = self.body.as_ref() != Some(&body);
        let was = self.app.status();
        // The same list changes nothing, except that an app which was down is up again, and one that was open may be locked.
        if !is_new && was.health == AppHealth::Up {
            return Ok(());
        }
        let listing = match is_new {
            true => {
                let listing = Listing::parse(&body).map_err(NoList::unusable)?;
                Arc::new(listing.with_gates_of(&was.listing))
            }
            false => was.listing,
        };
        // Tried before anything new is offered.
        let is_open = self.app.is_open().await?;
        if is_open && !is_new && was.health == AppHealth::Open {
            return Ok(());
        }
        if is_new {
            for remark in &listing.remarks {
                tracing::warn!("the app's list: {remark}");
            }
            self.body = Some(body);
        }
        let (health, reason) = match is_open {
            false => (AppHealth::Up, None),
            true if self.allow_anonymous => {
                tracing::warn!("{OPEN}");
                (AppHealth::Up, None)
            }
            true => {
                tracing::warn!("{OPEN}{NOT_OFFERED}");
                (AppHealth::Open, Some(OPEN.to_owned()))
            }
        };
        let functions = listing.functions.len();
        tracing::info!(functions, ?health, "the app listed its functions");
        self.app.set(health, reason, listing);
        Ok(())
    }

    fn failed(&mut self, why: &NoList) {
        self.failures += 1;
        let is_down = why.0 == Asked::Unreachable || self.failures >= FAILURES;
        let was = self.app.status();
        let health = match was.health {
            AppHealth::Starting => AppHealth::Starting,
            AppHealth::Up | AppHealth::Open if !is_down => return,
            AppHealth::Up | AppHealth::Open | AppHealth::Down => AppHealth::Down,
        };
        let reason = Some(why.to_string());
        if was.reason == reason {
            return;
        }
        match health {
            AppHealth::Starting => tracing::info!("waiting for the app's list: {why}"),
            _ => tracing::warn!("the app is down: {why}"),
        }
        self.app.set(health, reason, was.listing);
    }
}

const OPEN: &str = "the app gives its list to whoever asks, without RPC_APP_TOKEN: it must answer 401 to a request without \
                    `authorization: Bearer $RPC_APP_TOKEN`";
const NOT_OFFERED: &str =
    "; its functions are not offered (RPC_APP_ALLOW_ANONYMOUS=true offers them all the same)";

impl App {
    fn set(&self, health: AppHealth, reason: Option<String>, listing: Arc<Listing>) {
        self.status.send_replace(Status {
            health,
            reason,
            listing,
        });
    }

    /// The app's list, as it gives it to requests with its token.
    pub(super) async fn list(&self) -> Result<Vec<u8>, NoList> {
        let answer = self.get_list(self.token.as_ref()).await?;
        let status = answer.status;
        let no_list = match (status.as_u16(), answer.body) {
            (401 | 403, _) => {
                let why = format!("it answered {status} to its own RPC_APP_TOKEN");
                NoList(Asked::Refused, why)
            }
            (404 | 405, _) => NoList(Asked::Refused, format!("it answered {status}")),
            (200, Ok(body)) if is_json(&answer.headers) => return Ok(body),
            (200, Ok(_)) => {
                NoList::unusable("its list does not have the content-type application/json")
            }
            (200, Err(Unread::TooLong)) => {
                NoList::unusable(format!("its list has more than {MAX_LIST} bytes"))
            }
            (200, Err(Unread::NoRoom)) => {
                NoList::unusable("its list found no room in RPC_MAX_MEMORY")
            }
            _ => NoList::unusable(format!("it answered {status}")),
        };
        Err(no_list)
    }

    /// Whether the app gives its list without the token. At a unix socket, the permissions of its folder decide who gets in.
    pub(super) async fn is_open(&self) -> Result<bool, NoList> {
        if self.channel.url.is_unix() {
            return Ok(false);
        }
        let answer = self.get_list(None).await.map_err(|NoList(asked, why)| {
            NoList(asked, format!("asked without RPC_APP_TOKEN: {why}"))
        })?;
        let body = answer.body.unwrap_or_default();
        Ok(answer.status.is_success() && Listing::parse(&body).is_ok())
    }

    async fn get_list(&self, token: Option<&Token>) -> Result<Answer, NoList> {
        let ask = || self.channel.exchange(MAX_LIST, || self.list_request(token));
        let asked = async {
            match ask().await {
                // A kept connection may have been about to close. To ask twice does no harm.
                Err(Broken::Lost(_)) => ask().await,
                asked => asked,
            }
        };
        match time::timeout(LIST_TIMEOUT, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(broken)) if broken.is_refusal() => {
                Err(NoList(Asked::Unreachable, broken.to_string()))
            }
            Ok(Err(broken)) => Err(NoList::unusable(broken.to_string())),
            Err(_) => Err(NoList::unusable(format!("no list within {LIST_TIMEOUT:?}"))),
        }
    }
}
