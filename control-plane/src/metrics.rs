//! Series of the control plane.

use mosec_telemetry::Series;
use prometheus::IntGauge;

/// Typed handles to the series.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) leader: IntGauge,
    pub(crate) term: IntGauge,
    pub(crate) last_applied: IntGauge,
    pub(crate) last_log: IntGauge,
    pub(crate) watch_clients: IntGauge,
    pub(crate) log_readers: IntGauge,
    pub(crate) leases: IntGauge,
    pub(crate) store_bytes: IntGauge,
}

impl Metrics {
    /// Registers the series; an error where they are there already.
    pub(crate) fn register(series: &Series) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| series.gauge(&format!("mosec_control_plane_{name}"), help);
        Ok(Self {
            leader: gauge("leader", "1 on the node that leads, 0 elsewhere")?,
            term: gauge("term", "Raft term; it grows with each election")?,
            last_applied: gauge(
                "last_applied_index",
                "Index of the last log entry that the state reflects",
            )?,
            last_log: gauge("last_log_index", "Index of the last log entry on this node")?,
            watch_clients: gauge("watch_clients", "Open topology watches")?,
            log_readers: gauge("log_readers", "People who read the output of workers")?,
            leases: gauge("leases", "Node leases that the leader keeps, 0 elsewhere")?,
            store_bytes: gauge("store_bytes", "Size of the log store on disk")?,
        })
    }
}

/// Counts one thing for as long as it lives.
pub(crate) struct Counted(IntGauge);

impl Counted {
    pub(crate) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
