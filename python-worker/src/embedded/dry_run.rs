//! A service without a port: its real workers, and requests that the dry run makes itself.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use mosec_dispatch::{Payload, Reply, Request, StageConfig, Stream};
use mosec_telemetry::ServiceSeries;
use mosec_types::{PipelineSpec, RequestId, RouteIndex, StageIndex, StageKey};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::node::{End, LocalNode, REVISION};
use super::{build_runtime, read_config};

/// How often the interpreter looks for a ^C while the workers work.
const SIGNAL_CHECK: Duration = Duration::from_millis(100);
/// The gateway's grace has no meaning here: every stage has been ready, and a worker that is lost is not waited for.
const REPLICA_GRACE: Duration = Duration::from_secs(5);

/// The service of a dry run.
#[pyclass(module = "mosec._native")]
pub(crate) struct DryRun(Option<Running>);

struct Running {
    runtime: Runtime,
    service: Service,
}

struct Service {
    node: LocalNode,
    spec: PipelineSpec,
}

/// The number of an `ErrorCode`, and the answer or the error's text.
type PyOutcome<'py> = (u16, Bound<'py, PyBytes>);

#[pymethods]
impl DryRun {
    /// Starts the service that `config` describes, and waits until every stage is ready.
    #[new]
    fn new(py: Python<'_>, config: &str) -> PyResult<Self> {
        let mut running = py.detach(|| Running::start(config)).map_err(runtime_error)?;
        let ready = wait(py, &running.runtime, running.service.node.all_ready(1));
        let mut this = Self(Some(running));
        if ready.is_err() {
            this.stop(py)?;
        }
        ready.map(|()| this)
    }

    /// Sends requests to a route, all at once, and waits for their answers, in order.
    fn send<'py>(
        &self,
        py: Python<'py>,
        route: u16,
        payloads: Vec<Vec<u8>>,
    ) -> PyResult<Vec<PyOutcome<'py>>> {
        let Some(Running { runtime, service }) = &self.0 else {
            return Err(PyRuntimeError::new_err("the dry run has been stopped"));
        };
        let outcomes = wait(py, runtime, service.send(RouteIndex(route), payloads))?;
        let to_python = |(code, payload): (u16, Bytes)| (code, PyBytes::new(py, &payload));
        Ok(outcomes.into_iter().map(to_python).collect())
    }

    /// The process of each stage's first worker; `None` where there is none just now.
    fn pids(&self) -> Vec<Option<u32>> {
        self.0
            .as_ref()
            .map_or_else(Vec::new, |running| running.service.pids())
    }

    /// Lets the workers leave. A second call does nothing.
    fn stop(&mut self, py: Python<'_>) -> PyResult<()> {
        let Some(Running { runtime, service }) = self.0.take() else {
            return Ok(());
        };
        py.detach(|| {
            let ended = runtime.block_on(service.node.end(End::Drain));
            runtime.shutdown_timeout(Duration::from_secs(1));
            ended
        })
        .map_err(runtime_error)
    }
}

/// Does `work` outside of the interpreter, which keeps an eye on signals meanwhile.
fn wait<T: Send>(
    py: Python<'_>,
    runtime: &Runtime,
    work: impl Future<Output = anyhow::Result<T>> + Send,
) -> PyResult<T> {
    let mut work = std::pin::pin!(work);
    loop {
        let slice = async { tokio::time::timeout(SIGNAL_CHECK, work.as_mut()).await };
        if let Ok(done) = py.detach(|| runtime.block_on(slice)) {
            return done.map_err(runtime_error);
        }
        py.check_signals()?;
    }
}

impl Running {
    fn start(config: &str) -> anyhow::Result<Self> {
        let spec = read_config(config)?.spec;
        let runtime = build_runtime()?;
        let node = runtime.block_on(async { LocalNode::start(spec.clone(), ServiceSeries::default()) })?;
        Ok(Self {
            runtime,
            service: Service { node, spec },
        })
    }
}

impl Service {
    async fn send(&self, route: RouteIndex, payloads: Vec<Vec<u8>>) -> anyhow::Result<Vec<(u16, Bytes)>> {
        let first = self.spec.route(route).and_then(|route| route.first());
        let key = key(first.with_context(|| format!("there is no route {}", route.0))?);
        let config =
            StageConfig::of(&self.spec, key, REPLICA_GRACE).context("the route has no such stage")?;
        let dispatcher = self.node.registry.ensure(config);
        let deadline = Instant::now() + self.spec.timeout;
        let mut answers = Vec::new();
        for (id, payload) in (1u64..).zip(payloads) {
            let (reply, answer) = oneshot::channel();
            answers.push(answer);
            dispatcher.submit(Request {
                id: RequestId(id),
                route,
                deadline,
                arrived: Instant::now(),
                headers: Bytes::new(),
                payload: Payload::Bytes(payload.into()),
                losses: 0,
                traced: false,
                spans: Vec::new(),
                stream: Stream::new(self.spec.timeout),
                reply: Reply::new(reply),
            });
        }
        let mut outcomes = Vec::new();
        for answer in answers {
            let outcome = answer.await.context("a request was dropped")?;
            outcomes.push((outcome.code as u16, outcome.payload.to_bytes()));
        }
        Ok(outcomes)
    }

    fn pids(&self) -> Vec<Option<u32>> {
        let workers = self.node.workers.borrow();
        let pid_of = |stage| workers.iter().find(|worker| worker.stage == key(stage))?.pid;
        let stages = 0..u16::try_from(self.spec.stages.len()).unwrap_or(u16::MAX);
        stages.map(|stage| pid_of(StageIndex(stage))).collect()
    }
}

fn key(stage: StageIndex) -> StageKey {
    StageKey {
        revision: REVISION,
        stage,
    }
}

fn runtime_error(error: anyhow::Error) -> PyErr {
    PyRuntimeError::new_err(format!("{error:#}"))
}
