//! Everything the cluster agrees on.

use std::collections::BTreeMap;

use mosec_types::topology::{Deployment, Node};
use mosec_types::{NodeId, PipelineName, Revision, Topology};
use serde::{Deserialize, Serialize};

use super::command::Reply;
use super::history::History;

/// Most nodes of a cluster. Bounds what registrations under ever new names can take.
pub const MAX_NODES: usize = 4096;
/// Most clients whose last write is remembered; beyond it, those that wrote longest ago are forgotten.
pub const MAX_CLIENTS: usize = 1024;
/// Most failed revisions kept of a pipeline, for their reasons to be read.
pub const MAX_FAILED: usize = 3;

/// The replicated state.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Model {
    /// Index of the last log entry that changed nodes or rollouts.
    pub version: u64,
    pub nodes: BTreeMap<NodeId, Node>,
    pub rollouts: BTreeMap<Revision, Rollout>,
    /// What was deployed of each pipeline that there is.
    #[serde(default)]
    pub histories: BTreeMap<PipelineName, History>,
    /// The last write of each client that numbers its writes.
    pub clients: BTreeMap<String, LastWrite>,
}

/// A revision and how it is to become healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    pub deployment: Deployment,
    /// How long it may take from its start until all replicas are ready.
    pub healthy_deadline_ms: u64,
}

/// A client's last write and what it was told, in case it asks again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastWrite {
    pub seq: u64,
    /// The log entry's index.
    pub index: u64,
    pub reply: Reply,
}

impl Model {
    /// What gateways and agents follow.
    pub fn topology(&self) -> Topology {
        Topology {
            version: self.version,
            nodes: self.nodes.values().cloned().collect(),
            deployments: self
                .rollouts
                .values()
                .map(|rollout| rollout.deployment.clone())
                .collect(),
        }
    }

    /// The revisions of a pipeline, oldest first.
    pub fn revisions_of(&self, pipeline: &PipelineName) -> Vec<Revision> {
        let of_pipeline = |rollout: &&Rollout| &rollout.deployment.spec.name == pipeline;
        self.rollouts
            .values()
            .filter(of_pipeline)
            .map(|rollout| rollout.deployment.revision)
            .collect()
    }
}
