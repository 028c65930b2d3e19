//! What runs where: the state gateways and node agents follow, from a control plane's watch or fixed at start.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Capacity, Incarnation, NodeId, PipelineSpec, ReplicaId, Revision, StageIndex, StageSpec};

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
    /// Its replicas are moved elsewhere, and no others are placed there.
    #[serde(default)]
    pub draining: bool,
    #[serde(default)]
    pub capacity: Capacity,
    /// Version of the build that its agent runs, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<String>,
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
    /// How many replicas each stage is to have now, in the order of the stages: fewer than in the end while one
    /// revision takes over from another. See [`Deployment::count`].
    #[serde(default)]
    pub replicas: Vec<u32>,
    /// Percent of the pipeline's requests that go to it while another revision takes some, too.
    #[serde(default)]
    pub weight: u32,
    /// A replica that moves has two places until it is ready at the new one.
    pub placements: Vec<Placement>,
}

/// Where a revision is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its first workers start; it takes no requests yet.
    Starting,
    /// A part of it takes some of the requests, and waits to be promoted.
    Canary,
    /// It takes over step by step.
    Rolling,
    /// It takes all requests that no newer revision takes.
    Serving,
    /// It has been replaced or deleted, and finishes what it has: stage by stage its replicas go.
    Retiring,
    /// It did not become healthy. Kept so that its reason can be read; what it has is finished.
    Failed { reason: String },
}

impl Phase {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Canary => "canary",
            Self::Rolling => "rolling",
            Self::Serving => "serving",
            Self::Retiring => "retiring",
            Self::Failed { .. } => "failed",
        }
    }

    /// Whether a deployment in this phase is to have replicas. One that is not may still have some, which finish
    /// what they have.
    pub fn runs(&self) -> bool {
        !matches!(self, Self::Failed { .. } | Self::Retiring)
    }

    /// Whether requests may go to a deployment in this phase.
    pub fn takes_requests(&self) -> bool {
        matches!(self, Self::Canary | Self::Rolling | Self::Serving)
    }

    /// Whether it is on its way to replace another one.
    pub fn is_rollout(&self) -> bool {
        matches!(self, Self::Starting | Self::Canary | Self::Rolling)
    }
}

/// One replica's place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Placement {
    pub stage: StageIndex,
    pub replica: ReplicaId,
    pub node: NodeId,
    /// The node's GPUs that it may use, by their numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<u32>,
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
    /// A deployment with all its replicas, which takes all requests if its phase takes any.
    pub fn new(
        revision: Revision,
        spec: Arc<PipelineSpec>,
        phase: Phase,
        placements: Vec<Placement>,
    ) -> Self {
        Self {
            revision,
            replicas: spec.stages.iter().map(|stage| stage.replicas).collect(),
            weight: if phase.takes_requests() { 100 } else { 0 },
            spec,
            phase,
            placements,
        }
    }

    /// Whether nothing of it runs any more, nor will.
    pub fn is_over(&self) -> bool {
        !self.phase.runs() && self.placements.is_empty()
    }

    /// How many replicas the stage is to have now.
    pub fn count(&self, stage: StageIndex) -> u32 {
        let index = usize::from(stage.0);
        let specified = || self.spec.stages.get(index).map(|stage| stage.replicas);
        let counted = self.replicas.get(index).copied();
        counted.or_else(specified).unwrap_or_default()
    }

    /// How many replicas each stage is to have now, in the order of the stages.
    pub fn counts(&self) -> Vec<u32> {
        self.stages().map(|(index, _)| self.count(index)).collect()
    }

    /// The stages, in order.
    pub fn stages(&self) -> impl Iterator<Item = (StageIndex, &StageSpec)> {
        (0u16..).map(StageIndex).zip(&self.spec.stages)
    }

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

    /// Whether the stage has replicas other than one on `node`, here or elsewhere.
    pub fn has_others(&self, stage: StageIndex, replica: ReplicaId, node: &NodeId) -> bool {
        let is_other = |p: &Placement| p.stage == stage && !(p.replica == replica && &p.node == node);
        self.placements.iter().any(is_other)
    }

    /// The place of a replica on `node`.
    pub fn placement(&self, stage: StageIndex, replica: ReplicaId, node: &NodeId) -> Option<&Placement> {
        let is_it = |p: &&Placement| p.stage == stage && p.replica == replica && &p.node == node;
        self.placements.iter().find(is_it)
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
