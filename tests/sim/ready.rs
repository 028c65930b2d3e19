//! What agents without workers report.

use std::collections::BTreeMap;

use mosec_types::{NodeId, StageKey, Topology, WorkerState, WorkerStatus};

/// The workers of each node, had it started and made ready all that the topology places on it.
pub(crate) fn all_ready(topology: &Topology) -> BTreeMap<NodeId, Vec<WorkerStatus>> {
    let mut placed: BTreeMap<NodeId, Vec<WorkerStatus>> = BTreeMap::new();
    for deployment in &topology.deployments {
        for placement in &deployment.placements {
            placed
                .entry(placement.node.clone())
                .or_default()
                .push(WorkerStatus {
                    stage: StageKey {
                        revision: deployment.revision,
                        stage: placement.stage,
                    },
                    replica: placement.replica,
                    state: WorkerState::Ready,
                    pid: Some(1),
                    restarts: 0,
                    failed_starts: 0,
                    last_error: None,
                });
        }
    }
    placed
}
