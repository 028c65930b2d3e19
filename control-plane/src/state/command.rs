//! What can be asked of the state, and what it answers. Both are kept in the log: never change a field's meaning.

use std::collections::BTreeMap;
use std::sync::Arc;

use mosec_types::topology::{NodeHealth, Phase, Placement};
use mosec_types::{
    Capacity, Incarnation, NodeId, PipelineName, PipelineSpec, ReplicaId, Revision, StageIndex,
};
use serde::{Deserialize, Serialize};

use super::format::Format;
use super::tokens::{NewToken, Peer, TokenProblem, Usage};

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
        #[serde(default)]
        capacity: Capacity,
        /// Version of the build that its agent runs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        build: Option<String>,
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
        /// As a rolling update that waits for its replicas alone, whatever the specification says of canaries and
        /// times. Otherwise as the specification says, a canary included.
        #[serde(default, skip_serializing_if = "is_false")]
        at_once: bool,
    },
    /// Places a revision's replicas. Void if anything changed since version `based_on`.
    SetPlacement {
        revision: Revision,
        places: Places,
        based_on: u64,
    },
    /// Takes a rollout one step on: the new revision's phase, replicas and share, and the replicas that the serving one
    /// keeps. Void if anything changed since version `based_on`.
    Advance {
        revision: Revision,
        step: Step,
        based_on: u64,
    },
    /// Ends a rollout: the revision serves and replaces its predecessor, or it has failed.
    SetPhase { revision: Revision, phase: Phase },
    /// Lets the canary of a pipeline take over.
    Promote { pipeline: PipelineName, origin: Origin },
    /// Ends the rollout of a pipeline: the revision that serves takes all requests again.
    Abort { pipeline: PipelineName, origin: Origin },
    /// How many replicas stages of a pipeline are to have, by their names.
    Scale {
        pipeline: PipelineName,
        replicas: BTreeMap<String, u32>,
        origin: Origin,
    },
    /// The share of a pipeline's canary, in percent.
    SetTraffic {
        pipeline: PipelineName,
        weight: u32,
        origin: Origin,
    },
    /// Empties a node of replicas, or lets it have some again.
    DrainNode {
        node: NodeId,
        draining: bool,
        origin: Origin,
    },
    /// Forgets a node that is gone.
    RemoveNode { node: NodeId, origin: Origin },
    /// Removes every revision of a pipeline.
    Delete {
        pipeline: PipelineName,
        #[serde(default)]
        origin: Origin,
    },
    /// Lets others join. Its secret is known by a hash alone.
    CreateToken { token: Box<NewToken>, origin: Origin },
    /// Takes one use of a token for a key. The same key again changes nothing and is answered alike.
    UseToken { usage: Box<Usage>, origin: Origin },
    /// Ends a token.
    RevokeToken { id: String, origin: Origin },
    /// For the trail alone: the members change by entries of Raft's own.
    AddMember {
        member: u64,
        address: String,
        origin: Origin,
    },
    /// For the trail, and so that no other gets the number.
    RemoveMember { member: u64, origin: Origin },
    /// From here on commands and state may be of this format. Every member has said that it supports it.
    RaiseFormat { to: Format },
}

/// A field that says nothing new is not written, so that what earlier builds know stays as it was.
pub(super) fn is_false(flag: &bool) -> bool {
    !flag
}

/// What one step of a rollout changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// `Starting`, `Canary` or `Rolling`.
    pub phase: Phase,
    /// Percent of the requests that the new revision takes.
    pub weight: u32,
    /// Replicas of each stage of the new revision, in the order of its stages.
    pub replicas: Vec<u32>,
    /// The same of the revision that serves. It takes the rest of the requests.
    pub predecessor: Vec<u32>,
}

/// Placements, grouped so that thousands fit into one log entry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Places(BTreeMap<NodeId, BTreeMap<StageIndex, Vec<Place>>>);

/// A replica on a node, and the GPUs it may use there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Place {
    Plain(ReplicaId),
    OnGpus(ReplicaId, Vec<u32>),
}

impl FromIterator<Placement> for Places {
    fn from_iter<I: IntoIterator<Item = Placement>>(placements: I) -> Self {
        let mut places = Self::default();
        for placement in placements {
            let Placement {
                stage,
                replica,
                node,
                gpus,
            } = placement;
            let place = if gpus.is_empty() {
                Place::Plain(replica)
            } else {
                Place::OnGpus(replica, gpus)
            };
            places
                .0
                .entry(node)
                .or_default()
                .entry(stage)
                .or_default()
                .push(place);
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
                placements.extend(replicas.iter().map(|place| {
                    let (replica, gpus) = match place {
                        Place::Plain(replica) => (*replica, Vec::new()),
                        Place::OnGpus(replica, gpus) => (*replica, gpus.clone()),
                    };
                    Placement {
                        stage,
                        replica,
                        node: node.clone(),
                        gpus,
                    }
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
    /// A token was used: its user is to be certified as this.
    Joined {
        peer: Peer,
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
    #[error("revision {revision} is {phase}, not on its way to serve")]
    NotStarting { revision: Revision, phase: String },
    #[error("no revision of pipeline {0} is on its way to serve")]
    NoRollout(PipelineName),
    #[error("revision {revision} of pipeline {pipeline} is {phase} and has no canary to {what}")]
    NoCanary {
        pipeline: PipelineName,
        revision: Revision,
        phase: String,
        what: String,
    },
    #[error("pipeline {pipeline} has no stage {stage}, its stages are {known}")]
    UnknownStage {
        pipeline: PipelineName,
        stage: String,
        known: String,
    },
    #[error("stage {stage} has variables for each of its {most} replicas, so there cannot be {wanted}")]
    TooFewEnvironments { stage: String, most: usize, wanted: u32 },
    #[error("expected at most {most} replicas in all, found {found}")]
    TooManyReplicas { found: u64, most: u64 },
    #[error("there is no node {0}")]
    UnknownNode(NodeId),
    #[error("node {node} is {health} and has {replicas} replicas: drain it and stop its agent first")]
    NodeInUse {
        node: NodeId,
        health: String,
        replicas: usize,
    },
    #[error("token {id} {problem}")]
    Token { id: String, problem: TokenProblem },
    #[error("write {seq} of this client comes after its write {last}")]
    StaleWrite { seq: u64, last: u64 },
}
