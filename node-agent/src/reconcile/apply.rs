//! Carries the plan out: pools, supervisors, dispatchers and links follow the topology.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use mosec_dispatch::Links;
use mosec_types::{StageKey, Topology};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::plan::{self, Slot};
use crate::agent::Agent;
use crate::workers::supervise;

/// The replicas that run here.
struct Replicas {
    agent: Agent,
    running: HashMap<Slot, Running>,
    tasks: JoinSet<Slot>,
    evict: CancellationToken,
}

/// A replica's supervisor.
struct Running {
    stop: CancellationToken,
    task: tokio::task::Id,
}

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
            links.set_nodes(plan::peers(&now, &replicas.agent.config().node));
        }
        tokio::select! {
            changed = topology.changed(), if followed => followed = changed.is_ok(),
            Some(ended) = replicas.tasks.join_next() => replicas.forget(ended),
            () = stop.cancelled() => break,
        }
    }
    for running in replicas.running.values() {
        running.stop.cancel();
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
            deployment.is_some_and(|deployment| deployment.phase.runs()) || finishing()
        });
        let observed: BTreeSet<Slot> = self.running.keys().copied().collect();
        let plan = plan::plan(topology, &self.agent.config().node, &observed);
        for slot in plan.stop {
            // The entry goes when the supervisor has ended; until then the replica still counts as here.
            if let Some(running) = self.running.get(&slot) {
                running.stop.cancel();
            }
        }
        for (key, replica) in plan.start {
            self.start(topology, key, replica);
        }
    }

    fn start(&mut self, topology: &Topology, key: StageKey, id: mosec_types::ReplicaId) {
        let Some(replica) = self.agent.replica(topology, key, id) else {
            tracing::error!(stage = %key, replica = %id, "topology places a replica of a stage it does not have");
            return;
        };
        let stop = CancellationToken::new();
        let evict = self.evict.clone();
        let stopped = stop.clone();
        let task = self.tasks.spawn(async move {
            supervise(replica, stopped, evict).await;
            (key, id)
        });
        self.running.insert(
            (key, id),
            Running {
                stop,
                task: task.id(),
            },
        );
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
