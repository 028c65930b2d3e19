//! What node agents count.
//!
//! Series of a pipeline's stage are there for as long as this node has a [`PoolMetrics`] of it. Revisions share them, so
//! gauges count up and down, or are a sum of [`Share`]s.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use mosec_telemetry::{Counted, Counters, Gauges, Histograms, Holders, Series, ServiceSeries, whole};
use mosec_types::ReplicaId;
use parking_lot::Mutex;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge};

use crate::config::Config;

const STAGE: [&str; 2] = ["pipeline", "stage"];

/// Series of a node.
#[derive(Clone)]
pub(crate) struct AgentMetrics {
    stages: Arc<Stages>,
    pub(crate) arena_used_bytes: IntGauge,
    pub(crate) arena_bytes: IntGauge,
    pub(crate) output_bytes: IntGauge,
}

/// Series of all stages of a node.
struct Stages {
    service: Service,
    worker_time: Histograms,
    workers: Gauges,
    ready: Gauges,
    restarts: Counters,
    redispatched: Counters,
    backlog: Gauges,
    in_flight: Gauges,
    credits: Gauges,
    /// How many pools hold the series of each owner, which are made and removed under its lock.
    holders: Holders<Owner>,
    /// Numbers of the workers that MOSEC's series have of the stages of a name.
    workers_of: Mutex<HashMap<String, BTreeSet<String>>>,
}

/// Whose series are removed together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Owner {
    /// A pipeline's stage.
    Stage([String; 2]),
    /// The stages of one name, whatever their pipelines: MOSEC's series know no more.
    Name(String),
}

impl Owner {
    /// Those that a pool of this stage holds.
    fn of(stage: &[String; 2]) -> [Self; 2] {
        let [_, name] = stage;
        [Self::Stage(stage.clone()), Self::Name(name.clone())]
    }
}

/// MOSEC's series of stages and their workers.
struct Service {
    process_duration: Histograms,
    batch_size: Histograms,
    batch_duration: Histograms,
}

/// Series of one pool. Dropping it removes those that no other pool has.
pub(crate) struct PoolMetrics {
    stages: Arc<Stages>,
    stage: [String; 2],
    batches: bool,
    pub(crate) worker_time: Histogram,
    workers: IntGauge,
    pub(crate) ready: Share,
    pub(crate) restarts: IntCounter,
    pub(crate) redispatched: IntCounter,
    pub(crate) backlog: IntGauge,
    in_flight: IntGauge,
    pub(crate) credits: Share,
}

/// MOSEC's series of one worker.
pub(crate) struct WorkerMetrics {
    process_duration: Histogram,
    /// Batch sizes and times; only of stages that form batches.
    batches: Option<(Histogram, Histogram)>,
}

impl AgentMetrics {
    pub(crate) fn new(series: &Series, config: &Config) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| series.gauge(&format!("mosec_agent_{name}"), help);
        let arena_limit = gauge(
            "arena_limit_bytes",
            "Most shared memory for payloads that may be allocated.",
        )?;
        arena_limit.set(whole(config.arena.max_bytes));
        let output_limit = gauge(
            "output_limit_bytes",
            "Most output of workers that is kept for those who ask; 0 where none is kept.",
        )?;
        output_limit.set(whole(config.output.map_or(0, |limits| limits.total_bytes)));
        Ok(Self {
            stages: Arc::new(Stages::new(series, &config.series)?),
            arena_used_bytes: gauge("arena_used_bytes", "Shared memory that payloads take now.")?,
            arena_bytes: gauge(
                "arena_bytes",
                "Shared memory for payloads that is allocated; it never shrinks.",
            )?,
            output_bytes: gauge(
                "output_bytes",
                "Output of workers that is kept for those who ask.",
            )?,
        })
    }

    /// `batches`: whether the stage forms batches.
    pub(crate) fn pool(&self, pipeline: &str, stage: &str, batches: bool) -> PoolMetrics {
        let stages = &self.stages;
        let labels = [pipeline, stage];
        let own = labels.map(str::to_owned);
        stages.holders.hold(&Owner::of(&own), || PoolMetrics {
            stages: stages.clone(),
            stage: own.clone(),
            batches,
            worker_time: stages.worker_time.with_label_values(&labels),
            workers: stages.workers.with_label_values(&labels),
            ready: Share::of(stages.ready.with_label_values(&labels)),
            restarts: stages.restarts.with_label_values(&labels),
            redispatched: stages.redispatched.with_label_values(&labels),
            backlog: stages.backlog.with_label_values(&labels),
            in_flight: stages.in_flight.with_label_values(&labels),
            credits: Share::of(stages.credits.with_label_values(&labels)),
        })
    }
}

impl Stages {
    fn new(series: &Series, service: &ServiceSeries) -> prometheus::Result<Self> {
        // From a trivial echo (50 us) to a slow model (26 s).
        let seconds = prometheus::exponential_buckets(0.00005, 2.0, 20)?;
        let worker_time = HistogramOpts::new(
            "mosec_agent_worker_seconds",
            "Time that workers take for a batch, decoding and encoding included.",
        );
        let gauges = |name: &str, help: &str| series.gauges(&format!("mosec_agent_{name}"), help, &STAGE);
        Ok(Self {
            service: Service {
                process_duration: service.batch_process_duration(series)?,
                batch_size: service.batch_size(series)?,
                batch_duration: service.batch_duration(series)?,
            },
            worker_time: series.histograms(worker_time.buckets(seconds), &STAGE)?,
            workers: gauges(
                "workers",
                "Replicas that this node runs or starts, those that leave included.",
            )?,
            ready: gauges("ready_workers", "Workers that are ready for batches.")?,
            restarts: series.counters(
                "mosec_agent_worker_restarts_total",
                "Worker processes that were started again.",
                &STAGE,
            )?,
            redispatched: series.counters(
                "mosec_agent_redispatched_total",
                "Requests that the node gave to another of its workers as theirs was lost.",
                &STAGE,
            )?,
            backlog: gauges(
                "backlog_batches",
                "Batches that wait for room in a worker's ring.",
            )?,
            in_flight: gauges(
                "in_flight_batches",
                "Batches that workers have, in their ring or at work.",
            )?,
            credits: gauges(
                "credits",
                "Batches that all upstreams together may have outstanding at the workers that are ready.",
            )?,
            holders: Holders::default(),
            workers_of: Mutex::default(),
        })
    }

    fn remove(&self, owner: &Owner) {
        match owner {
            Owner::Stage([pipeline, stage]) => self.remove_stage([pipeline, stage]),
            Owner::Name(stage) => {
                let workers = self.workers_of.lock().remove(stage).unwrap_or_default();
                workers
                    .iter()
                    .for_each(|worker| self.service.remove([stage, worker]));
            }
        }
    }

    fn remove_stage(&self, labels: [&str; 2]) {
        let gauges = [
            &self.workers,
            &self.ready,
            &self.backlog,
            &self.in_flight,
            &self.credits,
        ];
        for gauge in gauges {
            gauge.remove(&labels);
        }
        for counters in [&self.restarts, &self.redispatched] {
            counters.remove(&labels);
        }
        self.worker_time.remove(&labels);
    }
}

impl Service {
    fn remove(&self, labels: [&str; 2]) {
        // The latter two are only there of stages that form batches.
        for histogram in [&self.process_duration, &self.batch_size, &self.batch_duration] {
            histogram.remove(&labels);
        }
    }
}

impl PoolMetrics {
    /// A worker is known by its number in the stage, which a restart does not change.
    pub(crate) fn worker(&self, replica: ReplicaId) -> WorkerMetrics {
        let number = replica.0.to_string();
        let [_, stage] = &self.stage;
        let labels = [stage.as_str(), number.as_str()];
        let service = &self.stages.service;
        let metrics = WorkerMetrics {
            process_duration: service.process_duration.with_label_values(&labels),
            batches: self.batches.then(|| {
                let sizes = service.batch_size.with_label_values(&labels);
                (sizes, service.batch_duration.with_label_values(&labels))
            }),
        };
        // This pool holds the name, so nobody removes what was just made.
        let mut workers_of = self.stages.workers_of.lock();
        workers_of.entry(stage.clone()).or_default().insert(number);
        metrics
    }

    /// Counts a replica for as long as this lives.
    pub(crate) fn placed(&self) -> Counted {
        Counted::new(&self.workers)
    }

    /// Counts a batch that a worker has for as long as this lives.
    pub(crate) fn in_flight(&self) -> Counted {
        Counted::new(&self.in_flight)
    }
}

impl Drop for PoolMetrics {
    fn drop(&mut self) {
        let remove = |owner: &Owner| self.stages.remove(owner);
        self.stages.holders.release(&Owner::of(&self.stage), remove);
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

/// One pool's part of a gauge; it is taken back when this is dropped.
pub(crate) struct Share {
    gauge: IntGauge,
    mine: AtomicI64,
}

impl Share {
    fn of(gauge: IntGauge) -> Self {
        Self {
            gauge,
            mine: AtomicI64::new(0),
        }
    }

    pub(crate) fn set(&self, value: i64) {
        self.gauge.add(value - self.mine.swap(value, Ordering::Relaxed));
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}
