//! Keeps a node's gauges, and ends the node when Raft has stopped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mosec_telemetry::whole;
use openraft::error::Fatal;
use openraft::{BasicNode, RaftMetrics};
use prometheus::IntCounter;
use tokio_util::sync::CancellationToken;

use crate::census::{Census, OnTheirWay};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::raft::handle::Handle;
use crate::raft::log_store::LogStore;
use crate::raft::{MemberId, StorageError};
use crate::reconcile::Leadership;
use crate::server::RunError;
use crate::state::Model;

/// How often the gauges that no event changes are read.
const GAUGES_EVERY: Duration = Duration::from_secs(5);

/// Keeps the gauges and notices Raft's end.
pub(crate) struct Monitor {
    pub(crate) handle: Handle,
    pub(crate) health: Health,
    pub(crate) leadership: Arc<Leadership>,
    pub(crate) metrics: Metrics,
    pub(crate) log: LogStore,
}

/// What was shown last.
#[derive(Default)]
struct Shown {
    lags: BTreeMap<u64, i64>,
    /// Of this tenure; nothing is counted twice, nor what an earlier leader has counted.
    rollouts: Option<OnTheirWay>,
}

impl Monitor {
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), RunError> {
        let mut raft = self.handle.raft.metrics();
        let mut model = self.handle.model.clone();
        let mut due = tokio::time::interval(GAUGES_EVERY);
        let mut shown = Shown::default();
        loop {
            // At each tick too, as the loss of a majority is no event.
            // Not held while it is read: what else asks Raft then would wait for whoever waits to write it.
            let now = raft.borrow_and_update().clone();
            if let Err(fatal) = self.read(&now, &mut shown) {
                return if stop.is_cancelled() {
                    Ok(())
                } else {
                    Err(RunError::Raft(fatal))
                };
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                changed = raft.changed() => if changed.is_err() {
                    return if stop.is_cancelled() { Ok(()) } else { Err(RunError::Raft("its task has ended".into())) };
                },
                Ok(()) = model.changed() => self.count_rollouts(&model.borrow_and_update().clone(), &mut shown),
                _ = due.tick() => {
                    self.take_census(&mut shown);
                    self.read_disk().await;
                }
            }
        }
    }

    fn read(&self, raft: &RaftMetrics<MemberId, BasicNode>, shown: &mut Shown) -> Result<(), String> {
        let metrics = &self.metrics;
        let index = |index: Option<u64>| whole(index.unwrap_or(0));
        // Raft calls one a leader that has lost its majority, until it hears of another.
        let leads = self.handle.leading_term().is_some();
        if leads {
            self.health.heard.note_leading();
        }
        metrics.leader.set(leads.into());
        metrics.leader_known.set(self.health.knows_leader().into());
        metrics.term.set(index(Some(raft.current_term)));
        let (logged, applied) = (raft.last_log_index, raft.last_applied.map(|id| id.index));
        metrics.last_log.set(index(logged));
        metrics.last_applied.set(index(applied));
        metrics.apply_lag.set(lag(logged, applied));
        metrics.snapshot.set(index(raft.snapshot.map(|id| id.index)));
        metrics.members.set(whole(raft.membership_config.nodes().count()));
        let matched = raft.replication.iter().flatten();
        let others = matched.filter(|(member, _)| leads && **member != self.handle.member);
        let lags = others.map(|(member, matched)| (*member, lag(logged, matched.map(|id| id.index))));
        metrics.show_lags(&mut shown.lags, lags.collect());
        let leases = self.leadership.with(|tenure| tenure.leases.len());
        // The tenure ends a moment after the majority is lost.
        let leases = leases.filter(|_| leads);
        advance(&metrics.leaderships, self.leadership.begun());
        metrics.leases.set(whole(leases.unwrap_or(0)));
        match leases {
            // From the start of the tenure, or the end of the first rollout would be missed.
            Some(_) if shown.rollouts.is_none() => {
                let model = self.handle.model.borrow().clone();
                self.count_rollouts(&model, shown);
            }
            Some(_) => {}
            None => metrics.show(None),
        }
        raft.running_state.clone().map_err(|fatal| describe(&fatal))
    }

    /// Counts what the leader sees. Not at each change: a thousand nodes that register are as many of them.
    fn take_census(&self, shown: &mut Shown) {
        let model = self.handle.model.borrow().clone();
        let census = self
            .leadership
            .with(|tenure| Census::take(&model, &tenure.leases));
        self.metrics.show(census);
        self.count_rollouts(&model, shown);
        advance(&self.metrics.leases_lost, self.leadership.lost_leases());
    }

    /// Counts the rollouts that have ended since this was last called in this tenure.
    fn count_rollouts(&self, model: &Model, shown: &mut Shown) {
        if self.leadership.with(|_| ()).is_none() {
            shown.rollouts = None;
            return;
        }
        match &mut shown.rollouts {
            Some(seen) => self.metrics.count(seen.next(model)),
            none => *none = Some(OnTheirWay::seen(model)),
        }
    }

    async fn read_disk(&self) {
        let log = self.log.clone();
        match tokio::task::spawn_blocking(move || log.disk_bytes()).await {
            Ok(Ok(bytes)) => self.metrics.store_bytes.set(whole(bytes)),
            Ok(Err(error)) => tracing::warn!(%error, "the store's size is unknown"),
            Err(error) => tracing::warn!(%error, "the store's size is unknown"),
        }
    }
}

/// Has the counter show what was counted elsewhere.
fn advance(counter: &IntCounter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}

/// Entries from one index to another, which comes after it as a rule.
fn lag(end: Option<u64>, reached: Option<u64>) -> i64 {
    let count = |index: Option<u64>| index.map_or(0, |index| index.saturating_add(1));
    whole(count(end).saturating_sub(count(reached)))
}

fn describe(fatal: &Fatal<MemberId>) -> String {
    match fatal {
        Fatal::StorageError(StorageError::IO { source }) => source.to_string(),
        other => other.to_string(),
    }
}
