//! A thousand agents with ten thousand replicas: what they cost the leader, and how soon a lost node's replicas have
//! their new places.
//!
//! The leader is a real process, and so are the connections: each agent has a lease and a watch of its own. What the
//! agents would run is made up. `make scale` runs it without debug assertions and writes `tests/scale/REPORT.md`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::TcpListener;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mosec_control_plane::LeaseTiming;
use mosec_control_plane::reconcile::lease::Leases;
use mosec_control_plane::reconcile::rollout::next_placement;
use mosec_control_plane::state::{Command as Change, Model, apply};
use mosec_types::spec::PythonSource;
use mosec_types::topology::{NodeHealth, Phase};
use mosec_types::{
    Incarnation, NodeId, PipelineName, PipelineSpec, RouteSpec, StageIndex, StageSpec, Topology, WorkerStatus,
};
use mosec_wire::control::proto::control_plane_client::ControlPlaneClient;
use mosec_wire::control::proto::topology_update::Change as Update;
use mosec_wire::control::{
    ClientConfig, ControlClient, Heartbeats, MAX_MESSAGE_BYTES, Registration, endpoint, proto,
};
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[path = "../sim/ready.rs"]
mod ready;

use ready::all_ready;

const AGENTS: usize = 1000;
const PIPELINES: usize = 100;
/// Of each pipeline, in two stages.
const REPLICAS: u32 = 100;
/// How long the quiet cluster is looked at.
const QUIET: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(300);

fn stage(name: &str, replicas: u32) -> StageSpec {
    StageSpec {
        replicas,
        ..StageSpec::new(name, "m", "C")
    }
}

fn pipeline(number: usize) -> PipelineSpec {
    let source = PythonSource {
        dir: "/srv".into(),
        ..Default::default()
    };
    let name = PipelineName::new(format!("p{number}")).unwrap();
    let stages = vec![stage("first", REPLICAS / 2), stage("last", REPLICAS / 2)];
    PipelineSpec {
        routes: vec![RouteSpec {
            path: format!("/p{number}"),
            stages: vec![StageIndex(0), StageIndex(1)],
        }],
        ..PipelineSpec::new(name, source, stages)
    }
}

fn name(number: usize) -> String {
    format!("node-{number:04}")
}

/// A member that is ended with the test.
struct Member {
    child: Child,
    address: String,
    _dir: tempfile::TempDir,
}

impl Member {
    fn start() -> Self {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = held.local_addr().unwrap().to_string();
        drop(held);
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_mosec-control-plane"))
            .args(["--cluster-id", "scale", "--insecure", "--log-level", "warning"])
            .args(["--node-grace", "1", "--listen", &address])
            .arg("--data-dir")
            .arg(dir.path())
            .spawn()
            .unwrap();
        Self {
            child,
            address,
            _dir: dir,
        }
    }

    /// Processor time it has used so far.
    fn used(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        // Linux counts hundredths of seconds here, whatever the kernel's own clock.
        Duration::from_millis(ticks * 10)
    }

    fn resident_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() / 1024
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One agent: its lease, and a watch whose updates are read and counted.
struct Agent {
    workers: watch::Sender<Vec<WorkerStatus>>,
    leave: CancellationToken,
}

#[derive(Default)]
struct Received {
    bytes: AtomicU64,
    whole: AtomicU64,
    changes: AtomicU64,
}

fn start_agent(number: usize, address: &str, received: Arc<Received>, tasks: &TaskTracker) -> Agent {
    let client = ControlClient::new(ClientConfig::new(vec![address.to_owned()], None)).unwrap();
    let (workers, reported) = watch::channel(Vec::new());
    let leave = CancellationToken::new();
    let registration = Registration {
        id: NodeId::new(name(number)).unwrap(),
        incarnation: Incarnation(1),
        address: format!("10.0.0.1:{}", 1000 + number),
        labels: BTreeMap::new(),
        capacity: Default::default(),
    };
    let gone = leave.clone();
    tasks.spawn(async move {
        let beats = Heartbeats {
            node: registration,
            workers: reported,
            every: Duration::from_secs(1),
            unreachable: Arc::new(Vec::new),
            asked: mpsc::channel(1).0,
            acknowledged: watch::Sender::new(None),
        };
        client.run_heartbeats(beats, gone).await.unwrap();
    });
    let (address, gone) = (address.to_owned(), leave.clone());
    tasks.spawn(async move {
        tokio::select! {
            () = follow(&address, &received) => {}
            () = gone.cancelled() => {}
        }
    });
    Agent { workers, leave }
}

async fn follow(address: &str, received: &Received) {
    let mut client = ControlPlaneClient::new(endpoint::channel(address, None).unwrap())
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let request = proto::WatchTopologyRequest::default();
    // The member listens soon.
    let mut updates = loop {
        match client.watch_topology(request).await {
            Ok(updates) => break updates.into_inner(),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    while let Ok(Some(update)) = updates.message().await {
        received
            .bytes
            .fetch_add(update.encoded_len() as u64, Ordering::Relaxed);
        let count = match update.change {
            Some(Update::Full(_)) => &received.whole,
            _ => &received.changes,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Has each agent report what the topology places on it as ready.
fn report(topology: &Topology, agents: &[Agent]) {
    let mut placed = all_ready(topology);
    for (number, agent) in agents.iter().enumerate() {
        let workers = placed
            .remove(&NodeId::new(name(number)).unwrap())
            .unwrap_or_default();
        agent.workers.send_if_modified(|reported| {
            let differs = *reported != workers;
            *reported = workers;
            differs
        });
    }
}

async fn until(topology: &mut watch::Receiver<Arc<Topology>>, what: &str, holds: impl Fn(&Topology) -> bool) {
    let found = topology.wait_for(|topology| holds(topology));
    tokio::time::timeout(PATIENCE, found).await.expect(what).unwrap();
}

fn on(topology: &Topology, node: &str) -> usize {
    let placements = topology
        .deployments
        .iter()
        .flat_map(|deployment| &deployment.placements);
    placements
        .filter(|placement| placement.node.as_str() == node)
        .count()
}

/// Processor time of planning for one lost node of as many, all decisions together, and how many there are.
fn plan_for_a_loss() -> (Duration, usize) {
    let mut model = Model::default();
    let mut index = 0;
    let mut change = |model: &mut Model, command: Change| {
        index += 1;
        apply(model, index, command.into())
    };
    for number in 0..AGENTS {
        let node = Change::RegisterNode {
            id: NodeId::new(name(number)).unwrap(),
            incarnation: Incarnation(1),
            address: "10.0.0.1:1".into(),
            labels: BTreeMap::new(),
            capacity: Default::default(),
            build: None,
        };
        change(&mut model, node);
    }
    let now = Instant::now();
    let leases = Leases::take_over(LeaseTiming::default(), &model.nodes, now);
    for number in 0..PIPELINES {
        let deploy = Change::Deploy {
            spec: Arc::new(pipeline(number)),
            healthy_deadline_ms: 1000,
            origin: Default::default(),
        };
        change(&mut model, deploy);
        while let Some(placement) = next_placement(&model, &leases, now) {
            change(&mut model, placement);
        }
    }
    let lost = Change::MarkNode {
        node: NodeId::new(name(7)).unwrap(),
        incarnation: Incarnation(1),
        health: NodeHealth::Down,
    };
    change(&mut model, lost);
    let (started, mut decisions) = (Instant::now(), 0);
    while let Some(placement) = next_placement(&model, &leases, now) {
        decisions += 1;
        change(&mut model, placement);
    }
    assert_eq!(on(&model.topology(), &name(7)), 0);
    (started.elapsed(), decisions)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: make scale"]
async fn a_thousand_agents_with_ten_thousand_replicas() {
    let (planning, decisions) = plan_for_a_loss();
    let member = Member::start();
    let tasks = TaskTracker::new();
    let received = Arc::new(Received::default());
    let agents: Vec<_> = (0..AGENTS)
        .map(|number| start_agent(number, &member.address, received.clone(), &tasks))
        .collect();
    let client = ControlClient::new(ClientConfig::new(vec![member.address.clone()], None)).unwrap();
    let ended = CancellationToken::new();
    let mut topology = client.watch_topology(Topology::default(), &tasks, ended.clone());
    until(&mut topology, "all agents have registered", |topology| {
        topology.nodes.len() == AGENTS
    })
    .await;
    eprintln!("{AGENTS} agents have registered");

    let started = Instant::now();
    for number in 0..PIPELINES {
        client.deploy(&pipeline(number), Some(PATIENCE)).await.unwrap();
    }
    let serving = |topology: &Topology| {
        let serve = topology
            .deployments
            .iter()
            .filter(|deployment| deployment.phase == Phase::Serving);
        serve.count() == PIPELINES
    };
    tokio::time::timeout(PATIENCE, async {
        while !serving(&topology.borrow_and_update().clone()) {
            report(&topology.borrow().clone(), &agents);
            topology.changed().await.unwrap();
        }
    })
    .await
    .expect("all pipelines serve");
    let deploying = started.elapsed();
    let replicas: usize = topology
        .borrow()
        .deployments
        .iter()
        .map(|deployment| deployment.placements.len())
        .sum();
    eprintln!("{replicas} replicas are ready");
    assert_eq!(replicas, PIPELINES * REPLICAS as usize);

    // The quiet cluster: heartbeats and open watches.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (used, at) = (member.used(), Instant::now());
    tokio::time::sleep(QUIET).await;
    let cores = (member.used() - used).as_secs_f64() / at.elapsed().as_secs_f64();
    let resident = member.resident_mib();
    let (bytes, whole, changes) = (&received.bytes, &received.whole, &received.changes);
    let sent = bytes.load(Ordering::Relaxed);

    // A node is lost.
    let victim = name(7);
    let had = on(&topology.borrow(), &victim);
    let (used, lost) = (member.used(), Instant::now());
    agents[7].leave.cancel();
    until(&mut topology, "the node is down", |topology| {
        topology
            .node(&NodeId::new(name(7)).unwrap())
            .is_some_and(|node| node.health == NodeHealth::Down)
    })
    .await;
    let down = lost.elapsed();
    until(&mut topology, "its replicas are elsewhere", |topology| {
        on(topology, &name(7)) == 0
    })
    .await;
    let moved = lost.elapsed() - down;
    let computing = member.used() - used;
    let update = bytes.load(Ordering::Relaxed) - sent;

    let mut text = String::from("# A thousand agents with ten thousand replicas\n\n");
    let mut row = |what: &str, found: String| writeln!(text, "| {what} | {found} |").unwrap();
    row("What", "Found".into());
    row("---", "---".into());
    row("agents, each with a lease and a watch", AGENTS.to_string());
    row(
        "replicas, in two stages of each pipeline",
        format!("{replicas} in {PIPELINES} pipelines"),
    );
    row(
        "until all of them served, one deployment after the other",
        format!("{deploying:.1?}"),
    );
    row(
        "leader: cores, quiet (1000 heartbeats a second with 10 workers each)",
        format!("{cores:.3}"),
    );
    row("leader: memory", format!("{resident} MiB"));
    row("sent to watchers until then", format!("{} MiB", sent >> 20));
    row(
        "of it whole topologies, and changes",
        format!("{whole:?}, {changes:?}"),
    );
    row("replicas of the lost node", had.to_string());
    row(
        "from its last heartbeat until it was down (3 s and a grace of 1 s)",
        format!("{down:.1?}"),
    );
    row(
        "from then until all its replicas had new places",
        format!("{moved:.2?}"),
    );
    row(
        "leader: processor time meanwhile, heartbeats and watches included",
        format!("{computing:.2?}"),
    );
    row(
        "planning alone",
        format!("{planning:.3?} for {decisions} decisions"),
    );
    row("sent to watchers for it", format!("{} KiB", update >> 10));
    eprintln!("{text}");
    std::fs::write("../tests/scale/REPORT.md", &text).unwrap();

    ended.cancel();
    for agent in &agents {
        agent.leave.cancel();
    }
    tasks.close();
    tasks.wait().await;
    assert!(cores < 0.5, "the leader takes {cores} cores");
    assert!(planning < Duration::from_secs(1), "planning takes {planning:?}");
}
