//! Runs functions on this instance: under the limit of calls in flight, within the deadline, each in a task of its own
//! so that a client that goes away, or a panic, harms nothing else; and once for each idempotency key.

use std::{
    panic::{self, AssertUnwindSafe},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{self, BoxFuture, Either},
};
use serde_json::value::RawValue;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task,
    time::Instant,
};
use tracing::{Instrument, Span};

use super::{
    Block, CallContext, Prepared, Registry, Run,
    keys::{Keys, Known},
};
use crate::{
    app::{App, AppHealth, InApp, Listing},
    call::Call,
    deadline::Deadline,
    gate::{Gates, Turn},
    json,
    lifecycle::{InFlight, Lifecycle},
    local::LocalInstance,
    memory::Reserved,
    metrics::Metrics,
    name::{FunctionName, IdempotencyKey, RequestId},
    problem::{Code, Executed, FunctionError, Problem},
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
    pub(crate) keys: Keys,
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

impl Executor {
    /// An executor of the functions of `registry`, and of those of `app` that `registry` does not have, on the instance
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

    /// Whether this instance did not have the function since it started: there is no app whose list may change, or one that
    /// has given none yet.
    pub(crate) fn never_had(&self, name: &FunctionName) -> bool {
        let is_starting = |app: &Arc<App>| app.status().health == AppHealth::Starting;
        self.app.as_ref().is_none_or(is_starting) && !self.catalogue().has(name)
    }

    pub(crate) fn app(&self) -> Option<&Arc<App>> {
        self.app.as_ref()
    }

    pub(crate) fn running(&self) -> usize {
        self.local.limits.max_in_flight - self.slots.available_permits()
    }

    /// Runs `call` and waits for its result until `deadline`, when the function is dropped. A repeat of a call with
    /// the same key does not run again: it gets the outcome of the first. A call that may start is counted in flight:
    /// `counted` becomes its token, unless it is one of this lifecycle already.
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
                let running = self.start(call, request_id, deadline, counted).await?;
                Returned::counted(running.await, &self.local.memory)
            }
            // On the heap, because calls without a key would carry its size along.
            Some(key) => {
                let run = self.run_once(key, call, request_id, deadline, counted);
                run.boxed().await
            }
        }
    }

    async fn run_once(
        &self,
        key: &IdempotencyKey,
        call: &Call,
        request_id: &RequestId,
        deadline: Deadline,
        counted: &mut Option<InFlight>,
    ) -> Outcome {
        let known = pin!(self.keys.claim(key, call, deadline));
        let mut claim = match call.unless_given_up(known).await {
            Some(Known::Nothing(claim)) => claim,
            Some(Known::Outcome(outcome)) => {
                return Returned::counted(outcome, &self.local.memory);
            }
            None => return Err(given_up_repeat(&call.name)),
        };
        let running = match self.start(call, request_id, deadline, counted).await {
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
            let outcome = Returned::counted(running.await, &local.memory);
            // The caller waits for the store until the deadline, the drain to the end.
            let _ = deadline.bound(claim.settle(&outcome, in_flight)).await;
            outcome
        });
        settled.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Starts the function of `call`. The future gives its outcome, which is there already or comes from a task of its own.
    async fn start(
        &self,
        call: &Call,
        request_id: &RequestId,
        deadline: Deadline,
        counted: &mut Option<InFlight>,
    ) -> Result<impl Future<Output = Outcome> + Send + use<>, Problem> {
        let metrics = &self.local.metrics;
        let refused = |problem: &Problem| metrics.functions.refused(&call.name, problem);
        let mut held = self.hold(call, counted).inspect_err(refused)?;
        let prepared = self.prepare(call, request_id, deadline);
        let (prepared, gates, span) = prepared.inspect_err(refused)?;
        let mut record = RunRecord {
            name: call.name.clone(),
            has_token: call.after.is_some(),
            context: None,
            max_result: self.local.limits.max_result,
            metrics: Arc::clone(metrics),
            started: Instant::now(),
        };
        let needs_thread = matches!(prepared, Prepared::Blocking(_));
        let turn = self.turn(&call.name, gates, needs_thread, deadline);
        let turn = call.unless_given_up(pin!(turn)).await;
        match turn.unwrap_or_else(|| Err(given_up(&call.name))) {
            Ok(turn) => held._turn = turn,
            Err(problem) => {
                let refused = record.close(Err(problem), None);
                return Ok(Either::Left(future::ready(refused)));
            }
        }
        let mut run = match prepared {
            Prepared::Async(run, context) => {
                record.context = context;
                run_async(run, held, deadline, record, span)
            }
            Prepared::App(run) => run_in_app(run, held, record, span),
            Prepared::Blocking(block) => run_blocking(block, held, deadline, record, span),
        };
        // Most functions need not wait, and a task costs more than they do.
        Ok(match future::poll_immediate(&mut run).await {
            Some(outcome) => Either::Left(future::ready(outcome)),
            None => {
                let ended = task::spawn(run);
                Either::Right(ended.map(|ended| ended.unwrap_or_else(|_| Err(stopped()))))
            }
        })
    }

    /// Finds the function and reads its arguments. Returns what to run, the gates to pass first, and the span to run it in.
    fn prepare(
        &self,
        call: &Call,
        request_id: &RequestId,
        deadline: Deadline,
    ) -> Result<(Prepared, Gates, Span), Problem> {
        if deadline.has_passed() {
            return Err(Problem::not_started(&call.name));
        }
        if let Some(app) = &self.app
            && !self.registry.has_named(&call.name)
        {
            let (run, gates) = app.prepare(call, request_id, deadline)?;
            self.local.metrics.functions.know(&call.name);
            let span = trace::function_span(request_id, false);
            return Ok((Prepared::App(run), gates, span));
        }
        // Reads the arguments: code of the function's author as well, when a type brings its own `Deserialize`.
        let instance = &self.local.identity.instance;
        let prepare = || self.registry.prepare(call, request_id, deadline, instance);
        let prepare = AssertUnwindSafe(prepare);
        panic::catch_unwind(prepare).unwrap_or_else(|_| Err(unreadable(&call.name)))
    }

    fn hold(&self, call: &Call, counted: &mut Option<InFlight>) -> Result<Held, Problem> {
        // First of all, so that a drain which begins now either refuses the call or waits for it.
        let in_flight = self.lifecycle.take_over(counted)?;
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| {
            let limit = self.local.limits.max_in_flight;
            let detail =
                format!("this instance runs {limit} calls, as many as RPC_MAX_IN_FLIGHT allows");
            Problem::new(Code::Overloaded, detail)
        })?;
        Ok(Held {
            _slot: slot,
            _in_flight: in_flight,
            _memory: call.memory.clone(),
            _turn: Turn::new(),
        })
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
            let thread = deadline.acquire(&self.threads).await;
            turn.push(thread.ok_or_else(|| Problem::not_started(name))?);
        }
        Ok(turn)
    }
}

/// What is needed to report how a function ended, also when nobody waits for it any more.
struct RunRecord {
    name: FunctionName,
    /// Whether the call names a consistency token.
    has_token: bool,
    /// What the function may have said besides its result.
    context: Option<CallContext>,
    max_result: usize,
    metrics: Arc<Metrics>,
    started: Instant,
}

impl RunRecord {
    /// The outcome of a function that returned `result`, within the limit of results.
    fn bounded(&self, result: Result<Box<RawValue>, FunctionError>) -> Outcome {
        match result {
            Ok(json) => bounded(json, self.max_result),
            Err(error) => failed(&self.name, error, self.max_result),
        }
    }

    /// Counts the `outcome`, and returns it with the consistency token that the function gave. An app itself says how long
    /// it waited for the call's token.
    fn close(self, outcome: Outcome, app_waited: Option<Duration>) -> Outcome {
        let said = self.context.map(|context| context.said);
        let waited = said.as_ref().and_then(|said| said.waited.get().copied());
        let outcome = match said.and_then(|said| said.consistency.get().cloned()) {
            Some(said) => Returned::with_consistency(outcome, Some(said)),
            None => outcome,
        };
        let (functions, problem) = (&self.metrics.functions, outcome.as_ref().err());
        if self.has_token {
            functions.with_token(problem, waited.or(app_waited));
        }
        functions.ended(&self.name, problem, self.started.elapsed());
        outcome
    }
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

fn unreadable(name: &FunctionName) -> Problem {
    let detail =
        format!("{name}: reading the arguments panicked; the instance's log has the cause");
    Problem::new(Code::InvalidArguments, detail)
}

fn given_up(name: &FunctionName) -> Problem {
    let detail = format!("the caller gave up before {name} started");
    Problem::new(Code::DeadlineExceeded, detail)
}

/// The caller of a call with a key gave up while it waited for the first one with that key, or for the store's word on it.
fn given_up_repeat(name: &FunctionName) -> Problem {
    let detail = format!("the caller gave up while {name} may have run under the same key");
    Problem::new(Code::DeadlineExceeded, detail).executed(Executed::Maybe)
}

fn stopped() -> Problem {
    Problem::new(Code::Internal, "the runtime stopped while the function ran")
}

/// Runs an async function until it ends, panics, or is dropped at the deadline.
///
/// This and the next two are on the heap from the start, because they are large and may move to a task of their own. They are
/// no `async fn`, which would have room for each argument twice.
fn run_async(
    run: Run,
    held: Held,
    deadline: Deadline,
    record: RunRecord,
    span: Span,
) -> BoxFuture<'static, Outcome> {
    let run = async move {
        let ended = AssertUnwindSafe(deadline.bound(run)).catch_unwind().await;
        drop(held);
        let outcome = match ended {
            Ok(Some(result)) => record.bounded(result),
            Ok(None) => Err(Problem::still_running(&record.name)),
            Err(_) => Err(panicked(&record.name)),
        };
        record.close(outcome, None)
    };
    run.instrument(span).boxed()
}

/// Without a bound: the call of an app ends itself at its deadline, and knows whether the app may have run it.
fn run_in_app(
    run: InApp,
    held: Held,
    record: RunRecord,
    span: Span,
) -> BoxFuture<'static, Outcome> {
    let run = async move {
        let ended = AssertUnwindSafe(run).catch_unwind().await;
        drop(held);
        let (outcome, waited) = ended.unwrap_or_else(|_| (Err(panicked(&record.name)), None));
        record.close(outcome, waited)
    };
    run.instrument(span).boxed()
}

/// A thread cannot be stopped: at the deadline the caller gets its answer, and the call stays in flight until the
/// function has returned.
fn run_blocking(
    block: Block,
    held: Held,
    deadline: Deadline,
    record: RunRecord,
    span: Span,
) -> BoxFuture<'static, Outcome> {
    let in_span = span.clone();
    // Set by whichever comes first: the thread that starts the function, or the deadline.
    let is_decided = Arc::<AtomicBool>::default();
    let by_thread = Arc::clone(&is_decided);
    let run = async move {
        let ran = task::spawn_blocking(move || {
            let _held = held;
            // The thread may have come late.
            let starts = !deadline.has_passed() && !by_thread.swap(true, Ordering::Relaxed);
            starts.then(|| in_span.in_scope(block))
        });
        let outcome = match deadline.bound(ran).await {
            Some(Ok(Some(result))) => record.bounded(result),
            Some(Err(error)) if error.is_panic() => Err(panicked(&record.name)),
            Some(Err(_)) => Err(Problem::still_running(&record.name)),
            Some(Ok(None)) | None => Err(match is_decided.swap(true, Ordering::Relaxed) {
                true => Problem::still_running(&record.name),
                // Other blocking tasks of the program may hold all threads of the runtime.
                false => Problem::not_started(&record.name),
            }),
        };
        record.close(outcome, None)
    };
    run.instrument(span).boxed()
}
