//! Counts what the leader sees, in the words of `mosectl status`. Pure: the state is passed in.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use mosec_telemetry::whole;
use mosec_types::topology::{Node, NodeHealth, Phase, Placement};
use mosec_types::{NodeId, PipelineName, ReplicaId, Revision, StageKey, WorkerState};

use crate::reconcile::lease::Leases;
use crate::reconcile::rollout::placed_counts;
use crate::state::{Model, Outcome, Rollout};

/// How many there are in each state.
type Counts = BTreeMap<&'static str, i64>;

const HEALTHS: [NodeHealth; 3] = [NodeHealth::Up, NodeHealth::Suspect, NodeHealth::Down];

const WORKING: [WorkerState; 5] = [
    WorkerState::Starting,
    WorkerState::Ready,
    WorkerState::BackOff,
    WorkerState::Draining,
    WorkerState::Stopped,
];

fn phases() -> [Phase; 6] {
    let reason = String::new();
    let failed = Phase::Failed { reason };
    [
        Phase::Starting,
        Phase::Canary,
        Phase::Rolling,
        Phase::Serving,
        Phase::Retiring,
        failed,
    ]
}

/// What a leader sees at one moment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Census {
    /// By health.
    pub(crate) nodes: Counts,
    /// By what their workers do; those of which none is known are `placed`, or `unknown` where their node is not up, and
    /// those that have no node are `unplaced`.
    pub(crate) replicas: Counts,
    /// Pipelines, by the phase of their newest revision.
    pub(crate) rollouts: Counts,
    /// Pipelines of which some revision is to have replicas.
    pub(crate) pipelines: i64,
}

impl Census {
    pub(crate) fn take(model: &Model, leases: &Leases) -> Self {
        let mut nodes = none_of(HEALTHS.map(NodeHealth::name));
        for node in model.nodes.values() {
            *nodes.entry(node.health.name()).or_default() += 1;
        }
        let mut newest = BTreeMap::<&PipelineName, &Phase>::new();
        // In the order of their revisions.
        for Rollout { deployment, .. } in model.rollouts.values() {
            newest.insert(&deployment.spec.name, &deployment.phase);
        }
        let mut rollouts = none_of(phases().map(|phase| phase.name()));
        for phase in newest.into_values() {
            *rollouts.entry(phase.name()).or_default() += 1;
        }
        let running = model.rollouts.values().map(|rollout| &rollout.deployment);
        let running = running.filter(|deployment| deployment.phase.runs());
        let pipelines: BTreeSet<_> = running.map(|deployment| &deployment.spec.name).collect();
        Self {
            nodes,
            replicas: replicas(model, leases),
            rollouts,
            pipelines: whole(pipelines.len()),
        }
    }
}

fn replicas(model: &Model, leases: &Leases) -> Counts {
    let mut workers = HashMap::<(&NodeId, StageKey, ReplicaId), WorkerState>::new();
    let up = || {
        let is_up = |node: &&Node| node.health == NodeHealth::Up;
        model.nodes.values().filter(is_up)
    };
    for (node, lease) in up().filter_map(|node| Some((node, leases.of(node)?))) {
        let own = lease.workers.iter();
        workers.extend(own.map(|worker| ((&node.id, worker.stage, worker.replica), worker.state)));
    }
    let up: BTreeSet<_> = up().map(|node| &node.id).collect();
    let state = |revision: Revision, placement: &Placement| {
        let stage = StageKey {
            revision,
            stage: placement.stage,
        };
        match workers.get(&(&placement.node, stage, placement.replica)) {
            _ if !up.contains(&placement.node) => "unknown",
            Some(state) => state.name(),
            None => "placed",
        }
    };
    let states = WORKING.map(WorkerState::name).into_iter();
    let mut counts = none_of(states.chain(["placed", "unknown", "unplaced"]));
    for deployment in model.rollouts.values().map(|rollout| &rollout.deployment) {
        for placement in &deployment.placements {
            *counts.entry(state(deployment.revision, placement)).or_default() += 1;
        }
        if deployment.phase.runs() {
            let wanted = deployment.counts().into_iter().zip(placed_counts(deployment));
            let missing: u32 = wanted.map(|(wanted, placed)| wanted.saturating_sub(placed)).sum();
            *counts.entry("unplaced").or_default() += i64::from(missing);
        }
    }
    counts
}

/// Zero of each, so that what is seldom there is shown when it is not.
fn none_of(states: impl IntoIterator<Item = &'static str>) -> Counts {
    states.into_iter().map(|state| (state, 0)).collect()
}

/// How a rollout ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Finish {
    /// It serves.
    Promoted,
    /// It failed or was aborted.
    Reverted,
    /// A newer revision was deployed meanwhile.
    Superseded,
    /// Its pipeline was deleted.
    Deleted,
}

impl Finish {
    pub(crate) const ALL: [Self; 4] = [Self::Promoted, Self::Reverted, Self::Superseded, Self::Deleted];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Promoted => "promoted",
            Self::Reverted => "reverted",
            Self::Superseded => "superseded",
            Self::Deleted => "deleted",
        }
    }

    /// What became of a revision that was on its way; `None` while it is.
    fn of(model: &Model, revision: Revision) -> Option<Self> {
        let phase = model
            .rollouts
            .get(&revision)
            .map(|rollout| &rollout.deployment.phase);
        if phase.is_some_and(Phase::is_rollout) {
            return None;
        }
        // That of a pipeline goes with it.
        let mut histories = model.histories.values();
        let outcome = histories.find_map(|history| Some(&history.find(revision)?.outcome));
        Some(match outcome {
            Some(Outcome::Serving | Outcome::Replaced { .. }) => Self::Promoted,
            Some(Outcome::Superseded { .. }) => Self::Superseded,
            Some(Outcome::Failed { .. }) => Self::Reverted,
            Some(Outcome::Starting | Outcome::Canary | Outcome::Rolling) | None => Self::Deleted,
        })
    }
}

/// The rollouts on their way, as a leader last saw them.
#[derive(Debug)]
pub(crate) struct OnTheirWay {
    revisions: BTreeSet<Revision>,
    newest: Option<Revision>,
}

impl OnTheirWay {
    pub(crate) fn seen(model: &Model) -> Self {
        let rollouts = model.rollouts.iter();
        let on_its_way = rollouts.filter(|(_, rollout)| rollout.deployment.phase.is_rollout());
        Self {
            revisions: on_its_way.map(|(revision, _)| *revision).collect(),
            newest: model.rollouts.last_key_value().map(|(revision, _)| *revision),
        }
    }

    /// How those ended that have since, revisions that came and ended meanwhile among them.
    pub(crate) fn next(&mut self, model: &Model) -> Vec<Finish> {
        let now = Self::seen(model);
        let is_new = |revision: &&Revision| self.newest.is_none_or(|newest| **revision > newest);
        let new = model.rollouts.keys().filter(is_new).copied();
        let ended = self.revisions.iter().copied().chain(new);
        let finished = ended.filter_map(|revision| Finish::of(model, revision)).collect();
        *self = Self {
            newest: now.newest.max(self.newest),
            ..now
        };
        finished
    }
}

#[cfg(test)]
#[path = "census_tests.rs"]
mod tests;
