//! What node agents count.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Series of all stages of a node.
#[derive(Clone)]
pub(crate) struct AgentMetrics {
    worker_time: HistogramVec,
    ready: IntGaugeVec,
    restarts: IntCounterVec,
    backlog: IntGaugeVec,
    pub(crate) arena_used_bytes: IntGauge,
    pub(crate) arena_bytes: IntGauge,
}

/// Series of one stage.
pub(crate) struct PoolMetrics {
    pub(crate) worker_time: Histogram,
    pub(crate) ready: IntGauge,
    pub(crate) restarts: IntCounter,
    pub(crate) backlog: IntGauge,
}

impl AgentMetrics {
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        // From a trivial echo (50 us) to a slow model (26 s).
        let seconds = prometheus::exponential_buckets(0.00005, 2.0, 20)?;
        let metrics = Self {
            worker_time: HistogramVec::new(
                HistogramOpts::new(
                    "mosec_agent_worker_seconds",
                    "Time a worker takes for a batch, codecs included.",
                )
                .buckets(seconds),
                &["stage"],
            )?,
            ready: IntGaugeVec::new(
                Opts::new("mosec_agent_ready_workers", "Workers that are ready."),
                &["stage"],
            )?,
            restarts: IntCounterVec::new(
                Opts::new(
                    "mosec_agent_worker_restarts_total",
                    "Worker processes started again.",
                ),
                &["stage"],
            )?,
            backlog: IntGaugeVec::new(
                Opts::new(
                    "mosec_agent_backlog_batches",
                    "Batches that wait for a worker's ring.",
                ),
                &["stage"],
            )?,
            arena_used_bytes: IntGauge::new("mosec_agent_arena_used_bytes", "Shared memory in use.")?,
            arena_bytes: IntGauge::new("mosec_agent_arena_bytes", "Shared memory allocated.")?,
        };
        registry.register(Box::new(metrics.worker_time.clone()))?;
        registry.register(Box::new(metrics.ready.clone()))?;
        registry.register(Box::new(metrics.restarts.clone()))?;
        registry.register(Box::new(metrics.backlog.clone()))?;
        registry.register(Box::new(metrics.arena_used_bytes.clone()))?;
        registry.register(Box::new(metrics.arena_bytes.clone()))?;
        Ok(metrics)
    }

    pub(crate) fn pool(&self, stage: &str) -> PoolMetrics {
        PoolMetrics {
            worker_time: self.worker_time.with_label_values(&[stage]),
            ready: self.ready.with_label_values(&[stage]),
            restarts: self.restarts.with_label_values(&[stage]),
            backlog: self.backlog.with_label_values(&[stage]),
        }
    }
}
