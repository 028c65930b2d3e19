//! The states of this node's workers, for heartbeats and for whoever waits for readiness.

use std::collections::BTreeMap;
use std::sync::Arc;

use mosec_types::{ReplicaId, StageKey, WorkerState, WorkerStatus};
use parking_lot::Mutex;
use tokio::sync::watch;

/// All workers' states. Clones share it.
#[derive(Clone)]
pub(crate) struct StatusBoard {
    workers: Arc<Mutex<BTreeMap<(StageKey, ReplicaId), WorkerStatus>>>,
    changes: watch::Sender<Vec<WorkerStatus>>,
}

impl StatusBoard {
    pub(crate) fn new() -> Self {
        Self {
            workers: Arc::default(),
            changes: watch::Sender::new(Vec::new()),
        }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Vec<WorkerStatus>> {
        self.changes.subscribe()
    }

    /// Changes one worker's status, which is made if it is not there.
    pub(crate) fn update(&self, stage: StageKey, replica: ReplicaId, change: impl FnOnce(&mut WorkerStatus)) {
        let mut workers = self.workers.lock();
        let status = workers.entry((stage, replica)).or_insert_with(|| WorkerStatus {
            stage,
            replica,
            state: WorkerState::Starting,
            pid: None,
            restarts: 0,
            failed_starts: 0,
            last_error: None,
        });
        change(status);
        self.changes.send_replace(workers.values().cloned().collect());
    }

    pub(crate) fn remove(&self, stage: StageKey, replica: ReplicaId) {
        let mut workers = self.workers.lock();
        workers.remove(&(stage, replica));
        self.changes.send_replace(workers.values().cloned().collect());
    }
}
