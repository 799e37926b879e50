//! What the OpenAPI document says besides the routes, and the route that serves it.

use axum::{
    http::{HeaderValue, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use utoipa::{
    OpenApi,
    openapi::{OpenApi as Document, Server},
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "fly-rpc",
        description = "Run a named function in a chosen region. Every problem says whether the function ran.",
    ),
    tags(
        (name = "rpc", description = "Calls"),
        (name = "cluster", description = "Regions, instances and functions"),
        (name = "health", description = "For health checks"),
        (name = "description", description = "This document"),
    )
)]
struct Description;

/// The document without its routes.
pub(super) fn description() -> Document {
    let mut document = Description::openapi();
    // utoipa takes the license from Cargo.toml and writes an empty one where there is none.
    document.info.license = None;
    document.servers = Some(vec![Server::new("http://127.0.0.1:8080")]);
    document
}

/// `document` as JSON.
pub(super) fn to_json(document: &Document) -> String {
    let json = document.to_pretty_json();
    json.unwrap_or_else(|error| unreachable!("an OpenAPI document has a JSON form: {error}"))
}

/// Get this document
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "getDescription",
    tag = "description",
    responses((status = 200, description = "The OpenAPI document", body = Value))
)]
pub(super) async fn get_description() -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(CONTENT_TYPE, json)], super::openapi_json()).into_response()
}
