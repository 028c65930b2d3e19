//! The gateway under test, its topology, and the target its batches go to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mosec_dispatch::{DispatchMetrics, Dispatched, Payload, Registry, Request, Target, TargetId, Window};
use mosec_gateway::{Config, Gateway};
use mosec_types::spec::PythonSource;
use mosec_types::topology::{Deployment, Phase};
use mosec_types::traffic::Counts;
use mosec_types::{
    ErrorCode, PipelineName, PipelineSpec, Revision, RouteSpec, StageIndex, StageKey, StageSpec, Topology,
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, Version, body};

/// Far more than anything here takes on a busy machine.
const BOUND: Duration = Duration::from_secs(20);

pub(crate) const ONE: Window = Window {
    replicas: 1,
    limit: 1,
};

/// Awaits `future`, for a bounded time.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(BOUND, future).await {
        Ok(value) => value,
        Err(_) => panic!("no {what} within {BOUND:?}"),
    }
}

/// Waits until `condition` holds: of what cannot be awaited, as it happens inside the gateway.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    within(what, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// One stage `Echo_1` behind `/inference`; the second route, `/text`, has stages of its own.
pub(crate) fn spec() -> PipelineSpec {
    let stage = |name: &str, mime: &str| StageSpec {
        max_wait: Duration::ZERO,
        timeout: BOUND,
        mime: mime.into(),
        ..StageSpec::new(name, "workers", "Echo")
    };
    let route = |path: &str, stages: &[u16]| RouteSpec {
        path: path.into(),
        stages: stages.iter().copied().map(StageIndex).collect(),
    };
    let source = PythonSource {
        dir: "/srv".into(),
        ..Default::default()
    };
    let stages = vec![
        stage("Echo_1", "application/json"),
        stage("Decode_2", "application/json"),
        stage("Write_3", "text/plain"),
    ];
    PipelineSpec {
        routes: vec![route("/inference", &[0]), route("/text", &[1, 2])],
        timeout: BOUND,
        max_request_bytes: 1024,
        ..PipelineSpec::new(PipelineName::new("echo").unwrap(), source, stages)
    }
}

pub(crate) fn key(revision: u64, stage: u16) -> StageKey {
    StageKey {
        revision: Revision(revision),
        stage: StageIndex(stage),
    }
}

pub(crate) fn deployment(revision: u64, spec: PipelineSpec, phase: Phase) -> Deployment {
    Deployment::new(Revision(revision), Arc::new(spec), phase, Vec::new())
}

pub(crate) fn topology(version: u64, deployments: Vec<Deployment>) -> Arc<Topology> {
    Arc::new(Topology {
        version,
        nodes: Vec::new(),
        deployments,
    })
}

/// Passes the batches it is sent on to the test.
struct Scripted(mpsc::UnboundedSender<Dispatched>);

impl Target for Scripted {
    fn send(&self, batch: Dispatched) {
        // A test that has seen enough does not take the rest; then they are answered by being dropped.
        let _ = self.0.send(batch);
    }
}

/// A running gateway. Ends with the test's runtime.
pub(crate) struct Bench {
    pub(crate) address: SocketAddr,
    pub(crate) stop: CancellationToken,
    pub(crate) topology: watch::Sender<Arc<Topology>>,
    pub(crate) running: JoinHandle<anyhow::Result<()>>,
    pub(crate) registry: Registry,
    /// What it would tell the control plane of each revision's requests.
    pub(crate) traffic: Box<dyn Fn() -> Vec<(Revision, Counts)> + Send + Sync>,
    target: Arc<dyn Target>,
    batches: Mutex<mpsc::UnboundedReceiver<Dispatched>>,
}

impl Bench {
    /// Serves `spec` as revision 1, with one replica of each first stage.
    pub(crate) async fn start(spec: PipelineSpec) -> Self {
        let config = Config {
            replica_grace: Duration::from_millis(50),
            ..Default::default()
        };
        let bench = Self::with_config(config, topology(1, vec![deployment(1, spec, Phase::Serving)])).await;
        bench.grant(key(1, 0), ONE);
        bench.grant(key(1, 1), ONE);
        bench
    }

    /// No replicas are ready.
    pub(crate) async fn with_config(config: Config, first: Arc<Topology>) -> Self {
        let config = Config {
            address: "127.0.0.1".into(),
            port: 0,
            ..config
        };
        let series = mosec_telemetry::Series::default();
        let registry = Registry::new(DispatchMetrics::new(&series).unwrap());
        let gateway = Gateway::bind(config, registry.clone(), series).await.unwrap();
        let address = gateway.local_addr().unwrap();
        let (topology, watched) = watch::channel(first);
        let traffic = Box::new(gateway.traffic());
        let stop = CancellationToken::new();
        let running = tokio::spawn(gateway.run(watched, None, stop.clone()));
        let (sender, batches) = mpsc::unbounded_channel();
        Self {
            address,
            stop,
            topology,
            running,
            registry,
            traffic,
            target: Arc::new(Scripted(sender)),
            batches: Mutex::new(batches),
        }
    }

    pub(crate) fn grant(&self, stage: StageKey, window: Window) {
        self.registry
            .set_window(stage, &TargetId("scripted".into()), &self.target, window);
    }

    pub(crate) async fn client(&self, version: Version) -> Client {
        Client::connect(self.address, version).await
    }

    /// POSTs on a connection of its own; gives back the answer when it is there.
    pub(crate) fn post(&self, version: Version, text: &'static str) -> JoinHandle<crate::client::Answer> {
        let address = self.address;
        tokio::spawn(async move {
            let mut client = Client::connect(address, version).await;
            client.request("POST", "/inference", body(text)).await
        })
    }

    /// The next batch the target was sent.
    pub(crate) async fn batch(&self) -> Dispatched {
        let next = std::future::poll_fn(|context| self.batches.lock().poll_recv(context));
        within("batch", next).await.expect("the target holds the sender")
    }

    /// Whether a batch is there already.
    pub(crate) fn has_batch(&self) -> bool {
        !self.batches.lock().is_empty()
    }

    /// The value of one series, zero where it is not there yet.
    pub(crate) async fn series(&self, name: &str) -> f64 {
        let metrics = self
            .client(Version::Http1)
            .await
            .request("GET", "/metrics", body(""))
            .await;
        let found = metrics
            .text()
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found.map_or(0.0, |value| value.parse().unwrap())
    }

    pub(crate) async fn in_flight(&self) -> f64 {
        self.series("mosec_service_remaining_task").await
    }
}

pub(crate) fn text_of(request: &Request) -> String {
    String::from_utf8(request.payload.to_bytes().to_vec()).unwrap()
}

/// The one request of a batch, and the credit that came with it.
pub(crate) fn only(batch: Dispatched) -> (Request, mosec_dispatch::Credit) {
    let Dispatched {
        mut requests, credit, ..
    } = batch;
    assert_eq!(requests.len(), 1);
    (requests.remove(0), credit)
}

pub(crate) fn answer(request: Request, code: ErrorCode, text: &str) {
    request.respond(code, Payload::Bytes(Bytes::copy_from_slice(text.as_bytes())));
}
