//! Series of the control plane.

use std::collections::BTreeMap;

use mosec_telemetry::{Counters, Described, Gauges, Series};
use prometheus::{IntCounter, IntGauge};

use crate::census::{Census, Finish};

const PREFIX: &str = "mosec_control_plane";

/// Typed handles to the series.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) leader: IntGauge,
    pub(crate) leader_known: IntGauge,
    pub(crate) leaderships: IntCounter,
    pub(crate) term: IntGauge,
    pub(crate) last_applied: IntGauge,
    pub(crate) last_log: IntGauge,
    pub(crate) apply_lag: IntGauge,
    pub(crate) snapshot: IntGauge,
    pub(crate) members: IntGauge,
    pub(crate) watch_clients: IntGauge,
    pub(crate) log_readers: IntGauge,
    pub(crate) leases: IntGauge,
    pub(crate) leases_lost: IntCounter,
    pub(crate) store_bytes: IntGauge,
    pipelines: IntGauge,
    replication_lag: Gauges,
    nodes: Gauges,
    replicas: Gauges,
    rollouts: Gauges,
    finished: Counters,
}

impl Metrics {
    /// Registers the series; an error where they are there already.
    pub(crate) fn register(series: &Series) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| series.gauge(&format!("{PREFIX}_{name}"), help);
        let gauges =
            |name: &str, help: &str, label: &str| series.gauges(&format!("{PREFIX}_{name}"), help, &[label]);
        let finished = series.counters(
            &format!("{PREFIX}_rollouts_finished_total"),
            "Rollouts that have ended while this member led, by how: promoted (it serves), reverted (it failed or was \
             aborted), superseded by a newer one, or deleted with its pipeline.",
            &["outcome"],
        )?;
        // An increase is seen of what was there before.
        for finish in Finish::ALL {
            finished.with_label_values(&[finish.name()]);
        }
        Ok(Self {
            leader: gauge(
                "leader",
                "Whether the member leads and a majority follows: 1 where so, 0 elsewhere.",
            )?,
            leader_known: gauge(
                "leader_known",
                "Whether the member leads or has heard of a leader in the last ten seconds: 1 where so, 0 elsewhere.",
            )?,
            leaderships: series.counter(
                &format!("{PREFIX}_leaderships_total"),
                "Times that the member came to lead, since its process started.",
            )?,
            term: gauge("term", "Raft term; it grows with each election.")?,
            last_applied: gauge(
                "last_applied_index",
                "Index of the last log entry that the member's state reflects.",
            )?,
            last_log: gauge("last_log_index", "Index of the last log entry on the member.")?,
            apply_lag: gauge(
                "apply_lag_entries",
                "Entries in the member's log that its state does not reflect yet.",
            )?,
            snapshot: gauge(
                "snapshot_index",
                "Index of the last log entry that the member's newest snapshot holds; 0 where there is none.",
            )?,
            members: gauge("members", "Members of the control plane, as this one knows them.")?,
            watch_clients: gauge(
                "watch_clients",
                "Gateways and agents that follow the topology here.",
            )?,
            log_readers: gauge("log_readers", "People who read the output of workers here.")?,
            leases: gauge("leases", "Leases of nodes that the leader keeps; 0 elsewhere.")?,
            leases_lost: series.counter(
                &format!("{PREFIX}_leases_lost_total"),
                "Leases of nodes that have run out while this member led.",
            )?,
            store_bytes: gauge("store_bytes", "Size of the member's log on disk.")?,
            pipelines: gauge(
                "pipelines",
                "Pipelines that are to run, as the leader knows them; 0 elsewhere.",
            )?,
            replication_lag: gauges(
                "replication_lag_entries",
                "Entries of the leader's log that another member is not known to have; only on the leader.",
                "member",
            )?,
            nodes: gauges("nodes", "Nodes by their health; only on the leader.", "state")?,
            replicas: gauges(
                "replicas",
                "Replicas by what their workers do, those without a node among them (unplaced); only on the leader.",
                "state",
            )?,
            rollouts: gauges(
                "rollouts",
                "Pipelines by the phase of their newest revision; only on the leader.",
                "state",
            )?,
            finished,
        })
    }

    /// Shows what the leader sees; `None` where this member does not lead.
    pub(crate) fn show(&self, census: Option<Census>) {
        let Some(census) = census else {
            self.pipelines.set(0);
            for gauges in [&self.nodes, &self.replicas, &self.rollouts] {
                gauges.clear();
            }
            return;
        };
        self.pipelines.set(census.pipelines);
        let counted = [
            (&self.nodes, census.nodes),
            (&self.replicas, census.replicas),
            (&self.rollouts, census.rollouts),
        ];
        for (gauges, counts) in counted {
            for (state, count) in counts {
                gauges.with_label_values(&[state]).set(count);
            }
        }
    }

    /// Shows by how many entries each of the others is behind, and nothing of members that have left.
    pub(crate) fn show_lags(&self, shown: &mut BTreeMap<u64, i64>, lags: BTreeMap<u64, i64>) {
        for member in shown.keys().filter(|member| !lags.contains_key(member)) {
            self.replication_lag.remove(&[&member.to_string()]);
        }
        for (member, lag) in &lags {
            self.replication_lag
                .with_label_values(&[&member.to_string()])
                .set(*lag);
        }
        *shown = lags;
    }

    pub(crate) fn count(&self, finished: Vec<Finish>) {
        for finish in finished {
            self.finished.with_label_values(&[finish.name()]).inc();
        }
    }
}

/// What each family of a member's series means, but for those that every process has.
pub fn described_series() -> prometheus::Result<Vec<Described>> {
    let series = Series::default();
    Metrics::register(&series)?;
    Ok(series.described())
}

#[cfg(test)]
mod tests {
    use mosec_telemetry::render;

    use super::*;

    #[test]
    fn each_series_is_described_by_sentences() {
        for family in described_series().unwrap() {
            let starts = family.help.starts_with(char::is_uppercase);
            assert!(starts && family.help.ends_with('.'), "{family:?}");
        }
    }

    #[test]
    fn a_member_that_leaves_is_not_shown() {
        let series = Series::default();
        let metrics = Metrics::register(&series).unwrap();
        let mut shown = BTreeMap::new();
        let lags = || {
            let text = render(&[&series]);
            let lines = text
                .lines()
                .filter_map(|line| line.strip_prefix("mosec_control_plane_replication_lag_entries"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        metrics.show_lags(&mut shown, BTreeMap::from([(2, 0), (3, 70)]));
        assert_eq!(lags(), ["{member=\"2\"} 0", "{member=\"3\"} 70"]);
        metrics.show_lags(&mut shown, BTreeMap::from([(2, 1)]));
        assert_eq!(lags(), ["{member=\"2\"} 1"]);
        metrics.show_lags(&mut shown, BTreeMap::new());
        assert_eq!(lags(), [""; 0]);
    }
}
