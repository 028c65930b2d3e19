//! The cluster's status as `mosectl status` gives it: the JSON object of `docs/mosectl.md`, and the tables made of it.
//!
//! Fields are only ever added: scripts read this.

pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod describe;
pub(crate) mod history;
pub(crate) mod logs;
pub(crate) mod members;
pub(crate) mod nodes;
pub(crate) mod rollout;
pub(crate) mod table;
pub(crate) mod tokens;

use std::collections::{BTreeMap, BTreeSet};

use mosec_types::resources::WHOLE_CPU;
use mosec_types::topology::{Deployment, Node, NodeHealth, Phase, Placement};
use mosec_types::{PipelineName, RolloutSpec, StageIndex, StageSpec, WorkerState, WorkerStatus};
use mosec_wire::control::{ConvertError, proto};
use serde::Serialize;

use crate::terminal::printable;
use crate::watch::Watched;

/// The whole cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Report {
    pub(crate) cluster: String,
    /// Grows with every change of the desired state.
    pub(crate) version: u64,
    pub(crate) leader: Option<u64>,
    pub(crate) term: u64,
    pub(crate) members: Vec<MemberReport>,
    pub(crate) nodes: Vec<NodeReport>,
    pub(crate) gateways: Vec<GatewayReport>,
    /// Each revision of each pipeline.
    pub(crate) pipelines: Vec<RevisionReport>,
}

/// One node of the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct MemberReport {
    pub(crate) id: u64,
    pub(crate) address: String,
    pub(crate) leader: bool,
    /// Last log entry that the leader knows it to have.
    pub(crate) matched: Option<u64>,
    /// Milliseconds since it last answered the leader; absent for the leader.
    pub(crate) silent_ms: Option<u64>,
    /// `up`, or `lost` where the leader's last message did not reach it.
    pub(crate) health: &'static str,
}

/// One gateway that has reported to this leader, and has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct GatewayReport {
    pub(crate) name: String,
    /// `up`, or `lost` where it has not reported for 3 s.
    pub(crate) health: &'static str,
    /// Milliseconds since its last report to this leader.
    pub(crate) silent_ms: u64,
    /// Version of the build that it runs.
    pub(crate) build: String,
}

/// One node agent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct NodeReport {
    pub(crate) name: String,
    /// `up`, `suspect` or `down`.
    pub(crate) health: &'static str,
    pub(crate) address: String,
    pub(crate) incarnation: u64,
    pub(crate) labels: BTreeMap<String, String>,
    /// Milliseconds since its last heartbeat to this leader.
    pub(crate) silent_ms: Option<u64>,
    /// Its replicas are moved elsewhere.
    pub(crate) draining: bool,
    /// Replicas that are placed there.
    pub(crate) replicas: u32,
    /// Workers that are not, and finish what they have.
    pub(crate) leaving: u32,
    /// Models of its GPUs, in the order of their numbers.
    pub(crate) gpus: Vec<String>,
    /// Zero where it does not say.
    pub(crate) cpus: f64,
    /// Bytes; zero where it does not say.
    pub(crate) memory: u64,
    /// Version of the build that its agent runs, where it says so.
    pub(crate) build: Option<String>,
    /// From where its address cannot be reached now, a few of them.
    pub(crate) unreachable: Vec<UnreachableReport>,
    /// How many there are in all.
    pub(crate) unreachable_from: u32,
}

/// A node that somebody who sends it requests cannot reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct UnreachableReport {
    pub(crate) node: String,
    /// Role and name, as `gateway/edge-1`.
    pub(crate) from: String,
    pub(crate) address: String,
    pub(crate) cause: String,
}

/// One revision of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct RevisionReport {
    pub(crate) name: String,
    pub(crate) revision: u64,
    /// `starting`, `canary`, `rolling`, `serving` or `failed`.
    pub(crate) phase: &'static str,
    /// Percent of the pipeline's requests.
    pub(crate) weight: u32,
    /// Why it failed.
    pub(crate) reason: Option<String>,
    pub(crate) routes: Vec<String>,
    pub(crate) stages: Vec<StageReport>,
    pub(crate) replicas: Vec<ReplicaReport>,
    /// Replicas without a place, and why.
    pub(crate) unplaced: Vec<String>,
    /// What its rollout waits for.
    pub(crate) waits_for: Option<String>,
    /// Whether that is somebody to promote it.
    pub(crate) waits_for_promotion: bool,
    /// Whether that is requests to judge a canary by that promotes itself.
    pub(crate) waits_for_requests: bool,
    /// How it replaces the one that serves.
    #[serde(skip)]
    pub(crate) rollout: RolloutSpec,
    /// Nodes of its replicas that cannot be reached, and from where.
    pub(crate) unreachable: Vec<UnreachableReport>,
    pub(crate) traffic: TrafficReport,
}

/// What gateways have told this leader of a revision's requests.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub(crate) struct TrafficReport {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    /// Longer than its rollout's `max_p99`.
    pub(crate) slow: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct StageReport {
    pub(crate) name: String,
    /// As many as there should be now.
    pub(crate) replicas: u32,
    /// As many as there are to be once its rollout is over.
    pub(crate) goal: u32,
    pub(crate) ready: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ReplicaReport {
    pub(crate) stage: String,
    pub(crate) replica: u32,
    pub(crate) node: String,
    /// The node's GPUs that it may use.
    pub(crate) gpus: Vec<u32>,
    /// A worker's state, `placed` before its node has told of it, or `unknown` while the node is not up.
    pub(crate) state: &'static str,
    pub(crate) pid: Option<u32>,
    pub(crate) restarts: u32,
    /// Starts that failed in a row.
    pub(crate) failed_starts: u32,
    pub(crate) last_error: Option<String>,
}

impl TryFrom<proto::StatusResponse> for Report {
    type Error = ConvertError;

    fn try_from(response: proto::StatusResponse) -> Result<Self, ConvertError> {
        let leader = (response.leader > 0).then_some(response.leader);
        let nodes = response
            .nodes
            .into_iter()
            .filter_map(node_and_workers)
            .collect::<Result<Vec<_>, _>>()?;
        let revisions = response.deployments.into_iter().filter_map(|status| {
            let mut status = status;
            let deployment = Deployment::try_from(status.deployment.take()?);
            Some(deployment.map(|deployment| revision(&deployment, status, &nodes)))
        });
        let mut pipelines = revisions.collect::<Result<Vec<_>, _>>()?;
        pipelines.sort_by(|a, b| (&a.name, a.revision).cmp(&(&b.name, b.revision)));
        let member = |member: proto::MemberStatus| MemberReport {
            id: member.id,
            address: member.address,
            leader: leader == Some(member.id),
            matched: member.matched,
            silent_ms: member.silent_ms,
            health: up_or_lost(member.is_lost),
        };
        let gateway = |gateway: proto::GatewayStatus| GatewayReport {
            name: gateway.name,
            health: up_or_lost(gateway.is_lost),
            silent_ms: gateway.silent_ms,
            build: gateway.build,
        };
        Ok(Self {
            cluster: response.cluster_id,
            version: response.version,
            leader,
            term: response.term,
            members: response.members.into_iter().map(member).collect(),
            nodes: with_replicas(nodes, &pipelines),
            gateways: response.gateways.into_iter().map(gateway).collect(),
            pipelines,
        })
    }
}

fn up_or_lost(is_lost: bool) -> &'static str {
    if is_lost { "lost" } else { "up" }
}

impl Watched for Report {
    fn ageless(&self) -> Self {
        Self {
            members: self.members.ageless(),
            nodes: self.nodes.ageless(),
            gateways: self.gateways.ageless(),
            ..self.clone()
        }
    }
}

impl Watched for MemberReport {
    fn ageless(&self) -> Self {
        Self {
            silent_ms: self.silent_ms.map(|_| 0),
            ..self.clone()
        }
    }
}

impl Watched for GatewayReport {
    fn ageless(&self) -> Self {
        Self {
            silent_ms: 0,
            ..self.clone()
        }
    }
}

impl Watched for NodeReport {
    fn ageless(&self) -> Self {
        Self {
            silent_ms: self.silent_ms.map(|_| 0),
            ..self.clone()
        }
    }
}

impl Watched for RevisionReport {}

impl Report {
    /// The revisions of a pipeline, oldest first.
    pub(crate) fn revisions_of(&self, pipeline: &PipelineName) -> Vec<&RevisionReport> {
        let of_pipeline = |report: &&RevisionReport| report.name == pipeline.as_str();
        self.pipelines.iter().filter(of_pipeline).collect()
    }

    pub(crate) fn revision(&self, revision: u64) -> Option<&RevisionReport> {
        self.pipelines.iter().find(|report| report.revision == revision)
    }
}

impl RevisionReport {
    /// How many replicas of each stage are ready, as `decode 1/1  find 0/2`.
    pub(crate) fn readiness(&self) -> String {
        let stage = |stage: &StageReport| format!("{} {}/{}", stage.name, stage.ready, stage.replicas);
        self.stages.iter().map(stage).collect::<Vec<_>>().join("  ")
    }

    /// Replicas that are not ready or have no place, one line each.
    pub(crate) fn missing(&self) -> Vec<String> {
        let unready = self
            .replicas
            .iter()
            .filter(|replica| replica.state != WorkerState::Ready.name());
        let mut lines: Vec<_> = unready
            .map(|replica| {
                let ReplicaReport {
                    stage,
                    replica: number,
                    node,
                    state,
                    restarts,
                    last_error,
                    ..
                } = replica;
                let why = match last_error {
                    Some(error) => format!(", started {} times: {}", restarts + 1, table::gist(error)),
                    None => String::new(),
                };
                format!("stage {stage} replica {number} on node {node} is {state}{why}")
            })
            .collect();
        lines.extend(self.unplaced.iter().cloned());
        lines.extend(self.unreachable.iter().map(UnreachableReport::to_line));
        lines
    }
}

impl UnreachableReport {
    fn new(node: &str, found: proto::UnreachableFrom) -> Self {
        Self {
            node: node.to_owned(),
            from: found.from,
            address: found.address,
            cause: found.cause,
        }
    }

    pub(crate) fn to_line(&self) -> String {
        let Self {
            node,
            from,
            address,
            cause,
        } = self;
        let from = from.replacen('/', " ", 1);
        printable(&format!(
            "node {node} is unreachable from {from}: {address}: {cause}"
        ))
    }
}

struct ReportedNode {
    report: NodeReport,
    workers: Vec<WorkerStatus>,
}

fn node_and_workers(status: proto::NodeStatus) -> Option<Result<ReportedNode, ConvertError>> {
    let node = match Node::try_from(status.node?) {
        Ok(node) => node,
        Err(error) => return Some(Err(error)),
    };
    let workers = status
        .workers
        .into_iter()
        .map(WorkerStatus::try_from)
        .collect::<Result<_, _>>();
    Some(workers.map(|workers| {
        ReportedNode {
            report: NodeReport {
                unreachable: status
                    .unreachable
                    .into_iter()
                    .map(|found| UnreachableReport::new(node.id.as_str(), found))
                    .collect(),
                unreachable_from: status.unreachable_from,
                name: node.id.into(),
                health: node.health.name(),
                address: node.address,
                incarnation: node.incarnation.0,
                labels: node.labels,
                silent_ms: status.silent_ms,
                draining: node.draining,
                replicas: 0,
                leaving: 0,
                gpus: node.capacity.gpus.into_iter().map(|gpu| gpu.model).collect(),
                cpus: f64::from(node.capacity.cpus) / f64::from(WHOLE_CPU),
                memory: node.capacity.memory,
                build: node.build,
            },
            workers,
        }
    }))
}

/// The nodes' reports, with how many replicas each of them has.
fn with_replicas(nodes: Vec<ReportedNode>, pipelines: &[RevisionReport]) -> Vec<NodeReport> {
    let counted = |node: ReportedNode| {
        let replicas = pipelines.iter().flat_map(|revision| &revision.replicas);
        let here = replicas
            .filter(|replica| replica.node == node.report.name)
            .count();
        let leaving = node
            .workers
            .iter()
            .filter(|worker| worker.state == WorkerState::Draining)
            .count();
        NodeReport {
            replicas: here.try_into().unwrap_or(u32::MAX),
            leaving: leaving.try_into().unwrap_or(u32::MAX),
            ..node.report
        }
    };
    nodes.into_iter().map(counted).collect()
}

fn revision(
    deployment: &Deployment,
    status: proto::DeploymentStatus,
    nodes: &[ReportedNode],
) -> RevisionReport {
    let mut placements: Vec<&Placement> = deployment.placements.iter().collect();
    placements.sort();
    let replicas: Vec<_> = placements
        .iter()
        .map(|placement| replica(deployment, placement, nodes))
        .collect();
    let ready = |stage: &str| {
        let is_ready = |r: &&ReplicaReport| r.stage == stage && r.state == WorkerState::Ready.name();
        // One that moves may be ready at both its places.
        let ready: BTreeSet<_> = replicas
            .iter()
            .filter(is_ready)
            .map(|replica| replica.replica)
            .collect();
        ready.len().try_into().unwrap_or(u32::MAX)
    };
    let spec = &deployment.spec;
    let stage = |(index, stage): (StageIndex, &StageSpec)| StageReport {
        name: stage.name.clone(),
        replicas: deployment.count(index),
        goal: status
            .goal
            .get(usize::from(index.0))
            .copied()
            .unwrap_or(stage.replicas),
        ready: ready(&stage.name),
    };
    let traffic = status.traffic.unwrap_or_default();
    let has_replicas = |node: &&ReportedNode| {
        let name = &node.report.name;
        replicas.iter().any(|replica| replica.node == *name)
    };
    let unreachable = nodes.iter().filter(has_replicas);
    let unreachable = unreachable.flat_map(|node| node.report.unreachable.iter().cloned());
    RevisionReport {
        unreachable: unreachable.collect(),
        name: spec.name.to_string(),
        revision: deployment.revision.0,
        phase: deployment.phase.name(),
        reason: match &deployment.phase {
            Phase::Failed { reason } => Some(reason.clone()),
            _ => None,
        },
        routes: spec.routes.iter().map(|route| route.path.clone()).collect(),
        stages: deployment.stages().map(stage).collect(),
        weight: deployment.weight,
        unplaced: status.unplaced,
        waits_for: Some(status.waits_for).filter(|text| !text.is_empty()),
        waits_for_promotion: status.waits_for_promotion,
        waits_for_requests: status.waits_for_requests,
        rollout: spec.rollout.clone(),
        traffic: TrafficReport {
            requests: traffic.requests,
            errors: traffic.errors,
            slow: traffic.slow,
        },
        replicas,
    }
}

fn replica(deployment: &Deployment, placement: &Placement, nodes: &[ReportedNode]) -> ReplicaReport {
    let node = nodes
        .iter()
        .find(|node| node.report.name == placement.node.as_str());
    let worker = node.and_then(|node| {
        node.workers.iter().find(|worker| {
            worker.stage.revision == deployment.revision
                && worker.stage.stage == placement.stage
                && worker.replica == placement.replica
        })
    });
    let is_up = node.is_some_and(|node| node.report.health == NodeHealth::Up.name());
    let state = match worker {
        _ if !is_up => "unknown",
        Some(worker) => worker.state.name(),
        None => "placed",
    };
    let stage = deployment.spec.stage(placement.stage);
    ReplicaReport {
        stage: stage.map_or_else(|| placement.stage.to_string(), |stage| stage.name.clone()),
        replica: placement.replica.0,
        node: placement.node.to_string(),
        gpus: placement.gpus.clone(),
        state,
        pid: worker.and_then(|worker| worker.pid),
        restarts: worker.map_or(0, |worker| worker.restarts),
        failed_starts: worker.map_or(0, |worker| worker.failed_starts),
        last_error: worker.and_then(|worker| worker.last_error.clone()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
