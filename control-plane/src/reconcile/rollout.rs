//! Decides what becomes of revisions: where their replicas go, and when a starting one serves or has failed. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use mosec_types::topology::{Deployment, Node, Phase, Placement};
use mosec_types::worker::MAX_ERROR_BYTES;
use mosec_types::{NodeId, Revision, StageKey, WorkerState, WorkerStatus};

use super::lease::Leases;
use crate::planner::{self, Plan};
use crate::state::{Command, Model, Rollout};

/// A replica that failed to start so often in a row has failed for good: a bug in the worker, as a rule.
pub const MAX_FAILED_STARTS: u32 = 3;
/// Replicas that a missed deadline's reason names.
const SHOWN: usize = 8;
/// What a reason keeps free for the words around a worker's error.
const REASON_MARGIN_BYTES: usize = 1024;

/// A plan for the replicas of one revision.
pub fn plan_of(model: &Model, rollout: &Rollout) -> Plan {
    let deployment = &rollout.deployment;
    let mut load: BTreeMap<NodeId, u32> = BTreeMap::new();
    for other in model
        .rollouts
        .values()
        .filter(|other| other.deployment.revision != deployment.revision)
    {
        for placement in &other.deployment.placements {
            *load.entry(placement.node.clone()).or_default() += 1;
        }
    }
    planner::plan(planner::Input {
        spec: &deployment.spec,
        nodes: &model.nodes,
        current: &deployment.placements,
        load: &load,
    })
}

/// The placement to change next, if any: one at a time, as each plan counts on the ones before it.
pub fn next_placement(model: &Model) -> Option<Command> {
    model
        .rollouts
        .values()
        .filter(|rollout| rollout.deployment.phase.runs())
        .find_map(|rollout| {
            let plan = plan_of(model, rollout);
            (plan.placements != rollout.deployment.placements).then(|| Command::SetPlacement {
                revision: rollout.deployment.revision,
                places: plan.placements.into_iter().collect(),
                based_on: model.version,
            })
        })
}

/// Starting revisions that have become healthy or have failed.
///
/// `started`: when this leader first saw each of them.
pub fn phases(
    model: &Model,
    leases: &Leases,
    started: &BTreeMap<Revision, Instant>,
    now: Instant,
) -> Vec<Command> {
    let starting = model
        .rollouts
        .values()
        .filter(|rollout| rollout.deployment.phase == Phase::Starting);
    let decide = |rollout: &Rollout| {
        let revision = rollout.deployment.revision;
        let view = View {
            model,
            leases,
            deployment: &rollout.deployment,
            now,
        };
        let limit = Duration::from_millis(rollout.healthy_deadline_ms);
        let late = started
            .get(&revision)
            .is_some_and(|&since| now.saturating_duration_since(since) >= limit);
        let phase = if let Some(reason) = view.failure() {
            Phase::Failed { reason }
        } else if view.is_healthy() {
            Phase::Serving
        } else if late {
            Phase::Failed {
                reason: view.lateness(limit, &plan_of(model, rollout)),
            }
        } else {
            return None;
        };
        Some(Command::SetPhase { revision, phase })
    };
    starting.filter_map(decide).collect()
}

/// One starting revision as the nodes report it.
struct View<'a> {
    model: &'a Model,
    leases: &'a Leases,
    deployment: &'a Deployment,
    now: Instant,
}

impl<'a> View<'a> {
    fn node(&self, placement: &Placement) -> Option<&'a Node> {
        self.model.nodes.get(&placement.node)
    }

    fn worker(&self, placement: &Placement) -> Option<&'a WorkerStatus> {
        let key = StageKey {
            revision: self.deployment.revision,
            stage: placement.stage,
        };
        let workers = self.leases.fresh_workers(self.node(placement)?, self.now)?;
        workers
            .iter()
            .find(|worker| worker.stage == key && worker.replica == placement.replica)
    }

    fn is_healthy(&self) -> bool {
        let wanted: usize = self
            .deployment
            .spec
            .stages
            .iter()
            .map(|stage| stage.replicas as usize)
            .sum();
        let ready = |placement| {
            self.worker(placement)
                .is_some_and(|worker| worker.state == WorkerState::Ready)
        };
        self.deployment.placements.len() == wanted && self.deployment.placements.iter().all(ready)
    }

    /// Why the revision cannot become healthy, where a worker says so.
    fn failure(&self) -> Option<String> {
        self.deployment.placements.iter().find_map(|placement| {
            let worker = self
                .worker(placement)
                .filter(|worker| worker.failed_starts >= MAX_FAILED_STARTS)?;
            let starts = worker.failed_starts;
            let error = worker.last_error.as_deref().unwrap_or("its node gave no reason");
            Some(format!(
                "{} failed to start {starts} times: {}",
                self.name(placement),
                printable_end(error)
            ))
        })
    }

    /// Why the revision is not healthy in time.
    fn lateness(&self, limit: Duration, plan: &Plan) -> String {
        let mut reason = format!("not healthy within {limit:?}");
        let mut lines: Vec<_> = plan.unplaced.iter().map(ToString::to_string).collect();
        let mut error = None;
        for placement in &self.deployment.placements {
            let state = match (self.worker(placement), self.node(placement)) {
                (Some(worker), _) if worker.state == WorkerState::Ready => continue,
                (Some(worker), _) => {
                    error = error.or(worker
                        .last_error
                        .as_deref()
                        .map(|text| (self.name(placement), text)));
                    format!("is {}", worker.state.name())
                }
                (None, Some(node)) if self.leases.fresh_workers(node, self.now).is_none() => {
                    format!("is unknown, as its node is silent ({})", node.health.name())
                }
                (None, _) => "has no worker".to_owned(),
            };
            lines.push(format!("{} {state}", self.name(placement)));
        }
        for (index, line) in lines.iter().take(SHOWN).enumerate() {
            let _ = write!(reason, "{} {line}", if index == 0 { ":" } else { ";" });
        }
        if lines.len() > SHOWN {
            let _ = write!(reason, "; and {} more", lines.len() - SHOWN);
        }
        if let Some((name, text)) = error {
            // The error's own place is at the end, so the words before it are never what a long one costs.
            let room = MAX_ERROR_BYTES.saturating_sub(reason.len());
            let _ = write!(
                reason,
                "\nlast error of {name}: {}",
                end_of(&printable_end(text), room.saturating_sub(400))
            );
        }
        reason
    }

    fn name(&self, placement: &Placement) -> String {
        let stage = self
            .deployment
            .spec
            .stage(placement.stage)
            .map_or("?", |stage| stage.name.as_str());
        format!(
            "stage {stage} replica {} on node {}",
            placement.replica, placement.node
        )
    }
}

/// The end of an error text, where a traceback says the most, without control characters: in a log entry each of
/// them would take six bytes.
fn printable_end(text: &str) -> String {
    let visible = |c: char| {
        if c.is_control() && c != '\n' && c != '\t' {
            ' '
        } else {
            c
        }
    };
    end_of(text, MAX_ERROR_BYTES - REASON_MARGIN_BYTES)
        .chars()
        .map(visible)
        .collect()
}

/// The last `bytes` of `text`, or a few less where a character would be cut.
fn end_of(text: &str, bytes: usize) -> &str {
    let start = text.len().saturating_sub(bytes);
    let start = (start..=text.len())
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(text.len());
    &text[start..]
}

#[cfg(test)]
#[path = "rollout_tests.rs"]
mod tests;
