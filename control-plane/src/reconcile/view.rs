//! A revision as the nodes report it: what is ready, and why the rest is not. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Instant;

use mosec_types::topology::{Deployment, Node, Placement};
use mosec_types::worker::MAX_ERROR_BYTES;
use mosec_types::{ReplicaId, StageIndex, StageKey, WorkerState, WorkerStatus};

use super::lease::Leases;
use crate::planner::Plan;
use crate::state::Model;

/// A replica that failed to start so often in a row has failed for good: a bug in the worker, as a rule.
pub const MAX_FAILED_STARTS: u32 = 3;
/// Replicas that a missed deadline's reason names.
const SHOWN: usize = 8;
/// What a reason keeps free for the words around a worker's error.
const REASON_MARGIN_BYTES: usize = 1024;

/// One revision as the nodes report it.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub model: &'a Model,
    pub leases: &'a Leases,
    pub deployment: &'a Deployment,
    pub now: Instant,
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

    /// Replicas of each stage that are ready somewhere, in the order of the stages.
    pub(super) fn ready_counts(&self) -> Vec<u32> {
        let mut replicas: BTreeMap<StageIndex, BTreeSet<ReplicaId>> = BTreeMap::new();
        for placement in self.ready_placements() {
            replicas
                .entry(placement.stage)
                .or_default()
                .insert(placement.replica);
        }
        let count = |(index, _)| replicas.get(&index).map_or(0, |ready| ready.len() as u32);
        self.deployment.stages().map(count).collect()
    }

    /// Placements whose workers are ready.
    pub(super) fn ready_placements(&self) -> impl Iterator<Item = &'a Placement> {
        let ready = |placement: &&Placement| {
            self.worker(placement)
                .is_some_and(|worker| worker.state == WorkerState::Ready)
        };
        self.deployment.placements.iter().filter(ready)
    }

    /// Why the revision cannot become healthy, where a worker says so.
    pub(super) fn failure(&self) -> Option<String> {
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

    /// Why the revision is not healthy in time. `reason`: the time it had.
    pub(super) fn lateness(&self, mut reason: String, plan: &Plan) -> String {
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
