//! The functions of this instance by name: built before serving, then only read.
//! Owns what a function is; how one is run under limits is the executor's affair.

mod args;
mod builtin;
mod catalogue;
mod context;
mod endings;
mod executor;
mod fingerprint;
mod keys;
mod memory;
#[cfg(feature = "redis")]
mod store;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    pin::Pin,
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

pub use self::context::CallContext;
#[cfg(feature = "redis")]
pub(crate) use self::store::Store;
pub(crate) use self::{
    catalogue::{Catalogue, CatalogueDocument, CatalogueHash},
    executor::Executor,
    keys::Keys,
};
use crate::{
    app::{Answered, Listing},
    call::{Args, Call},
    config::Identity,
    deadline::Deadline,
    declaration::Declaration,
    gate::Gate,
    name::{FunctionName, Name},
    problem::{Code, FunctionError, Problem},
};

/// A function at work: its result as JSON, or its own error.
type Run = Pin<Box<dyn Future<Output = Result<Box<RawValue>, FunctionError>> + Send>>;

/// A call in the app, which knows what came of it.
type InApp = Pin<Box<dyn Future<Output = Answered> + Send>>;

/// A function that blocks its thread, ready to be run on one of its own.
type Block = Box<dyn FnOnce() -> Result<Box<RawValue>, FunctionError> + Send>;

/// A call whose function is found and whose arguments fit.
enum Prepared {
    /// With the context that the function was given, if it takes one.
    Async(Run, Option<CallContext>),
    Blocking(Block),
    App(InApp),
}

/// A function with its types erased: a call and its args in order in, and what is to be run, or what does not fit about
/// the args.
type Function = Box<dyn Fn(&Call, &Args, Deadline) -> Result<Prepared, String> + Send + Sync>;

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
    modules: BTreeMap<Name, BTreeMap<Name, Function>>,
    declarations: BTreeMap<FunctionName, Declaration>,
    refused: Vec<String>,
}

/// A registration that cannot stand.
#[derive(Debug, thiserror::Error)]
#[error("the registry does not stand: {0}")]
pub struct RegistryError(String);

impl Registry {
    /// A registry without functions; an instance adds those of the module `Fly.RPC`, which tell about itself.
    pub fn new() -> Self {
        Self::default()
    }

    /// The built-in functions of the modules `String`, `Kernel` and `Process`, named as in Elixir.
    pub fn builtin() -> Self {
        builtin::add(Self::new())
    }

    /// The same registry with an async function.
    ///
    /// The JSON array of a call's arguments becomes `A`: a tuple takes an argument for each of its items, `()` takes
    /// none, and any other type, such as a struct, takes the only one. An error that the function returns reaches the
    /// caller as `function_failed`; [`FunctionError`] says how much of it. The function's future is dropped at the call's deadline, at its next await.
    ///
    /// A name that is none, or is registered twice, refuses the start of the instance.
    #[must_use]
    pub fn function<A, R, F, Fut>(mut self, module: &str, function: &str, run: F) -> Self
    where
        A: DeserializeOwned,
        R: Serialize,
        F: Fn(A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, FunctionError>> + Send + 'static,
        A: Send + 'static,
    {
        let run = Arc::new(run);
        let erased = move |_: &Call, args: &Args, _: Deadline| -> Result<Prepared, String> {
            let args = args::parse(args)?;
            let run = Arc::clone(&run);
            let run = async move { to_json(&run(args).await?) };
            Ok(Prepared::Async(Box::pin(run), None))
        };
        self.insert(module, function, Box::new(erased));
        self
    }

    /// The same registry with an async function that knows its call: what its data must have seen, and how much time is
    /// left. [`CallContext`] says what it may tell besides its result.
    ///
    /// As [`Registry::function`] in all else.
    #[must_use]
    pub fn function_with_context<A, R, F, Fut>(
        mut self,
        module: &str,
        function: &str,
        run: F,
    ) -> Self
    where
        A: DeserializeOwned,
        R: Serialize,
        F: Fn(CallContext, A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, FunctionError>> + Send + 'static,
        A: Send + 'static,
    {
        let run = Arc::new(run);
        let erased =
            move |call: &Call, args: &Args, deadline: Deadline| -> Result<Prepared, String> {
                let args = args::parse(args)?;
                let context = CallContext::new(call, deadline);
                let (run, given) = (Arc::clone(&run), context.clone());
                let run = async move { to_json(&run(given, args).await?) };
                Ok(Prepared::Async(Box::pin(run), Some(context)))
            };
        self.insert(module, function, Box::new(erased));
        self
    }

    /// The same registry with a function that blocks its thread: computes for long, or waits in a call that is not
    /// async. An async function that did so would hold up every other call.
    ///
    /// As [`Registry::function`], but it runs on a thread of its own, 64 at once, and further calls wait for their
    /// turn. A thread cannot be stopped: at the deadline the caller gets its answer, while the function runs on and
    /// counts as in flight until it returns. So that it does not hold up the exit of a program that embeds the crate,
    /// end the runtime with [`tokio::runtime::Runtime::shutdown_background`], as `fly-rpc serve` does.
    #[must_use]
    pub fn blocking_function<A, R, F>(mut self, module: &str, function: &str, run: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        R: Serialize,
        F: Fn(A) -> Result<R, FunctionError> + Send + Sync + 'static,
    {
        let run = Arc::new(run);
        let erased = move |_: &Call, args: &Args, _: Deadline| -> Result<Prepared, String> {
            let args = args::parse(args)?;
            let run = Arc::clone(&run);
            Ok(Prepared::Blocking(Box::new(move || to_json(&run(args)?))))
        };
        self.insert(module, function, Box::new(erased));
        self
    }

    /// The same registry, in which a function that was registered before declares the policy of its calls, its parameters
    /// and what it is for. Every instance that calls it knows them.
    ///
    /// A function that is not registered, or a value out of range, refuses the start of the instance.
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
        if !self.has(module, function) {
            let refusal = format!("{module}.{function} declares something and is not registered");
            self.refused.push(refusal);
            return self;
        }
        if let Err(wrong) = declaration.check() {
            self.refused.push(format!("{module}.{function}: {wrong}"));
        }
        if let (Ok(module), Ok(function)) = (module.parse(), function.parse()) {
            let name = FunctionName { module, function };
            self.declarations.insert(name, declaration);
        }
        self
    }

    /// Whether it has this function.
    pub fn has(&self, module: &str, function: &str) -> bool {
        self.modules
            .get(module)
            .is_some_and(|functions| functions.contains_key(function))
    }

    /// The finished registry of the instance `identity`, with the functions that tell about it.
    ///
    /// # Errors
    /// A name that is none, or a function that was registered twice.
    pub(crate) fn finish(self, identity: &Identity) -> Result<Self, RegistryError> {
        let finished = builtin::add_identity(self, identity);
        match finished.refused.first() {
            Some(refused) => Err(RegistryError(refused.clone())),
            None => Ok(finished),
        }
    }

    /// The functions and what each declares.
    fn declared(&self) -> impl Iterator<Item = (FunctionName, Declaration)> {
        let names = self.modules.iter().flat_map(|(module, functions)| {
            functions.keys().map(|function| FunctionName {
                module: module.clone(),
                function: function.clone(),
            })
        });
        names.map(|name| {
            let declaration = self.declarations.get(&name).cloned();
            (name, declaration.unwrap_or_default())
        })
    }

    /// The functions, as told to peers.
    pub(crate) fn catalogue(&self) -> Catalogue {
        Catalogue::new(self.declared())
    }

    /// The same with those of an app; where both have one, the registry's counts.
    fn catalogue_with(&self, listing: &Listing) -> Catalogue {
        let listed = listing
            .iter()
            .map(|(name, declared)| (name.clone(), declared.clone()));
        Catalogue::new(self.declared().chain(listed))
    }

    /// A gate for each function that declares a concurrency.
    fn gates(&self) -> HashMap<FunctionName, Arc<Gate>> {
        let limits = self.declarations.iter();
        let limits = limits.filter_map(|(name, it)| Some((name.clone(), it.concurrency?)));
        limits
            .map(|(name, limit)| (name, Arc::new(Gate::new(limit))))
            .collect()
    }

    /// Whether it has the function of this name.
    fn has_named(&self, name: &FunctionName) -> bool {
        self.has(name.module.as_str(), name.function.as_str())
    }

    /// The call, ready to be polled.
    fn prepare(&self, call: &Call, deadline: Deadline) -> Result<Prepared, Problem> {
        let FunctionName { module, function } = &call.name;
        let found = self
            .modules
            .get(module)
            .and_then(|functions| functions.get(function));
        let Some(function) = found else {
            return Err(Problem::new(
                Code::FunctionUnknown,
                format!("no function {} here", call.name),
            ));
        };
        let declared = self.declarations.get(&call.name);
        let params = declared.and_then(|declared| declared.params.as_deref());
        let args = call.args.in_order(params);
        args.and_then(|args| function(call, &args, deadline))
            .map_err(|misfit| {
                Problem::new(Code::InvalidArguments, format!("{}: {misfit}", call.name))
            })
    }

    fn insert(&mut self, module: &str, function: &str, run: Function) {
        let (Ok(module_name), Ok(function_name)) =
            (module.parse::<Name>(), function.parse::<Name>())
        else {
            self.refused
                .push(format!("{module:?} {function:?} is not a pair of names"));
            return;
        };
        if self
            .modules
            .entry(module_name)
            .or_default()
            .insert(function_name, run)
            .is_some()
        {
            self.refused
                .push(format!("{module}.{function} is registered twice"));
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self
            .modules
            .iter()
            .map(|(module, functions)| (module, functions.keys().collect::<Vec<_>>()));
        f.debug_map().entries(names).finish()
    }
}

fn to_json(result: &impl Serialize) -> Result<Box<RawValue>, FunctionError> {
    serde_json::value::to_raw_value(result)
        .map_err(|error| FunctionError::new("ResultNotJson", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn names_that_cannot_stand_refuse_the_start() {
        let finish = |registry: Registry| {
            registry
                .finish(&Config::default().identity)
                .unwrap_err()
                .to_string()
        };
        let nothing = |(): ()| async { Ok(()) };
        let twice = Registry::new()
            .function("M", "f", nothing)
            .function("M", "f", nothing);
        assert_eq!(
            finish(twice),
            "the registry does not stand: M.f is registered twice"
        );
        let bad = Registry::new().function("", "f", nothing);
        assert_eq!(
            finish(bad),
            "the registry does not stand: \"\" \"f\" is not a pair of names"
        );
        let own = Registry::new().function("Fly.RPC", "my_region", nothing);
        assert_eq!(
            finish(own),
            "the registry does not stand: Fly.RPC.my_region is registered twice"
        );
    }
}
