//! A node agent that runs all of a service's workers in this process, over a topology that never changes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mosec_dispatch::{DispatchMetrics, Registry};
use mosec_node_agent::Agent;
use mosec_telemetry::{ServiceSeries, register_process};
use mosec_types::topology::{Deployment, Node, NodeHealth, Phase, Placement};
use mosec_types::{
    Incarnation, NodeId, PipelineSpec, ReplicaId, Revision, StageIndex, Topology, WorkerState, WorkerStatus,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The only revision there is.
pub(super) const REVISION: Revision = Revision(1);

/// The running agent. End it with [`LocalNode::end`]: dropping it leaves its workers to the end of the process.
pub(super) struct LocalNode {
    pub(super) registry: Registry,
    pub(super) series: mosec_telemetry::Series,
    /// What the workers are doing, as it changes.
    pub(super) workers: watch::Receiver<Vec<WorkerStatus>>,
    /// Replicas of each stage.
    replicas: Vec<usize>,
    /// Kept open: the agent ends when nobody can send.
    topology: watch::Sender<Arc<Topology>>,
    stop: CancellationToken,
    evict: CancellationToken,
    agent: JoinHandle<()>,
}

/// How the workers are ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// They finish what they have.
    Drain,
    /// At once.
    Evict,
}

impl LocalNode {
    /// Starts the workers of a validated `spec`. Needs a tokio runtime.
    pub(super) fn start(spec: PipelineSpec, service: ServiceSeries) -> anyhow::Result<Self> {
        let series = mosec_telemetry::Series::default();
        register_process(&series, "server")?;
        let registry = Registry::new(DispatchMetrics::new(&series)?);
        let node = NodeId::new("local")?;
        let mut config = mosec_node_agent::Config::new(node.clone());
        config.series = service;
        config.quiet = Duration::ZERO;
        config.drain_timeout = spec.timeout;
        config.arena.max_bytes = config
            .arena
            .max_bytes
            .max(mosec_node_agent::host::memory_bytes() / 4);
        let agent = Agent::build(config, registry.clone(), &series)?;
        let replicas = spec.stages.iter().map(|stage| stage.replicas as usize).collect();
        let topology = watch::Sender::new(Arc::new(static_topology(spec, node)));
        let (stop, evict) = (CancellationToken::new(), CancellationToken::new());
        let workers = agent.workers();
        let agent = tokio::spawn(agent.run(topology.subscribe(), None, stop.clone(), evict.clone()));
        Ok(Self {
            registry,
            series,
            workers,
            replicas,
            topology,
            stop,
            evict,
            agent,
        })
    }

    pub(super) fn topology(&self) -> watch::Receiver<Arc<Topology>> {
        self.topology.subscribe()
    }

    /// Waits until every stage has a ready worker. Cancel safe.
    ///
    /// Errors: every replica of a stage has failed to start `max_failed_starts` times in a row; with what the last one's
    /// process said. One that may still start is waited for, as the stage can do without the others.
    pub(super) async fn all_ready(&mut self, max_failed_starts: u32) -> anyhow::Result<()> {
        loop {
            {
                let now = self.workers.borrow_and_update();
                let mut ready = 0;
                for (index, &replicas) in self.replicas.iter().enumerate() {
                    let of_stage = || {
                        now.iter()
                            .filter(|worker| usize::from(worker.stage.stage.0) == index)
                    };
                    ready += usize::from(of_stage().any(|worker| worker.state == WorkerState::Ready));
                    let failed: Vec<_> = of_stage()
                        .filter(|worker| worker.failed_starts >= max_failed_starts)
                        .collect();
                    if failed.len() == replicas {
                        let error = failed.last().and_then(|worker| worker.last_error.as_deref());
                        let error = error.unwrap_or("no reason known");
                        anyhow::bail!("stage {} cannot start: {error}", index + 1);
                    }
                }
                if ready == self.replicas.len() {
                    return Ok(());
                }
            }
            self.workers.changed().await.context("the node agent ended")?;
        }
    }

    /// Ends all workers and waits until they are gone.
    pub(super) async fn end(self, how: End) -> anyhow::Result<()> {
        if how == End::Evict {
            self.evict.cancel();
        }
        self.stop.cancel();
        self.agent.await.context("the node agent failed")
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
            gpus: Vec::new(),
        }));
    }
    let here = Node {
        id: node,
        incarnation: Incarnation(1),
        address: String::new(),
        health: NodeHealth::Up,
        labels: Default::default(),
        draining: false,
        capacity: Default::default(),
        build: None,
    };
    let deployment = Deployment::new(REVISION, Arc::new(spec), Phase::Serving, placements);
    Topology {
        version: 1,
        nodes: vec![here],
        deployments: vec![deployment],
    }
}
