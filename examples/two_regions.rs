//! Two instances in one program: one in `syd` with a function of its own, one in `iad` that calls it there.
//!
//! Run it with `cargo run --example two_regions`. A real deployment runs one instance in a process, and finds the
//! others through DNS (`RPC_DNS_NAME`) instead of by their addresses.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{error::Error, time::Duration};

use fly_rpc::{Config, DnsName, FunctionError, Instance, Registry};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let syd = Instance::start(config("syd", Vec::new())?, registry()).await?;
    let iad = Instance::start(
        config("iad", vec![DnsName::Address(syd.address())])?,
        registry(),
    )
    .await?;

    let cents: u64 = iad.rpc().call("syd", "Shop", "price", ("tea", 3)).await?;
    println!("three teas in syd cost {cents} cents");

    if let Err(problem) = iad
        .rpc()
        .call::<u64>("syd", "Shop", "price", ("gold", 1))
        .await
    {
        println!("gold: {problem}");
    }

    iad.shutdown().await;
    syd.shutdown().await;
    Ok(())
}

fn registry() -> Registry {
    Registry::builtin().function("Shop", "price", |(item, count): (String, u64)| async move {
        match item.as_str() {
            "tea" => Ok(250 * count),
            _ => Err(FunctionError::new(
                "NotForSale",
                format!("we have no {item}"),
            )),
        }
    })
}

fn config(region: &str, others: Vec<DnsName>) -> Result<Config, Box<dyn Error>> {
    let mut config = Config {
        listen: "127.0.0.1:0".to_owned(),
        ..Config::default()
    };
    config.identity.region = region.parse()?;
    config.discovery.names = others;
    config.drain.delay = Duration::ZERO;
    Ok(config)
}
