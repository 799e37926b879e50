//! The functions of this instance by name: built before serving, then only read. Owns what a function is, and what it may know
//! of its call and say besides its result (`CallContext`); how one is run under limits is decided in `executor.rs`.

mod args;
mod builtin;
mod executor;
mod keys;

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use foldhash::fast::RandomState;
use futures_util::future::BoxFuture;
use indexmap::IndexMap;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use tokio::time::{self, Instant};
use tracing::Span;

#[cfg(feature = "redis")]
pub(crate) use self::keys::Store;
pub(crate) use self::{executor::Executor, keys::Keys};
use crate::{
    app::{InApp, Listing},
    call::{Args, Call},
    config::Identity,
    deadline::Deadline,
    declaration::Declaration,
    gate::{Gate, Gates},
    name::{ConsistencyToken, FunctionName, IdempotencyKey, InstanceId, RequestId, debug_as_text},
    problem::{Code, FunctionError, Problem},
    protocol::Catalogue,
    trace,
};

/// A function at work: its result as JSON, or its own error.
type Run = BoxFuture<'static, Result<Box<RawValue>, FunctionError>>;

/// A function that blocks its thread, ready to be run on one of its own.
type Block = Box<dyn FnOnce() -> Result<Box<RawValue>, FunctionError> + Send>;

/// A call whose function is found and whose arguments fit.
enum Prepared {
    /// With the context that the function was given, if it takes one.
    Async(Run, Option<CallContext>),
    Blocking(Block),
    App(InApp),
}

/// Makes the context of a call, for a function that takes one.
type Context<'a> = &'a dyn Fn() -> CallContext;

/// A function with its types erased: takes a call's args in order and its context, returns what is to be run, or what is wrong
/// with the args.
type Prepare = Box<dyn Fn(&Args, Context<'_>) -> Result<Prepared, String> + Send + Sync>;

struct Function {
    prepare: Prepare,
    declaration: Declaration,
    /// Bounds its calls, where it declares a concurrency.
    gate: Option<Arc<Gate>>,
    /// Whether it may log something, which then has the request's id.
    logs: bool,
}

/// The functions of this instance.
///
/// ```
/// use fly_rpc::{FunctionError, Registry};
///
/// let registry = Registry::builtin()
///     .function("Math", "add", |(a, b): (i64, i64)| async move { Ok(a + b) })
///     .function("Math", "div", |(a, b): (i64, i64)| async move {
///         a.checked_div(b).ok_or_else(|| FunctionError::new("ArithmeticError", "division by zero"))
///     });
/// assert!(registry.has("Math", "div"));
/// ```
#[derive(Default)]
pub struct Registry {
    functions: IndexMap<FunctionName, Function, RandomState>,
    refused: Vec<String>,
}

/// A function that cannot be registered.
#[derive(thiserror::Error)]
#[error("invalid registry: {0}")]
pub struct RegistryError(String);

debug_as_text!(RegistryError);

impl Registry {
    /// A registry without functions; an instance adds those of the module `Fly.RPC`, which describe itself.
    pub fn new() -> Self {
        Self::default()
    }

    /// The built-in functions of the modules `String`, `Kernel` and `Process`, named as in Elixir.
    pub fn builtin() -> Self {
        Self::new().with_builtin(builtin::functions())
    }

    /// The same registry with an async function.
    ///
    /// The JSON array of a call's arguments becomes `A`: a tuple takes an argument for each of its items, `()` takes
    /// none, and any other type, such as a struct, takes the only one. An error that the function returns reaches the
    /// caller as `function_failed`; [`FunctionError`] says how much of it. The function's future is dropped at the call's
    /// deadline, at its next await.
    ///
    /// An invalid name, or one that is registered twice, makes the start of the instance fail.
    #[must_use]
    pub fn function<A, R, F, Fut>(self, module: &str, function: &str, run: F) -> Self
    where
        A: DeserializeOwned,
        R: Serialize,
        F: Fn(A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, FunctionError>> + Send + 'static,
        A: Send + 'static,
    {
        let run = Arc::new(run);
        self.with(module, function, move |args: A, _| {
            let run = Arc::clone(&run);
            let run = async move { to_json(&run(args).await?) };
            Prepared::Async(Box::pin(run), None)
        })
    }

    /// The same registry with an async function that knows its call: its request id and idempotency key, what its data must
    /// have seen, and how much time is left. Through [`CallContext`] it reports more than its result.
    ///
    /// As [`Registry::function`] in all else.
    #[must_use]
    pub fn function_with_context<A, R, F, Fut>(self, module: &str, function: &str, run: F) -> Self
    where
        A: DeserializeOwned,
        R: Serialize,
        F: Fn(CallContext, A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, FunctionError>> + Send + 'static,
        A: Send + 'static,
    {
        let run = Arc::new(run);
        self.with(module, function, move |args: A, context| {
            let context = context();
            let (run, given) = (Arc::clone(&run), context.clone());
            let run = async move { to_json(&run(given, args).await?) };
            Prepared::Async(Box::pin(run), Some(context))
        })
    }

    /// The same registry with a function that blocks its thread: computes for long, or waits in a call that is not
    /// async. An async function that did so would hold up every other call.
    ///
    /// As [`Registry::function`], but it runs on a thread of its own, 64 at once, and further calls wait for their
    /// turn. A thread cannot be stopped: at the deadline the caller gets its answer, while the function runs on and
    /// counts as in flight until it returns. So that it does not hold up the exit of a program that embeds the crate,
    /// end the runtime with [`tokio::runtime::Runtime::shutdown_background`], as `fly-rpc serve` does.
    #[must_use]
    pub fn blocking_function<A, R, F>(self, module: &str, function: &str, run: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        R: Serialize,
        F: Fn(A) -> Result<R, FunctionError> + Send + Sync + 'static,
    {
        let run = Arc::new(run);
        self.with(module, function, move |args: A, _| {
            let run = Arc::clone(&run);
            Prepared::Blocking(Box::new(move || to_json(&run(args)?)))
        })
    }

    /// The same registry with a function that `prepare` makes ready from its arguments.
    fn with<A: DeserializeOwned>(
        mut self,
        module: &str,
        function: &str,
        prepare: impl Fn(A, Context<'_>) -> Prepared + Send + Sync + 'static,
    ) -> Self {
        let Ok(name) = FunctionName::new(module, function) else {
            let refusal = format!("{module:?} {function:?} is not a pair of names");
            self.refused.push(refusal);
            return self;
        };
        let prepare: Prepare =
            Box::new(move |args, context| Ok(prepare(args::parse(args)?, context)));
        let function = Function {
            prepare,
            declaration: Declaration::default(),
            gate: None,
            logs: true,
        };
        self.insert(name, function);
        self
    }

    fn insert(&mut self, name: FunctionName, function: Function) {
        let refusal = format!("{name} is registered twice");
        if self.functions.insert(name, function).is_some() {
            self.refused.push(refusal);
        }
    }

    /// The same registry with those of `builtin`, none of which logs anything.
    fn with_builtin(mut self, builtin: Self) -> Self {
        for (name, function) in builtin.functions {
            self.insert(
                name,
                Function {
                    logs: false,
                    ..function
                },
            );
        }
        self
    }

    /// The same registry, in which a function that was registered before declares the policy of its calls, its parameters
    /// and what it is for. Every instance that calls it knows them.
    ///
    /// A function that is not registered, or a value out of range, makes the start of the instance fail.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use fly_rpc::{Declaration, Registry};
    ///
    /// let registry = Registry::new()
    ///     .function("Notes", "count", |(): ()| async move { Ok(3) })
    ///     .declare("Notes", "count", Declaration::new().timeout(Duration::from_secs(2)).idempotent(true));
    /// assert!(registry.has("Notes", "count"));
    /// ```
    #[must_use]
    pub fn declare(mut self, module: &str, function: &str, declaration: Declaration) -> Self {
        let name = FunctionName::new(module, function).ok();
        let Some(declared) = name.and_then(|name| self.functions.get_mut(&name)) else {
            let refusal = format!("{module}.{function} declares something and is not registered");
            self.refused.push(refusal);
            return self;
        };
        if let Err(wrong) = declaration.check() {
            self.refused.push(format!("{module}.{function}: {wrong}"));
        }
        let gate = declaration.concurrency.map(Gate::new);
        declared.gate = gate.map(Arc::new);
        declared.declaration = declaration;
        self
    }

    /// Whether it has this function.
    pub fn has(&self, module: &str, function: &str) -> bool {
        FunctionName::new(module, function).is_ok_and(|name| self.has_named(&name))
    }

    /// The finished registry of the instance `identity`, with the functions that describe it.
    ///
    /// # Errors
    /// An invalid name, a function that was registered twice, or a declaration that cannot stand.
    pub(crate) fn finish(self, identity: &Identity) -> Result<Self, RegistryError> {
        let finished = self.with_builtin(builtin::identity(identity));
        match finished.refused.first() {
            Some(refused) => Err(RegistryError(refused.clone())),
            None => Ok(finished),
        }
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = FunctionName> {
        self.functions.keys().cloned()
    }

    /// The functions of the registry and of an app; where both have one of the same name, the registry's counts.
    fn catalogue(&self, app: &Listing) -> Catalogue {
        let own = self.functions.iter();
        let own = own.map(|(name, function)| (name, &function.declaration));
        let all = own.chain(&app.functions);
        Catalogue::new(all.map(|(name, declared)| (name.clone(), declared.clone())))
    }

    fn has_named(&self, name: &FunctionName) -> bool {
        self.functions.contains_key(name)
    }

    /// Finds the function and reads its arguments. Returns what to run, the gate to pass first, and the span to run it in.
    fn prepare(
        &self,
        call: &Call,
        request_id: &RequestId,
        deadline: Deadline,
        instance: &InstanceId,
    ) -> Result<(Prepared, Gates, Span), Problem> {
        let name = &call.name;
        let Some(function) = self.functions.get(name) else {
            return Err(Problem::no_function(name, instance));
        };
        let span = trace::function_span(request_id, function.logs);
        let args = call.args.in_order(function.declaration.params.as_deref());
        let context = || CallContext::new(call, request_id, deadline);
        let prepare = |args: Cow<'_, Args>| (function.prepare)(&args, &context);
        match args.and_then(|args| span.in_scope(|| prepare(args))) {
            Ok(prepared) => Ok((prepared, [function.gate.clone(), None], span)),
            Err(misfit) => {
                let detail = format!("{name}: {misfit}");
                Err(Problem::new(Code::InvalidArguments, detail))
            }
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.functions.keys()).finish()
    }
}

fn to_json(result: &impl Serialize) -> Result<Box<RawValue>, FunctionError> {
    serde_json::value::to_raw_value(result)
        .map_err(|error| FunctionError::new("ResultNotJson", error.to_string()))
}

/// The call that a function runs, for [`Registry::function_with_context`](super::Registry::function_with_context).
///
/// A function that reads a replica waits until that has seen what the call names, and one that writes says what it wrote:
///
/// ```
/// use std::time::Duration;
///
/// use fly_rpc::{ConsistencyToken, FunctionError, Registry};
///
/// # async fn replayed(_: &ConsistencyToken) {}
/// # async fn notes() -> Vec<String> { Vec::new() }
/// # async fn insert(_: String) -> ConsistencyToken { "0/3000148".parse().unwrap() }
/// let registry = Registry::new()
///     .function_with_context("Notes", "list", |call, (): ()| async move {
///         if let Some(token) = call.after() {
///             call.wait_until(Duration::from_millis(300), replayed(token)).await?;
///         }
///         Ok(notes().await)
///     })
///     .function_with_context("Notes", "create", |call, (text,): (String,)| async move {
///         call.set_consistency(insert(text).await);
///         Ok(())
///     });
/// assert!(registry.has("Notes", "list"));
/// ```
#[derive(Clone, Debug)]
pub struct CallContext {
    request_id: RequestId,
    key: Option<IdempotencyKey>,
    after: Option<ConsistencyToken>,
    deadline: Deadline,
    said: Arc<Said>,
}

#[derive(Debug, Default)]
struct Said {
    consistency: OnceLock<ConsistencyToken>,
    /// How long the function waited, where it did.
    waited: OnceLock<Duration>,
}

impl CallContext {
    fn new(call: &Call, request_id: &RequestId, deadline: Deadline) -> Self {
        Self {
            request_id: request_id.clone(),
            key: call.key.clone(),
            after: call.after.clone(),
            deadline,
            said: Arc::default(),
        }
    }

    /// The id under which the logs of the instances have the call, as its caller gave it or has it in the answer.
    pub fn request_id(&self) -> &str {
        self.request_id.as_str()
    }

    /// The call's idempotency key, where it has one: the same for each repeat, also for one that comes after the ten minutes for
    /// which it is remembered, or after the process that remembered it.
    pub fn idempotency_key(&self) -> Option<&IdempotencyKey> {
        self.key.as_ref()
    }

    /// What the data that the function reads must have seen, where the caller named that.
    pub fn after(&self) -> Option<&ConsistencyToken> {
        self.after.as_ref()
    }

    /// The time until the call's deadline, when the function is dropped.
    pub fn remaining(&self) -> Duration {
        self.deadline.remaining()
    }

    /// Says that a later call with `token` reads nothing older than this one wrote or read. The first token
    /// that a function gives counts.
    pub fn set_consistency(&self, token: ConsistencyToken) {
        let _ = self.said.consistency.set(token);
    }

    /// Waits until the data has seen the token, as the end of `caught_up` shows: for `at_most`, and for no more than half
    /// of the time that the call has left, so that another instance can still be asked.
    ///
    /// # Errors
    /// [`FunctionError::not_run`] where it has not: the function returns it before it did anything.
    pub async fn wait_until(
        &self,
        at_most: Duration,
        caught_up: impl Future<Output = ()> + Send,
    ) -> Result<(), FunctionError> {
        let (started, at_most) = (Instant::now(), at_most.min(self.remaining() / 2));
        let waited = time::timeout(at_most, caught_up).await;
        let _ = self.said.waited.set(started.elapsed());
        waited.map_err(|_| {
            let waited = at_most.as_millis();
            FunctionError::not_run(format!("the data here is behind, after {waited} ms"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_registration_that_cannot_stand_makes_the_start_fail() {
        let registered = |names: &[(&str, &str)]| {
            let nothing = |(): ()| async { Ok(()) };
            let registry = names
                .iter()
                .fold(Registry::new(), |registry, (module, name)| {
                    registry.function(module, name, nothing)
                });
            registry.finish(&Config::default().identity).unwrap_err()
        };
        for (names, reason) in [
            (&[("M", "f"), ("M", "f")][..], "M.f is registered twice"),
            (&[("", "f")], "\"\" \"f\" is not a pair of names"),
            (
                &[("Fly.RPC", "my_region")],
                "Fly.RPC.my_region is registered twice",
            ),
        ] {
            let error = registered(names).to_string();
            assert_eq!(error, format!("invalid registry: {reason}"));
        }
    }
}
