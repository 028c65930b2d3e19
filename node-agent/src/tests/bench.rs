//! What the tests share: an agent, workers at the other end of a ring, and batches to send.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mosec_dispatch::custody::Loss;
use mosec_dispatch::{
    Credit, DispatchMetrics, Dispatched, Home, Outcome, Payload, Registry, Reply, Request, Respond, Stream,
    Target as _,
};
use mosec_shm_ring::{
    AgentChannel, Answer, Arena, ArenaConfig, Batch, ChannelConfig, OnAgentLoss, Payload as RingPayload,
    ShmBackend, ShmConfig, WorkerChannel,
};
use mosec_types::spec::PythonSource;
use mosec_types::topology::{Deployment, Phase};
use mosec_types::{
    ErrorCode, Generation, NodeId, PipelineName, PipelineSpec, ReplicaId, RequestId, Revision, RouteIndex,
    RouteSpec, StageIndex, StageKey, StageSpec, Topology,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::pool::{Pool, PoolTarget, Supervised};
use crate::workers::Worker;
use crate::{Agent, Config};

/// Far more than anything here takes on a busy machine.
pub(super) const BOUND: Duration = Duration::from_secs(20);

/// Awaits `future`, for a bounded time.
pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(BOUND, future).await {
        Ok(value) => value,
        Err(_) => panic!("no {what} within {BOUND:?}"),
    }
}

pub(super) fn key(revision: u64, stage: u16) -> StageKey {
    StageKey {
        revision: Revision(revision),
        stage: StageIndex(stage),
    }
}

/// Stages `A`, `B`: route 0 is `A`, route 1 is `A` and `B`, route 2 is `B`.
pub(crate) fn topology(revision: u64, capacity: u32) -> Topology {
    let stage = |name: &str| StageSpec {
        max_batch_size: 8,
        max_wait: Duration::ZERO,
        timeout: BOUND,
        attempts: 2,
        mime: "x".into(),
        ..StageSpec::new(name, "workers", name)
    };
    let route = |path: &str, stages: &[u16]| RouteSpec {
        path: path.into(),
        stages: stages.iter().copied().map(StageIndex).collect(),
    };
    let source = PythonSource {
        dir: "/srv".into(),
        ..Default::default()
    };
    let spec = PipelineSpec {
        routes: vec![route("/a", &[0]), route("/ab", &[0, 1]), route("/b", &[1])],
        timeout: BOUND,
        capacity,
        max_request_bytes: 1024,
        ..PipelineSpec::new(
            PipelineName::new("p").unwrap(),
            source,
            vec![stage("A"), stage("B")],
        )
    };
    let deployment = Deployment::new(Revision(revision), Arc::new(spec), Phase::Serving, Vec::new());
    Topology {
        version: 1,
        nodes: Vec::new(),
        deployments: vec![deployment],
    }
}

/// An agent that runs nothing by itself.
pub(super) struct Bench {
    pub(super) agent: Agent,
    pub(super) registry: Registry,
    pub(super) series: mosec_telemetry::Series,
    arena: Arena,
}

impl Bench {
    pub(super) fn new() -> Self {
        let shm = ShmConfig {
            backend: ShmBackend::Memfd,
            prefix: "mosec-agent-test".into(),
        };
        let arena = ArenaConfig {
            initial_bytes: 1 << 18,
            max_bytes: 1 << 18,
            shm,
        };
        let series = mosec_telemetry::Series::default();
        let registry = Registry::new(DispatchMetrics::new(&series).unwrap());
        let config = Config {
            arena: arena.clone(),
            ..Config::new(NodeId::new("here").unwrap())
        };
        let agent = Agent::build(config, registry.clone(), &series).unwrap();
        Self {
            agent,
            registry,
            series,
            arena: Arena::new(arena).unwrap(),
        }
    }

    /// The pool of a stage, as the first of its replicas makes it.
    pub(super) fn pool(&self, revision: u64, stage: u16) -> Arc<Pool> {
        self.pool_of(&topology(revision, 16), key(revision, stage))
    }

    pub(super) fn pool_of(&self, topology: &Topology, key: StageKey) -> Arc<Pool> {
        self.agent.replica(topology, key, ReplicaId(1)).unwrap().pool
    }

    /// A ready worker of `pool`.
    pub(super) fn worker(&self, pool: &Arc<Pool>) -> TestWorker {
        self.worker_through(pool, |end| end)
    }

    /// As [`Bench::worker`]; the worker has what `through` makes of its control socket.
    pub(super) fn worker_through(
        &self,
        pool: &Arc<Pool>,
        through: impl FnOnce(OwnedFd) -> OwnedFd,
    ) -> TestWorker {
        let (near, end) =
            AgentChannel::create(&self.arena, Generation(1), &ChannelConfig::default()).unwrap();
        near.hello("{}").unwrap();
        let (far, _) = WorkerChannel::attach(through(end), OnAgentLoss::Tell).unwrap();
        let worker = Arc::new(Worker::new(ReplicaId(1), near, pool.metrics.worker(ReplicaId(1))));
        pool.add(worker.clone());
        TestWorker {
            pool: pool.clone(),
            worker,
            far,
        }
    }

    /// The value of a gauge, zero where it is not there.
    pub(super) fn gauge(&self, name: &str, stage: &str) -> f64 {
        let families = self.series.registry().gather();
        let family = families.iter().find(|family| family.name() == name);
        let metrics = family.map(|family| family.get_metric()).unwrap_or_default();
        let metric = metrics
            .iter()
            .find(|metric| metric.get_label().iter().any(|label| label.value() == stage));
        metric.map_or(0.0, |metric| metric.get_gauge().get_value())
    }
}

/// Both ends of a worker's ring. What its process would do, the test does.
pub(super) struct TestWorker {
    pool: Arc<Pool>,
    pub(super) worker: Arc<Worker>,
    pub(super) far: WorkerChannel,
}

impl TestWorker {
    /// The next batch in the ring, if there is one.
    pub(super) fn take(&self) -> Option<Batch> {
        self.far.try_next().unwrap()
    }

    /// The payloads of the next batch.
    pub(super) fn take_texts(&self) -> Option<Vec<String>> {
        let texts = |batch: Batch| {
            batch
                .items
                .iter()
                .map(|item| String::from_utf8(item.to_vec()).unwrap())
                .collect()
        };
        self.take().map(texts)
    }

    /// Answers some items of a batch, and has the agent read it.
    pub(super) fn answer(&self, batch: &Batch, items: &[(u32, ErrorCode, &str)]) {
        self.respond(batch, items, true);
    }

    /// Sends an event of one item.
    pub(super) fn event(&self, batch: &Batch, item: u32, text: &str) {
        self.respond(batch, &[(item, ErrorCode::Ok, text)], false);
    }

    fn respond(&self, batch: &Batch, items: &[(u32, ErrorCode, &str)], last: bool) {
        self.write(batch, items, last);
        self.read();
    }

    /// Puts answers into the ring, for whoever reads it.
    pub(super) fn write(&self, batch: &Batch, items: &[(u32, ErrorCode, &str)], last: bool) {
        let answers: Vec<_> = items
            .iter()
            .map(|&(item, code, text)| Answer {
                item,
                code: code.to_wire(),
                last,
                payload: RingPayload::Bytes(text.as_bytes()),
            })
            .collect();
        self.far.respond(batch.id, &answers, 1_000_000).unwrap();
    }

    pub(super) fn read(&self) {
        let mut responses = Vec::new();
        self.worker.channel.poll_responses(&mut responses).unwrap();
        for response in responses {
            self.worker.on_response(&self.pool, response);
        }
    }

    /// What the supervisor holds while it is there.
    pub(super) fn supervised(&self) -> Supervised {
        Supervised::new(self.pool.clone(), self.worker.clone())
    }

    /// What the supervisor does when the process has ended.
    pub(super) fn die(&self) {
        self.supervised().bury();
        self.worker.channel.reclaim();
    }
}

/// The worker's next batch, which a task of the agent is about to put there.
pub(super) async fn take(worker: &TestWorker) -> Batch {
    within("batch", async {
        loop {
            if let Some(batch) = worker.take() {
                return batch;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

/// Whoever has custody of the batches that a test sends: keeps what is lost, and counts credits.
#[derive(Default)]
pub(super) struct Upstream {
    pub(super) lost: Mutex<Vec<(Loss, Vec<Request>)>>,
    pub(super) credits: Mutex<u32>,
}

impl Home for Upstream {
    fn lost(&self, requests: Vec<Request>, loss: Loss) {
        self.lost.lock().push((loss, requests));
    }
}

impl Upstream {
    /// Sends one batch with a request for each text; gives back where the answers come.
    pub(super) fn send(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        route: u16,
        texts: &[&str],
    ) -> Vec<oneshot::Receiver<Outcome>> {
        let bodies: Vec<_> = texts
            .iter()
            .map(|text| Bytes::copy_from_slice(text.as_bytes()))
            .collect();
        self.send_bytes(pool, route, bodies)
    }

    pub(super) fn send_bytes(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        route: u16,
        bodies: Vec<Bytes>,
    ) -> Vec<oneshot::Receiver<Outcome>> {
        let (requests, outcomes) = bodies.into_iter().map(|body| request(route, body)).unzip();
        self.send_requests(pool, requests);
        outcomes
    }

    pub(super) fn send_requests(self: &Arc<Self>, pool: &Arc<Pool>, requests: Vec<Request>) {
        *self.credits.lock() += 1;
        let this = self.clone();
        let credit = Credit::new(move || *this.credits.lock() -= 1);
        let home = self.clone();
        PoolTarget(pool.clone()).send(Dispatched {
            stage: pool.stage,
            requests,
            home,
            credit,
            collected: None,
        });
    }

    /// Why and how many, of each batch that came back.
    pub(super) fn losses(&self) -> Vec<(Loss, usize)> {
        self.lost
            .lock()
            .iter()
            .map(|(loss, requests)| (*loss, requests.len()))
            .collect()
    }

    pub(super) fn credits(&self) -> u32 {
        *self.credits.lock()
    }
}

pub(super) fn request(route: u16, body: Bytes) -> (Request, oneshot::Receiver<Outcome>) {
    let (reply, outcome) = oneshot::channel();
    (request_of(route, body, reply), outcome)
}

pub(super) fn request_of(route: u16, body: Bytes, reply: impl Respond + 'static) -> Request {
    Request {
        id: RequestId(1),
        route: RouteIndex(route),
        deadline: Instant::now() + BOUND,
        arrived: Instant::now(),
        headers: Bytes::new(),
        payload: Payload::Bytes(body),
        losses: 0,
        traced: false,
        spans: Vec::new(),
        stream: Stream::new(BOUND),
        reply: Reply::new(reply),
    }
}

/// What has been answered by now.
pub(super) fn answered(outcome: &mut oneshot::Receiver<Outcome>) -> Option<(ErrorCode, String)> {
    let outcome = outcome.try_recv().ok()?;
    Some((
        outcome.code,
        String::from_utf8(outcome.payload.to_bytes().to_vec()).unwrap(),
    ))
}
