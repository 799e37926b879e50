//! A client that progenitor generated: a call, a problem, the regions, the functions of an app.
//!
//! `FLY_RPC_URL` names the instance to ask; `FLY_RPC_TOKEN` is a client's token, where the instance wants one. `NOTES_URL`
//! names an instance beside the app.

use std::{env, error::Error};

use reqwest::header::{AUTHORIZATION, HeaderMap};
use serde_json::json;

use fly_rpc::{
    Client,
    types::{CallRequest, NotesCreateArgs, Problem},
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

    let notes = Client::new(&env::var("NOTES_URL")?);
    let milk = NotesCreateArgs::builder()
        .title("Milk")
        .tags(vec!["dairy".to_owned(), "cold".to_owned()]);
    let created = notes.notes_create().region("syd").body(milk).send().await?.into_inner();
    let counted = notes.notes_count().region("iad").send().await?.into_inner();
    let place = |meta: fly_rpc::types::Meta| meta.region.unwrap_or_default();
    println!(
        "note {} {} from {}, {} in {}",
        created.result.number,
        created.result.title,
        place(created.meta),
        counted.result,
        place(counted.meta)
    );

    let nameless = NotesCreateArgs::builder().title("").tags(Vec::new());
    let untitled = match notes.notes_create().region("syd").body(nameless).send().await {
        Err(fly_rpc::Error::ErrorResponse(problem)) => problem.into_inner(),
        Err(error) => return Err(error.into()),
        Ok(reply) => return Err(format!("a note: {:?}", reply.into_inner()).into()),
    };
    let error = untitled.error.0.ok_or("no error of the function")?;
    println!(
        "error {}: {} executed {}",
        error.kind, error.message, untitled.executed
    );
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
