//! What dispatchers count.

use mosec_telemetry::Series;
use mosec_types::ErrorCode;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

/// Series of all dispatchers of a process.
#[derive(Clone)]
pub struct DispatchMetrics {
    queued: IntGaugeVec,
    queue_wait: HistogramVec,
    batches: IntCounterVec,
    batch_size: HistogramVec,
    refusals: IntCounterVec,
    losses: IntCounterVec,
    handed_over: IntCounterVec,
    pub(crate) links_down: IntGauge,
}

/// Series of one stage.
pub(crate) struct StageMetrics {
    pub(crate) queued: IntGauge,
    pub(crate) queue_wait: Histogram,
    pub(crate) batches: IntCounter,
    pub(crate) batch_size: Histogram,
    pub(crate) losses: IntCounter,
    pub(crate) handed_over: IntCounter,
    refusals: IntCounterVec,
    stage: String,
}

impl DispatchMetrics {
    /// Registers the series.
    ///
    /// Errors: one of that name is there already.
    pub fn new(series: &Series) -> prometheus::Result<Self> {
        // From a wake-up (0.1 ms) to MOSEC's default time limit (3 s).
        let seconds = prometheus::exponential_buckets(0.0001, 2.0, 16)?;
        let sizes = prometheus::exponential_buckets(1.0, 2.0, 10)?;
        let queue_wait = HistogramOpts::new(
            "mosec_dispatch_queue_wait_seconds",
            "Time from a request's arrival to its batch.",
        );
        let batch_size = HistogramOpts::new("mosec_dispatch_batch_requests", "Requests in a batch.");
        Ok(Self {
            queued: series.gauges(
                "mosec_dispatch_queue_requests",
                "Requests in a stage's queue.",
                &["stage"],
            )?,
            queue_wait: series.histograms(queue_wait.buckets(seconds), &["stage"])?,
            batches: series.counters(
                "mosec_dispatch_batches_total",
                "Batches sent to replicas.",
                &["stage"],
            )?,
            batch_size: series.histograms(batch_size.buckets(sizes), &["stage"])?,
            refusals: series.counters(
                "mosec_dispatch_refused_total",
                "Requests not admitted, by reason.",
                &["stage", "reason"],
            )?,
            losses: series.counters(
                "mosec_dispatch_redispatched_total",
                "Requests sent again after their replica was lost.",
                &["stage"],
            )?,
            handed_over: series.counters(
                "mosec_dispatch_handed_over_total",
                "Requests that waited for a revision which is replaced, and went to its successor.",
                &["stage"],
            )?,
            // Which nodes they are say the log and `mosectl status`: as labels, names of nodes would only grow in number.
            links_down: series.gauge(
                "mosec_dispatch_links_down",
                "Nodes to which no link can be opened.",
            )?,
        })
    }

    pub(crate) fn stage(&self, stage: &str) -> StageMetrics {
        StageMetrics {
            queued: self.queued.with_label_values(&[stage]),
            queue_wait: self.queue_wait.with_label_values(&[stage]),
            batches: self.batches.with_label_values(&[stage]),
            batch_size: self.batch_size.with_label_values(&[stage]),
            losses: self.losses.with_label_values(&[stage]),
            handed_over: self.handed_over.with_label_values(&[stage]),
            refusals: self.refusals.clone(),
            stage: stage.to_owned(),
        }
    }
}

impl StageMetrics {
    pub(crate) fn refused(&self, code: ErrorCode) {
        self.refusals
            .with_label_values(&[self.stage.as_str(), code.name()])
            .inc();
    }
}
