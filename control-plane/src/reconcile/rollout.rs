//! Decides what becomes of revisions: where their replicas go, and how one takes over from another. Pure.
//!
//! A rollout goes in steps. At each, the new revision is to have so many replicas of each stage; when they are ready and
//! have been for long enough, the next step gives it more of the requests and takes as many replicas from the revision
//! that serves. Where there is no room for both, the serving one gives up replicas first, never its last of a stage
//! before the new one has taken over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use mosec_types::topology::{Deployment, Phase, Placement};
use mosec_types::{Needs, Revision};

use super::lease::Leases;
use super::traffic::Traffic;
use super::update::{Awaited, Update};
use super::view::View;
use crate::planner::{self, Plan, Usage};
use crate::state::{Command, Model, Rollout};

/// A plan for the replicas of one revision.
///
/// `ready`: its placements whose workers are ready.
pub fn plan_of(model: &Model, rollout: &Rollout, ready: &BTreeSet<Placement>) -> Plan {
    let mut usage = usage_of(model);
    if let Some(known) = model.rollouts.get(&rollout.deployment.revision) {
        count(&mut usage, &known.deployment, Usage::remove);
    }
    plan_beside(model, rollout, ready, &usage)
}

/// What all revisions take.
fn usage_of(model: &Model) -> Usage {
    let mut usage = Usage::default();
    for rollout in model.rollouts.values() {
        count(&mut usage, &rollout.deployment, Usage::add);
    }
    usage
}

fn count(usage: &mut Usage, deployment: &Deployment, each: fn(&mut Usage, &Placement, &Needs)) {
    for placement in &deployment.placements {
        let needs = deployment.spec.stage(placement.stage).map(|stage| stage.needs);
        each(usage, placement, &needs.unwrap_or_default());
    }
}

/// `usage`: what all other revisions take.
fn plan_beside(model: &Model, rollout: &Rollout, ready: &BTreeSet<Placement>, usage: &Usage) -> Plan {
    planner::plan(planner::Input {
        deployment: &rollout.deployment,
        goal: &rollout.goal(),
        nodes: &model.nodes,
        usage,
        ready,
    })
}

/// The placement to change next, if any: one at a time, as each plan counts on the ones before it.
pub fn next_placement(model: &Model, leases: &Leases, now: Instant) -> Option<Command> {
    let mut usage = usage_of(model);
    let running = model
        .rollouts
        .values()
        .filter(|rollout| rollout.deployment.phase.runs());
    running.into_iter().find_map(|rollout| {
        let deployment = &rollout.deployment;
        let view = view_of(model, leases, rollout, now);
        let ready = view.ready_placements().cloned().collect();
        count(&mut usage, deployment, Usage::remove);
        let plan = plan_beside(model, rollout, &ready, &usage);
        count(&mut usage, deployment, Usage::add);
        (plan.placements != deployment.placements).then(|| Command::SetPlacement {
            revision: deployment.revision,
            places: plan.placements.into_iter().collect(),
            based_on: model.version,
        })
    })
}

/// Whether all replicas that a revision is to have now have a place.
pub fn is_placed(deployment: &Deployment) -> bool {
    placed_counts(deployment) == deployment.counts()
}

/// Whether a replica has two places, one of which it loses as soon as it is ready at the other.
pub fn moves(model: &Model) -> bool {
    let running = model.rollouts.values().map(|rollout| &rollout.deployment);
    running.into_iter().any(|deployment| {
        // In the order of stage and replica.
        let is_same =
            |pair: &[Placement]| (pair[0].stage, pair[0].replica) == (pair[1].stage, pair[1].replica);
        deployment.placements.windows(2).any(is_same)
    })
}

pub(super) fn view_of<'a>(
    model: &'a Model,
    leases: &'a Leases,
    rollout: &'a Rollout,
    now: Instant,
) -> View<'a> {
    View {
        model,
        leases,
        deployment: &rollout.deployment,
        now,
    }
}

/// How far this leader has seen the current step of a rollout come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Replicas of each stage that there are to be: what makes a step another one. What is healthy stays so in the next
    /// phase if that has no more of them.
    replicas: Vec<u32>,
    /// The phase, and since when it has been that.
    phase: (Phase, Instant),
    pub(super) state: Seen,
    /// Most replicas that were ready at once in this step, and since when so many were.
    best: (u32, Instant),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// Replicas have been missing since then.
    Unhealthy(Instant),
    /// All have been ready since then.
    Healthy(Instant),
}

impl Progress {
    /// Looks at a rollout again.
    fn observe(known: Option<Self>, rollout: &Rollout, view: &View<'_>, now: Instant) -> Self {
        let ready = view.ready_counts();
        let (is_healthy, ready) = (ready == rollout.deployment.counts(), ready.iter().sum());
        let deployment = &rollout.deployment;
        let phase = match &known {
            Some(known) if known.phase.0 == deployment.phase => known.phase.clone(),
            _ => (deployment.phase.clone(), now),
        };
        let known = known.filter(|known| known.replicas == deployment.replicas);
        let best = match &known {
            Some(known) if known.best.0 >= ready => known.best,
            _ => (ready, now),
        };
        let state = match (known, is_healthy) {
            (
                Some(Self {
                    state: state @ Seen::Healthy(_),
                    ..
                }),
                true,
            )
            | (
                Some(Self {
                    state: state @ Seen::Unhealthy(_),
                    ..
                }),
                false,
            ) => state,
            (_, true) => Seen::Healthy(now),
            (_, false) => Seen::Unhealthy(now),
        };
        Self {
            replicas: deployment.replicas.clone(),
            phase,
            state,
            best,
        }
    }

    /// Since when it has been in its phase.
    pub(super) fn in_phase_since(&self) -> Instant {
        self.phase.1
    }

    /// When the step last came further: another replica was ready, or one that had been was missing again.
    pub(super) fn came_further(&self) -> Instant {
        let (Seen::Unhealthy(since) | Seen::Healthy(since)) = self.state;
        since.max(self.best.1)
    }
}

/// What a leader has seen of the rollouts that are on their way.
#[derive(Debug, Default)]
pub struct Watched(BTreeMap<Revision, Progress>);

impl Watched {
    pub fn observe(&mut self, model: &Model, leases: &Leases, now: Instant) {
        let on_their_way = model
            .rollouts
            .iter()
            .filter(|(_, rollout)| rollout.deployment.phase.is_rollout());
        let mut known = std::mem::take(&mut self.0);
        let look = |(&revision, rollout): (&Revision, &Rollout)| {
            let view = view_of(model, leases, rollout, now);
            (
                revision,
                Progress::observe(known.remove(&revision), rollout, &view, now),
            )
        };
        self.0 = on_their_way.map(look).collect();
    }

    /// Since when the replicas of the current step have all been ready.
    pub fn healthy_since(&self, revision: Revision) -> Option<Instant> {
        match self.0.get(&revision)?.state {
            Seen::Healthy(since) => Some(since),
            Seen::Unhealthy(_) => None,
        }
    }
}

/// What comes next for each rollout that is on its way.
pub fn next_steps(
    model: &Model,
    leases: &Leases,
    traffic: &Traffic,
    watched: &Watched,
    now: Instant,
) -> Vec<Command> {
    let decide = |(revision, progress): (&Revision, &Progress)| {
        let rollout = model.rollouts.get(revision)?;
        let update = Update {
            view: view_of(model, leases, rollout, now),
            rollout,
            serving: model.serving(&rollout.deployment.spec.name),
            progress,
            traffic,
        };
        update.next()
    };
    watched.0.iter().filter_map(decide).collect()
}

/// What a rollout waits for; `None` where it is over or goes on at once.
pub fn waits_for(
    model: &Model,
    leases: &Leases,
    traffic: &Traffic,
    watched: &Watched,
    rollout: &Rollout,
    now: Instant,
) -> Option<Awaited> {
    let progress = watched.0.get(&rollout.deployment.revision)?;
    let update = Update {
        view: view_of(model, leases, rollout, now),
        rollout,
        serving: model.serving(&rollout.deployment.spec.name),
        progress,
        traffic,
    };
    update.waits_for()
}

/// Replicas of each stage that have a place, in the order of the stages.
pub(crate) fn placed_counts(deployment: &Deployment) -> Vec<u32> {
    let placed = |(index, _)| {
        let placed = deployment
            .placements
            .iter()
            .filter(|placement| placement.stage == index);
        let replicas: BTreeSet<_> = placed.map(|placement| placement.replica).collect();
        replicas.len() as u32
    };
    deployment.stages().map(placed).collect()
}

#[cfg(test)]
#[path = "rollout_tests.rs"]
mod tests;
