//! Does a log's writes, one after the other: what [`super::log_store`] asks for, in its order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::storage::LogFlushed;
use tokio::sync::{mpsc, oneshot};

use super::TypeConfig;
use super::blocking::Pace;
use super::kv::{Change, KvError, LogKv};

/// A third of the shortest election, by default.
const SLOW_SYNC: Duration = Duration::from_millis(200);

/// A write for the log's thread.
pub(super) struct Job {
    pub(super) changes: Vec<Change>,
    pub(super) durable: bool,
    /// Told when the changes can be read.
    pub(super) written: oneshot::Sender<Result<(), KvError>>,
    /// Told when they are durable.
    pub(super) flushed: Option<LogFlushed<TypeConfig>>,
}

/// Does one job after the other until all handles are gone.
pub(super) fn run_on_thread(kv: &dyn LogKv, mut queue: mpsc::Receiver<Job>) {
    while let Some(job) = queue.blocking_recv() {
        if let Some(unsynced) = job.write(kv) {
            unsynced.sync(kv);
        }
    }
}

/// As [`run_on_thread`], as a task.
pub(super) async fn run_in_line(kv: Arc<dyn LogKv>, mut queue: mpsc::Receiver<Job>, pace: Pace) {
    while let Some(job) = queue.recv().await {
        if let Some(unsynced) = job.write(kv.as_ref()) {
            pace().await;
            unsynced.sync(kv.as_ref());
        }
    }
}

/// Who waits for a sync.
enum Unsynced {
    Append(LogFlushed<TypeConfig>),
    Change(oneshot::Sender<Result<(), KvError>>),
}

impl Job {
    /// Makes the changes; gives what must be synced now.
    fn write(self, kv: &dyn LogKv) -> Option<Unsynced> {
        let result = kv.write(self.changes);
        match (self.flushed, result) {
            // An append: openraft goes on when it can read the entries, and acknowledges them after the sync.
            (Some(flushed), Ok(())) => {
                drop(self.written.send(Ok(())));
                Some(Unsynced::Append(flushed))
            }
            (Some(flushed), Err(error)) => {
                flushed.log_io_completed(Err(io_error(&error)));
                drop(self.written.send(Err(error)));
                None
            }
            (None, Ok(())) if self.durable => Some(Unsynced::Change(self.written)),
            (None, result) => {
                drop(self.written.send(result));
                None
            }
        }
    }
}

impl Unsynced {
    fn sync(self, kv: &dyn LogKv) {
        let result = sync(kv);
        match self {
            Self::Append(flushed) => flushed.log_io_completed(result.map_err(|error| io_error(&error))),
            Self::Change(written) => drop(written.send(result)),
        }
    }
}

/// Syncs, and says where the disk is too slow for Raft's timers: what looks like lost leaders then is a slow disk.
fn sync(kv: &dyn LogKv) -> Result<(), KvError> {
    let started = Instant::now();
    let result = kv.sync();
    let took = started.elapsed();
    if took > SLOW_SYNC {
        tracing::warn!(took_ms = took.as_millis(), "the log's disk is slow");
    }
    result
}

/// The store's error as the callback takes it, with what caused it.
fn io_error(error: &KvError) -> std::io::Error {
    let cause = std::error::Error::source(error)
        .map(|cause| format!(": {cause}"))
        .unwrap_or_default();
    std::io::Error::other(format!("{error}{cause}"))
}
