//! A node of real members without processes of its own: what is placed on it is ready at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mosec_types::{Incarnation, NodeId, Topology, WorkerStatus};
use mosec_wire::control::{ControlClient, Heartbeats, Registration};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::processes::PATIENCE;
use crate::ready::all_ready;

pub struct Agent {
    tasks: TaskTracker,
    leave: CancellationToken,
}

impl Agent {
    /// Starts an agent, and waits until the members know its node.
    pub async fn start(client: ControlClient, name: &str) -> Self {
        let agent = Self {
            tasks: TaskTracker::new(),
            leave: CancellationToken::new(),
        };
        let id = NodeId::new(name).unwrap();
        let mut topology = client.watch_topology(Topology::default(), &agent.tasks, agent.leave.clone());
        let (workers, reported) = watch::channel(Vec::new());
        let beats = Heartbeats {
            node: Registration {
                id: id.clone(),
                incarnation: Incarnation(1),
                address: "host:7443".into(),
                labels: BTreeMap::new(),
                capacity: Default::default(),
            },
            workers: reported,
            every: Duration::from_secs(1),
            unreachable: Arc::new(Vec::new),
            asked: mpsc::channel(1).0,
            acknowledged: watch::Sender::new(None),
        };
        let leave = agent.leave.clone();
        agent
            .tasks
            .spawn(async move { client.run_heartbeats(beats, leave).await.unwrap() });
        let known = topology.wait_for(|topology| topology.node(&id).is_some());
        tokio::time::timeout(PATIENCE, known)
            .await
            .expect("the agent has registered")
            .unwrap();
        let leave = agent.leave.clone();
        agent.tasks.spawn(async move {
            tokio::select! {
                () = report(&id, topology, &workers) => {}
                () = leave.cancelled() => {}
            }
        });
        agent
    }

    pub async fn stop(self) {
        self.leave.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Reports what is placed on the node as ready, for as long as the topology is followed.
async fn report(
    id: &NodeId,
    mut topology: watch::Receiver<Arc<Topology>>,
    workers: &watch::Sender<Vec<WorkerStatus>>,
) {
    loop {
        let now = all_ready(&topology.borrow_and_update()).remove(id);
        workers.send_replace(now.unwrap_or_default());
        if topology.changed().await.is_err() {
            return;
        }
    }
}
