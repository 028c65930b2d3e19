//! What the parts of a node agent share.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use mosec_dispatch::custody::Rules;
use mosec_dispatch::{Links, Registry, StageConfig, Target, TargetId};
use mosec_shm_ring::{Arena, SegmentError};
use mosec_telemetry::whole;
use mosec_types::topology::Deployment;
use mosec_types::{ReplicaId, StageKey, Topology, WorkerStatus};
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::code::{self, Code};
use crate::config::Config;
use crate::deliver::Deliver;
use crate::gpus::{self, GpuMetrics};
use crate::metrics::AgentMetrics;
use crate::output::Output;
use crate::pool::{Pool, PoolTarget};
use crate::reconcile;
use crate::status::StatusBoard;
use crate::windows::{self, Place, Upstream, Windows};
use crate::workers::{Cgroups, Replica};

/// How often gauges that are read and not counted are brought up to date.
pub(crate) const OBSERVE: Duration = Duration::from_secs(1);

/// A node agent. Clones share it.
#[derive(Clone)]
pub struct Agent(Arc<Inner>);

struct Inner {
    config: Config,
    arena: Arena,
    registry: Registry,
    windows: Windows,
    board: StatusBoard,
    cgroups: Cgroups,
    metrics: AgentMetrics,
    gpus: GpuMetrics,
    code: Option<Code>,
    output: Option<Output>,
    pools: RwLock<HashMap<StageKey, Arc<Pool>>>,
}

/// Why an agent could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    #[error("shared memory could not be made")]
    Arena(#[from] SegmentError),
    #[error("metrics could not be registered")]
    Metrics(#[from] prometheus::Error),
}

impl Agent {
    /// Makes an agent without workers, which runs what lies on this host.
    ///
    /// `registry`: dispatchers of this process. The agent's stages are targets there, whoever else's are too.
    pub fn build(
        config: Config,
        registry: Registry,
        series: &mosec_telemetry::Series,
    ) -> Result<Self, BuildError> {
        Self::build_with(config, registry, series, None)
    }

    /// As [`Agent::build`], with code that travels: `code` gets it ready.
    pub(crate) fn build_with(
        config: Config,
        registry: Registry,
        series: &mosec_telemetry::Series,
        code: Option<Code>,
    ) -> Result<Self, BuildError> {
        let arena = Arena::new(config.arena.clone())?;
        let metrics = AgentMetrics::new(series, &config)?;
        let gpus = GpuMetrics::new(series)?;
        let output = config.output.map(Output::new);
        Ok(Self(Arc::new(Inner {
            config,
            arena,
            registry,
            windows: Windows::new(),
            board: StatusBoard::new(),
            cgroups: Cgroups::default(),
            metrics,
            gpus,
            code,
            output,
            pools: RwLock::default(),
        })))
    }

    /// Runs what `topology` places on this node until `stop`, then drains. `evict` ends all workers at once.
    pub async fn run(
        self,
        topology: watch::Receiver<Arc<Topology>>,
        links: Option<Links>,
        stop: CancellationToken,
        evict: CancellationToken,
    ) {
        let announcing = tokio::spawn(self.clone().announce_here());
        let observing = tokio::spawn(self.clone().keep_observing());
        let _watching = gpus::watch(&self.config().devices, self.0.gpus.clone());
        let code = self.0.code.clone();
        let (node, python) = (self.config().node.clone(), self.config().python.clone());
        let looking_after = code.map(|code| {
            tokio::spawn(code::follow::follow(
                code,
                node,
                python,
                topology.clone(),
                stop.clone(),
            ))
        });
        reconcile::follow(self.clone(), topology, links, stop, evict).await;
        announcing.abort();
        observing.abort();
        if let Some(looking_after) = looking_after {
            // It ends with `stop`; what it may be removing just then is finished.
            let _ = looking_after.await;
        }
    }

    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// The states of the workers, as they change.
    pub fn workers(&self) -> watch::Receiver<Vec<WorkerStatus>> {
        self.0.board.subscribe()
    }

    /// What the workers wrote; absent where nothing is kept.
    pub(crate) fn output(&self) -> Option<&Output> {
        self.0.output.as_ref()
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.0.registry
    }

    pub(crate) fn windows(&self) -> &Windows {
        &self.0.windows
    }

    pub(crate) fn pool(&self, key: StageKey) -> Option<Arc<Pool>> {
        self.0.pools.read().get(&key).cloned()
    }

    /// Tells the dispatchers of this process what its own workers grant.
    async fn announce_here(self) {
        let mut granted = self.windows().subscribe();
        let mut told = Default::default();
        let mut targets: HashMap<StageKey, (TargetId, Arc<dyn Target>)> = HashMap::new();
        loop {
            let shares = granted.borrow_and_update().shares(Upstream::Local);
            for (key, window) in windows::changes(&told, &shares) {
                if let Some(pool) = self.pool(key) {
                    let target: Arc<dyn Target> = Arc::new(PoolTarget(pool));
                    targets
                        .entry(key)
                        .or_insert((TargetId(format!("{}/{key}", self.config().node)), target));
                }
                let Some((id, target)) = targets.get(&key) else {
                    continue;
                };
                self.registry().set_window(key, id, target, window);
                if !shares.contains_key(&key) {
                    self.registry().remove_target(id);
                    targets.remove(&key);
                }
            }
            told = shares;
            if granted.changed().await.is_err() {
                return;
            }
        }
    }

    /// Makes the dispatcher of a later stage.
    pub(crate) fn ensure_dispatcher(&self, topology: &Topology, key: StageKey) {
        let Some(deployment) = topology.deployment(key.revision) else {
            return;
        };
        if let Some(stage) = StageConfig::of(&deployment.spec, key, self.config().replica_grace) {
            self.registry().ensure(stage);
        }
    }

    /// What the supervisor of a replica needs; makes its stage's pool if it is the first here.
    pub(crate) fn replica(&self, topology: &Topology, key: StageKey, id: ReplicaId) -> Option<Replica> {
        let deployment = topology.deployment(key.revision)?;
        let stage = deployment.spec.stage(key.stage)?.clone();
        let rules = Rules::of(&deployment.spec, key.stage)?;
        let mut pools = self.0.pools.write();
        let pool = pools.entry(key).or_insert_with(|| {
            let deliver = Deliver::new(key, deployment.spec.clone(), self.0.registry.clone());
            let place = Place::of(&deployment.spec, key.stage);
            let pipeline = deployment.spec.name.as_str();
            let metrics = &self.0.metrics;
            let metrics = metrics.pool(pipeline, &stage.name, stage.max_batch_size > 1);
            Arc::new(Pool::new(
                key,
                rules,
                place,
                deliver,
                metrics,
                self.0.windows.clone(),
            ))
        });
        Some(Replica {
            id,
            stage,
            pool: pool.clone(),
            python: self.config().python.clone(),
            gpus: self.visible_gpus(deployment, key, id),
            code: self.0.code.clone(),
            output: self.0.output.clone(),
            arena: self.0.arena.clone(),
            board: self.0.board.clone(),
            cgroups: self.0.cgroups.clone(),
            drain_timeout: self.config().drain_timeout.max(deployment.spec.longest_request()),
            quiet: self.config().quiet,
        })
    }

    /// The GPUs that a replica was given here, in CUDA's words.
    fn visible_gpus(&self, deployment: &Deployment, key: StageKey, id: ReplicaId) -> Option<String> {
        let placement = deployment.placement(key.stage, id, &self.config().node)?;
        let name = |&number: &u32| {
            self.config()
                .devices
                .get(number as usize)
                .map(|device| device.id.as_str())
        };
        let names: Vec<_> = placement.gpus.iter().filter_map(name).collect();
        (!names.is_empty()).then(|| names.join(","))
    }

    pub(crate) fn remove_pool(&self, key: StageKey) {
        self.0.pools.write().remove(&key);
        self.0.windows.remove(key);
    }

    async fn keep_observing(self) {
        let mut tick = tokio::time::interval(OBSERVE);
        loop {
            tick.tick().await;
            self.observe();
        }
    }

    /// Brings the gauges that are read, not counted, up to date, and forgets old output and what GPUs did.
    fn observe(&self) {
        self.0.gpus.forget_old(Instant::now());
        let metrics = &self.0.metrics;
        if let Some(output) = &self.0.output {
            output.expire();
            metrics.output_bytes.set(whole(output.bytes()));
        }
        let stats = self.0.arena.stats();
        metrics.arena_used_bytes.set(whole(stats.used_bytes));
        metrics.arena_bytes.set(whole(stats.bytes));
    }
}
