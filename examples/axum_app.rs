//! A program with an axum server of its own, and an instance in it: one port, one accept loop, one drain.
//!
//! Run it with `cargo run --example axum_app`, and try `curl localhost:8080/price/tea`, which asks the primary region, and
//! `fly-rpc call local Shop.price tea 3`, which reaches the same function by the instance's own route.

use std::{error::Error, time::Duration};

use axum::{Router, extract::Path, http::StatusCode, routing::get};
use fly_rpc::{Config, Embedded, FunctionError, Reached, Registry, Rpc};
use tokio::{
    net::TcpListener,
    signal::{
        ctrl_c,
        unix::{SignalKind, signal},
    },
    sync::oneshot,
    time::sleep,
};

/// How long connections may go on after the drain.
const CLOSING: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let config = Config::from_env()?;
    let listener = TcpListener::bind(&config.listen).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        tokio::select! {
            _ = ctrl_c() => {}
            _ = terminate.recv() => {}
        }
    };
    serve(listener, config, stop).await
}

/// Serves until `stop`, then drains.
pub(crate) async fn serve(
    listener: TcpListener,
    config: Config,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Box<dyn Error>> {
    let registry = Registry::new().function("Shop", "price", price);
    let instance = Embedded::start(config, registry, listener.local_addr()?).await?;
    let rpc = instance.rpc();
    let app = Router::new()
        .route("/price/{item}", get(move |item| show_price(rpc, item)))
        .merge(instance.router())
        .into_make_service_with_connect_info::<Reached>();
    let (drained, is_drained) = oneshot::channel::<()>();
    let drain = async move {
        stop.await;
        instance.drain().await;
        drop(drained);
    };
    let serving = axum::serve(listener, app).with_graceful_shutdown(drain);
    // A client that never ends its request would keep the server.
    let late = async {
        let _ = is_drained.await;
        sleep(CLOSING).await;
    };
    tokio::select! {
        served = serving.into_future() => Ok(served?),
        () = late => Ok(()),
    }
}

async fn price((item, count): (String, u64)) -> Result<u64, FunctionError> {
    match item.as_str() {
        "tea" => Ok(250 * count),
        _ => Err(FunctionError::new(
            "NotForSale",
            format!("we have no {item}"),
        )),
    }
}

async fn show_price(rpc: Rpc, Path(item): Path<String>) -> (StatusCode, String) {
    match rpc.call::<u64>("primary", "Shop", "price", (item, 1)).await {
        Ok(cents) => (StatusCode::OK, format!("{cents} cents\n")),
        Err(error) => (StatusCode::BAD_GATEWAY, format!("{error}\n")),
    }
}
