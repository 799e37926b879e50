//! Runs functions on this instance: under the limit of calls in flight, within the deadline, each in a task of its own
//! so that a client that goes away, or a panic, harms nothing else; and once for each idempotency key.

use std::{
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{
    FutureExt,
    future::{self, BoxFuture},
};
use serde_json::value::RawValue;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{self, JoinHandle},
    time::Instant,
};
use tracing::{Instrument, Span};

use super::{
    Block, CallContext, InApp, Prepared, Registry, Run,
    keys::{Claim, Keys, Known},
};
use crate::{
    app::{Answered, App, Listing},
    call::Call,
    deadline::Deadline,
    gate::{Gates, Turn},
    json,
    lifecycle::{InFlight, Lifecycle},
    local::LocalInstance,
    memory::Reserved,
    metrics::Metrics,
    name::{FunctionName, RequestId},
    problem::{Code, FunctionError, Problem},
    protocol::Catalogue,
    reply::{Outcome, Returned},
    trace,
};

/// How many blocking functions run at once, each on a thread of its own; more wait for their turn.
const BLOCKING: usize = 64;

/// Runs the functions of a registry, and has those of an app beside it run there.
#[derive(Debug)]
pub(crate) struct Executor {
    registry: Registry,
    app: Option<Arc<App>>,
    catalogue: Arc<Catalogue>,
    /// The functions of both, and the app's list that they were made of.
    with_app: Mutex<(Arc<Listing>, Arc<Catalogue>)>,
    local: Arc<LocalInstance>,
    lifecycle: Arc<Lifecycle>,
    slots: Arc<Semaphore>,
    threads: Arc<Semaphore>,
    keys: Keys,
}

/// What a running call holds until its function has ended.
#[derive(Debug)]
struct Held {
    _slot: OwnedSemaphorePermit,
    _in_flight: InFlight,
    /// For the arguments, which the function has now.
    _memory: Option<Arc<Reserved>>,
    /// Empty while it waits for its turn, and where it need not wait.
    _turn: Turn,
}

struct Ready {
    prepared: Prepared,
    gates: Gates,
    held: Held,
    /// Around what its function logs.
    span: Span,
}

/// How a function ended.
enum Ended {
    Done(Result<Box<RawValue>, FunctionError>),
    NeverStarted,
    TimedOut,
    /// As the app says, or in a refusal.
    Answered(Answered),
}

impl Executor {
    /// An executor of the functions of `registry`, and of `app` where that has none of the name, on the instance
    /// `local`.
    pub(crate) fn new(
        registry: Registry,
        app: Option<Arc<App>>,
        keys: Keys,
        local: Arc<LocalInstance>,
        lifecycle: Arc<Lifecycle>,
    ) -> Self {
        let no_app = Arc::<Listing>::default();
        let catalogue = Arc::new(registry.catalogue(&no_app));
        Self {
            with_app: Mutex::new((no_app, Arc::clone(&catalogue))),
            catalogue,
            registry,
            app,
            lifecycle,
            slots: Arc::new(Semaphore::new(local.limits.max_in_flight)),
            threads: Arc::new(Semaphore::new(BLOCKING)),
            local,
            keys,
        }
    }

    /// The functions that can be called now; those of the app come and go.
    pub(crate) fn catalogue(&self) -> Arc<Catalogue> {
        let Some(offered) = self.app.as_ref().and_then(|app| app.offered()) else {
            return Arc::clone(&self.catalogue);
        };
        // Made once for each list, which is the same one until it changes.
        let mut made = self.with_app.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&made.0, &offered) {
            let catalogue = self.registry.catalogue(&offered);
            *made = (offered, Arc::new(catalogue));
        }
        Arc::clone(&made.1)
    }

    pub(crate) fn app(&self) -> Option<&Arc<App>> {
        self.app.as_ref()
    }

    /// Whether any instance knows what another has run under a key.
    pub(crate) fn shares_keys(&self) -> bool {
        self.keys.are_shared()
    }

    /// Whether the store of idempotency keys answers; `None` without one.
    pub(crate) fn key_store_is_up(&self) -> Option<bool> {
        self.keys.store_is_up()
    }

    pub(crate) fn running(&self) -> usize {
        self.local.limits.max_in_flight - self.slots.available_permits()
    }

    /// Runs `call` and waits for its result until `deadline`, when the function is dropped. A repeat of a call with
    /// the same key does not run again: it gets the outcome of the first. Where it runs, the call is `counted` here from then
    /// on.
    ///
    /// # Errors
    /// Before it ran: [`Code::Draining`], [`Code::Overloaded`], [`Code::DeadlineExceeded`], [`Code::FunctionUnknown`],
    /// [`Code::InvalidArguments`], [`Code::IdempotencyMismatch`]. After: [`Code::FunctionFailed`],
    /// [`Code::FunctionPanicked`], [`Code::ResultNotKept`], and [`Code::DeadlineExceeded`] with `executed: maybe`.
    ///
    /// # Cancel safety
    /// Dropping this future does not stop a function that has started; it runs on to its deadline. One that waits for its
    /// turn never starts.
    pub(crate) async fn run(
        &self,
        call: &Call,
        request_id: &RequestId,
        deadline: Deadline,
        counted: &mut Option<InFlight>,
    ) -> Outcome {
        match &call.key {
            None => {
                let running = Running::start(self, call, request_id, deadline, counted).await?;
                running.outcome().await?.counted(&self.local.memory)
            }
            Some(key) => {
                let claim = self.keys.claim(key, call, deadline).map(Ok);
                match call.unless_given_up(claim).await? {
                    Known::Nothing(claim) => {
                        self.run_claimed(claim, call, request_id, deadline, counted)
                            .await
                    }
                    Known::Outcome(outcome) => outcome?.counted(&self.local.memory),
                }
            }
        }
    }

    async fn run_claimed(
        &self,
        mut claim: Claim,
        call: &Call,
        request_id: &RequestId,
        deadline: Deadline,
        counted: &mut Option<InFlight>,
    ) -> Outcome {
        let running = match Running::start(self, call, request_id, deadline, counted).await {
            Ok(running) => running,
            Err(problem) => {
                let refused = Err(problem);
                let _ = deadline.bound(claim.settle(&refused, None)).await;
                return refused;
            }
        };
        claim.begin();
        // In a task of its own: the outcome is remembered also when the caller goes away, and before the process ends.
        let (in_flight, local) = (counted.clone(), Arc::clone(&self.local));
        let settled = task::spawn(async move {
            let outcome = running.outcome().await;
            let outcome = outcome.and_then(|returned| returned.counted(&local.memory));
            // The caller waits for the store until the deadline, the drain to the end.
            let _ = deadline.bound(claim.settle(&outcome, in_flight)).await;
            outcome
        });
        settled.await.unwrap_or_else(|_| Err(stopped()))
    }

    fn ready(
        &self,
        call: &Call,
        request_id: &RequestId,
        deadline: Deadline,
        counted: &mut Option<InFlight>,
    ) -> Result<Ready, Problem> {
        let held = self.hold(call, counted)?;
        if deadline.has_passed() {
            return Err(Problem::not_started(&call.name));
        }
        if let Some(app) = &self.app
            && !self.registry.has_named(&call.name)
        {
            let (run, gates) = app.prepare(call, request_id, deadline)?;
            self.local.metrics.functions.know(&call.name);
            return Ok(Ready {
                prepared: Prepared::App(Box::pin(run)),
                gates,
                held,
                span: trace::function_span(request_id, false),
            });
        }
        // Reads the arguments: code of the function's author as well, when a type brings its own `Deserialize`.
        let prepare = AssertUnwindSafe(|| self.registry.prepare(call, request_id, deadline));
        let prepared = panic::catch_unwind(prepare);
        let (prepared, gate, span) = prepared.unwrap_or_else(|_| Err(panicked(&call.name)))?;
        Ok(Ready {
            prepared,
            gates: [gate.map(Arc::clone), None],
            held,
            span,
        })
    }

    fn hold(&self, call: &Call, counted: &mut Option<InFlight>) -> Result<Held, Problem> {
        // First of all, so that a drain which begins now either refuses the call or waits for it.
        let in_flight = self.lifecycle.take_over(counted)?;
        match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(slot) => Ok(Held {
                _slot: slot,
                _in_flight: in_flight,
                _memory: call.memory.clone(),
                _turn: Turn::new(),
            }),
            Err(_) => {
                let limit = self.local.limits.max_in_flight;
                let detail = format!(
                    "this instance runs {limit} calls, as many as RPC_MAX_IN_FLIGHT allows"
                );
                Err(Problem::new(Code::Overloaded, detail))
            }
        }
    }

    /// Waits for the turn of a call of `name`: at its gates, and for a thread where it needs one.
    async fn turn(
        &self,
        name: &FunctionName,
        gates: Gates,
        needs_thread: bool,
        deadline: Deadline,
    ) -> Result<Turn, Problem> {
        let mut turn = Turn::new();
        for gate in gates.into_iter().flatten() {
            turn.extend(gate.enter(name, deadline).await?);
        }
        if needs_thread {
            let threads = Arc::clone(&self.threads);
            let thread = deadline.bound(threads.acquire_owned()).await;
            // Nobody closes the semaphore.
            let thread = thread.and_then(Result::ok);
            turn.push(thread.ok_or_else(|| Problem::not_started(name))?);
        }
        Ok(turn)
    }
}

/// A call whose function has started: it ended at once, or goes on in a task of its own.
enum Running {
    Ended(Outcome),
    Task(JoinHandle<Outcome>),
}

impl Running {
    async fn start(
        executor: &Executor,
        call: &Call,
        request_id: &RequestId,
        deadline: Deadline,
        counted: &mut Option<InFlight>,
    ) -> Result<Self, Problem> {
        let LocalInstance {
            limits, metrics, ..
        } = &*executor.local;
        let ready = executor.ready(call, request_id, deadline, counted);
        let Ready {
            prepared,
            gates,
            mut held,
            span,
        } = ready.inspect_err(|problem| metrics.functions.refused(&call.name, problem))?;
        let mut account = Account {
            name: call.name.clone(),
            has_token: call.after.is_some(),
            context: None,
            max_result: limits.max_result,
            metrics: Arc::clone(metrics),
            started: Instant::now(),
        };
        let needs_thread = matches!(prepared, Prepared::Blocking(_));
        let turn = executor.turn(&call.name, gates, needs_thread, deadline);
        match call.unless_given_up(turn).await {
            Ok(turn) => held._turn = turn,
            Err(problem) => {
                let refused = Ended::Answered(Err(problem).into());
                return Ok(Self::Ended(account.close(Some(refused))));
            }
        }
        let mut run = match prepared {
            Prepared::Async(run, context) => {
                account.context = context;
                accounted(run_async(run, held, deadline), account, span)
            }
            Prepared::App(run) => accounted(run_in_app(run, held), account, span),
            Prepared::Blocking(block) => {
                accounted(run_blocking(block, held, deadline), account, span)
            }
        };
        // Most functions need not wait, and a task costs more than they do.
        Ok(match future::poll_immediate(&mut run).await {
            Some(outcome) => Self::Ended(outcome),
            None => Self::Task(task::spawn(run)),
        })
    }

    async fn outcome(self) -> Outcome {
        match self {
            Self::Ended(outcome) => outcome,
            Self::Task(task) => task.await.unwrap_or_else(|_| Err(stopped())),
        }
    }
}

/// What is needed to report how a function ended, also when nobody waits for it any more.
struct Account {
    name: FunctionName,
    /// Whether the call names a consistency token.
    has_token: bool,
    /// What the function may have said besides its result.
    context: Option<CallContext>,
    max_result: usize,
    metrics: Arc<Metrics>,
    started: Instant,
}

impl Account {
    /// The outcome of a function that `ended`, or panicked.
    fn close(self, ended: Option<Ended>) -> Outcome {
        let (name, max_result) = (&self.name, self.max_result);
        let mut waited = self.context.as_ref().and_then(CallContext::waited);
        let outcome = match ended {
            Some(Ended::Done(Ok(result))) => bounded(result, max_result),
            Some(Ended::Done(Err(error))) => failed(name, error, max_result),
            Some(Ended::NeverStarted) => Err(Problem::not_started(name)),
            Some(Ended::TimedOut) => Err(Problem::still_running(name)),
            Some(Ended::Answered(answered)) => {
                waited = answered.waited;
                answered.outcome
            }
            None => Err(panicked(name)),
        };
        let outcome = match self.context.and_then(|context| context.consistency()) {
            Some(said) => Returned::with_consistency(outcome, Some(said)),
            None => outcome,
        };
        if self.has_token {
            let problem = outcome.as_ref().err();
            self.metrics.functions.with_token(problem, waited);
        }
        let problem = outcome.as_ref().err();
        let elapsed = self.started.elapsed();
        self.metrics.functions.ended(name, problem, elapsed);
        outcome
    }
}

/// `run`, reported when it has ended or panicked. On the heap from the start: it is large, and moved to where it goes on.
fn accounted(
    run: impl Future<Output = Ended> + Send + 'static,
    account: Account,
    span: Span,
) -> BoxFuture<'static, Outcome> {
    let run = AssertUnwindSafe(run).catch_unwind();
    let run = run.map(|ended| account.close(ended.ok()));
    Box::pin(run.instrument(span))
}

fn bounded(result: Box<RawValue>, limit: usize) -> Outcome {
    let size = result.get().len();
    if size <= limit {
        return Ok(Returned::fresh(result));
    }
    let message = format!("the result has {size} bytes, more than the {limit} of RPC_MAX_RESULT");
    let error = FunctionError::new("ResultTooLarge", message);
    Err(Problem::function_failed(error))
}

/// A function's own error within the limit that its result has. Its cause is for the log alone.
fn failed(name: &FunctionName, mut error: FunctionError, limit: usize) -> Outcome {
    if let Some(cause) = error.cause.take() {
        tracing::error!(function = %name, cause, "function failed");
    }
    if error.is_refusal {
        let detail = format!("{name}: {}", error.message);
        return Err(Problem::new(Code::Overloaded, detail));
    }
    // As it is sent: what has to be escaped in JSON takes up to six times its bytes.
    if json::to_vec(&error).len() > limit {
        let message =
            format!("the function's error is larger than the {limit} bytes of RPC_MAX_RESULT");
        error = FunctionError::new("ErrorTooLarge", message);
    }
    Err(Problem::function_failed(error))
}

fn panicked(name: &FunctionName) -> Problem {
    let detail = format!("{name} panicked; the instance's log has the cause");
    Problem::new(Code::FunctionPanicked, detail)
}

fn stopped() -> Problem {
    Problem::new(Code::Internal, "the runtime stopped while the function ran")
}

async fn run_async(run: Run, held: Held, deadline: Deadline) -> Ended {
    let ended = deadline
        .bound(run)
        .await
        .map_or(Ended::TimedOut, Ended::Done);
    drop(held);
    ended
}

/// Without a bound: the call of an app ends itself at its deadline, and knows whether the app may have run it.
async fn run_in_app(run: InApp, held: Held) -> Ended {
    let answered = run.await;
    drop(held);
    Ended::Answered(answered)
}

/// A thread cannot be stopped: at the deadline the caller gets its answer, and the call stays in flight until the
/// function has returned.
async fn run_blocking(block: Block, held: Held, deadline: Deadline) -> Ended {
    let span = Span::current();
    let ran = task::spawn_blocking(move || {
        let _held = held;
        // The thread may have come late.
        (!deadline.has_passed()).then(|| span.in_scope(block))
    });
    match deadline.bound(ran).await {
        Some(Ok(Some(result))) => Ended::Done(result),
        Some(Ok(None)) => Ended::NeverStarted,
        // Passed on, so that the task that waits for it sees the panic as its own.
        Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Some(Err(_)) | None => Ended::TimedOut,
    }
}
