//! The handle by which the program that embeds an instance calls other regions, or its own, without HTTP on this side.

use std::{fmt, sync::Arc, time::Duration};

use serde::{
    Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use tokio::time::Instant;
use tracing::Instrument;

use crate::{
    call::{Args, Call, Per, Timeouts},
    declaration::Policy,
    dispatch::{Dispatcher, FanOut},
    name::{
        ConsistencyToken, FunctionName, IdempotencyKey, InstanceId, InvalidName, KeyOwner,
        RequestId, debug_as_text,
    },
    problem::{Code, Executed, FunctionError, Problem},
    region::{Region, Regions, Targets},
    reply::{Report, Returned},
    trace,
};

/// How a call from this process may run, besides what and where.
#[derive(Clone, Debug, Default)]
pub struct CallOptions {
    /// How long to wait; the configured default when `None`, and at most the configured maximum.
    pub timeout: Option<Duration>,
    /// Whether the function may run twice, which allows another attempt after one that may have run; when `None`, what the
    /// function declares, or `false` if it declares nothing.
    pub idempotent: Option<bool>,
    /// Only on this instance of the region.
    pub instance: Option<InstanceId>,
    /// What the data that the function reads must have seen, as an earlier [`Answer`] gave it.
    pub after: Option<ConsistencyToken>,
    /// Makes a repeat of this call the same call: within ten minutes it is not run again, and gets the outcome of the
    /// first.
    pub idempotency_key: Option<IdempotencyKey>,
    /// Whether `args`, a struct or a map, has the arguments by the names of the function's parameters; when `false`, such
    /// an `args` is itself the only argument.
    pub by_name: bool,
}

/// The answer to a call that has a result.
#[derive(Clone, Debug)]
pub struct Answer<R> {
    /// What the function returned.
    pub result: R,
    /// What the function said of its data: a later call that names it as [`CallOptions::after`] reads nothing older.
    pub consistency: Option<ConsistencyToken>,
    /// Whether it is the outcome of an earlier call with the same idempotency key.
    pub replayed: bool,
}

/// The answer of one instance to a fan-out.
#[derive(Clone, Debug)]
pub struct EachAnswer<R> {
    /// Its region.
    pub region: Region,
    /// The instance; `None` where nobody was found in the region.
    pub instance: Option<InstanceId>,
    /// What the function returned, or why there is no result.
    pub result: Result<R, CallError>,
    /// What the function said of its data.
    pub consistency: Option<ConsistencyToken>,
    /// Whether it is the outcome of an earlier call with the same idempotency key.
    pub replayed: bool,
}

/// Calls functions in other regions, or in this one, from this process; cheap to clone.
#[derive(Clone, Debug)]
pub struct Rpc {
    dispatcher: Arc<Dispatcher>,
}

/// Why a call from this process has no result.
///
/// Its text says everything: `function_failed (executed: yes): NotForSale: we have no gold (request 01J…)`.
#[derive(Clone)]
pub struct CallError {
    problem: Box<Problem>,
    request_id: Option<RequestId>,
}

impl CallError {
    /// What went wrong; for a code of a later release, which the error's text names, the one that leads to the same
    /// next step.
    pub fn code(&self) -> Code {
        self.problem.code
    }

    /// Whether the function ran.
    pub fn executed(&self) -> Executed {
        self.problem.executed
    }

    /// One sentence about it.
    pub fn detail(&self) -> &str {
        &self.problem.detail
    }

    /// Whether it is the outcome of an earlier call with the same idempotency key.
    pub fn is_replayed(&self) -> bool {
        self.problem.replayed
    }

    /// What the function, which ran and failed, said of its data.
    pub fn consistency(&self) -> Option<&ConsistencyToken> {
        self.problem.consistency.as_ref()
    }

    /// The function's own error, with [`Code::FunctionFailed`] only.
    pub fn error(&self) -> Option<&FunctionError> {
        self.problem.error.as_deref()
    }

    /// The id under which the logs of the instances have the call; `None` for a call that was refused before it had one.
    pub fn request_id(&self) -> Option<&str> {
        self.request_id.as_ref().map(RequestId::as_str)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.error() {
            Some(FunctionError { kind, message, .. }) => {
                let (code, executed) = (self.code(), self.executed());
                write!(f, "{code} (executed: {executed}): {kind}: {message}")
            }
            None => self.problem.fmt(f),
        }?;
        match &self.request_id {
            Some(id) => write!(f, " (request {id})"),
            None => Ok(()),
        }
    }
}

debug_as_text!(CallError);

impl std::error::Error for CallError {}

impl From<Problem> for CallError {
    fn from(problem: Problem) -> Self {
        Self {
            problem: Box::new(problem),
            request_id: None,
        }
    }
}

impl From<InvalidName> for CallError {
    fn from(invalid: InvalidName) -> Self {
        Problem::new(Code::InvalidRequest, invalid.to_string()).into()
    }
}

impl Rpc {
    pub(crate) fn new(dispatcher: Arc<Dispatcher>) -> Self {
        Self { dispatcher }
    }

    /// Runs `module.function(args)` in `region` and waits for its result up to the default timeout.
    ///
    /// `region` is one such as `"syd"`; `"primary"`; `"any"`, the region that answers nearest and has a ready instance with
    /// the function; or a list of up to three of these, such as `"syd,primary"`, of which the next is tried where nothing ran
    /// in those before.
    ///
    /// `args` is a tuple or list with an item for each argument, `()` for none, or the only argument;
    /// [`CallOptions::by_name`] gives them by name.
    ///
    /// # Errors
    /// As `POST /rpc/{region}`: the error has a code and says whether the function ran. A result that is not an `R` is
    /// [`Code::FunctionFailed`] of the kind `UnexpectedResult`.
    pub async fn call<R: DeserializeOwned>(
        &self,
        region: &str,
        module: &str,
        function: &str,
        args: impl Serialize + Send,
    ) -> Result<R, CallError> {
        self.call_with(CallOptions::default(), region, module, function, args)
            .await
    }

    /// As [`Rpc::call`], with `options`.
    ///
    /// # Errors
    /// As [`Rpc::call`].
    pub async fn call_with<R: DeserializeOwned>(
        &self,
        options: CallOptions,
        region: &str,
        module: &str,
        function: &str,
        args: impl Serialize + Send,
    ) -> Result<R, CallError> {
        let answer = self.answer_with(options, region, module, function, args);
        answer.await.map(|answer| answer.result)
    }

    /// As [`Rpc::call_with`], and gives what there is to know besides the result.
    ///
    /// # Errors
    /// As [`Rpc::call`].
    pub async fn answer_with<R: DeserializeOwned>(
        &self,
        options: CallOptions,
        region: &str,
        module: &str,
        function: &str,
        args: impl Serialize + Send,
    ) -> Result<Answer<R>, CallError> {
        let targets: Targets = region.parse().map_err(Problem::invalid_region)?;
        let mut call = self.prepared(options, module, function, &args)?;
        self.dispatcher.put_under_policy(&targets, &mut call);
        let request_id = RequestId::fresh();
        let span = trace::call_span(&request_id, None);
        let report = self
            .dispatcher
            .dispatch(&targets, &call, request_id, Instant::now(), None)
            .instrument(span)
            .await;
        self.dispatcher.ended(&call.name, &report);
        let consistency = report.meta.consistency.clone();
        let replayed = report.meta.replayed;
        Ok(Answer {
            result: read(report)?,
            consistency,
            replayed,
        })
    }

    /// Has `module.function(args)` run in `region` without waiting for its end: this instance runs it to its end within
    /// the default timeout, counts it as in flight, and logs its outcome under the id that this returns, also where it was
    /// cut off because the instance stopped.
    ///
    /// # Errors
    /// As [`Rpc::call`], for a call that was refused at once and did not run.
    pub async fn cast(
        &self,
        region: &str,
        module: &str,
        function: &str,
        args: impl Serialize + Send,
    ) -> Result<String, CallError> {
        self.cast_with(CallOptions::default(), region, module, function, args)
            .await
    }

    /// As [`Rpc::cast`], with `options`. With an idempotency key, the same call made later waits for the outcome, or gets it.
    ///
    /// # Errors
    /// As [`Rpc::cast`].
    pub async fn cast_with(
        &self,
        options: CallOptions,
        region: &str,
        module: &str,
        function: &str,
        args: impl Serialize + Send,
    ) -> Result<String, CallError> {
        let targets: Targets = region.parse().map_err(Problem::invalid_region)?;
        let mut call = self.prepared(options, module, function, &args)?;
        self.dispatcher.put_under_policy(&targets, &mut call);
        let call = Arc::new(call);
        let request_id = RequestId::fresh();
        let (id, name) = (request_id.clone(), call.name.clone());
        let dispatcher = Arc::clone(&self.dispatcher);
        let ended = move |report: Option<Report>| {
            let Some(report) = report else {
                tracing::warn!(function = %name, executed = "maybe", %request_id, "call abandoned");
                return;
            };
            dispatcher.ended(&name, &report);
            match report.result {
                Ok(_) => tracing::info!(function = %name, %request_id, "cast"),
                Err(problem) => {
                    let (code, executed, detail) =
                        (problem.word(), problem.executed, &problem.detail);
                    tracing::warn!(function = %name, code, %executed, detail, %request_id, "cast failed");
                }
            }
        };
        let span = trace::call_span(&id, None);
        let cast = self.dispatcher.dispatch_in_background(
            &targets,
            &call,
            id.clone(),
            Instant::now(),
            ended,
        );
        match cast.instrument(span).await {
            Ok(()) => Ok(id.to_string()),
            Err(refused) => {
                self.dispatcher.ended(&call.name, &refused);
                read::<IgnoredAny>(refused).map(|_| id.to_string())
            }
        }
    }

    /// Runs `module.function(args)` on every instance of `regions`, at the same time, and waits for all of them up to the
    /// default timeout: in every region when it is `"all"`, else in those of a list such as `"syd,primary"`.
    ///
    /// It asks every instance that is known when this is called, this one and those that do not answer included. An
    /// instance that stays silent has [`Code::DeadlineExceeded`]. The answers are sorted by region and instance.
    ///
    /// # Errors
    /// Nobody was asked: a bad name, [`Code::InvalidRegion`], [`Code::Draining`], [`Code::DiscoveryPending`].
    ///
    /// # Cancel safety
    /// When this is dropped, what has not started never does.
    pub async fn each<R: DeserializeOwned>(
        &self,
        regions: &str,
        module: &str,
        function: &str,
        args: impl Serialize + Send,
    ) -> Result<Vec<EachAnswer<R>>, CallError> {
        let options = CallOptions::default();
        self.each_with(options, Per::Instance, regions, module, function, args)
            .await
    }

    /// As [`Rpc::each`], with `options`, which name no instance, on as many instances of each region as `per` says.
    ///
    /// # Errors
    /// As [`Rpc::each`].
    pub async fn each_with<R: DeserializeOwned>(
        &self,
        options: CallOptions,
        per: Per,
        regions: &str,
        module: &str,
        function: &str,
        args: impl Serialize + Send,
    ) -> Result<Vec<EachAnswer<R>>, CallError> {
        let regions: Regions = regions.parse().map_err(Problem::invalid_region)?;
        if options.instance.is_some() {
            let detail = "a fan-out is for more than one instance; Rpc::call_with is for one";
            return Err(Problem::new(Code::InvalidRequest, detail).into());
        }
        let call = self.prepared(options, module, function, &args)?;
        let request_id = RequestId::fresh();
        let span = trace::call_span(&request_id, None);
        let fan_out = async {
            let now = Instant::now();
            let begun = FanOut::begin(&self.dispatcher, &regions, per, call, request_id, now);
            let mut fan_out = begun.await?;
            let mut answers = Vec::with_capacity(fan_out.asked);
            while let Some((region, report)) = fan_out.next().await {
                answers.push(EachAnswer {
                    region,
                    instance: report.meta.instance.clone(),
                    consistency: report.meta.consistency.clone(),
                    replayed: report.meta.replayed,
                    result: read(report),
                });
            }
            Ok::<_, Problem>(answers)
        };
        let mut answers: Vec<EachAnswer<R>> = fan_out.instrument(span).await?;
        answers.sort_by(|one, other| {
            (&one.region, &one.instance).cmp(&(&other.region, &other.instance))
        });
        Ok(answers)
    }

    fn prepared(
        &self,
        options: CallOptions,
        module: &str,
        function: &str,
        args: &(impl Serialize + Send),
    ) -> Result<Call, CallError> {
        let Timeouts { default, max } = self.dispatcher.local.timeouts;
        let fits = |timeout: Duration| !timeout.is_zero() && timeout <= max;
        if !options.timeout.is_none_or(fits) {
            let detail = format!("the timeout must be above zero and at most {max:?}");
            return Err(Problem::new(Code::InvalidRequest, detail).into());
        }
        let name = FunctionName::new(module, function)?;
        let args = match options.by_name {
            true => Args::from_members(args)?,
            false => Args::from_values(args)?,
        };
        let said = Policy {
            timeout: options.timeout,
            idempotent: options.idempotent,
        };
        Ok(Call {
            instance: options.instance,
            key: options.idempotency_key,
            key_owner: Some(KeyOwner::program()),
            after: options.after,
            ..Call::new(name, args, said, default)
        })
    }
}

/// The result of a call, as the type that its caller wants.
fn read<R: DeserializeOwned>(report: Report) -> Result<R, CallError> {
    let Report { mut result, meta } = report;
    // From here on it is the program's.
    Returned::hold(&mut result, None);
    let read = result.and_then(|returned| {
        serde_json::from_str(returned.json.get()).map_err(|error| unexpected(&error))
    });
    read.map_err(|problem| CallError {
        problem: Box::new(problem),
        request_id: Some(meta.request_id),
    })
}

fn unexpected(error: &serde_json::Error) -> Problem {
    Problem::function_failed(FunctionError::new(
        "UnexpectedResult",
        format!("the result has another type: {error}"),
    ))
}
