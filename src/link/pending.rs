//! The calls of one stream between the moment when they leave and their answers. One lock decides, for each call, whether
//! it left: on that hangs `executed: no` or `maybe` when its caller gives up or the stream ends.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use serde_json::value::RawValue;
use tokio::sync::oneshot;

use super::frames;
use crate::{deadline::Deadline, reply::ProblemDocument};

/// What became of a call that left.
#[derive(Debug)]
pub(super) enum Answer {
    /// The peer answered it.
    Told(Result<Box<RawValue>, Box<ProblemDocument>>),
    /// The peer answered it with something else than our contract.
    Garbled,
    /// The stream ended without an answer to it.
    Lost,
}

/// A call that waits to leave.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) id: u64,
    pub(super) tail: Vec<u8>,
    pub(super) deadline: Deadline,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// How a call stands when its caller gives up.
#[derive(Debug)]
pub(super) enum GivenUp {
    /// Its answer came at the last moment.
    Answered(Answer),
    /// It left; whether anything came from the peer since then.
    Left { peer_is_silent: bool },
    /// It never left, and never will.
    Stayed,
}

/// The calls that left and have no answer yet.
#[derive(Debug, Default)]
pub(super) struct Pending {
    calls: Mutex<Calls>,
    next_id: AtomicU64,
    heard: AtomicU64,
    doubts: AtomicU32,
}

#[derive(Debug, Default)]
struct Calls {
    by_id: HashMap<u64, oneshot::Sender<Answer>>,
    is_over: bool,
}

impl Pending {
    /// A new id.
    pub(super) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// How often the peer was heard so far.
    pub(super) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// Notes that the peer was heard; whether somebody had doubts since the last time.
    pub(super) fn hear(&self) -> bool {
        self.heard.fetch_add(1, Ordering::Relaxed);
        self.doubts.load(Ordering::Relaxed) > 0 && self.doubts.swap(0, Ordering::Relaxed) > 0
    }

    /// Notes that a call had no answer; how many since the peer was heard.
    pub(super) fn doubt(&self) -> u32 {
        self.doubts.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Writes the calls that leave now, `first` and as many as `more` gives, until `out` has `enough` bytes. Those whose
    /// caller gave up, or whose deadline passed, never leave. Tells how many left.
    pub(super) fn depart(
        &self,
        first: Queued,
        mut more: impl FnMut() -> Option<Queued>,
        out: &mut Vec<u8>,
        enough: usize,
    ) -> u32 {
        let mut left = 0;
        let mut calls = self.lock();
        let mut next = Some(first);
        while let Some(queued) = next {
            left += u32::from(calls.depart(queued, out));
            next = if out.len() < enough { more() } else { None };
        }
        left
    }

    /// Gives the answers that came to those who wait for them.
    pub(super) fn arrive(&self, answers: impl Iterator<Item = (u64, Answer)>) {
        let mut calls = self.lock();
        for (id, answer) in answers {
            if let Some(caller) = calls.by_id.remove(&id) {
                // The caller may have gone away.
                let _ = caller.send(answer);
            }
        }
    }

    /// Takes back the call `id`, whose caller gives up.
    pub(super) fn give_up(
        &self,
        id: u64,
        heard_before: u64,
        answer: &mut oneshot::Receiver<Answer>,
    ) -> GivenUp {
        let mut calls = self.lock();
        if calls.by_id.remove(&id).is_some() {
            let peer_is_silent = self.heard() == heard_before;
            return GivenUp::Left { peer_is_silent };
        }
        // Under the lock: the call either has its answer, or sees when its turn comes that nobody waits.
        match answer.try_recv() {
            Ok(answer) => GivenUp::Answered(answer),
            Err(_) => {
                answer.close();
                GivenUp::Stayed
            }
        }
    }

    /// Takes back the call `id` unless it left.
    pub(super) fn take_back(&self, id: u64, answer: &mut oneshot::Receiver<Answer>) -> bool {
        let calls = self.lock();
        let has_left = calls.by_id.contains_key(&id) || !answer.is_empty();
        if !has_left {
            answer.close();
        }
        !has_left
    }

    /// Forgets the call `id`, whose caller has gone away.
    pub(super) fn forget(&self, id: u64) {
        self.lock().by_id.remove(&id);
    }

    /// Whether no call waits for an answer.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().by_id.is_empty()
    }

    /// Ends it: what left is answered with `answer`, and nothing leaves any more.
    pub(super) fn end(&self, answer: impl Fn() -> Answer) {
        let mut calls = self.lock();
        calls.is_over = true;
        for (_, caller) in calls.by_id.drain() {
            let _ = caller.send(answer());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Calls {
    /// Writes a call; whether it leaves.
    fn depart(&mut self, queued: Queued, out: &mut Vec<u8>) -> bool {
        let Queued {
            id,
            tail,
            deadline,
            answer,
        } = queued;
        let Some(timeout_ms) = deadline.remaining_ms() else {
            return false;
        };
        if self.is_over || answer.is_closed() {
            return false;
        }
        frames::write_call(out, id, timeout_ms, &tail);
        self.by_id.insert(id, answer);
        true
    }
}
