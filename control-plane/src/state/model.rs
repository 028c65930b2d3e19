//! Everything the cluster agrees on.

use std::collections::{BTreeMap, BTreeSet};

use mosec_types::topology::{Deployment, Node, Phase};
use mosec_types::{BundleId, NodeId, PipelineName, Revision, StageIndex, StageSpec, Topology};
use serde::{Deserialize, Serialize};

use super::audit::Audit;
use super::command::{Origin, Reply, is_false};
use super::format::Format;
use super::history::History;
use super::tokens::Tokens;

/// Most nodes of a cluster. Bounds what registrations under ever new names can take.
pub const MAX_NODES: usize = 4096;
/// Most replicas of a pipeline: so many have their places in one log entry.
pub const MAX_PIPELINE_REPLICAS: u64 = 4096;
/// Most clients whose last write is remembered; beyond it, those that wrote longest ago are forgotten.
pub const MAX_CLIENTS: usize = 1024;
/// Most revisions of a pipeline that finish what they have at a time; older ones are dropped.
pub const MAX_RETIRING: usize = 8;
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
    /// What people did.
    #[serde(default)]
    pub audit: Audit,
    /// Rights to join.
    #[serde(default)]
    pub tokens: Tokens,
    /// Numbers of members that were removed, which no other gets: some may still know them under their old addresses.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub retired_members: BTreeSet<u64>,
    /// The format in force: no command and nothing of this is of a later one.
    #[serde(default, skip_serializing_if = "Format::is_first")]
    pub format: Format,
}

/// A revision and how it is to become healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    pub deployment: Deployment,
    /// How long it may take, at each step, until all replicas it has by then are ready.
    pub healthy_deadline_ms: u64,
    /// How many replicas each stage is to have in the end, where that is not what the specification says.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scale: BTreeMap<StageIndex, u32>,
    /// Whether it has no canary to wait for any more.
    #[serde(default)]
    pub promoted: bool,
    /// Whether it waits for its replicas alone: it is a way back, and what it brings has been seen to work.
    #[serde(default, skip_serializing_if = "is_false")]
    pub at_once: bool,
}

impl Rollout {
    pub fn new(deployment: Deployment, healthy_deadline_ms: u64) -> Self {
        Self {
            deployment,
            healthy_deadline_ms,
            scale: BTreeMap::new(),
            promoted: false,
            at_once: false,
        }
    }

    /// How many replicas each stage is to have in the end, in the order of the stages.
    pub fn goal(&self) -> Vec<u32> {
        let of_stage = |(index, spec): (StageIndex, &StageSpec)| {
            self.scale.get(&index).copied().unwrap_or(spec.replicas)
        };
        self.deployment.stages().map(of_stage).collect()
    }
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
    /// Makes this the state of the log entry `index`, from which a restored control plane goes on. `taken_at_unix_ms`:
    /// when the backup was made.
    ///
    /// Whoever follows the topology has seen versions that came after the backup; this one is later than all of them.
    pub(crate) fn restored(&mut self, index: u64, taken_at_unix_ms: u64) {
        self.version = index;
        let origin = Origin {
            by: String::new(),
            at_unix_ms: taken_at_unix_ms,
        };
        self.audit.note(
            index,
            origin,
            "restore the backup of this time".into(),
            &Reply::Void,
        );
    }

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

    /// The rollouts of a pipeline, oldest first.
    pub fn rollouts_of(&self, pipeline: &PipelineName) -> impl Iterator<Item = &Rollout> {
        let of_pipeline = move |rollout: &&Rollout| &rollout.deployment.spec.name == pipeline;
        self.rollouts.values().filter(of_pipeline)
    }

    /// The revision of a pipeline that serves, and no other is needed for.
    pub fn serving(&self, pipeline: &PipelineName) -> Option<&Rollout> {
        self.rollouts_of(pipeline)
            .find(|rollout| rollout.deployment.phase == Phase::Serving)
    }

    /// The revision of a pipeline that is on its way to serve.
    pub fn rolling_out(&self, pipeline: &PipelineName) -> Option<&Rollout> {
        self.rollouts_of(pipeline)
            .find(|rollout| rollout.deployment.phase.is_rollout())
    }

    /// The bundles that some revision names which runs or can be gone back to.
    pub fn bundles(&self) -> BTreeSet<BundleId> {
        let remembered = self.histories.values().flat_map(History::records);
        let specs = remembered.map(|record| &record.spec);
        let running = self.rollouts.values().map(|rollout| &rollout.deployment.spec);
        specs
            .chain(running)
            .filter_map(|spec| spec.source.bundle)
            .collect()
    }

    /// The revisions of a pipeline, oldest first.
    pub fn revisions_of(&self, pipeline: &PipelineName) -> Vec<Revision> {
        let revision = |rollout: &Rollout| rollout.deployment.revision;
        self.rollouts_of(pipeline).map(revision).collect()
    }
}
