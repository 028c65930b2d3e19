//! What a gateway counts: MOSEC's series of the whole service, and its own.

use std::time::Duration;

use mosec_telemetry::ServiceSeries;
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, Registry};

pub(crate) struct Metrics {
    /// Of its own: in one process with workers, both have series of one family.
    registry: Registry,
    throughput: IntCounterVec,
    duration: Histogram,
    pub(crate) remaining: IntGauge,
    pub(crate) connections: IntGauge,
    pub(crate) refused_connections: IntCounter,
    pub(crate) body_bytes: IntGauge,
}

impl Metrics {
    pub(crate) fn new(series: &ServiceSeries) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let throughput = series.throughput()?;
        let total = series
            .process_duration()?
            .const_label("stage", "total")
            .const_label("connection", "total");
        let duration = Histogram::with_opts(total)?;
        let remaining = series.remaining()?;
        let connections = IntGauge::new("mosec_gateway_connections", "Open connections of clients.")?;
        let refused_connections = IntCounter::new(
            "mosec_gateway_connections_refused_total",
            "Connections beyond the bound, answered 503.",
        )?;
        let body_bytes = IntGauge::new(
            "mosec_gateway_body_bytes",
            "Memory of request bodies that are read or not answered yet.",
        )?;
        registry.register(Box::new(connections.clone()))?;
        registry.register(Box::new(refused_connections.clone()))?;
        registry.register(Box::new(body_bytes.clone()))?;
        registry.register(Box::new(throughput.clone()))?;
        registry.register(Box::new(duration.clone()))?;
        registry.register(Box::new(remaining.clone()))?;
        Ok(Self {
            registry,
            throughput,
            duration,
            remaining,
            connections,
            refused_connections,
            body_bytes,
        })
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Counts an answered request. `path` is a route's, so the label is bounded.
    pub(crate) fn answered(&self, status: u16, path: &str) {
        self.throughput
            .with_label_values(&[status.to_string().as_str(), path])
            .inc();
    }

    /// Notes the time of a request that was worked on with success, from its head to its answer.
    pub(crate) fn worked(&self, took: Duration) {
        self.duration.observe(took.as_secs_f64());
    }
}
