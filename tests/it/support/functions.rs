//! Functions that only tests need, and the process that serves them: this test program itself, started again.
//!
//! Latches and logs are files in a directory of the test, so that they outlive any process.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use fly_rpc::{Config, Declaration, FunctionError, Instance, Registry};
use serde_json::{json, value::RawValue};
use tokio::runtime::Builder;

/// Set for the process that serves: the directory of latches and logs.
pub(crate) const DIRECTORY: &str = "IT_DIRECTORY";

/// The log of `Test.run`: a line with its id for each time that it ran.
const RUNS: &str = "runs";

/// Serves in the process that [`crate::support::process`] starts; passes at once as a test.
#[test]
fn instance_process() {
    #[expect(
        clippy::disallowed_methods,
        reason = "the switch between a test and an instance"
    )]
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return;
    };
    let mut runtime = Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(serve(Path::new(&directory)));
    // As the program itself does: a blocking function that outlived its deadline must not hold up the exit.
    runtime.shutdown_background();
}

#[expect(
    clippy::print_stdout,
    reason = "the line that a starting program prints"
)]
async fn serve(directory: &Path) {
    let config = Config::from_env().unwrap();
    let registry = registry(directory, config.identity.instance.to_string());
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter("info,fly_rpc=debug")
        .with_writer(std::io::stderr)
        .init();
    let instance = Instance::start(config, registry).await.unwrap();
    let address = instance.address();
    // Printed only once signals are listened for: the test may send one at once.
    let announced = async move {
        println!("listening on http://{address}");
        std::future::pending().await
    };
    instance.run_until(announced).await.unwrap();
}

fn registry(directory: &Path, instance: String) -> Registry {
    let (blocks, drops, runs) = (
        directory.to_owned(),
        directory.to_owned(),
        directory.join(RUNS),
    );
    let few = directory.to_owned();
    let (failures, panics, threads) = (runs.clone(), runs.clone(), runs.clone());
    let larges = runs.clone();
    let (latches, behind) = (directory.to_owned(), instance.clone());
    let (large_blocks, large_here) = (directory.to_owned(), instance.clone());
    let (held_in, held_here) = (directory.to_owned(), instance.clone());
    let busy_here = instance.clone();
    Registry::builtin()
        .function(
            "Test",
            "echo",
            |value: Box<RawValue>| async move { Ok(value) },
        )
        .function(
            "Test",
            "pair",
            |pair: (Box<RawValue>, Box<RawValue>)| async move { Ok(pair) },
        )
        .declare(
            "Test",
            "pair",
            Declaration::new()
                .doc("Both as they came")
                .params([("first", json!({})), ("second", json!({"type": "array"}))])
                .result(json!({"type": "array", "description": "The two"})),
        )
        .function("Test", "no_params", |(): ()| async move { Ok(()) })
        .declare("Test", "no_params", Declaration::new().params::<String>([]))
        .function("Test", "not_json", |(): ()| async move {
            Ok(BTreeMap::from([((1, 2), 3)]))
        })
        .function("Test", "panic", |(): ()| async move {
            assert!(std::hint::black_box(false), "a test's panic");
            Ok(())
        })
        .function("Test", "log", |(text,): (String,)| async move {
            tracing::info!("{text}");
            Ok(text)
        })
        .function("Test", "block", move |(name,): (String,)| {
            let (directory, instance) = (blocks.clone(), instance.clone());
            async move {
                held(&directory, &name, &instance).await?;
                touch(&directory, &format!("{name}.finished"));
                Ok("released")
            }
        })
        .function(
            "Test",
            "block_large",
            move |(name, bytes): (String, usize)| {
                let (directory, instance) = (large_blocks.clone(), large_here.clone());
                async move {
                    held(&directory, &name, &instance).await?;
                    Ok("x".repeat(bytes))
                }
            },
        )
        .function(
            "Test",
            "block_in",
            move |(region, name): (String, String)| {
                let (directory, instance) = (held_in.clone(), held_here.clone());
                async move {
                    if !instance.starts_with(&region) {
                        return Ok("passed");
                    }
                    held(&directory, &name, &instance).await?;
                    Ok("released")
                }
            },
        )
        .function("Test", "few", move |(name,): (String,)| {
            let directory = few.clone();
            async move {
                append(&directory.join(RUNS), &name)?;
                while !directory.join("few.released").exists() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Ok(name)
            }
        })
        .declare("Test", "few", Declaration::new().concurrency(2))
        .function("Test", "witness", move |(name,): (String,)| {
            let witness = Witness(drops.join(format!("{name}.dropped")));
            touch(&drops, &format!("{name}.started"));
            async move {
                std::future::pending::<()>().await;
                drop(witness);
                Ok(())
            }
        })
        .function("Test", "run", move |(id, milliseconds): (String, u64)| {
            let log = runs.clone();
            async move {
                append(&log, &id)?;
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                Ok(id)
            }
        })
        .function_with_context(
            "Test",
            "large",
            move |call, (id, bytes): (String, usize)| {
                let logged = append(&larges, &id);
                if let Ok(token) = id.parse() {
                    call.set_consistency(token);
                }
                async move {
                    logged?;
                    Ok("x".repeat(bytes))
                }
            },
        )
        .function("Test", "fail", move |(id,): (String,)| {
            let logged = append(&failures, &id);
            async move {
                logged?;
                Err::<(), _>(FunctionError::new("Refusal", id).with_data(&[1]))
            }
        })
        .function_with_context(
            "Test",
            "fail_large",
            |call, (text, times): (String, usize)| {
                call.set_consistency("failed".parse().unwrap());
                let error = FunctionError::new("Large", "as large as asked for");
                async move { Err::<(), _>(error.with_data(&text.repeat(times))) }
            },
        )
        .function_with_context("Test", "token", |call, (token,): (String,)| async move {
            call.set_consistency(token.parse()?);
            Ok(call.after().map(ToString::to_string))
        })
        .function_with_context(
            "Test",
            "token_fail",
            |call, (token,): (String,)| async move {
                call.set_consistency(token.parse()?);
                Err::<(), _>(FunctionError::new("Refusal", token))
            },
        )
        .function_with_context("Test", "behind_in", move |call, (region,): (String,)| {
            let is_behind = behind.starts_with(&region) && call.after().is_some();
            async move {
                match is_behind {
                    true => Err(FunctionError::not_run("behind")),
                    false => Ok("read"),
                }
            }
        })
        .function("Test", "busy_on", move |(instances,): (Vec<String>,)| {
            let busy = instances.contains(&busy_here);
            async move {
                match busy {
                    true => Err(FunctionError::not_run("busy")),
                    false => Ok("ran"),
                }
            }
        })
        .function_with_context("Test", "behind", |call, (ms,): (u64,)| async move {
            if call.after().is_some() {
                call.wait_until(Duration::from_millis(ms), std::future::pending())
                    .await?;
            }
            Ok("read")
        })
        .function("Test", "read", move |(path,): (String,)| async move {
            Ok(fs::read_to_string(path)?)
        })
        .function("Test", "panic_after", move |(id,): (String,)| {
            let logged = append(&panics, &id);
            async move {
                logged?;
                assert!(std::hint::black_box(false), "a test's panic");
                Ok(())
            }
        })
        .blocking_function(
            "Test",
            "hold_thread",
            move |(id, latch): (String, String)| {
                append(&threads, &id)?;
                while !latches.join(format!("{latch}.released")).exists() {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Ok(id)
            },
        )
        .blocking_function("Test", "panic_thread", |(): ()| {
            assert!(std::hint::black_box(false), "a test's panic");
            Ok(())
        })
}

/// Notes that a call has started on `instance`, and waits until the test releases it.
async fn held(directory: &Path, name: &str, instance: &str) -> Result<(), FunctionError> {
    append(&directory.join(format!("{name}.started")), instance)?;
    while !directory.join(format!("{name}.released")).exists() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Notes that it was dropped.
struct Witness(PathBuf);

impl Drop for Witness {
    fn drop(&mut self) {
        fs::write(&self.0, "").unwrap();
    }
}

/// Creates the file `name` in `directory`.
pub(crate) fn touch(directory: &Path, name: &str) {
    fs::write(directory.join(name), "").unwrap();
}

/// Appends a line in one write, which the kernel does not mix with the lines of other processes.
fn append(log: &Path, line: &str) -> Result<(), FunctionError> {
    let mut file = OpenOptions::new().create(true).append(true).open(log)?;
    Ok(file.write_all(format!("{line}\n").as_bytes())?)
}

/// How often `Test.run` ran in the processes that serve with `directory`, by id.
pub(crate) fn runs(directory: &Path) -> BTreeMap<String, u32> {
    // Nothing ran as long as there is no log.
    let log = fs::read_to_string(directory.join(RUNS)).unwrap_or_default();
    let mut runs = BTreeMap::new();
    for id in log.lines() {
        *runs.entry(id.to_owned()).or_default() += 1;
    }
    runs
}
