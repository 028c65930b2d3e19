//! Starts clusters of real processes on loopback, loads them, and breaks them.
//!
//! Everything a test starts is ended by dropping it. The folder with a cluster's logs is kept when its test fails.

mod cgroup;
mod client;
mod cluster;
mod load;
mod ports;
mod process;
mod status;

pub use cgroup::MemoryCgroup;
pub use client::{Answer, Client, EventReader};
pub use cluster::{Cluster, Options};
pub use load::{Load, Report, Running};
pub use ports::{Port, open_ports};
pub use process::{Daemon, descendants, kill, process_exists, shared_memory_of};
pub use status::{Status, Worker};

use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Waits until `condition` gives a value; fails with `what` after `limit`.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> F,
) -> anyhow::Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = condition().await {
            return Ok(value);
        }
        anyhow::ensure!(Instant::now() < end, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .expect("the repository's root exists")
}

/// A built program of this workspace.
pub fn binary(name: &str) -> PathBuf {
    let path = root().join("target/debug").join(name);
    assert!(
        path.exists(),
        "{} is not built: run `make test-cluster`",
        path.display()
    );
    path
}

/// The interpreter that has the wheel installed.
pub fn python() -> PathBuf {
    let path = root().join(".venv/bin/python");
    assert!(
        path.exists(),
        "{} is not there: run `make test-cluster`",
        path.display()
    );
    path
}

/// A folder of services under test.
pub fn services() -> PathBuf {
    root().join("tests/services")
}
