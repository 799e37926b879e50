//! A client that progenitor generated: a call, a problem, the regions.
//!
//! `FLY_RPC_URL` names the instance to ask; `FLY_RPC_TOKEN` is a client's token, where the instance wants one.

use std::{env, error::Error};

use reqwest::header::{AUTHORIZATION, HeaderMap};
use serde_json::json;

use fly_rpc::{
    Client,
    types::{CallRequest, Problem},
};

mod fly_rpc {
    progenitor::generate_api!(spec = "openapi-3.0.json", interface = Builder);
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = client()?;
    let upcase: CallRequest = CallRequest::builder()
        .module("String")
        .function("upcase")
        .args(vec![json!("fly")])
        .try_into()?;
    let request = client.call_function().region("syd").body(upcase.clone());
    let reply = request.send().await?.into_inner();
    let region = reply.meta.region.unwrap_or_default();
    println!(
        "result {} from {region}",
        reply.result.as_str().unwrap_or_default()
    );

    let problem = problem_of(&client, "mars", upcase).await?;
    println!("problem {} executed {}", problem.code, problem.executed);

    let raise: CallRequest = CallRequest::builder()
        .module("Kernel")
        .function("raise")
        .args(vec![json!("boom")])
        .try_into()?;
    let failed = problem_of(&client, "syd", raise).await?;
    let error = failed.error.0.ok_or("no error of the function")?;
    println!(
        "error {}: {} executed {}",
        error.kind, error.message, failed.executed
    );

    let regions = client.list_regions().send().await?.into_inner();
    let names: Vec<String> = regions
        .regions
        .into_iter()
        .map(|region| region.region)
        .collect();
    println!("regions {}", names.join(" "));
    Ok(())
}

fn client() -> Result<Client, Box<dyn Error>> {
    let mut headers = HeaderMap::new();
    if let Ok(token) = env::var("FLY_RPC_TOKEN") {
        headers.insert(AUTHORIZATION, format!("Bearer {token}").parse()?);
    }
    let http = reqwest::Client::builder()
        .default_headers(headers)
        .build()?;
    Ok(Client::new_with_client(&env::var("FLY_RPC_URL")?, http))
}

async fn problem_of(client: &Client, region: &str, call: CallRequest) -> Result<Problem, Box<dyn Error>> {
    match client
        .call_function()
        .region(region)
        .body(call)
        .send()
        .await
    {
        Err(fly_rpc::Error::ErrorResponse(problem)) => Ok(problem.into_inner()),
        Err(error) => Err(error.into()),
        Ok(reply) => Err(format!("a result: {:?}", reply.into_inner()).into()),
    }
}
