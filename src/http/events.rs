//! `GET /events`: what happens in this instance, as a stream of server-sent events. `feed` gathers the events; here each
//! client gets those that it may see, and counts once a second.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderName, header::CONTENT_TYPE},
    response::{IntoResponse, Response, Result},
};
use futures_util::stream;
use serde::Serialize;
use tokio::{
    sync::{broadcast::error::RecvError, watch},
    time::{self, Interval, MissedTickBehavior},
};
use utoipa::ToSchema;

use super::DispatcherState;
use crate::{
    access::Caller,
    dispatch::Dispatcher,
    feed::{Event, Listener, PeerChange, RegionCounts, event_text},
    lifecycle::Phase,
    problem::{Code, Problem},
    protocol::PeerState,
    region::Region,
};

/// The time between two events with counts.
const PERIOD: Duration = Duration::from_secs(1);
/// The id of the last event that a client had (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
const LAST_EVENT_ID: &str = "last-event-id";
/// Makes nginx pass on each event at once.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What an instance has at work, and the calls that it took, by region.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Counts {
    /// Calls that were accepted and are not answered yet, run here or forwarded.
    #[schema(example = 3)]
    in_flight: usize,
    /// Functions that run here.
    #[schema(example = 1)]
    running: usize,
    /// Calls that wait to leave for a peer.
    #[schema(example = 0)]
    queued: usize,
    /// Calls by region, of regions that had one since the first listener.
    regions: Vec<RegionCounts>,
}

/// Events that a client did not get.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Lagged {
    /// How many events of this instance were missed, those that the client may not see included; null if the instance has
    /// started again since, or had no listener for a while.
    #[schema(required, example = 12)]
    missed: Option<u64>,
}

/// Stream what happens
///
/// Server-sent events (`text/event-stream`) until the client goes or the instance stops. The data of each is one JSON object:
///
/// | event | when | data |
/// |---|---|---|
/// | `peer` | an instance is new, has another state, run, app, release or other functions, or is gone | `PeerChange` |
/// | `call` | a call that this instance took has ended; of each second the first 20 that went well and the first 20 that failed | `EndedCall` |
/// | `attempt` | an attempt of a call failed; counted among those that failed | `FailedAttempt` |
/// | `counts` | at once, and then once a second | `Counts` |
/// | `lagged` | the client took events too slowly, or comes back after it missed some | `Lagged` |
///
/// An event but `counts` has an id; a client that sends it as `last-event-id` when it comes back learns how many it missed.
/// They are not sent again: `GET /regions` has what they led to. A client that is limited to regions and functions gets the
/// calls among these only. There are at most 16 streams at once, 4 of one client. No event has arguments, results or tokens in it.
#[utoipa::path(
    get,
    path = "/events",
    operation_id = "streamEvents",
    tag = "cluster",
    params((
        "last-event-id" = Option<String>,
        Header,
        description = "The id of the last event that the client had",
        pattern = r"^[0-9a-f]{8}\.[0-9]{1,20}$"
    )),
    responses((status = 200, description = "The stream", content_type = "text/event-stream", body = String)),
    security(("client_token" = []), ())
)]
pub(super) async fn stream_events(
    State(dispatcher): DispatcherState,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
) -> Result<Response> {
    if dispatcher.lifecycle.is_stopping() {
        let detail = "this instance is stopping and starts no stream";
        return Err(Problem::new(Code::Draining, detail).into());
    }
    let listener = dispatcher.local.metrics.feed.listen(caller.name());
    let listener = listener.ok_or_else(|| {
        let detail =
            "as many clients listen as this instance has streams for, or this client has 4 of them";
        Problem::new(Code::Overloaded, detail)
    })?;
    let last = headers.get(LAST_EVENT_ID);
    let missed = last.and_then(|last| {
        Some(
            dispatcher
                .local
                .metrics
                .feed
                .missed_since(last.to_str().ok()?),
        )
    });
    let mut tick = time::interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let events = EventStream {
        lagged: missed.filter(|count| *count != Some(0)).map(lagged),
        counted: dispatcher.local.metrics.feed.totals(),
        phase: dispatcher.lifecycle.watch(),
        dispatcher,
        caller,
        listener,
        tick,
        has_sent_stopping: false,
    };
    let events = stream::unfold(events, async |mut events| {
        let text = events.next().await?;
        Some((Ok::<_, Infallible>(text), events))
    });
    let headers = [(CONTENT_TYPE, "text/event-stream"), (BUFFERING, "no")];
    Ok((headers, Body::from_stream(events)).into_response())
}

fn lagged(missed: Option<u64>) -> Bytes {
    event_text(None, "lagged", &Lagged { missed })
}

struct EventStream {
    dispatcher: Arc<Dispatcher>,
    caller: Caller,
    listener: Listener,
    /// The first event for a client that reconnects and missed some.
    lagged: Option<Bytes>,
    tick: Interval,
    counted: Vec<RegionCounts>,
    phase: watch::Receiver<Phase>,
    /// Whether the client got the event that this instance is stopping.
    has_sent_stopping: bool,
}

impl EventStream {
    /// The next event; `None` once the instance refuses calls.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(lagged) = self.lagged.take() {
            return Some(lagged);
        }
        loop {
            let phase = *self.phase.borrow_and_update();
            if phase > Phase::Serving && !self.has_sent_stopping {
                self.has_sent_stopping = true;
                return Some(self.stopping());
            }
            if phase >= Phase::Refusing {
                return None;
            }
            tokio::select! {
                // A flood of events delays neither the end nor the counts.
                biased;
                Ok(()) = self.phase.changed() => {}
                _ = self.tick.tick() => return Some(self.counts()),
                event = self.listener.events.recv() => match event {
                    Ok(event) if self.may_see(&event) => return Some(event.text),
                    Ok(_) => {}
                    Err(RecvError::Lagged(count)) => return Some(lagged(Some(count))),
                    Err(RecvError::Closed) => return None,
                },
            }
        }
    }

    fn may_see(&self, event: &Event) -> bool {
        event.call.as_deref().is_none_or(|(function, region)| {
            self.may_see_in(region.as_ref()) && self.caller.may_call(function)
        })
    }

    /// Calls without a region are those for regions in which no instance was ever seen.
    fn may_see_in(&self, region: Option<&Region>) -> bool {
        match region {
            Some(region) => self.caller.may_call_in(region),
            None => self.caller.regions().is_none(),
        }
    }

    fn counts(&mut self) -> Bytes {
        let totals = self.dispatcher.local.metrics.feed.totals();
        let seen = totals
            .iter()
            .filter(|it| self.may_see_in(it.region.as_ref()));
        let regions = seen.map(|it| it.since(&self.counted)).collect();
        self.counted = totals;
        let counts = Counts {
            in_flight: self.dispatcher.in_flight(),
            running: self.dispatcher.executor.running(),
            queued: self.dispatcher.link.queued(),
            regions,
        };
        event_text(None, "counts", &counts)
    }

    /// That this instance is stopping: the state that its peers see too.
    fn stopping(&self) -> Bytes {
        let identity = &self.dispatcher.local.identity;
        let change = PeerChange {
            region: &identity.region,
            instance: &identity.instance,
            address: self.dispatcher.local.address,
            state: Some(PeerState::Draining),
            reason: "it is stopping",
        };
        event_text(None, "peer", &change)
    }
}
