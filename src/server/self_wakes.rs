//! Polls a future again at once where it woke itself while it was polled, as hyper's connections do for each request with a
//! body. tokio would put the task at the end of its queue and wake another thread for it: two context switches for each
//! request on an instance that is otherwise idle.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// How often a future is polled before its task makes way for others.
const TIMES: u32 = 8;

/// Nobody polls: a wake goes to the task.
const IDLE: u8 = 0;
/// The future is being polled.
const POLLED: u8 = 1;
/// The future was woken since its last poll began.
const WOKEN: u8 = 2;

/// The wakes of one future.
#[derive(Debug)]
pub(super) struct SelfWakes {
    wakes: Arc<Wakes>,
    waker: Waker,
}

#[derive(Debug, Default)]
struct Wakes {
    state: AtomicU8,
    task: AtomicWaker,
}

impl SelfWakes {
    /// Of a future that is yet to be polled.
    pub(super) fn new() -> Self {
        let wakes = Arc::<Wakes>::default();
        let waker = Waker::from(Arc::clone(&wakes));
        Self { wakes, waker }
    }

    /// Polls `future`, which is always the same, until it is done or waits for something.
    pub(super) fn poll<F: Future>(
        &self,
        mut future: Pin<&mut F>,
        context: &mut Context<'_>,
    ) -> Poll<F::Output> {
        let Wakes { state, task } = &*self.wakes;
        task.register(context.waker());
        for _ in 0..TIMES {
            // A swap, to see what was written before a wake that this one takes the place of.
            state.swap(POLLED, Ordering::SeqCst);
            let polled = future.as_mut().poll(&mut Context::from_waker(&self.waker));
            let was_not_woken = || {
                let idle = state.compare_exchange(POLLED, IDLE, Ordering::SeqCst, Ordering::SeqCst);
                idle.is_ok()
            };
            if polled.is_ready() || was_not_woken() {
                return polled;
            }
        }
        state.swap(IDLE, Ordering::SeqCst);
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, Ordering::SeqCst) == IDLE {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future,
        pin::pin,
        sync::atomic::{AtomicU32, Ordering},
    };

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// How often a future that wakes itself the first `times` is polled at once, and its task is woken.
    fn polls_and_wakes(times: u32) -> (u32, u32) {
        let mut polls = 0;
        let count = Arc::<Count>::default();
        {
            let future = pin!(future::poll_fn(|context| {
                polls += 1;
                if polls <= times {
                    context.waker().wake_by_ref();
                }
                Poll::<()>::Pending
            }));
            let waker = Waker::from(Arc::clone(&count));
            let mut context = Context::from_waker(&waker);
            let polled = SelfWakes::new().poll(future, &mut context);
            assert!(polled.is_pending());
        }
        (polls, count.0.load(Ordering::SeqCst))
    }

    #[test]
    fn a_future_that_wakes_itself_is_polled_at_once_and_not_for_ever() {
        assert_eq!(polls_and_wakes(0), (1, 0));
        assert_eq!(polls_and_wakes(1), (2, 0));
        assert_eq!(polls_and_wakes(TIMES - 1), (TIMES, 0));
        assert_eq!(polls_and_wakes(u32::MAX), (TIMES, 1));
    }

    #[test]
    fn a_wake_between_polls_wakes_the_task() {
        let count = Arc::<Count>::default();
        let waker = Waker::from(Arc::clone(&count));
        let mut inner = None;
        let self_wakes = SelfWakes::new();
        let mut future = pin!(future::poll_fn(|context| {
            inner = Some(context.waker().clone());
            Poll::<()>::Pending
        }));
        let mut context = Context::from_waker(&waker);
        for wakes in 1..=2 {
            assert!(self_wakes.poll(future.as_mut(), &mut context).is_pending());
            self_wakes.waker.wake_by_ref();
            self_wakes.waker.wake_by_ref();
            assert_eq!(count.0.load(Ordering::SeqCst), wakes);
        }
        assert!(inner.is_some_and(|inner| inner.will_wake(&self_wakes.waker)));
    }
}
