//! Carries the plan out: pools, supervisors, dispatchers and links follow the topology.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use mosec_dispatch::Links;
use mosec_types::resources::WHOLE_GPU;
use mosec_types::{ReplicaId, StageKey, Topology};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::plan::{self, Slot};
use crate::agent::Agent;
use crate::workers::{Ending, supervise};

/// The replicas that run here.
struct Replicas {
    agent: Agent,
    running: HashMap<Slot, Running>,
    tasks: JoinSet<Slot>,
    evict: CancellationToken,
}

/// A replica's supervisor.
struct Running {
    ending: Ending,
    task: tokio::task::Id,
    /// What it takes of the node's GPUs until it has ended.
    gpus: GpuShares,
}

/// Hundredths of GPUs, by their numbers.
type GpuShares = Vec<(u32, u32)>;

/// Follows the topology until `stop`, then drains every replica. `evict` ends them at once.
///
/// `links`: to the nodes that run later stages; absent where every stage is here.
pub(crate) async fn follow(
    agent: Agent,
    mut topology: watch::Receiver<Arc<Topology>>,
    mut links: Option<Links>,
    stop: CancellationToken,
    evict: CancellationToken,
) {
    let mut replicas = Replicas {
        agent,
        running: HashMap::new(),
        tasks: JoinSet::new(),
        evict,
    };
    let mut followed = true;
    loop {
        let now = topology.borrow_and_update().clone();
        replicas.apply(&now);
        if let Some(links) = &mut links {
            let running = replicas.running.keys().map(|(key, _)| key.revision).collect();
            links.set_nodes(plan::peers(&now, &replicas.agent.config().node, &running));
        }
        tokio::select! {
            changed = topology.changed(), if followed => followed = changed.is_ok(),
            Some(ended) = replicas.tasks.join_next() => replicas.forget(ended),
            () = stop.cancelled() => break,
        }
    }
    for running in replicas.running.values() {
        running.ending.stop.cancel();
    }
    while let Some(ended) = replicas.tasks.join_next().await {
        replicas.forget(ended);
    }
}

impl Replicas {
    fn apply(&mut self, topology: &Topology) {
        for key in plan::later_stages(topology) {
            self.agent.ensure_dispatcher(topology, key);
        }
        self.agent.registry().retire(|key| {
            let deployment = topology.deployment(key.revision);
            // A revision's earlier stages still finish what they have here.
            let finishing = || {
                self.running
                    .keys()
                    .any(|(running, _)| running.revision == key.revision)
            };
            deployment.is_some_and(|deployment| !deployment.is_over()) || finishing()
        });
        let observed: BTreeSet<Slot> = self.running.keys().copied().collect();
        let plan = plan::plan(topology, &self.agent.config().node, &observed);
        for slot in plan.stop {
            // The entry goes when the supervisor has ended; until then the replica still counts as here.
            if let Some(running) = self.running.get(&slot) {
                if self.is_relieved(topology, slot) {
                    running.ending.relieved.cancel();
                }
                running.ending.stop.cancel();
            }
        }
        for (key, replica) in plan.start {
            self.start(topology, key, replica);
        }
    }

    fn start(&mut self, topology: &Topology, key: StageKey, id: ReplicaId) {
        let gpus = self.gpus_of(topology, key, id);
        if !self.are_free(&gpus) {
            // Whoever has them is leaving; the next round comes when it has left.
            tracing::debug!(stage = %key, replica = %id, "its GPUs are not free yet");
            return;
        }
        let Some(replica) = self.agent.replica(topology, key, id) else {
            tracing::error!(stage = %key, replica = %id, "topology places a replica of a stage it does not have");
            return;
        };
        let ending = Ending {
            evict: self.evict.clone(),
            ..Default::default()
        };
        let told = ending.clone();
        let task = self.tasks.spawn(async move {
            supervise(replica, told).await;
            (key, id)
        });
        self.running.insert(
            (key, id),
            Running {
                ending,
                task: task.id(),
                gpus,
            },
        );
    }

    /// Whether other replicas of the stage are there to take what comes.
    fn is_relieved(&self, topology: &Topology, (key, id): Slot) -> bool {
        let deployment = topology.deployment(key.revision);
        let node = &self.agent.config().node;
        deployment.is_some_and(|deployment| deployment.has_others(key.stage, id, node))
    }

    fn gpus_of(&self, topology: &Topology, key: StageKey, id: ReplicaId) -> GpuShares {
        let node = &self.agent.config().node;
        let find = || {
            let deployment = topology.deployment(key.revision)?;
            let share = deployment.spec.stage(key.stage)?.needs.gpus.min(WHOLE_GPU);
            let placement = deployment.placement(key.stage, id, node)?;
            Some(placement.gpus.iter().map(|&gpu| (gpu, share)).collect())
        };
        find().unwrap_or_default()
    }

    /// Whether a replica that takes these shares finds them: replicas that are leaving have theirs until the end.
    fn are_free(&self, wanted: &GpuShares) -> bool {
        wanted.iter().all(|&(gpu, share)| {
            let taken = self.running.values().flat_map(|running| &running.gpus);
            let taken: u32 = taken
                .filter(|(other, _)| *other == gpu)
                .map(|(_, share)| share)
                .sum();
            taken + share <= WHOLE_GPU
        })
    }

    fn forget(&mut self, ended: Result<Slot, tokio::task::JoinError>) {
        match ended {
            Ok(slot) => {
                self.running.remove(&slot);
                if !self.running.keys().any(|(key, _)| *key == slot.0) {
                    self.agent.remove_pool(slot.0);
                }
            }
            Err(error) => {
                // A bug of ours. What it ran has ended with it; the next round starts the replica afresh.
                tracing::error!(%error, "a supervisor failed");
                self.running.retain(|_, running| running.task != error.id());
            }
        }
    }
}
