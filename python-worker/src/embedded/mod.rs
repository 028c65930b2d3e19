//! `python server.py`: gateway and agent in one process over a fixed topology, without QUIC and Raft.

mod dry_run;
mod node;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use mosec_gateway::{Gateway, Port};
use mosec_telemetry::{LogFormat, ServiceSeries, init_logging};
use mosec_types::PipelineSpec;
use pyo3::prelude::*;
use serde::Deserialize;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub(crate) use self::dry_run::DryRun;
use self::node::{End, LocalNode};

/// Failed starts in a row of one replica after which a server that has never been ready gives up.
const MAX_FAILED_STARTS: u32 = 3;

/// What `Server.run` hands over.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServeConfig {
    spec: PipelineSpec,
    gateway: GatewayOptions,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GatewayOptions {
    address: String,
    port: u16,
    namespace: String,
    log_level: String,
    #[serde(default)]
    compression: bool,
}

impl ServeConfig {
    fn series(&self) -> ServiceSeries {
        ServiceSeries {
            namespace: self.gateway.namespace.clone(),
            timeout: Some(self.spec.timeout),
        }
    }
}

/// Ends a running server for a reason of Python's.
#[pyclass(frozen, module = "mosec._native")]
#[derive(Default)]
pub(crate) struct Stop(Arc<Ending>);

/// Why the server is to end, as Python says it.
#[derive(Default)]
pub(crate) struct Ending {
    token: CancellationToken,
    why: OnceLock<Why>,
}

#[derive(Debug, Clone)]
enum Why {
    /// As it should.
    Signal(i32),
    Failure(String),
}

#[pymethods]
impl Stop {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Makes the server answer what it has and end with an error. Only the first reason counts.
    pub(crate) fn fail(&self, reason: String) {
        self.0.end(Why::Failure(reason));
    }

    /// Makes the server answer what it has and end as it should, because of a signal.
    fn signal(&self, number: i32) {
        self.0.end(Why::Signal(number));
    }
}

impl Stop {
    pub(crate) fn ending(&self) -> Arc<Ending> {
        self.0.clone()
    }
}

impl Ending {
    fn end(&self, why: Why) {
        // A second reason adds nothing: the server is ending.
        let _ = self.why.set(why);
        self.token.cancel();
    }

    async fn why(&self) -> Option<Why> {
        self.token.cancelled().await;
        self.why.get().cloned()
    }
}

/// Runs the server until a signal or `stop`; errors say why it did not end as it was told to.
pub(crate) fn serve(config: &str, stop: &Ending) -> anyhow::Result<()> {
    let config = read_config(config)?;
    let runtime = build_runtime()?;
    let result = runtime.block_on(run(config, stop));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Reads the configuration and sets up logging, so that whatever fails next is seen.
fn read_config(config: &str) -> anyhow::Result<ServeConfig> {
    let parsed: serde_json::Result<ServeConfig> = serde_json::from_str(config);
    let level = parsed
        .as_ref()
        .map_or("info", |config| config.gateway.log_level.as_str());
    let format = match level {
        "debug" => LogFormat::Lines,
        _ => LogFormat::Json,
    };
    init_logging(level, format);
    let config = parsed.context("the server's configuration is not valid")?;
    config.spec.validate()?;
    Ok(config)
}

fn build_runtime() -> std::io::Result<Runtime> {
    // The web side of one machine needs little: the workers are to have the cores.
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2).min(4));
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("mosec")
        .enable_all()
        .build()
}

async fn run(config: ServeConfig, stop: &Ending) -> anyhow::Result<()> {
    let ended = until_ended(stop)?;
    // Mistakes in the address are told before models are loaded. The port opens when everything is ready.
    let port = Port::take(&config.gateway.address, config.gateway.port).await?;
    let mut node = LocalNode::start(config.spec.clone(), config.series())?;
    let result = serve_until(&config, port, &mut node, ended).await;
    let end = match result {
        Ok(()) => End::Drain,
        Err(_) => End::Evict,
    };
    node.end(end).await?;
    if result.is_ok() {
        tracing::info!(target: "mosec", "mosec service halted normally [0]");
    }
    tracing::info!(target: "mosec", "mosec cleanup completed");
    result
}

/// Opens the port when every stage is ready, and serves until `ended`.
async fn serve_until(
    config: &ServeConfig,
    port: Port,
    node: &mut LocalNode,
    ended: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    tokio::pin!(ended);
    tokio::select! {
        ready = node.all_ready(MAX_FAILED_STARTS) => ready?,
        why = ended.as_mut() => return why,
    }
    let (registry, series) = (node.registry.clone(), node.series.clone());
    let gateway = Gateway::open(port, gateway_config(config), registry, series)?;
    tracing::info!(target: "mosec", addr = %gateway.local_addr()?, "http service is running");
    let stop = CancellationToken::new();
    let mut gateway = tokio::spawn(gateway.run(node.topology(), None, stop.clone()));
    let why = tokio::select! {
        why = ended => why,
        ended = &mut gateway => return ended.context("the gateway failed")?,
    };
    stop.cancel();
    gateway.await.context("the gateway failed")??;
    why
}

/// Waits for SIGTERM or SIGINT, which end the server as it should, or for Python's reason, which is an error.
///
/// Signals are taken from the call on; a second one changes nothing.
fn until_ended(stop: &Ending) -> std::io::Result<impl Future<Output = anyhow::Result<()>>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        let number = tokio::select! {
            _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
            _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
            why = stop.why() => match why {
                Some(Why::Signal(number)) => number,
                why => {
                    let reason = match why {
                        Some(Why::Failure(reason)) => reason,
                        _ => String::new(),
                    };
                    tracing::error!(target: "mosec", "terminating server [{reason}]");
                    anyhow::bail!("{reason}");
                }
            },
        };
        tracing::info!(target: "mosec", "received signum[{number}], terminating server");
        Ok(())
    })
}

fn gateway_config(config: &ServeConfig) -> mosec_gateway::Config {
    mosec_gateway::Config {
        address: config.gateway.address.clone(),
        port: config.gateway.port,
        series: config.series(),
        compression: config.gateway.compression,
        // MOSEC's: the service's timeout is also the drain's limit.
        drain_timeout: config.spec.timeout,
        ..Default::default()
    }
}
