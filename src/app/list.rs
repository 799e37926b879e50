//! The list of an app's functions. It is asked for every second, sooner while the app starts, which shows whether the app
//! answers, and whether it refuses requests without its token. A function whose entry is wrong is left out with a remark,
//! and the others are offered. The only writer of an app's status.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use http_body_util::Full;
use serde_json::{Map, Value, json};
use tokio::{
    sync::{mpsc, oneshot},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{
    ASKS, App, AppHealth, AppStatus,
    answer::is_json,
    channel::{AppAnswer, Broken, Channel, Unread},
};
#[cfg(feature = "cli")]
use crate::{config::AppUrl, memory::Budget, token::Token};
use crate::{
    declaration::Declaration,
    gate::Gate,
    name::{FunctionName, Name},
    problem::cut,
};

/// How long the app has to answer with its list.
const LIST_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause while the app starts: until the first list, and where nothing listens any more.
const SOON: Duration = Duration::from_millis(100);
/// How long an app may be gone, and be expected back at any moment.
const RESTART: Duration = Duration::from_secs(10);
/// The pause otherwise.
const LATER: Duration = Duration::from_secs(1);
/// How many failures in a row make an app down.
const FAILURES: u32 = 3;
/// The largest list, in bytes.
const MAX_LIST: usize = 1 << 20;

const MAX_FUNCTIONS: usize = 1000;
const MAX_REMARKS: usize = 20;

const OPEN: &str = "the app serves its list without checking RPC_APP_TOKEN: it must answer 401 to a request without \
                    `authorization: Bearer $RPC_APP_TOKEN`";
const NOT_OFFERED: &str =
    "; its functions are not offered (RPC_APP_ALLOW_ANONYMOUS=true offers them anyway)";
const OFFERED: &str = "; its functions are offered anyway, because RPC_APP_ALLOW_ANONYMOUS is true, as `fly-rpc dev` sets it";

/// The task that asks for the list.
pub(super) struct Watch {
    pub(super) app: Arc<App>,
    /// Whether its functions are offered although it gives its list without the token.
    pub(super) allow_anonymous: bool,
    pub(super) asked: mpsc::Receiver<oneshot::Sender<Asked>>,
    /// The last list, as it came.
    pub(super) body: Option<Vec<u8>>,
    pub(super) failures: u32,
    /// Since when nothing listens there.
    pub(super) gone_since: Option<Instant>,
}

/// Why there is no list, in words, and what that says of a call which the app refused.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub(super) enum NoList {
    /// The app refused, as it does where it does not have a function or does not let this instance in.
    Refused(String),
    /// Nothing listens there.
    Unreachable(String),
    /// No usable list came in time; this says nothing about the call.
    Unusable(String),
}

/// What came of asking for the list once: whether its functions are offered is another question.
pub(super) type Asked = Result<Arc<Listing>, NoList>;

impl Watch {
    /// Asks for the list until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut waiting: Vec<oneshot::Sender<Asked>> = Vec::new();
        loop {
            let asked = tokio::select! {
                asked = self.ask() => asked,
                () = stop.cancelled() => return,
            };
            for waiter in waiting.drain(..) {
                // A call whose deadline has passed waits no more.
                let _ = waiter.send(asked.clone());
            }
            self.app.channel.close_idle();
            tokio::select! {
                () = time::sleep(self.pause()) => {}
                // Calls that were refused before the list is asked for: only a later list can explain their refusal.
                _ = self.asked.recv_many(&mut waiting, ASKS) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn pause(&self) -> Duration {
        let is_restarting = |since: Instant| since.elapsed() < RESTART;
        match self.body.is_none() || self.gone_since.is_some_and(is_restarting) {
            true => SOON,
            false => LATER,
        }
    }

    async fn ask(&mut self) -> Asked {
        let asked = match self.app.channel.list().await {
            Ok(body) => self.listed(body).await,
            Err(why) => Err(why),
        };
        self.gone_since = match asked {
            Err(NoList::Unreachable(_)) => self.gone_since.or(Some(Instant::now())),
            _ => None,
        };
        match &asked {
            Ok(_) => self.failures = 0,
            Err(why) => self.failed(why),
        }
        asked
    }

    async fn listed(&mut self, body: Vec<u8>) -> Asked {
        let is_new = self.body.as_ref() != Some(&body);
        let was = self.app.status();
        // The same list changes nothing, except that an app which was down is up again, and one that was open may be locked.
        if !is_new && was.health == AppHealth::Up {
            return Ok(was.listing);
        }
        let listing = match is_new {
            true => {
                let listing = Listing::parse(&body).map_err(NoList::Unusable)?;
                Arc::new(listing.with_gates_of(&was.listing))
            }
            false => was.listing,
        };
        // Asked before anything new is offered.
        let is_open = self.app.channel.is_open().await?;
        if is_open && !is_new && was.health == AppHealth::Open {
            return Ok(listing);
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
                tracing::warn!("{OPEN}{OFFERED}");
                (AppHealth::Up, None)
            }
            true => {
                tracing::warn!("{OPEN}{NOT_OFFERED}");
                (AppHealth::Open, Some(OPEN.to_owned()))
            }
        };
        let functions = listing.functions.len();
        tracing::info!(functions, ?health, "the app listed its functions");
        self.set(health, reason, Arc::clone(&listing));
        Ok(listing)
    }

    fn failed(&mut self, why: &NoList) {
        self.failures += 1;
        let is_down = matches!(why, NoList::Unreachable(_)) || self.failures >= FAILURES;
        let was = self.app.status();
        let health = match was.health {
            // An app that takes long to start is not down: it has never been up.
            AppHealth::Starting => AppHealth::Starting,
            // A single list may be late because the app is busy with calls.
            AppHealth::Up | AppHealth::Open if !is_down => return,
            AppHealth::Up | AppHealth::Open | AppHealth::Down => AppHealth::Down,
        };
        let reason = Some(why.to_string());
        // The log and the peers have this reason already: the list is asked for every second.
        if was.reason == reason {
            return;
        }
        match health {
            AppHealth::Starting => tracing::info!("waiting for the app's list: {why}"),
            _ => tracing::warn!("the app is down: {why}"),
        }
        self.set(health, reason, was.listing);
    }

    fn set(&self, health: AppHealth, reason: Option<String>, listing: Arc<Listing>) {
        self.app.status.send_replace(AppStatus {
            health,
            reason,
            listing,
        });
    }
}

impl Channel {
    /// The app's list, as it gives it to requests with its token.
    async fn list(&self) -> Result<Vec<u8>, NoList> {
        let answer = self.get_list(true).await?;
        let status = answer.status;
        Err(match (status.as_u16(), answer.body) {
            (200, Ok(body)) if is_json(&answer.headers) => return Ok(body),
            (200, Ok(_)) => NoList::Unusable(
                "its list does not have the content-type application/json".to_owned(),
            ),
            (200, Err(Unread::TooLong)) => {
                NoList::Unusable(format!("its list has more than {MAX_LIST} bytes"))
            }
            (200, Err(Unread::NoRoom)) => {
                NoList::Unusable("its list found no room in RPC_MAX_MEMORY".to_owned())
            }
            (401 | 403, _) => {
                let asked = match self.token {
                    Some(_) => " to its own RPC_APP_TOKEN",
                    None => ", and RPC_APP_TOKEN is not set",
                };
                NoList::Refused(format!("it answered {status}{asked}"))
            }
            (404 | 405, _) => NoList::Refused(format!("it answered {status}")),
            _ => NoList::Unusable(format!("it answered {status}")),
        })
    }

    /// Whether the app gives its list without the token. At a unix socket, the permissions of its folder decide who gets in.
    async fn is_open(&self) -> Result<bool, NoList> {
        if self.url.is_unix() {
            return Ok(false);
        }
        let answer = self.get_list(false).await?;
        let body = answer.body.unwrap_or_default();
        Ok(answer.status.is_success() && Listing::parse(&body).is_ok())
    }

    async fn get_list(&self, with_token: bool) -> Result<AppAnswer, NoList> {
        let was_sent = AtomicBool::default();
        let ask = || self.exchange(MAX_LIST, &was_sent, || self.list_request(with_token));
        let asked = async {
            match ask().await {
                // A kept connection may have been about to close. To ask twice does no harm.
                Err(Broken::Lost(_)) => ask().await,
                asked => asked,
            }
        };
        let how = match with_token {
            true => "",
            false => "asked without RPC_APP_TOKEN: ",
        };
        match time::timeout(LIST_TIMEOUT, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(broken)) if broken.is_refusal() => {
                Err(NoList::Unreachable(format!("{how}{broken}")))
            }
            Ok(Err(broken)) => Err(NoList::Unusable(format!("{how}{broken}"))),
            Err(_) => Err(NoList::Unusable(format!(
                "{how}no list within {LIST_TIMEOUT:?}"
            ))),
        }
    }

    fn list_request(&self, with_token: bool) -> Request<Full<Bytes>> {
        let base = self.url.base.as_str();
        let path = if base.is_empty() { "/" } else { base };
        let mut request = Request::new(Full::default());
        *request.uri_mut() = path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(token) = self.token.as_ref().filter(|_| with_token) {
            headers.insert(header::AUTHORIZATION, token.bearer());
        }
        request
    }
}

/// The list of the app at `url`, asked for once with `token`, and whether it is given without that too.
#[cfg(feature = "cli")]
pub(crate) async fn check(url: &AppUrl, token: Option<Token>) -> Result<(Listing, bool), String> {
    let channel = Channel::new(url, token, Budget::new(usize::MAX));
    let body = channel.list().await.map_err(|why| why.to_string())?;
    let listing = Listing::parse(&body)?;
    let is_open = channel.is_open().await.map_err(|why| why.to_string())?;
    Ok((listing, is_open))
}

/// The functions of an app, with what each declares.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) functions: BTreeMap<FunctionName, Declaration>,
    /// What bounds the calls of each function that declares a concurrency, or did while calls began that still run.
    pub(super) gates: BTreeMap<FunctionName, Arc<Gate>>,
    /// What was left out or ignored, a line each, cut as the detail of a problem is.
    pub(crate) remarks: Vec<String>,
}

impl Listing {
    /// The list in `body`.
    ///
    /// # Errors
    /// Why it is not a list, in words, cut as the detail of a problem is.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        // An error may repeat what is there instead of an object, however long it is.
        let list: Map<String, Value> = serde_json::from_slice(body)
            .map_err(|error| cut(format!("the list is no JSON object: {error}")))?;
        let Some(Value::Object(entries)) = list.get("functions") else {
            return Err(
                "the list has no object \"functions\"; answer {\"functions\":{\"Math.add\":{}}}"
                    .to_owned(),
            );
        };
        if entries.len() > MAX_FUNCTIONS {
            let count = entries.len();
            return Err(format!(
                "the list has {count} functions, more than {MAX_FUNCTIONS}"
            ));
        }
        let mut found = Self::default();
        for member in list.keys().filter(|member| *member != "functions") {
            found.remark(format!("the list has an unknown member {member:?}"));
        }
        for (name, declared) in entries {
            match function_name(name).and_then(|name| Ok((name, found.declaration(declared)?))) {
                Ok((name, declaration)) => {
                    found.functions.insert(name, declaration);
                }
                Err(wrong) => found.remark(format!("{name:?} is left out: {wrong}")),
            }
        }
        Ok(found)
    }

    fn declaration(&mut self, declared: &Value) -> Result<Declaration, String> {
        let Value::Object(members) = declared else {
            return Err("what it declares is no object; write {} for nothing".to_owned());
        };
        let is_known = |member: &&String| Declaration::MEMBERS.contains(&member.as_str());
        for member in members.keys().filter(|member| !is_known(member)) {
            self.remark(format!("a function has an unknown member {member:?}"));
        }
        let read = |declared| serde_json::from_value::<Declaration>(declared);
        // Each member by itself, because the error does not name the member.
        for (member, value) in members {
            read(json!({member: value})).map_err(|error| format!("{member}: {error}"))?;
        }
        let declaration = read(declared.clone()).map_err(|error| error.to_string())?;
        declaration.check()?;
        Ok(declaration)
    }

    fn remark(&mut self, remark: String) {
        let remark = cut(remark);
        if self.remarks.len() < MAX_REMARKS && !self.remarks.contains(&remark) {
            self.remarks.push(remark);
        }
    }

    /// The same list with a gate for each function that declares a concurrency. A gate of the `former` list is kept, with the
    /// calls in it. So is one that is not declared now and has calls in it: where servers of two releases answer in turn, it
    /// is declared again.
    fn with_gates_of(mut self, former: &Self) -> Self {
        let limits = self.functions.iter();
        let limits = limits.filter_map(|(name, declared)| Some((name, declared.concurrency?)));
        let declared = limits.map(|(name, limit)| {
            let kept = former.gates.get(name).map(Arc::clone);
            let gate = kept.unwrap_or_else(|| Arc::new(Gate::new(limit)));
            gate.set_limit(limit);
            (name.clone(), gate)
        });
        let mut gates: BTreeMap<_, _> = declared.collect();
        for (name, gate) in former.gates.iter().filter(|(_, gate)| gate.is_used()) {
            gates
                .entry(name.clone())
                .or_insert_with(|| Arc::clone(gate));
        }
        self.gates = gates;
        self
    }
}

/// A name, split at its last dot. One whose module would lead out of the folder of functions is invalid: servers resolve
/// `..` also when it is percent-encoded.
fn function_name(text: &str) -> Result<FunctionName, String> {
    let Some((module, function)) = text.rsplit_once('.') else {
        return Err("a name has a module, as in Math.add".to_owned());
    };
    let is_dots = |segment: &str| matches!(segment, "." | "..");
    if module.split(['/', '\\']).any(is_dots) {
        return Err("its module has a path segment of dots".to_owned());
    }
    let name = |text: &str| -> Result<Name, String> {
        text.parse()
            .map_err(|_| format!("{text:?} is not {}", Name::RULE))
    };
    Ok(FunctionName {
        module: name(module)?,
        function: name(function)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_at_the_last_dot_and_what_is_wrong_is_left_out() {
        let listing = Listing::parse(
            br#"{"functions":{"Fly.RPC.now":{},"Math.add":{"timeout_ms":2000,"idempotent":true,"concurrency":8,
                "params":[{"name":"a"},{"name":"b","schema":{"type":"integer"}}]},
                "plain":{},"...x":{},"a/../b.x":{},"A. b":{},"A.zero":{"timeout_ms":0},"A.none":null,"A.odd":{"shape":1},
                "A.pair":{"params":[{"name":"a"},{"name":"a"}]},"A.text":{"doc":"it","timeout_ms":"2s"},
                "A.blank":{"params":[{"name":""}]}},
                "version":2}"#,
        )
        .unwrap();
        let names: Vec<_> = listing.functions.keys().collect();
        assert_eq!(
            names.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["A.odd", "Fly.RPC.now", "Math.add"]
        );
        let name = names[1];
        assert_eq!(
            (name.module.as_str(), name.function.as_str()),
            ("Fly.RPC", "now")
        );
        assert_eq!(
            listing.remarks,
            [
                "the list has an unknown member \"version\"",
                "\"...x\" is left out: its module has a path segment of dots",
                "\"A. b\" is left out: \" b\" is not 1 to 128 printable ASCII characters without space",
                "\"A.blank\" is left out: a parameter's name must have 1 to 128 bytes",
                "\"A.none\" is left out: what it declares is no object; write {} for nothing",
                "a function has an unknown member \"shape\"",
                "\"A.pair\" is left out: the parameter \"a\" is declared twice",
                "\"A.text\" is left out: timeout_ms: invalid type: string \"2s\", expected u64",
                "\"A.zero\" is left out: timeout_ms must be an integer from 1 to 86400000",
                "\"a/../b.x\" is left out: its module has a path segment of dots",
                "\"plain\" is left out: a name has a module, as in Math.add",
            ]
        );
    }
}
