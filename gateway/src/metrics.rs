//! What a gateway counts: MOSEC's series of the whole service, and its own.

use std::time::Duration;

use mosec_telemetry::{Series, ServiceSeries};
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};

pub(crate) struct Metrics {
    /// Of its own: in one process with workers, both have series of one family.
    series: Series,
    throughput: IntCounterVec,
    duration: Histogram,
    pub(crate) remaining: IntGauge,
    pub(crate) connections: IntGauge,
    pub(crate) refused_connections: IntCounter,
    pub(crate) body_bytes: IntGauge,
}

impl Metrics {
    pub(crate) fn new(service: &ServiceSeries) -> prometheus::Result<Self> {
        let series = Series::default();
        Ok(Self {
            throughput: service.throughput(&series)?,
            duration: service.request_duration(&series)?,
            remaining: service.remaining(&series)?,
            connections: series.gauge("mosec_gateway_connections", "Open connections of clients.")?,
            refused_connections: series.counter(
                "mosec_gateway_connections_refused_total",
                "Connections beyond the bound, answered 503.",
            )?,
            body_bytes: series.gauge(
                "mosec_gateway_body_bytes",
                "Memory of request bodies that are read or not answered yet.",
            )?,
            series,
        })
    }

    pub(crate) fn series(&self) -> &Series {
        &self.series
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
