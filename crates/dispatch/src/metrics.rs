//! What dispatchers count.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use mosec_telemetry::{Counters, Histograms, Kind, Series};
use mosec_types::ErrorCode;
use parking_lot::Mutex;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge};

use crate::StageConfig;
use crate::link_metrics::LinkMetrics;
use crate::scrape::{self, Reading};

/// Names of the labels of a stage's series.
const LABELS: [&str; 2] = ["pipeline", "stage"];

/// Why requests are refused, all of it. Shown before the first of them: what comes into being at 1 has no rate.
const REFUSALS: [ErrorCode; 3] = [ErrorCode::QueueFull, ErrorCode::NoReplica, ErrorCode::Draining];

/// A pipeline's name and a stage's. Revisions of the pipeline share them, and so their series.
type Labels = [String; 2];

/// Series of all dispatchers of a process. Clones share them.
#[derive(Clone)]
pub struct DispatchMetrics {
    stages: Arc<Stages>,
    pub(crate) links: LinkMetrics,
    pub(crate) links_down: IntGauge,
}

struct Stages {
    families: Families,
    live: Live,
}

/// The dispatchers that there are.
type Live = Arc<Mutex<BTreeMap<Labels, Vec<Known>>>>;

/// A dispatcher, told by its number from others of its stage.
#[derive(Clone)]
struct Known {
    number: u64,
    dispatcher: Weak<dyn Watched>,
}

struct Families {
    queue_wait: Histograms,
    batch_wait: Histograms,
    batches: Counters,
    batch_size: Histograms,
    refusals: Counters,
    losses: Counters,
    handed_over: Counters,
}

/// A dispatcher, for whoever asks how it stands.
pub(crate) trait Watched: Send + Sync {
    fn standing(&self) -> Standing;
}

/// How a dispatcher stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) queued: usize,
    /// Requests that count against the limit; none where it takes no new ones.
    pub(crate) taken: usize,
    /// Requests that its queue may hold; none where it takes no new ones.
    pub(crate) queue_limit: usize,
    pub(crate) batch_limit: usize,
    pub(crate) in_flight: u32,
    pub(crate) credits: u32,
}

impl Standing {
    fn with(self, other: Self) -> Self {
        Self {
            queued: self.queued + other.queued,
            taken: self.taken + other.taken,
            queue_limit: self.queue_limit + other.queue_limit,
            // Requests of two revisions are never in one batch.
            batch_limit: self.batch_limit.max(other.batch_limit),
            in_flight: self.in_flight + other.in_flight,
            credits: self.credits + other.credits,
        }
    }

    /// In the order of [`STANDINGS`].
    fn values(self) -> Vec<f64> {
        vec![
            self.queued as f64,
            self.taken as f64,
            self.queue_limit as f64,
            self.batch_limit as f64,
            f64::from(self.in_flight),
            f64::from(self.credits),
        ]
    }
}

const STANDINGS: [scrape::Named; 6] = [
    (
        "mosec_dispatch_queue_requests",
        "Requests that wait in a stage's queue.",
    ),
    (
        "mosec_dispatch_queue_taken_requests",
        "Requests that count against the limit of a stage's queue: those in it, and those that were sent ahead \
         and wait at busy replicas.",
    ),
    (
        "mosec_dispatch_queue_limit_requests",
        "Requests that a stage's queue may hold before more are refused. Revisions that take requests add up.",
    ),
    (
        "mosec_dispatch_batch_limit_requests",
        "Requests that a batch of the stage may have.",
    ),
    (
        "mosec_dispatch_in_flight_batches",
        "Batches that were sent to replicas and are not done.",
    ),
    (
        "mosec_dispatch_credits",
        "Batches that may be sent to ready replicas now, beyond those in flight.",
    ),
];

impl DispatchMetrics {
    /// Registers the series.
    ///
    /// Errors: one of that name is there already.
    pub fn new(series: &Series) -> prometheus::Result<Self> {
        let live = Live::default();
        let read = live.clone();
        scrape::register(series, Kind::Gauge, &STANDINGS, &LABELS, move || standings(&read))?;
        Ok(Self {
            stages: Arc::new(Stages {
                families: Families::new(series)?,
                live,
            }),
            links: LinkMetrics::new(series)?,
            // Which nodes they are say the log and `mosectl status`.
            links_down: series.gauge(
                "mosec_dispatch_links_down",
                "Nodes to which no link can be opened.",
            )?,
        })
    }

    /// The series of a new dispatcher, which are there until the last one of its pipeline's stage is dropped.
    pub(crate) fn stage(&self, config: &StageConfig, dispatcher: Weak<dyn Watched>) -> StageMetrics {
        let labels = [config.pipeline.to_string(), config.name.clone()];
        let stages = &self.stages;
        let families = &stages.families;
        // Under the lock: nobody removes what is taken here.
        let mut live = stages.live.lock();
        let known = live.entry(labels.clone()).or_default();
        let number = known.last().map_or(0, |last| last.number + 1);
        known.push(Known { number, dispatcher });
        let [pipeline, stage] = &labels;
        let refusals = REFUSALS.map(|code| {
            let labels = [pipeline.as_str(), stage, code.name()];
            (code, families.refusals.with_label_values(&labels))
        });
        StageMetrics {
            refusals,
            queue_wait: families.queue_wait.with_label_values(&labels),
            batch_wait: families.batch_wait.with_label_values(&labels),
            batches: families.batches.with_label_values(&labels),
            batch_size: families.batch_size.with_label_values(&labels),
            losses: families.losses.with_label_values(&labels),
            handed_over: families.handed_over.with_label_values(&labels),
            number,
            labels,
            stages: stages.clone(),
        }
    }
}

/// How the dispatchers of each stage stand together.
fn standings(live: &Live) -> Vec<Reading> {
    // The lock is released first: to let go of a dispatcher that nobody else has takes it, too.
    let live: Vec<_> = live.lock().clone().into_iter().collect();
    let together = |(labels, known): (Labels, Vec<Known>)| {
        let found = known.iter().filter_map(|known| known.dispatcher.upgrade());
        let standings = found.map(|dispatcher| dispatcher.standing());
        Some((labels.to_vec(), standings.reduce(Standing::with)?.values()))
    };
    live.into_iter().filter_map(together).collect()
}

impl Families {
    fn new(series: &Series) -> prometheus::Result<Self> {
        // From a wake-up (0.1 ms) to MOSEC's default time limit (3 s).
        let seconds = prometheus::exponential_buckets(0.0001, 2.0, 16)?;
        let sizes = prometheus::exponential_buckets(1.0, 2.0, 10)?;
        let queue_wait = HistogramOpts::new(
            "mosec_dispatch_queue_wait_seconds",
            "Time from a request's arrival in a stage's queue to the batch that it leaves in.",
        );
        let batch_wait = HistogramOpts::new(
            "mosec_dispatch_batch_wait_seconds",
            "Time that a batch waited for more requests although a replica was free for it.",
        );
        let batch_size = HistogramOpts::new(
            "mosec_dispatch_batch_requests",
            "Requests in a batch that was sent.",
        );
        let counters = |name, help| series.counters(name, help, &LABELS);
        Ok(Self {
            queue_wait: series.histograms(queue_wait.buckets(seconds.clone()), &LABELS)?,
            batch_wait: series.histograms(batch_wait.buckets(seconds), &LABELS)?,
            batches: counters("mosec_dispatch_batches_total", "Batches sent to replicas.")?,
            batch_size: series.histograms(batch_size.buckets(sizes), &LABELS)?,
            refusals: series.counters(
                "mosec_dispatch_refused_total",
                "Requests that a stage's queue did not take, by the name of the error. What a draining one refuses may \
                 still go to its successor.",
                &[LABELS[0], LABELS[1], "reason"],
            )?,
            losses: counters(
                "mosec_dispatch_redispatched_total",
                "Requests queued again as the replica that had them, or the link to it, was lost. Those that a node \
                 gave to another worker of its own are in `mosec_agent_redispatched_total`.",
            )?,
            handed_over: counters(
                "mosec_dispatch_handed_over_total",
                "Requests that waited for a revision which is replaced, and went to its successor.",
            )?,
        })
    }

    fn remove(&self, labels: &Labels) {
        let [pipeline, stage] = labels;
        for code in REFUSALS {
            self.refusals.remove(&[pipeline.as_str(), stage, code.name()]);
        }
        for histograms in [&self.queue_wait, &self.batch_wait, &self.batch_size] {
            histograms.remove(labels);
        }
        for counters in [&self.batches, &self.losses, &self.handed_over] {
            counters.remove(labels);
        }
    }
}

/// Series of one dispatcher's stage, held by it.
pub(crate) struct StageMetrics {
    pub(crate) queue_wait: Histogram,
    pub(crate) batch_wait: Histogram,
    pub(crate) batches: IntCounter,
    pub(crate) batch_size: Histogram,
    pub(crate) losses: IntCounter,
    pub(crate) handed_over: IntCounter,
    refusals: [(ErrorCode, IntCounter); REFUSALS.len()],
    number: u64,
    labels: Labels,
    stages: Arc<Stages>,
}

impl StageMetrics {
    /// Counts a refusal. Takes no lock, as it is called under the dispatcher's, and most often by a full queue.
    pub(crate) fn refused(&self, code: ErrorCode) {
        let found = self.refusals.iter().find(|(known, _)| *known == code);
        debug_assert!(found.is_some(), "{code:?} is no reason to refuse");
        if let Some((_, refusals)) = found {
            refusals.inc();
        }
    }
}

impl Drop for StageMetrics {
    fn drop(&mut self) {
        let mut live = self.stages.live.lock();
        let Some(known) = live.get_mut(&self.labels) else {
            return;
        };
        known.retain(|known| known.number != self.number);
        if known.is_empty() {
            live.remove(&self.labels);
            self.stages.families.remove(&self.labels);
        }
    }
}
