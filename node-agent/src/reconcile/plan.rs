//! What to start and what to stop. Pure.

use std::collections::BTreeSet;

use mosec_types::topology::{Deployment, Node};
use mosec_types::{NodeId, PipelineSpec, ReplicaId, StageIndex, StageKey, Topology};

pub(crate) type Slot = (StageKey, ReplicaId);

/// The difference between what should run here and what does.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) start: Vec<Slot>,
    pub(crate) stop: Vec<Slot>,
}

/// Compares the replicas that `topology` places on `node` with those `observed`.
pub(crate) fn plan(topology: &Topology, node: &NodeId, observed: &BTreeSet<Slot>) -> Plan {
    let desired = desired(topology, node);
    Plan {
        start: desired.difference(observed).copied().collect(),
        stop: observed.difference(&desired).copied().collect(),
    }
}

fn desired(topology: &Topology, node: &NodeId) -> BTreeSet<Slot> {
    let running = topology
        .deployments
        .iter()
        .filter(|deployment| deployment.phase.runs());
    running
        .flat_map(|deployment| {
            let mine = deployment
                .placements
                .iter()
                .filter(|placement| &placement.node == node);
            mine.map(|placement| {
                (
                    StageKey {
                        revision: deployment.revision,
                        stage: placement.stage,
                    },
                    placement.replica,
                )
            })
        })
        .collect()
}

/// The stages of running deployments that come second or later on some route: those this node dispatches to.
pub(crate) fn later_stages(topology: &Topology) -> BTreeSet<StageKey> {
    let running = topology
        .deployments
        .iter()
        .filter(|deployment| deployment.phase.runs());
    running
        .flat_map(|deployment| {
            let later = deployment
                .spec
                .routes
                .iter()
                .flat_map(|route| route.stages.iter().skip(1));
            later.map(|&stage| StageKey {
                revision: deployment.revision,
                stage,
            })
        })
        .collect()
}

/// Whether a route begins with the stage.
pub(crate) fn is_first(spec: &PipelineSpec, stage: StageIndex) -> bool {
    spec.routes.iter().any(|route| route.first() == Some(stage))
}

/// The other nodes this one may have to send batches to.
pub(crate) fn peers(topology: &Topology, node: &NodeId) -> Vec<Node> {
    let running = topology
        .deployments
        .iter()
        .filter(|deployment| deployment.phase.runs());
    let runs_here = |d: &Deployment| d.placements.iter().any(|p| &p.node == node);
    let mut ids = BTreeSet::new();
    for deployment in running.filter(|deployment| runs_here(deployment)) {
        for route in &deployment.spec.routes {
            for &stage in route.stages.iter().skip(1) {
                ids.extend(deployment.nodes_of(stage));
            }
        }
    }
    ids.into_iter()
        .filter(|id| *id != node)
        .filter_map(|id| topology.node(id))
        .cloned()
        .collect()
}
