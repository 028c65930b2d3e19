//! Nodes and their workers: leases, rollouts, placement.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mosec_types::topology::NodeHealth::{Down, Suspect, Up};
use mosec_types::topology::Phase;
use mosec_types::{
    Incarnation, NodeId, ReplicaId, Revision, StageIndex, StageKey, Topology, WorkerState, WorkerStatus,
};
use mosec_wire::control::{Asked, ControlClient, HeartbeatError, Heartbeats, Registration};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::harness::{BEAT, Cluster, PATIENCE, Watch, pipeline};

/// A node's half of the protocol, without workers of its own.
pub(crate) struct Agent {
    workers: watch::Sender<Vec<WorkerStatus>>,
    /// What members ask it for.
    pub(crate) questions: mpsc::Receiver<Asked>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), HeartbeatError>>,
}

impl Agent {
    pub(crate) fn start(client: &ControlClient, name: &str, incarnation: u64) -> Self {
        let (workers, reported) = watch::channel(Vec::new());
        let stop = CancellationToken::new();
        let node = Registration {
            id: NodeId::new(name).unwrap(),
            incarnation: Incarnation(incarnation),
            address: format!("{name}:7443"),
            labels: BTreeMap::new(),
            capacity: Default::default(),
        };
        let (client, cancel) = (client.clone(), stop.clone());
        let (asked, questions) = mpsc::channel(4);
        let beats = Heartbeats {
            node,
            workers: reported,
            every: BEAT,
            unreachable: Arc::new(Vec::new),
            asked,
            acknowledged: watch::Sender::new(None),
        };
        let task = tokio::spawn(async move { client.run_heartbeats(beats, cancel).await });
        Self {
            workers,
            questions,
            stop,
            task,
        }
    }

    pub(crate) fn report(
        &self,
        revision: Revision,
        replica: u32,
        state: WorkerState,
        failure: Option<(u32, &str)>,
    ) {
        let status = WorkerStatus {
            stage: StageKey {
                revision,
                stage: StageIndex(0),
            },
            replica: ReplicaId(replica),
            state,
            pid: Some(4242),
            restarts: 0,
            failed_starts: failure.map_or(0, |(count, _)| count),
            last_error: failure.map(|(_, error)| error.to_owned()),
        };
        self.workers.send_modify(|workers| workers.push(status));
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_serves_when_ready_and_its_replicas_move_when_a_node_dies() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client(&[1, 2, 3]);
    let mut watch = Watch::start(&client, Topology::default());
    let (a, b) = (Agent::start(&client, "a", 1), Agent::start(&client, "b", 1));
    watch.until_node("a", |node| node.health == Up).await;
    watch
        .until_node("b", |node| node.health == Up && node.address == "b:7443")
        .await;

    let revision = client.deploy(&pipeline("p", 2), None).await.unwrap();
    let placed = watch
        .until_revision(revision, |deployment| deployment.placements.len() == 2)
        .await;
    assert_eq!(placed.nodes_of(StageIndex(0)).len(), 2, "spread over both");
    let of = |name: &str| placed.replicas_on(StageIndex(0), &NodeId::new(name).unwrap())[0].0;
    a.report(revision, of("a"), WorkerState::Ready, None);
    b.report(revision, of("b"), WorkerState::Starting, None);
    let status = client.status().await.unwrap();
    assert_eq!(
        status.deployments[0].deployment.as_ref().unwrap().phase,
        1,
        "still starting"
    );
    b.workers
        .send_modify(|workers| workers[0].state = WorkerState::Ready);
    watch
        .until_revision(revision, |deployment| deployment.phase == Phase::Serving)
        .await;
    let status = client.status().await.unwrap();
    assert!(
        status
            .nodes
            .iter()
            .all(|node| node.workers.len() == 1 && node.silent_ms.is_some()),
        "{status:?}"
    );

    b.stop().await;
    watch.until_node("b", |node| node.health == Suspect).await;
    let suspect = watch.topology.borrow().deployment(revision).cloned().unwrap();
    assert_eq!(
        suspect.placements, placed.placements,
        "a suspect node keeps its replicas"
    );
    watch.until_node("b", |node| node.health == Down).await;
    let only_a = |deployment: &mosec_types::topology::Deployment| {
        deployment.placements.len() == 2 && deployment.placements.iter().all(|p| p.node.as_str() == "a")
    };
    let moved = watch.until_revision(revision, only_a).await;
    assert_eq!(moved.phase, Phase::Serving);

    let b = Agent::start(&client, "b", 2);
    watch
        .until_node("b", |node| {
            node.health == Up && node.incarnation == Incarnation(2)
        })
        .await;
    b.stop().await;
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_revision_fails_with_its_traceback_and_the_old_one_serves_on() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(&[1]);
    let mut watch = Watch::start(&client, Topology::default());
    let agent = Agent::start(&client, "a", 1);
    let good = client.deploy(&pipeline("p", 1), None).await.unwrap();
    agent.report(good, 1, WorkerState::Ready, None);
    watch
        .until_revision(good, |deployment| deployment.phase == Phase::Serving)
        .await;

    let bad = client.deploy(&pipeline("p", 1), None).await.unwrap();
    let traceback = "Traceback (most recent call last):\nModuleNotFoundError: No module named 'torch'";
    agent.report(bad, 1, WorkerState::BackOff, Some((3, traceback)));
    let failed = watch
        .until_revision(bad, |deployment| !deployment.phase.runs())
        .await;
    let reason = format!("stage Echo_1 replica 1 on node a failed to start 3 times: {traceback}");
    assert_eq!(
        (failed.phase, failed.placements),
        (Phase::Failed { reason }, vec![])
    );
    assert_eq!(
        watch.topology.borrow().deployment(good).unwrap().phase,
        Phase::Serving
    );

    let slow = client
        .deploy(&pipeline("p", 1), Some(Duration::from_millis(300)))
        .await
        .unwrap();
    let late = watch
        .until_revision(slow, |deployment| !deployment.phase.runs())
        .await;
    let Phase::Failed { reason } = late.phase else {
        panic!("not failed")
    };
    assert_eq!(
        reason,
        "not healthy within 300ms: stage Echo_1 replica 1 on node a has no worker"
    );

    let better = client.deploy(&pipeline("p", 1), None).await.unwrap();
    agent.report(better, 1, WorkerState::Ready, None);
    watch
        .until_revision(better, |deployment| deployment.phase == Phase::Serving)
        .await;
    agent.workers.send_replace(Vec::new());
    watch
        .until("the replaced revision is gone", |topology| {
            topology.deployment(good).is_none()
        })
        .await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_leaders_costs_no_lease() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client(&[1, 2, 3]);
    let agent = Agent::start(&client, "a", 1);
    let mut watch = Watch::start(&client, Topology::default());
    let registered = watch.until_node("a", |node| node.health == Up).await;
    let leader = cluster.leader().await;
    cluster.stop(leader).await;
    // The new leader knows the node's silence only once it has heard of it.
    let heard = || async {
        let status = client.status().await.ok()?;
        status.nodes[0].silent_ms.filter(|_| status.leader != leader)
    };
    crate::harness::eventually("a heartbeat to the new leader", heard).await;
    assert_eq!(
        watch.topology.borrow().version,
        registered.version,
        "the node was never suspected"
    );
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_incarnation_gives_up() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(&[1]);
    let mut watch = Watch::start(&client, Topology::default());
    let older = Agent::start(&client, "a", 1);
    watch
        .until_node("a", |node| node.incarnation == Incarnation(1))
        .await;
    let newer = Agent::start(&client, "a", 2);
    let ended = tokio::time::timeout(PATIENCE, older.task).await.unwrap().unwrap();
    assert!(matches!(ended, Err(HeartbeatError::Replaced(_))), "{ended:?}");
    let late = Agent::start(&client, "a", 1);
    let ended = tokio::time::timeout(PATIENCE, late.task).await.unwrap().unwrap();
    assert!(matches!(ended, Err(HeartbeatError::Replaced(_))), "{ended:?}");
    newer.stop().await;
}
