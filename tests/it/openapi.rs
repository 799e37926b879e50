//! The OpenAPI document: one text, in the repository, in the binary and on the wire.

use crate::process::{Environment, Process};

#[tokio::test]
async fn the_document_is_the_same_everywhere() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/openapi.json");
    let kept = std::fs::read_to_string(path).unwrap();
    let made = fly_rpc::openapi_json();
    let differs = kept
        .lines()
        .zip(made.lines())
        .find(|(kept, made)| kept != made);
    assert!(
        kept.trim_end() == made,
        "{differs:?}; refresh it with: cargo run -- openapi > openapi/openapi.json"
    );
    let local = Process::start(&Environment::from([(
        "RPC_LISTEN",
        "127.0.0.1:0".to_owned(),
    )]))
    .await;
    let served = local.get("/openapi.json").await;
    assert_eq!(
        served.body,
        serde_json::from_str::<serde_json::Value>(&kept).unwrap()
    );
}
