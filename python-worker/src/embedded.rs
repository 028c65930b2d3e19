//! `python server.py`: gateway and agent in one process over a fixed topology, without QUIC and Raft.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mosec_dispatch::{DispatchMetrics, Registry};
use mosec_gateway::{Gateway, Port};
use mosec_node_agent::Agent;
use mosec_telemetry::{LogFormat, init_logging};
use mosec_types::topology::{Deployment, Node, NodeHealth, Phase, Placement};
use mosec_types::{
    Incarnation, NodeId, PipelineSpec, ReplicaId, Revision, StageIndex, Topology, WorkerState, WorkerStatus,
};
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

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
}

/// Runs the server until a signal; the process's exit code.
pub(crate) fn serve(config: &str) -> anyhow::Result<i32> {
    let parsed: serde_json::Result<ServeConfig> = serde_json::from_str(config);
    let level = parsed
        .as_ref()
        .map_or("info", |config| config.gateway.log_level.as_str());
    init_logging(level, LogFormat::Json);
    let config = parsed.context("the server's configuration is not valid")?;
    config.spec.validate()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(worker_threads())
        .thread_name("mosec")
        .enable_all()
        .build()?;
    let result = runtime.block_on(run(config));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// The web side of one machine needs little: the workers are to have the cores.
fn worker_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2).min(4))
}

async fn run(config: ServeConfig) -> anyhow::Result<i32> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let signalled = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::pin!(signalled);

    // Mistakes in the address are told before models are loaded. The port opens when everything is ready.
    let port = Port::take(&config.gateway.address, config.gateway.port).await?;
    let series = prometheus::Registry::new();
    let registry = Registry::new(DispatchMetrics::new(&series)?);
    let node = NodeId::new("local")?;
    let mut agent_config = mosec_node_agent::Config::new(node.clone());
    agent_config.quiet = Duration::ZERO;
    agent_config.drain_timeout = config.spec.timeout;
    let agent = Agent::build(agent_config, registry.clone(), &series)?;
    let stages = config.spec.stages.len();
    let topology = watch::channel(Arc::new(static_topology(config.spec.clone(), node)));

    let (stop_agent, evict) = (CancellationToken::new(), CancellationToken::new());
    let workers = agent.workers();
    let agent = tokio::spawn(agent.run(topology.1.clone(), None, stop_agent.clone(), evict.clone()));

    let end = tokio::select! {
        ready = all_ready(workers, stages) => match ready {
            Ok(()) => {
                let stop = CancellationToken::new();
                let gateway = Gateway::open(port, gateway_config(&config), registry, series)?;
                tracing::info!(address = %gateway.local_addr()?, "http service is running");
                let gateway = tokio::spawn(gateway.run(topology.1.clone(), None, stop.clone()));
                signalled.as_mut().await;
                stop.cancel();
                gateway.await.context("the gateway failed")?.map(|()| 0)
            }
            Err(error) => Err(error),
        },
        () = &mut signalled => Ok(0),
    };
    match end {
        Ok(_) => stop_agent.cancel(),
        Err(_) => evict.cancel(),
    }
    stop_agent.cancel();
    agent.await.context("the node agent failed")?;
    tracing::info!("mosec cleanup completed");
    end
}

/// Waits until every stage has a ready worker.
///
/// Errors: a replica cannot start; with what its process said.
async fn all_ready(mut workers: watch::Receiver<Vec<WorkerStatus>>, stages: usize) -> anyhow::Result<()> {
    loop {
        {
            let now = workers.borrow_and_update();
            if let Some(failed) = now
                .iter()
                .find(|worker| worker.failed_starts >= MAX_FAILED_STARTS)
            {
                let error = failed.last_error.as_deref().unwrap_or("no reason known");
                anyhow::bail!("stage {} cannot start: {error}", failed.stage.stage.0 + 1);
            }
            let is_ready = |stage: usize| {
                now.iter().any(|worker| {
                    usize::from(worker.stage.stage.0) == stage && worker.state == WorkerState::Ready
                })
            };
            if (0..stages).all(is_ready) {
                return Ok(());
            }
        }
        workers.changed().await.context("the node agent ended")?;
    }
}

fn gateway_config(config: &ServeConfig) -> mosec_gateway::Config {
    mosec_gateway::Config {
        address: config.gateway.address.clone(),
        port: config.gateway.port,
        namespace: config.gateway.namespace.clone(),
        // MOSEC's: the service's timeout is also the drain's limit.
        drain_timeout: config.spec.timeout,
        ..Default::default()
    }
}

/// A topology with everything on one node, serving from the start.
fn static_topology(spec: PipelineSpec, node: NodeId) -> Topology {
    let mut placements = Vec::new();
    for (index, stage) in (0u16..).zip(&spec.stages) {
        placements.extend((1..=stage.replicas).map(|replica| Placement {
            stage: StageIndex(index),
            replica: ReplicaId(replica),
            node: node.clone(),
        }));
    }
    let here = Node {
        id: node,
        incarnation: Incarnation(1),
        address: String::new(),
        health: NodeHealth::Up,
        labels: Default::default(),
    };
    let deployment = Deployment {
        revision: Revision(1),
        spec: Arc::new(spec),
        phase: Phase::Serving,
        placements,
    };
    Topology {
        version: 1,
        nodes: vec![here],
        deployments: vec![deployment],
    }
}
