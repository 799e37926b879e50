//! `GET /openapi.json`: the stock document; for a client that may list the functions, one with an operation for each
//! function of the cluster that declares its parameters and that the client may call.

use std::{
    collections::BTreeMap,
    iter,
    sync::{Arc, LazyLock},
};

use axum::{
    extract::{Request, State},
    http::{HeaderValue, header::VARY},
    response::Response,
};
use moka::{policy::EvictionPolicy, sync::Cache};
use tokio::task;

use super::OpenProblems;
use crate::{
    access::{Caller, FunctionPattern},
    http::{App, AppState, auth, openapi_json, openapi_with, pages::Document},
    protocol::{Catalogue, CatalogueHash},
};

/// How many documents are kept: one for each limit of clients, as long as the functions stay the same.
const KEPT: u64 = 4;

const JSON: &str = "application/json";

static STOCK: LazyLock<Document> = LazyLock::new(|| Document::new(JSON, openapi_json()));

/// What a document is made of: the functions, and those of them that the client may call.
type Sources = (Vec<CatalogueHash>, Option<Vec<FunctionPattern>>);

/// The last documents with functions.
#[derive(Clone, Debug)]
pub(crate) struct Descriptions(Cache<Sources, Arc<Document>>);

impl Default for Descriptions {
    fn default() -> Self {
        let cache = Cache::builder().max_capacity(KEPT);
        Self(cache.eviction_policy(EvictionPolicy::lru()).build())
    }
}

/// Get this document
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "getDescription",
    tag = "description",
    params((
        "If-None-Match" = Option<String>,
        Header,
        description = "The `etag` of the document that the client has"
    )),
    responses(
        (
            status = 200,
            description = "The OpenAPI document, with an `etag`; compressed where `accept-encoding` names gzip. Who may list the \
                functions finds an operation for each function of the cluster that declares its parameters",
            body = Value,
            examples((
                "start" = (
                    summary = "How it begins",
                    value = json!({"openapi": "3.1.0", "info": {"title": "fly-rpc", "version": "0.1.0"}})
                )
            ))
        ),
        (status = 304, description = "The client has it"),
        OpenProblems,
    ),
    security()
)]
pub(in crate::http) async fn get_description(State(app): AppState, request: Request) -> Response {
    let document = match auth::known_caller(&app, &request) {
        Some(caller) => with_functions(&app, caller).await,
        None => None,
    };
    let document = document.as_deref().unwrap_or(&STOCK);
    let mut response = document.answer(request.headers());
    let depends = HeaderValue::from_static("authorization");
    response.headers_mut().append(VARY, depends);
    response
}

/// The document for `caller`; `None` where no function of the cluster declares its parameters.
async fn with_functions(app: &App, caller: Caller) -> Option<Arc<Document>> {
    let own = app.executor.catalogue();
    let mut others = app.cluster.catalogues();
    others.remove(own.hash());
    // What this instance declares comes first, where a peer of another release declares something else.
    let mut catalogues: Vec<_> = iter::once(own).chain(others.into_values()).collect();
    catalogues.retain(|it| it.iter().any(|(_, declared)| declared.params.is_some()));
    if catalogues.is_empty() {
        return None;
    }
    let hashes = catalogues.iter().map(|it| it.hash().clone()).collect();
    let sources = (hashes, caller.functions().map(<[_]>::to_vec));
    // A clone shares what is kept; the task below outlives a request whose client goes away.
    let Descriptions(cache) = app.descriptions.clone();
    if let Some(known) = cache.get(&sources) {
        return Some(known);
    }
    // Megabytes may have to be compressed; requests that come meanwhile wait for the same document.
    let build = move || cache.get_with(sources, || Arc::new(build(&catalogues, &caller)));
    task::spawn_blocking(build).await.ok()
}

fn build(catalogues: &[Arc<Catalogue>], caller: &Caller) -> Document {
    let mut functions = BTreeMap::new();
    for (name, declared) in catalogues.iter().flat_map(|catalogue| catalogue.iter()) {
        if declared.params.is_some() && caller.may_call(name) {
            functions.entry(name.clone()).or_insert(declared);
        }
    }
    Document::new(JSON, openapi_with(functions).to_string())
}
