//! `POST /each/{regions}`: a call from a client that many instances run. The outcome of each is an entry of one answer, or
//! a line as soon as it is there.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Extension,
    body::Body,
    extract::{Request, State},
    http::header::{ACCEPT, CONTENT_TYPE},
    response::{IntoResponse, Response, Result},
};
use futures_util::{Stream, StreamExt, stream};
use scopeguard::ScopeGuard;
use tracing::{Instrument, Span};

use super::{
    DispatcherState, auth,
    documents::{CallHeaders, EntryDocument, FanOutMeta, FanOutReply},
    layers::Context,
    request::{self, InPath, lists},
    response::{JSON, Refusal},
    rpc::CallLog,
};
use crate::{
    access::Caller,
    dispatch::FanOut,
    json,
    memory::Reserved,
    protocol::lines::NDJSON,
    region::{Region, Regions},
    reply::{ProblemDocument, Report, Returned, milliseconds},
    trace,
};

/// Call a function on many instances
///
/// Runs `module.function(args)` on every instance of the regions that is known when the call arrives, or on one of each
/// region, at the same time. The status is 200 whatever came of the single calls: each has an entry with its result or its
/// problem; one that does not answer in time has `deadline_exceeded`. With `accept: application/x-ndjson` each entry is a line, sent as
/// soon as it is there, and the last line has `meta` alone. A client that goes away cancels what has not started. Each
/// instance remembers its own outcome under an idempotency key: a repeat runs nowhere twice, and runs on instances that
/// were not asked before.
#[utoipa::path(
    post,
    path = "/each/{regions}",
    operation_id = "callEach",
    tag = "rpc",
    params(
        (
            "regions" = String,
            Path,
            description = "`all`, or a list of up to 32 regions such as `syd,primary`",
            pattern = r"^[a-z0-9][a-z0-9\-]{0,31}(,[a-z0-9][a-z0-9\-]{0,31}){0,31}$",
            example = "all"
        ),
        CallHeaders,
    ),
    request_body(content = ref("#/components/schemas/FanOutRequest"), content_type = "application/json"),
    responses((
        status = 200,
        description = "What came of each call; lines with `accept: application/x-ndjson`",
        content((FanOutReply = "application/json"), (String = "application/x-ndjson"))
    )),
    security(("client_token" = []), ())
)]
pub(super) async fn call_each(
    State(dispatcher): DispatcherState,
    Extension(context): Extension<Context>,
    Extension(caller): Extension<Caller>,
    InPath(regions): InPath<Regions>,
    request: Request,
) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let primary = &dispatcher.local.identity.primary;
    let first = regions.named(primary).next();
    let refuse = |problem| Refusal::new(problem, first);
    if regions == Regions::All && caller.regions().is_some() {
        // "all" would promise regions that this client may not call.
        return Err(refuse(auth::beyond(&caller, "in all regions")).into());
    }
    auth::check_regions(&caller, regions.named(primary)).map_err(refuse)?;
    let headers = &parts.headers;
    let (mut call, per) = request::fan_out(&dispatcher, headers, body)
        .await
        .map_err(refuse)?;
    auth::check_function(&caller, &call.name).map_err(refuse)?;
    call.key_owner = caller.key_owner();
    let span = trace::call_span(&context.request_id, call.trace);
    let log = CallLog {
        dispatcher: Arc::clone(&dispatcher),
        caller,
        function: call.name.clone(),
        regions: regions.clone(),
        request_id: context.request_id.clone(),
    };
    let Context {
        request_id,
        arrived,
    } = context;
    let begun = FanOut::begin(&dispatcher, &regions, per, call, request_id, arrived);
    let fan_out = begun.instrument(span.clone()).await.map_err(refuse)?;
    // Runs if the request, or the rest of its answer, is dropped because the client went away.
    let awaited = scopeguard::guard(log, |log| log.abandoned());
    Ok(match lists(headers, &ACCEPT, NDJSON) {
        true => lines(fan_out, awaited, span),
        false => whole(fan_out, awaited).instrument(span).await,
    })
}

impl CallLog<Regions> {
    /// Counts and logs how a fan-out ended, and returns it for the end of the answer. Each of its calls is in the log of
    /// the instance that ran it.
    fn ended(&self, fan_out: &FanOut) -> FanOutMeta {
        let meta = FanOutMeta {
            asked: fan_out.asked,
            succeeded: fan_out.succeeded,
            elapsed_ms: milliseconds(fan_out.arrived.elapsed()),
            request_id: self.request_id.clone(),
        };
        self.dispatcher.local.metrics.calls.fan_outs.inc();
        let (client, function, regions) = (self.caller.name(), &self.function, &self.regions);
        let (asked, succeeded, elapsed_ms) = (meta.asked, meta.succeeded, meta.elapsed_ms);
        let request_id = &meta.request_id;
        tracing::info!(
            client, %function, %regions, asked, succeeded, elapsed_ms, %request_id, "fan-out"
        );
        meta
    }
}

/// A guard that counts and logs a fan-out whose client went away.
type AbandonGuard<F> = ScopeGuard<CallLog<Regions>, F>;

/// The whole answer, once all calls have ended. Its entries are written as they come, and sorted as pieces.
async fn whole(
    mut fan_out: FanOut,
    awaited: AbandonGuard<impl FnOnce(CallLog<Regions>)>,
) -> Response {
    let mut entries = Vec::with_capacity(fan_out.asked);
    while let Some((region, report)) = fan_out.next().await {
        let place = (region.clone(), report.meta.instance.clone());
        entries.push((place, to_json(region, report)));
    }
    let meta = ScopeGuard::into_inner(awaited).ended(&fan_out);
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut pieces = vec![(b"{\"results\":[".to_vec(), None)];
    for (number, (_, entry)) in entries.into_iter().enumerate() {
        if number > 0 {
            pieces.push((b",".to_vec(), None));
        }
        pieces.push(entry);
    }
    let end = [&b"],\"meta\":"[..], &json::to_vec(&meta), b"}"].concat();
    pieces.push((end, None));
    // What a piece holds of the memory budget is given back once hyper has the piece: from then on, the connection counts
    // it.
    let pieces = pieces.into_iter().map(|(bytes, _held)| bytes);
    streamed(JSON, stream::iter(pieces))
}

/// A line for each call as it ends. A client that takes its time is waited for, and no further call begins meanwhile.
fn lines(
    fan_out: FanOut,
    awaited: AbandonGuard<impl FnOnce(CallLog<Regions>) + Send + 'static>,
    span: Span,
) -> Response {
    let pieces = stream::unfold(Some((fan_out, awaited)), move |state| {
        let line = async {
            let (mut fan_out, awaited) = state?;
            if let Some((region, report)) = fan_out.next().await {
                let (mut bytes, _held) = to_json(region, report);
                json::join_lines(&mut bytes);
                bytes.push(b'\n');
                return Some((bytes, Some((fan_out, awaited))));
            }
            let meta = ScopeGuard::into_inner(awaited).ended(&fan_out);
            let line = [&b"{\"meta\":"[..], &json::to_vec(&meta), b"}\n"].concat();
            Some((line, None))
        };
        // They are asked for once the handler has returned.
        line.instrument(span.clone())
    });
    streamed(NDJSON, pieces)
}

fn streamed(
    content_type: &'static str,
    pieces: impl Stream<Item = Vec<u8>> + Send + 'static,
) -> Response {
    let body = Body::from_stream(pieces.map(Ok::<_, Infallible>));
    ([(CONTENT_TYPE, content_type)], body).into_response()
}

/// An entry of the answer, and what it takes of the memory budget.
fn to_json(region: Region, report: Report) -> (Vec<u8>, Option<Arc<Reserved>>) {
    let Report { result, meta } = report;
    let instance = meta.instance.clone();
    let reserved = Returned::reserved(&result).cloned();
    let (result, problem, replayed, consistency) = match result {
        Ok(it) => (Some(it.json), None, it.replayed, it.consistency),
        Err(problem) => (None, Some(ProblemDocument::new(problem, meta)), false, None),
    };
    let size = result.as_ref().map_or(0, |json| json.get().len());
    let document = EntryDocument {
        region,
        instance,
        result,
        problem,
        replayed,
        consistency,
    };
    (json::to_vec_around(size, &document), reserved)
}
