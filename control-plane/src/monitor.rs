//! Keeps a node's gauges, and ends the node when Raft has stopped.

use std::sync::Arc;
use std::time::Duration;

use openraft::error::Fatal;
use openraft::{BasicNode, RaftMetrics, ServerState};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::raft::handle::Handle;
use crate::raft::log_store::LogStore;
use crate::raft::{MemberId, StorageError};
use crate::reconcile::Leadership;
use crate::server::RunError;

/// How often the gauges that no event changes are read.
const GAUGES_EVERY: Duration = Duration::from_secs(5);

/// Keeps the gauges and notices Raft's end.
pub(crate) struct Monitor {
    pub(crate) handle: Handle,
    pub(crate) leadership: Arc<Leadership>,
    pub(crate) metrics: Metrics,
    pub(crate) log: LogStore,
}

impl Monitor {
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), RunError> {
        let mut raft = self.handle.raft.metrics();
        let mut due = tokio::time::interval(GAUGES_EVERY);
        loop {
            if let Err(fatal) = self.read(&raft.borrow_and_update()) {
                return if stop.is_cancelled() {
                    Ok(())
                } else {
                    Err(RunError::Raft(fatal))
                };
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                changed = raft.changed() => if changed.is_err() {
                    return if stop.is_cancelled() { Ok(()) } else { Err(RunError::Raft("its task has ended".into())) };
                },
                _ = due.tick() => self.read_disk().await,
            }
        }
    }

    fn read(&self, raft: &RaftMetrics<MemberId, BasicNode>) -> Result<(), String> {
        let index = |index: Option<u64>| i64::try_from(index.unwrap_or(0)).unwrap_or(i64::MAX);
        self.metrics
            .leader
            .set(i64::from(raft.state == ServerState::Leader));
        self.metrics.term.set(index(Some(raft.current_term)));
        self.metrics.last_log.set(index(raft.last_log_index));
        self.metrics
            .last_applied
            .set(index(raft.last_applied.map(|id| id.index)));
        let leases = self.leadership.with(|tenure| tenure.leases.len()).unwrap_or(0);
        self.metrics.leases.set(i64::try_from(leases).unwrap_or(i64::MAX));
        raft.running_state.clone().map_err(|fatal| describe(&fatal))
    }

    async fn read_disk(&self) {
        let log = self.log.clone();
        match tokio::task::spawn_blocking(move || log.disk_bytes()).await {
            Ok(Ok(bytes)) => self
                .metrics
                .store_bytes
                .set(i64::try_from(bytes).unwrap_or(i64::MAX)),
            Ok(Err(error)) => tracing::warn!(%error, "the store's size is unknown"),
            Err(error) => tracing::warn!(%error, "the store's size is unknown"),
        }
    }
}

fn describe(fatal: &Fatal<MemberId>) -> String {
    match fatal {
        Fatal::StorageError(StorageError::IO { source }) => source.to_string(),
        other => other.to_string(),
    }
}
