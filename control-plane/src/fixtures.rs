//! Values that the tests of this crate share.

use std::collections::BTreeMap;
use std::sync::Arc;

use mosec_types::spec::PythonSource;
use mosec_types::topology::{Deployment, Node, NodeHealth, Phase, Placement};
use mosec_types::{
    Incarnation, NodeId, PipelineName, PipelineSpec, ReplicaId, Revision, RouteSpec, StageIndex, StageKey,
    StageSpec, WorkerState, WorkerStatus,
};

use crate::state::{Model, Rollout};

pub(crate) fn node_id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// A node of incarnation 1.
pub(crate) fn node(name: &str, health: NodeHealth, labels: &[(&str, &str)]) -> Node {
    Node {
        id: node_id(name),
        incarnation: Incarnation(1),
        address: format!("{name}:7443"),
        health,
        labels: labels
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        draining: false,
        capacity: Default::default(),
        build: None,
    }
}

pub(crate) fn up(name: &str) -> Node {
    node(name, NodeHealth::Up, &[])
}

pub(crate) fn nodes(nodes: impl IntoIterator<Item = Node>) -> BTreeMap<NodeId, Node> {
    nodes.into_iter().map(|node| (node.id.clone(), node)).collect()
}

pub(crate) fn stage(name: &str, replicas: u32) -> StageSpec {
    StageSpec {
        replicas,
        ..StageSpec::new(name, "__main__", "Echo")
    }
}

/// A pipeline whose one route, named after it, leads through all stages.
pub(crate) fn pipeline(name: &str, stages: Vec<StageSpec>) -> PipelineSpec {
    let source = PythonSource {
        dir: "/srv".into(),
        ..Default::default()
    };
    let all = (0..stages.len()).map(|index| StageIndex(index as u16)).collect();
    PipelineSpec {
        routes: vec![RouteSpec {
            path: format!("/{name}"),
            stages: all,
        }],
        ..PipelineSpec::new(PipelineName::new(name).unwrap(), source, stages)
    }
}

pub(crate) fn placement(stage: u16, replica: u32, node: &str) -> Placement {
    Placement {
        stage: StageIndex(stage),
        replica: ReplicaId(replica),
        node: node_id(node),
        gpus: Vec::new(),
    }
}

pub(crate) fn rollout(
    revision: u64,
    spec: &PipelineSpec,
    phase: Phase,
    placements: Vec<Placement>,
) -> Rollout {
    let deployment = Deployment::new(Revision(revision), Arc::new(spec.clone()), phase, placements);
    Rollout {
        promoted: true,
        ..Rollout::new(deployment, 120_000)
    }
}

pub(crate) fn model(version: u64, of: impl IntoIterator<Item = Node>, rollouts: Vec<Rollout>) -> Model {
    let rollouts = rollouts
        .into_iter()
        .map(|rollout| (rollout.deployment.revision, rollout))
        .collect();
    Model {
        version,
        nodes: nodes(of),
        rollouts,
        histories: BTreeMap::new(),
        clients: BTreeMap::new(),
        ..Model::default()
    }
}

pub(crate) fn worker(revision: u64, stage: u16, replica: u32, state: WorkerState) -> WorkerStatus {
    WorkerStatus {
        stage: StageKey {
            revision: Revision(revision),
            stage: StageIndex(stage),
        },
        replica: ReplicaId(replica),
        state,
        pid: Some(1),
        restarts: 0,
        failed_starts: 0,
        last_error: None,
    }
}
