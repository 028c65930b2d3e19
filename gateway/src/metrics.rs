//! What a gateway counts: MOSEC's series of the whole service, and its own.

use std::time::Duration;

use mosec_dispatch::DispatchMetrics;
use mosec_telemetry::{Counters, Described, Series, ServiceSeries};
use mosec_types::ErrorCode;
use prometheus::{Histogram, IntCounter, IntGauge};

use crate::body::Memory;
use crate::config::Config;
use crate::revisions::Revisions;
use crate::routes::Route;

pub(crate) struct Metrics {
    /// Of its own: in one process with workers, both have series of one family.
    series: Series,
    throughput: Counters,
    duration: Histogram,
    pub(crate) remaining: IntGauge,
    pub(crate) connections: IntGauge,
    pub(crate) refused_connections: IntCounter,
    pub(crate) revisions: Revisions,
}

impl Metrics {
    pub(crate) fn new(service: &ServiceSeries, body_memory: Memory) -> prometheus::Result<Self> {
        let series = Series::default();
        series.gauge_read(
            "mosec_gateway_body_bytes",
            "Memory of request bodies that are read or not answered yet.",
            move || mosec_telemetry::whole(body_memory.used_bytes()),
        )?;
        Ok(Self {
            throughput: service.throughput(&series)?,
            duration: service.request_duration(&series)?,
            remaining: service.remaining(&series)?,
            connections: series.gauge("mosec_gateway_connections", "Open connections of clients.")?,
            refused_connections: series.counter(
                "mosec_gateway_connections_refused_total",
                "Connections beyond the bound, which were answered with 503.",
            )?,
            revisions: Revisions::new(&series)?,
            series,
        })
    }

    pub(crate) fn series(&self) -> &Series {
        &self.series
    }

    /// Counts a request that was answered with this status.
    pub(crate) fn answered(&self, status: u16, route: &Route) {
        self.count_answer(status, status, route);
    }

    /// Counts a request that was answered with a stream, of which this became.
    pub(crate) fn streamed(&self, code: ErrorCode, route: &Route) {
        // As MOSEC counts it: its head said 200, whatever came after.
        self.count_answer(ErrorCode::Ok.http_status(), code.http_status(), route);
    }

    /// Counts a request whose client left before its answer or amid its stream. MOSEC does not.
    pub(crate) fn left(&self, route: &Route) {
        self.revisions.ended(route, ErrorCode::Cancelled.http_status());
    }

    /// In MOSEC's series by what the head said, and in our own by what became of it.
    fn count_answer(&self, head: u16, end: u16, route: &Route) {
        // The labels are bounded, as the path is a route's.
        let answers = || {
            self.throughput
                .with_label_values(&[head.to_string().as_str(), &route.path])
        };
        self.revisions.answered(route, head, end, answers);
    }

    /// Notes the time of a request that was worked on with success, from its head to its answer. That of a stream goes to its
    /// end, and MOSEC notes it whatever became of the stream.
    pub(crate) fn worked(&self, took: Duration) {
        self.duration.observe(took.as_secs_f64());
    }
}

/// What each family of a gateway's series means, but for those that every process has.
pub fn described_series() -> prometheus::Result<Vec<Described>> {
    let series = Series::default();
    DispatchMetrics::new(&series)?;
    let mut described = Metrics::new(&ServiceSeries::default(), Memory::new(&Config::default()))?
        .series()
        .described();
    described.extend(series.described());
    Ok(described)
}
