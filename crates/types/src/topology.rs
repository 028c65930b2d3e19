//! What runs where: the state gateways and node agents follow, from a control plane's watch or fixed at start.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Incarnation, NodeId, PipelineSpec, ReplicaId, Revision, StageIndex};

/// A whole, consistent picture of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Topology {
    /// Index of the last log entry it reflects. A larger one is newer.
    pub version: u64,
    pub nodes: Vec<Node>,
    pub deployments: Vec<Deployment>,
}

/// A host that runs workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    pub incarnation: Incarnation,
    /// `host:port` of its link.
    pub address: String,
    pub health: NodeHealth,
    pub labels: BTreeMap<String, String>,
}

/// The control plane's view of a node. It decides placement; gateways route on their own evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeHealth {
    Up,
    /// Its lease has run out; it may come back.
    Suspect,
    /// Gone for so long that its replicas are placed elsewhere.
    Down,
}

impl NodeHealth {
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
        }
    }
}

/// One revision of a pipeline and where its replicas are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    pub revision: Revision,
    pub spec: Arc<PipelineSpec>,
    pub phase: Phase,
    pub placements: Vec<Placement>,
}

/// Where a revision is in its life. Gateways send requests to `Serving` ones; agents run `Starting` ones too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its workers start; it takes no requests yet.
    Starting,
    Serving,
    /// It did not become healthy. Kept so that its reason can be read; nothing of it runs.
    Failed {
        reason: String,
    },
}

impl Phase {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Failed { .. } => "failed",
        }
    }

    /// Whether nodes keep workers of a deployment in this phase.
    pub fn runs(&self) -> bool {
        matches!(self, Self::Starting | Self::Serving)
    }
}

/// One replica's place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Placement {
    pub stage: StageIndex,
    pub replica: ReplicaId,
    pub node: NodeId,
}

impl Topology {
    pub fn node(&self, id: &NodeId) -> Option<&Node> {
        self.nodes.iter().find(|node| &node.id == id)
    }

    pub fn deployment(&self, revision: Revision) -> Option<&Deployment> {
        self.deployments
            .iter()
            .find(|deployment| deployment.revision == revision)
    }
}

impl Deployment {
    /// The nodes that run replicas of `stage`, each once, in order.
    pub fn nodes_of(&self, stage: StageIndex) -> Vec<&NodeId> {
        let mut nodes: Vec<_> = self
            .placements
            .iter()
            .filter(|p| p.stage == stage)
            .map(|p| &p.node)
            .collect();
        nodes.sort();
        nodes.dedup();
        nodes
    }

    /// The replicas of `stage` that `node` runs.
    pub fn replicas_on(&self, stage: StageIndex, node: &NodeId) -> Vec<ReplicaId> {
        self.placements
            .iter()
            .filter(|p| p.stage == stage && &p.node == node)
            .map(|p| p.replica)
            .collect()
    }
}
