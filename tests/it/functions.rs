//! Functions that only tests need, and the process that serves them: this test program itself, started again.
//!
//! Latches and logs are files in a directory of the test, so that they outlive any process.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use fly_rpc::{Config, FunctionError, Instance, Registry};
use serde_json::value::RawValue;

/// Set for the process that serves: the directory of latches and logs.
pub(crate) const DIRECTORY: &str = "IT_DIRECTORY";

/// Serves in the process that [`crate::process`] starts; passes at once as a test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instance_process() {
    #[expect(
        clippy::disallowed_methods,
        reason = "the switch between a test and an instance"
    )]
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return;
    };
    let instance = Instance::start(Config::from_env().unwrap(), registry(directory.into()))
        .await
        .unwrap();
    println!("listening on http://{}", instance.address());
    instance.run_until_signal().await.unwrap();
}

fn registry(directory: PathBuf) -> Registry {
    let (blocks, runs, drops) = (directory.clone(), directory.clone(), directory);
    Registry::builtin()
        .function(
            "Test",
            "echo",
            |value: Box<RawValue>| async move { Ok(value) },
        )
        .function("Test", "panic", |(): ()| async move {
            assert!(std::hint::black_box(false), "a test's panic");
            Ok(())
        })
        .function("Test", "block", move |(name,): (String,)| {
            let directory = blocks.clone();
            async move {
                touch(&directory, &format!("{name}.started"));
                while !directory.join(format!("{name}.released")).exists() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                touch(&directory, &format!("{name}.finished"));
                Ok("released")
            }
        })
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
            let log = runs.join("runs");
            async move {
                append(&log, &id)?;
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                Ok(id)
            }
        })
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
