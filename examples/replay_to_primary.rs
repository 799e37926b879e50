//! An axum application whose database takes writes in one region: it reads where the request arrives, and what writes is
//! replayed in the primary region by Fly Proxy.
//!
//! Run it with `FLY_REGION=syd PRIMARY_REGION=iad cargo run --example replay_to_primary`, and see that `curl -i
//! localhost:8080/notes` is answered in `syd`, and `curl -i -d tea localhost:8080/notes` with `fly-replay: region=iad`.

use std::{
    error::Error,
    sync::{Arc, Mutex},
};

use axum::{Router, extract::State, routing::get};
use fly_rpc::{Config, ReplayToPrimary};
use tokio::net::TcpListener;

/// The notes and the region that has them; a real application has a database that copies them to every region.
struct Notes {
    region: String,
    texts: Mutex<Vec<String>>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let config = Config::from_env()?;
    let notes = Notes {
        region: config.identity.region.to_string(),
        texts: Mutex::default(),
    };
    let app = Router::new()
        .route("/notes", get(list).post(write))
        .layer(ReplayToPrimary::new(&config.identity)?)
        .with_state(Arc::new(notes));
    let listener = TcpListener::bind(&config.listen).await?;
    axum::serve(listener, app).await?;
    Ok(())
}

async fn list(State(notes): State<Arc<Notes>>) -> String {
    let texts = notes.texts.lock().map(|texts| texts.join(", "));
    format!("read in {}: {}\n", notes.region, texts.unwrap_or_default())
}

async fn write(State(notes): State<Arc<Notes>>, text: String) -> String {
    if let Ok(mut texts) = notes.texts.lock() {
        texts.push(text);
    }
    format!("written in {}\n", notes.region)
}
