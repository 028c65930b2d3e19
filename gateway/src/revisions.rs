//! Hot path. The series of each revision's requests. They come with their revision and go with it, those that revisions of a
//! pipeline share with the last one.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mosec_telemetry::{Counters, Histograms, Holders, Series};
use mosec_types::topology::Deployment;
use mosec_types::{ErrorCode, PipelineSpec, Revision, Span, SpanKind, Topology};
use prometheus::{Histogram, HistogramOpts, IntCounter};

use crate::by_revision::ByRevision;
use crate::routes::Route;

/// The parts of a stage.
const PARTS: [SpanKind; 6] = [
    SpanKind::Queue,
    SpanKind::Link,
    SpanKind::Agent,
    SpanKind::Shm,
    SpanKind::Worker,
    SpanKind::Batch,
];

/// Ends of requests that are shown before the first of them: what comes into being at 1 has no rate.
const FAILURES: [&str; 4] = ["408", "429", "500", "503"];
/// Refusals that are shown before the first of them.
const REFUSALS: [ErrorCode; 6] = [
    ErrorCode::QueueFull,
    ErrorCode::NoReplica,
    ErrorCode::Draining,
    ErrorCode::BodyTooLarge,
    ErrorCode::BodyUnreadable,
    ErrorCode::BodyMemory,
];

/// Far more spans than any route leads to. An answer that has more says nothing of its parts.
const MAX_SPANS: usize = 1024;

/// The series of the revisions that there are.
pub(crate) struct Revisions {
    families: Arc<Families>,
    live: ByRevision<RevisionSeries>,
}

struct Families {
    requests: Counters,
    refused: Counters,
    seconds: Histograms,
    parts: Histograms,
    /// How many revisions hold the series of each owner, which are made and removed under its lock.
    holders: Holders<Owner>,
}

/// Whose series are removed together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Owner {
    Pipeline(String),
    Revision(String, Revision),
    Stage(String, String),
}

impl Owner {
    /// Those that a revision holds.
    fn of(spec: &PipelineSpec, revision: Revision) -> Vec<Self> {
        let pipeline = || spec.name.to_string();
        let stages = spec.stages.iter();
        let stages = stages.map(|stage| Self::Stage(pipeline(), stage.name.clone()));
        [Self::Pipeline(pipeline()), Self::Revision(pipeline(), revision)]
            .into_iter()
            .chain(stages)
            .collect()
    }
}

impl Revisions {
    pub(crate) fn new(series: &Series) -> prometheus::Result<Self> {
        Ok(Self {
            families: Arc::new(Families::new(series)?),
            live: ByRevision::default(),
        })
    }

    /// Has series for the revisions of a topology that take requests, and none for those that it does not have.
    pub(crate) fn follow(&self, topology: &Topology) {
        self.live.follow(topology, |deployment| {
            RevisionSeries::new(&self.families, deployment)
        });
    }

    /// Counts a request that is over.
    pub(crate) fn ended(&self, route: &Route, status: u16) {
        self.live
            .look(route.first.revision, |series| series.ended(route, status));
    }

    /// Counts a request whose answer's status was `head`, and of which `end` became. `answers`: the series that MOSEC has of
    /// such answers; those of revisions that are gone count there, too.
    pub(crate) fn answered(&self, route: &Route, head: u16, end: u16, answers: impl Fn() -> IntCounter) {
        let looked = self.live.look(route.first.revision, |series| {
            series.ended(route, end);
            match series.answers.get(usize::from(route.index.0)) {
                Some(kept) if head == 200 => kept.get_or_init(&answers).inc(),
                _ => answers().inc(),
            }
        });
        if looked.is_none() {
            answers().inc();
        }
    }

    /// Counts a request that was answered before it had a place in a queue.
    pub(crate) fn refused(&self, route: &Route, code: ErrorCode) {
        self.live.look(route.first.revision, |series| {
            let labels = [series.spec.name.as_str(), code.name()];
            series.families.refused.with_label_values(&labels).inc();
        });
    }

    /// Notes how long a request took that was answered with success; of a stream, to its first event.
    pub(crate) fn took(&self, route: &Route, took: Duration) {
        self.live.look(route.first.revision, |series| {
            series.seconds.observe(took.as_secs_f64())
        });
    }

    /// Notes the same, and where the time went.
    pub(crate) fn took_in_parts(&self, route: &Route, took: Duration, spans: &[Span]) {
        self.live.look(route.first.revision, |series| {
            series.seconds.observe(took.as_secs_f64());
            series.note_parts(took, spans);
        });
    }
}

impl Families {
    fn new(series: &Series) -> prometheus::Result<Self> {
        // From what a small model takes to what a patient client waits.
        let seconds = HistogramOpts::new(
            "mosec_gateway_request_seconds",
            "Time from a request's arrival to its answer, of those answered with success; of a stream to its first event.",
        )
        .buckets(prometheus::exponential_buckets(0.001, 2.0, 17)?);
        // From what a hop between processes takes.
        let parts = HistogramOpts::new(
            "mosec_gateway_part_seconds",
            "Time that a request answered with success spent in one part of the system. Streams are left out. \
             Parts: gateway; of each stage queue (no replica was free), batch (it waited to be fuller), link, agent, shm, worker.",
        )
        .buckets(prometheus::exponential_buckets(0.00005, 2.0, 20)?);
        Ok(Self {
            requests: series.counters(
                "mosec_gateway_requests_total",
                "Requests, by the HTTP status they were answered with; 499 where the client left before its answer or amid a \
                 stream. A stream counts at its end, by what became of it, though its head said 200.",
                &["pipeline", "revision", "route", "code"],
            )?,
            refused: series.counters(
                "mosec_gateway_refused_total",
                "Requests that were answered before they had a place in a queue, by the name of the error.",
                &["pipeline", "reason"],
            )?,
            seconds: series.histograms(seconds, &["pipeline", "revision"])?,
            parts: series.histograms(parts, &["pipeline", "stage", "part"])?,
            holders: Holders::default(),
        })
    }

    fn remove(&self, owner: &Owner, spec: &PipelineSpec) {
        // Of most labels there are none.
        match owner {
            Owner::Pipeline(pipeline) => {
                for code in ErrorCode::all() {
                    self.refused.remove(&[pipeline, code.name()]);
                }
                let gateway = [pipeline, "", SpanKind::Gateway.name()];
                self.parts.remove(&gateway);
            }
            Owner::Revision(pipeline, revision) => {
                let revision = revision.to_string();
                self.seconds.remove(&[pipeline, &revision]);
                for route in &spec.routes {
                    for code in ErrorCode::all() {
                        let status = code.http_status().to_string();
                        let labels = [pipeline, &revision, &route.path, &status];
                        self.requests.remove(&labels);
                    }
                }
            }
            Owner::Stage(pipeline, stage) => {
                for part in PARTS {
                    self.parts.remove(&[pipeline, stage, part.name()]);
                }
            }
        }
    }
}

struct RevisionSeries {
    families: Arc<Families>,
    spec: Arc<PipelineSpec>,
    revision: Revision,
    /// By route, those that were answered with 200.
    ok: Vec<IntCounter>,
    /// The same in MOSEC's series, which is not there before the first of them.
    answers: Vec<OnceLock<IntCounter>>,
    seconds: Histogram,
    gateway: Histogram,
    /// By stage, and [`PARTS`].
    parts: Vec<[Histogram; PARTS.len()]>,
}

impl RevisionSeries {
    fn new(families: &Arc<Families>, deployment: &Deployment) -> Self {
        let owners = Owner::of(&deployment.spec, deployment.revision);
        families
            .holders
            .hold(&owners, || Self::take(families, deployment))
    }

    fn take(families: &Arc<Families>, deployment: &Deployment) -> Self {
        let (spec, revision) = (&deployment.spec, deployment.revision);
        let (pipeline, number) = (spec.name.as_str(), revision.to_string());
        let part =
            |stage: &str, kind: SpanKind| families.parts.with_label_values(&[pipeline, stage, kind.name()]);
        let ended = |path: &str, code: &str| {
            let labels = [pipeline, &number, path, code];
            families.requests.with_label_values(&labels)
        };
        for route in &spec.routes {
            for code in FAILURES {
                ended(&route.path, code);
            }
        }
        for reason in REFUSALS {
            let labels = [pipeline, reason.name()];
            families.refused.with_label_values(&labels);
        }
        Self {
            ok: spec
                .routes
                .iter()
                .map(|route| ended(&route.path, "200"))
                .collect(),
            answers: spec.routes.iter().map(|_| OnceLock::new()).collect(),
            seconds: families.seconds.with_label_values(&[pipeline, &number]),
            gateway: part("", SpanKind::Gateway),
            parts: spec
                .stages
                .iter()
                .map(|stage| PARTS.map(|kind| part(&stage.name, kind)))
                .collect(),
            families: families.clone(),
            spec: spec.clone(),
            revision,
        }
    }

    fn ended(&self, route: &Route, status: u16) {
        match self.ok.get(usize::from(route.index.0)) {
            Some(ok) if status == 200 => ok.inc(),
            _ => {
                let (revision, status) = (self.revision.to_string(), status.to_string());
                let labels = [self.spec.name.as_str(), &revision, &route.path, &status];
                self.families.requests.with_label_values(&labels).inc();
            }
        }
    }

    /// Each part once, however many spans it has: a stage that was tried again waited in its queue again.
    fn note_parts(&self, total: Duration, spans: &[Span]) {
        if spans.len() > MAX_SPANS {
            return;
        }
        let mut accounted = Duration::ZERO;
        for (at, span) in spans.iter().enumerate() {
            accounted += Duration::from_micros(span.micros.into());
            let is_same = |other: &&Span| other.kind == span.kind && other.stage == span.stage;
            if spans[..at].iter().any(|other| is_same(&other)) {
                continue;
            }
            let same = spans[at..].iter().filter(is_same);
            let micros: u64 = same.map(|span| u64::from(span.micros)).sum();
            if let Some(part) = self.part(span) {
                part.observe(Duration::from_micros(micros).as_secs_f64());
            }
        }
        self.gateway
            .observe(total.saturating_sub(accounted).as_secs_f64());
    }

    fn part(&self, span: &Span) -> Option<&Histogram> {
        let of_stage = self.parts.get(usize::from(span.stage.0))?;
        let at = PARTS.iter().position(|&kind| kind == span.kind)?;
        of_stage.get(at)
    }
}

impl Drop for RevisionSeries {
    fn drop(&mut self) {
        let remove = |owner: &Owner| self.families.remove(owner, &self.spec);
        let owners = Owner::of(&self.spec, self.revision);
        self.families.holders.release(&owners, remove);
    }
}
