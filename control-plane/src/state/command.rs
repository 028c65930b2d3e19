//! What can be asked of the state, and what it answers. Both are kept in the log: never change a field's meaning.

use std::collections::BTreeMap;
use std::sync::Arc;

use mosec_types::topology::{NodeHealth, Phase, Placement};
use mosec_types::{Incarnation, NodeId, PipelineName, PipelineSpec, ReplicaId, Revision, StageIndex};
use serde::{Deserialize, Serialize};

/// A command as it is proposed and logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    pub command: Command,
    /// Present on writes that a client may repeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedup: Option<Dedup>,
}

impl From<Command> for Proposal {
    fn from(command: Command) -> Self {
        Self { command, dedup: None }
    }
}

/// A client's number for one of its writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dedup {
    pub client: String,
    pub seq: u64,
}

/// Who asked for a change, and when: for people to read, nothing is decided by it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Origin {
    /// Name in the caller's certificate; empty where the connection was plain text.
    pub by: String,
    /// Milliseconds since 1970 on the clock of the member that took the call.
    pub at_unix_ms: u64,
}

/// One change of the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// A node has (re)started. It counts as up, as it has just spoken.
    RegisterNode {
        id: NodeId,
        incarnation: Incarnation,
        address: String,
        labels: BTreeMap<String, String>,
    },
    /// The leader saw a node's lease end or return. Void if another incarnation has registered since.
    MarkNode {
        node: NodeId,
        incarnation: Incarnation,
        health: NodeHealth,
    },
    /// A new revision, numbered by the entry's index. It replaces one that is still starting.
    Deploy {
        spec: Arc<PipelineSpec>,
        healthy_deadline_ms: u64,
        #[serde(default)]
        origin: Origin,
    },
    /// Deploys the specification of an earlier revision anew: of `to`, or else of the one that served before.
    Rollback {
        pipeline: PipelineName,
        to: Option<Revision>,
        healthy_deadline_ms: u64,
        origin: Origin,
    },
    /// Places a revision's replicas. Void if anything changed since version `based_on`.
    SetPlacement {
        revision: Revision,
        places: Places,
        based_on: u64,
    },
    /// Ends a revision's start: it serves and replaces its predecessor, or it has failed.
    SetPhase { revision: Revision, phase: Phase },
    /// Removes every revision of a pipeline.
    Delete { pipeline: PipelineName },
}

/// Placements, grouped so that thousands fit into one log entry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Places(BTreeMap<NodeId, BTreeMap<StageIndex, Vec<ReplicaId>>>);

impl FromIterator<Placement> for Places {
    fn from_iter<I: IntoIterator<Item = Placement>>(placements: I) -> Self {
        let mut places = Self::default();
        for Placement { stage, replica, node } in placements {
            places
                .0
                .entry(node)
                .or_default()
                .entry(stage)
                .or_default()
                .push(replica);
        }
        places
    }
}

impl Places {
    /// The placements in the order of stage and replica.
    pub fn to_placements(&self) -> Vec<Placement> {
        let mut placements = Vec::new();
        for (node, stages) in &self.0 {
            for (&stage, replicas) in stages {
                placements.extend(replicas.iter().map(|&replica| Placement {
                    stage,
                    replica,
                    node: node.clone(),
                }));
            }
        }
        placements.sort();
        placements
    }
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done; `version` has it.
    Done {
        version: u64,
    },
    /// A new revision.
    Deployed {
        revision: Revision,
    },
    /// The command's condition no longer held, or it changed nothing.
    Void,
    Refused(Refusal),
}

/// Why a command is not applied. Every node refuses alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    #[error("incarnation {offered} of node {node} is older than {current}, which has registered")]
    StaleIncarnation {
        node: NodeId,
        offered: Incarnation,
        current: Incarnation,
    },
    #[error("the cluster has {0} nodes, which is the most there can be")]
    TooManyNodes(usize),
    #[error("the path {path:?} belongs to pipeline {pipeline}")]
    RouteTaken { path: String, pipeline: PipelineName },
    #[error("there is no pipeline {0}")]
    UnknownPipeline(PipelineName),
    #[error("there is no revision {0}")]
    UnknownRevision(Revision),
    #[error("no revision {revision} of pipeline {pipeline} is remembered, only {known}")]
    ForgottenRevision {
        pipeline: PipelineName,
        revision: Revision,
        known: String,
    },
    #[error("no revision of pipeline {0} has served before the one that does now")]
    NothingBefore(PipelineName),
    #[error("revision {revision} of pipeline {pipeline} is {outcome} now")]
    AlreadyThere {
        pipeline: PipelineName,
        revision: Revision,
        outcome: String,
    },
    #[error("revision {revision} is {phase}, not starting")]
    NotStarting { revision: Revision, phase: String },
    #[error("write {seq} of this client comes after its write {last}")]
    StaleWrite { seq: u64, last: u64 },
}
