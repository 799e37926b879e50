//! Whether this instance lives, and whether it is ready: `GET /healthz` and `GET /readyz`.

use std::borrow::Cow;

use axum::{extract::State, response::Result};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    DispatcherState,
    response::{Json, Refusal},
};
use crate::{
    app::AppHealth,
    dispatch::Dispatcher,
    name::InstanceId,
    problem::{Code, Problem},
    region::Region,
};

/// Whether an instance lives, or is ready.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = Health)]
pub(crate) struct StatusDocument {
    /// `live` or `ready`.
    #[schema(value_type = String, example = "ready")]
    pub status: Cow<'static, str>,
    /// The instance's id.
    #[schema(value_type = String, example = "148e21dad76789")]
    pub instance: InstanceId,
    /// Its region.
    #[schema(value_type = String, example = "iad")]
    pub region: Region,
}

/// Check whether the process works
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "getLiveness",
    tag = "health",
    responses((status = 200, description = "It does", body = StatusDocument)),
    security()
)]
pub(super) async fn get_liveness(State(dispatcher): DispatcherState) -> Json<StatusDocument> {
    status(&dispatcher, "live")
}

/// Check whether the instance takes calls
///
/// It does from the end of the first discovery round for which DNS answered, at the latest 15 s after its start, until it
/// starts to drain; with an app beside it, not before the app's first list, and not while the app serves that without checking
/// `RPC_APP_TOKEN`.
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "getReadiness",
    tag = "health",
    responses((status = 200, description = "It does", body = StatusDocument)),
    security()
)]
pub(super) async fn get_readiness(
    State(dispatcher): DispatcherState,
) -> Result<Json<StatusDocument>> {
    let refuse = |code, detail| {
        Refusal::new(
            Problem::new(code, detail),
            Some(&dispatcher.local.identity.region),
        )
    };
    if dispatcher.lifecycle.is_stopping() {
        return Err(refuse(Code::Draining, "this instance is stopping").into());
    }
    if !dispatcher.cluster.is_ready() {
        let detail =
            "DNS has not answered yet; without it, this instance is ready 15 s after its start";
        return Err(refuse(Code::DiscoveryPending, detail).into());
    }
    let beside = dispatcher.executor.app();
    let detail = match beside.map(|beside| beside.status().health) {
        Some(AppHealth::Starting) => {
            "the app beside this instance has not listed its functions yet"
        }
        Some(AppHealth::Open) => {
            "the app beside this instance serves its list without checking RPC_APP_TOKEN"
        }
        Some(AppHealth::Up | AppHealth::Down) | None => return Ok(status(&dispatcher, "ready")),
    };
    Err(refuse(Code::FunctionUnavailable, detail).into())
}

fn status(dispatcher: &Dispatcher, status: &'static str) -> Json<StatusDocument> {
    Json(StatusDocument {
        status: status.into(),
        instance: dispatcher.local.identity.instance.clone(),
        region: dispatcher.local.identity.region.clone(),
    })
}
