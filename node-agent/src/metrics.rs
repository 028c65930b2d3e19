//! What node agents count.

use std::time::Duration;

use mosec_telemetry::{Series, ServiceSeries};
use mosec_types::ReplicaId;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

/// Series of all stages of a node.
#[derive(Clone)]
pub(crate) struct AgentMetrics {
    service: Service,
    worker_time: HistogramVec,
    ready: IntGaugeVec,
    restarts: IntCounterVec,
    backlog: IntGaugeVec,
    pub(crate) arena_used_bytes: IntGauge,
    pub(crate) arena_bytes: IntGauge,
    pub(crate) output_bytes: IntGauge,
}

/// MOSEC's series of stages and their workers.
#[derive(Clone)]
struct Service {
    process_duration: HistogramVec,
    batch_size: HistogramVec,
    batch_duration: HistogramVec,
}

/// Series of one stage.
pub(crate) struct PoolMetrics {
    service: Service,
    stage: String,
    batches: bool,
    pub(crate) worker_time: Histogram,
    pub(crate) ready: IntGauge,
    pub(crate) restarts: IntCounter,
    pub(crate) backlog: IntGauge,
}

/// MOSEC's series of one worker.
pub(crate) struct WorkerMetrics {
    process_duration: Histogram,
    /// Batch sizes and times; only of stages that form batches.
    batches: Option<(Histogram, Histogram)>,
}

impl AgentMetrics {
    pub(crate) fn new(series: &Series, service: &ServiceSeries) -> prometheus::Result<Self> {
        // From a trivial echo (50 us) to a slow model (26 s).
        let seconds = prometheus::exponential_buckets(0.00005, 2.0, 20)?;
        let worker_time = HistogramOpts::new(
            "mosec_agent_worker_seconds",
            "Time a worker takes for a batch, codecs included.",
        );
        Ok(Self {
            service: Service {
                process_duration: service.batch_process_duration(series)?,
                batch_size: service.batch_size(series)?,
                batch_duration: service.batch_duration(series)?,
            },
            worker_time: series.histograms(worker_time.buckets(seconds), &["stage"])?,
            ready: series.gauges("mosec_agent_ready_workers", "Workers that are ready.", &["stage"])?,
            restarts: series.counters(
                "mosec_agent_worker_restarts_total",
                "Worker processes started again.",
                &["stage"],
            )?,
            backlog: series.gauges(
                "mosec_agent_backlog_batches",
                "Batches that wait for a worker's ring.",
                &["stage"],
            )?,
            arena_used_bytes: series.gauge("mosec_agent_arena_used_bytes", "Shared memory in use.")?,
            arena_bytes: series.gauge("mosec_agent_arena_bytes", "Shared memory allocated.")?,
            output_bytes: series.gauge(
                "mosec_agent_output_bytes",
                "Output of workers that is kept for those who ask.",
            )?,
        })
    }

    /// `batches`: whether the stage forms batches.
    pub(crate) fn pool(&self, stage: &str, batches: bool) -> PoolMetrics {
        PoolMetrics {
            service: self.service.clone(),
            stage: stage.to_owned(),
            batches,
            worker_time: self.worker_time.with_label_values(&[stage]),
            ready: self.ready.with_label_values(&[stage]),
            restarts: self.restarts.with_label_values(&[stage]),
            backlog: self.backlog.with_label_values(&[stage]),
        }
    }
}

impl PoolMetrics {
    /// A worker is known by its number in the stage, which a restart does not change.
    pub(crate) fn worker(&self, replica: ReplicaId) -> WorkerMetrics {
        let number = replica.0.to_string();
        let labels = [self.stage.as_str(), number.as_str()];
        let service = &self.service;
        WorkerMetrics {
            process_duration: service.process_duration.with_label_values(&labels),
            batches: self.batches.then(|| {
                let sizes = service.batch_size.with_label_values(&labels);
                (sizes, service.batch_duration.with_label_values(&labels))
            }),
        }
    }
}

impl WorkerMetrics {
    /// Notes a batch that the worker was given. `collected`: how long it waited for more requests, where that is known here.
    pub(crate) fn given(&self, requests: usize, collected: Option<Duration>) {
        if let Some((sizes, durations)) = &self.batches {
            sizes.observe(requests as f64);
            if let Some(collected) = collected {
                durations.observe(collected.as_secs_f64());
            }
        }
    }

    /// Notes the time of a batch of which something was answered with success.
    pub(crate) fn done(&self, took: Duration) {
        self.process_duration.observe(took.as_secs_f64());
    }
}
