//! One call on many instances: on each of some regions, or on one of each region. Owns whom it asks, and how many at once;
//! each call runs as any other to a chosen instance does.
//!
//! Memory is what is bounded. Arguments on their way and results that came are counted in the memory budget: a call waits
//! for room for its arguments while other calls may still free some, and a result without room becomes a problem; what is
//! said of results here holds of the errors of functions too. So that this is rare, calls begin slowly where results are
//! large: the results of those that began lately may take half of the room that is left, as far as their size can be
//! foretold. A call that takes longer counts no more, so that an instance that hangs does not hold up the others.

use std::{borrow::Cow, collections::VecDeque, sync::Arc, time::Duration};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{self, Instant};
use tracing::Instrument;

use super::{Dispatcher, attempts::Attempts};
use crate::{
    call::{Call, Per},
    cluster::Peer,
    deadline::Deadline,
    gate::in_own_task,
    lifecycle::InFlight,
    memory::{Reserved, Share},
    name::{InstanceId, RequestId},
    problem::{Code, Problem},
    region::{Region, Regions},
    reply::{Report, Returned},
};

/// How many calls begin before anything is known of the size of results.
const FIRST: usize = 32;
/// For how long a call counts as one that began lately.
const LATELY: Duration = Duration::from_millis(250);
/// The size of arguments and of results that are not counted, in bytes: each costs as much besides.
const UNCOUNTED: usize = 1 << 10;

/// An instance or a region that a fan-out asks.
#[derive(Clone, Debug)]
enum Recipient {
    Here(Region),
    Peer(Arc<Peer>),
    OneOf(Region),
    /// No instance: why there is none in a region that was named.
    Nobody(Region, Problem),
}

/// The region and the report of the call that one instance, or one region, was asked to run.
type Entry = (Region, Report);
/// A call at work, with what it holds.
type Asking = BoxFuture<'static, Entry>;
/// A call that began lately, until it ends or began so long ago that it counts no more.
type Beginning = BoxFuture<'static, Result<Entry, Asking>>;

/// A fan-out under way. Dropping it cancels what was asked and has not started; what runs, runs on to its deadline.
pub(crate) struct FanOut {
    dispatcher: Arc<Dispatcher>,
    call: Arc<Call>,
    request_id: RequestId,
    pub(crate) arrived: Instant,
    waiting: VecDeque<Recipient>,
    lately: FuturesUnordered<Beginning>,
    running: FuturesUnordered<Asking>,
    /// The largest result or error of the function so far, in bytes.
    largest: Option<usize>,
    /// Whether a result found no room, so that the others come one by one.
    found_no_room: bool,
    /// How many instances, or regions, are asked.
    pub(crate) asked: usize,
    /// Of how many of them a result came so far.
    pub(crate) succeeded: usize,
    in_flight: InFlight,
}

impl FanOut {
    /// A fan-out of `call` in `regions`, to every instance that is known there now.
    ///
    /// # Errors
    /// [`Code::Draining`] when this instance takes no new calls; [`Code::DiscoveryPending`] when nobody is known before the
    /// call's deadline.
    pub(crate) async fn begin(
        dispatcher: &Arc<Dispatcher>,
        regions: &Regions,
        per: Per,
        mut call: Call,
        request_id: RequestId,
        arrived: Instant,
    ) -> Result<Self, Problem> {
        let in_flight = dispatcher.lifecycle.admit()?;
        let deadline = Deadline::since(arrived, call.timeout);
        dispatcher.first_round(deadline, "").await?;
        let waiting = dispatcher.recipients(regions, per);
        if !call.said.is_whole() {
            // They come region by region.
            let mut regions: Vec<_> = waiting.iter().map(Recipient::region).collect();
            regions.dedup();
            let policy_in = |region: &Region| dispatcher.policy_in(region, &call.name);
            if let Some((policy, _)) = regions.into_iter().find_map(policy_in) {
                call.put_under(policy, dispatcher.local.timeouts.max);
            }
        }
        Ok(Self {
            dispatcher: Arc::clone(dispatcher),
            call: Arc::new(call),
            request_id,
            arrived,
            asked: waiting.len(),
            succeeded: 0,
            waiting: waiting.into(),
            lately: FuturesUnordered::new(),
            running: FuturesUnordered::new(),
            largest: None,
            found_no_room: false,
            in_flight,
        })
    }

    /// The region and the report of the next call that ends; `None` when all have ended.
    pub(crate) async fn next(&mut self) -> Option<(Region, Report)> {
        loop {
            while self.may_begin()
                && let Some(recipient) = self.waiting.pop_front()
            {
                let running = self.start(recipient);
                self.lately.push(Box::pin(lately(running)));
            }
            let (region, report) = tokio::select! {
                Some(began) = self.lately.next() => match began {
                    Ok(entry) => entry,
                    Err(running) => {
                        self.running.push(running);
                        continue;
                    }
                },
                Some(entry) = self.running.next() => entry,
                // Others than these may have given room back.
                () = time::sleep(LATELY), if !self.waiting.is_empty() => continue,
                else => return None,
            };
            self.count(&report);
            return Some((region, report));
        }
    }

    /// Whether another call may begin: there is room for its arguments and for the results of calls that began lately, or nothing
    /// is under way that could free room. Until a result came, it is taken to be as large as the arguments. Calls that hang do
    /// not count: they did not begin lately.
    fn may_begin(&self) -> bool {
        let lately = self.lately.len();
        if lately == 0 && self.running.is_empty() {
            return true;
        }
        let memory = &self.dispatcher.local.memory;
        let args = self.size_of_args();
        let each = self.largest.unwrap_or(args / 2).max(UNCOUNTED);
        let results = match lately {
            0 => 0,
            // Twice: they may take half of the room that is left.
            _ => 2 * each * (lately + 1),
        };
        let is_paced = match self.largest {
            _ if self.found_no_room => lately == 0,
            Some(_) => true,
            None => lately < FIRST,
        };
        is_paced && memory.has_room(args + results, Share::Results)
    }

    /// What the arguments take of the memory budget on their way to one instance, in bytes: once in the call, and once in the
    /// line that is sent.
    fn size_of_args(&self) -> usize {
        let size = self.call.args.raw().get().len();
        if size > UNCOUNTED { 2 * size } else { 0 }
    }

    /// Room for the arguments on their way.
    ///
    /// # Errors
    /// There is none, or none for a result as large as one before: the function would have run in vain.
    fn room_for(&self, recipient: &Recipient) -> Result<Reserved, Problem> {
        let memory = &self.dispatcher.local.memory;
        let largest = self.largest.filter(|largest| *largest > UNCOUNTED);
        let (args, result) = match recipient {
            Recipient::Peer(_) | Recipient::OneOf(_) => (self.size_of_args(), largest),
            Recipient::Here(_) => (0, largest),
            Recipient::Nobody(..) => (0, None),
        };
        let room = memory.reserve(args, Share::Results)?;
        // Only to see that there is some: the result is counted as it comes.
        memory.reserve(result.unwrap_or(0), Share::Results)?;
        Ok(room)
    }

    fn start(&self, recipient: Recipient) -> Asking {
        let (dispatcher, call) = (Arc::clone(&self.dispatcher), Arc::clone(&self.call));
        let (request_id, arrived) = (self.request_id.clone(), self.arrived);
        let in_flight = Arc::clone(&self.in_flight);
        let room = self.room_for(&recipient);
        // Where one instance is asked, no other may answer for it, also where they share their keys.
        let keys_are_shared =
            matches!(recipient, Recipient::OneOf(_)) && dispatcher.executor.keys.are_shared();
        let asking = async move {
            let deadline = Deadline::since(arrived, call.timeout);
            let attempts = Attempts::new(
                request_id,
                deadline,
                &call,
                keys_are_shared,
                Some(in_flight),
            );
            ask(&dispatcher, &call, recipient, room, attempts, arrived).await
        };
        Box::pin(in_own_task(asking.in_current_span()))
    }

    fn count(&mut self, report: &Report) {
        let problem = report.result.as_ref().err();
        if problem.is_none_or(|problem| problem.error.is_some()) {
            let size = Returned::size(&report.result);
            self.largest = self.largest.max(Some(size));
        }
        self.found_no_room |= problem.is_some_and(Returned::found_no_room);
        self.succeeded += usize::from(problem.is_none());
        self.dispatcher.ended(&self.call.name, report);
    }
}

/// `asking`, or what is left of it once it no longer counts as one that began lately.
async fn lately(mut asking: Asking) -> Result<Entry, Asking> {
    let ended = time::timeout(LATELY, &mut asking).await;
    ended.map_err(|_| asking)
}

/// Asks one, if there was room for the arguments: a chosen instance once, because what its answer says of it is what the caller
/// wants to know, and only the caller knows whether to ask it again; one of a region as any call there is asked.
async fn ask(
    dispatcher: &Dispatcher,
    call: &Call,
    recipient: Recipient,
    room: Result<Reserved, Problem>,
    mut attempts: Attempts,
    arrived: Instant,
) -> Entry {
    let region = recipient.region().clone();
    let call = &*recipient.call(call, &dispatcher.local.identity.instance);
    // The room is held until the call has ended, which is when the match has.
    let result = match (room, &recipient) {
        (Err(problem), _) => Err(problem),
        (Ok(_), Recipient::Nobody(_, problem)) => Err(problem.clone()),
        (Ok(_), Recipient::Here(_)) => dispatcher.attempt_here(call, &mut attempts).await,
        (Ok(_), Recipient::Peer(peer)) => dispatcher.attempt_there(peer, call, &mut attempts).await,
        (Ok(_), Recipient::OneOf(region)) => dispatcher.run_in(region, call, &mut attempts).await,
    };
    let elapsed = arrived.elapsed();
    let report = attempts.into_report(Some(region.clone()), recipient.instance(), result, elapsed);
    (region, report)
}

impl Dispatcher {
    /// Whom a fan-out in `regions` asks: who is known there now, also who does not answer.
    fn recipients(&self, regions: &Regions, per: Per) -> Vec<Recipient> {
        let own = &self.local.identity.region;
        let (named, is_all) = match regions {
            Regions::All => (self.regions(), true),
            Regions::Named(_) => {
                let mut named = Vec::new();
                for region in regions.named(&self.local.identity.primary) {
                    if !named.contains(region) {
                        named.push(region.clone());
                    }
                }
                (named, false)
            }
        };
        let mut recipients = Vec::new();
        for region in named {
            let before = recipients.len();
            let peers = self.peers(&region);
            let is_here = region == *own;
            let found = peers.as_ref().map_or(0, |peers| peers.count());
            match per {
                Per::Region if is_here || found > 0 => {
                    recipients.push(Recipient::OneOf(region.clone()))
                }
                Per::Region => {}
                Per::Instance => {
                    recipients.extend(is_here.then(|| Recipient::Here(region.clone())));
                    let peers = peers.iter().flat_map(|peers| peers.all());
                    recipients.extend(peers.cloned().map(Recipient::Peer));
                }
            }
            if recipients.len() == before && !is_all {
                let problem = peers.err().unwrap_or_else(|| {
                    let detail = format!("region \"{region}\": no instance is left");
                    Problem::new(Code::RegionUnavailable, detail)
                });
                recipients.push(Recipient::Nobody(region, problem));
            }
        }
        recipients
    }
}

impl Recipient {
    fn region(&self) -> &Region {
        match self {
            Self::Here(region) | Self::OneOf(region) | Self::Nobody(region, _) => region,
            Self::Peer(peer) => &peer.region,
        }
    }

    /// The call as this one is sent it. A peer runs it by its name, for another may answer at its address. A key becomes one
    /// of its own, the same for each repeat, so that each remembers its own outcome also where all share a store of keys.
    fn call<'a>(&self, call: &'a Call, me: &InstanceId) -> Cow<'a, Call> {
        let place = || match self {
            Self::Here(region) => format!("{region}\0{me}"),
            Self::Peer(peer) => format!("{}\0{}", peer.region, peer.instance),
            Self::OneOf(region) | Self::Nobody(region, _) => region.to_string(),
        };
        let key = call.key.as_ref().map(|key| key.of_place(&place()));
        let instance = self.instance();
        if key.is_none() && instance.is_none() {
            return Cow::Borrowed(call);
        }
        Cow::Owned(Call {
            key,
            instance,
            ..call.clone()
        })
    }

    /// The one that was to be asked, also where it was not.
    fn instance(&self) -> Option<InstanceId> {
        match self {
            Self::Peer(peer) => Some(peer.instance.clone()),
            Self::Here(_) | Self::OneOf(_) | Self::Nobody(..) => None,
        }
    }
}
