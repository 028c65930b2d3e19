//! Starts, stops and restarts the members of a control plane, with short timers.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mosec_control_plane::{Config, ControlPlane, LeaseTiming, RaftTiming, RunError, Security};
use mosec_telemetry::{Series, render};
use mosec_types::spec::PythonSource;
use mosec_types::topology::{Deployment, Node};
use mosec_types::{NodeId, PipelineName, PipelineSpec, Revision, RouteSpec, StageIndex, StageSpec, Topology};
use mosec_wire::control::proto::control_plane_client::ControlPlaneClient;
use mosec_wire::control::{ClientConfig, ControlClient, ControlError, endpoint, proto};
use mosec_wire::tls::{ClusterCa, Identity, Role};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;

/// Nothing here takes as long, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const LEASES: LeaseTiming = LeaseTiming {
    suspect_after: Duration::from_millis(900),
    down_after: Duration::from_millis(900),
    takeover_grace: Duration::from_millis(1500),
};
/// A third of the lease.
pub const BEAT: Duration = Duration::from_millis(300);

pub struct Cluster {
    configs: BTreeMap<u64, Config>,
    running: BTreeMap<u64, Member>,
    pub ca: Option<ClusterCa>,
    _dir: TempDir,
}

struct Member {
    stop: CancellationToken,
    series: Series,
    health: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    task: JoinHandle<Result<(), RunError>>,
}

impl Cluster {
    pub async fn start(members: u64) -> Self {
        Self::start_with(members, None, |_| {}).await
    }

    pub async fn start_secure(members: u64) -> Self {
        Self::start_with(members, Some(ClusterCa::create().unwrap()), |_| {}).await
    }

    pub async fn start_with(members: u64, ca: Option<ClusterCa>, edit: impl Fn(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut listeners = BTreeMap::new();
        for member in 1..=members {
            listeners.insert(member, TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let address = |listener: &TcpListener| listener.local_addr().unwrap();
        let peers: BTreeMap<_, _> = listeners
            .iter()
            .map(|(&id, l)| (id, address(l).to_string()))
            .collect();
        let mut cluster = Self {
            configs: BTreeMap::new(),
            running: BTreeMap::new(),
            ca,
            _dir: dir,
        };
        for (member, listener) in listeners {
            let mut config = Config {
                member,
                listen: address(&listener),
                peers: peers.clone(),
                data_dir: Some(cluster._dir.path().join(member.to_string())),
                raft: RaftTiming {
                    heartbeat: Duration::from_millis(50),
                    snapshot_every: 2000,
                },
                leases: LEASES,
                ..Config::single("test")
            };
            if let Some(ca) = &cluster.ca {
                let identity = ca.issue(Role::ControlPlane, &format!("member-{member}")).unwrap();
                config.security = Security::Tls(Box::new(identity));
            }
            edit(&mut config);
            cluster.configs.insert(member, config);
            cluster.run(member, listener).await;
        }
        cluster
    }

    /// Starts a member that is to be added; `seeds` are where it asks.
    pub async fn start_another(&mut self, member: u64, seeds: &[u64]) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = self.configs.values().next().unwrap().clone();
        let mut config = Config {
            member,
            listen: listener.local_addr().unwrap(),
            peers: BTreeMap::new(),
            seeds: seeds.iter().map(|&seed| self.address(seed).to_string()).collect(),
            data_dir: Some(self._dir.path().join(member.to_string())),
            ..there
        };
        if let Some(ca) = &self.ca {
            let identity = ca.issue(Role::ControlPlane, &format!("member-{member}")).unwrap();
            config.security = Security::Tls(Box::new(identity));
        }
        self.configs.insert(member, config);
        self.run(member, listener).await;
    }

    /// Why a member has ended by itself, once it has.
    pub async fn ended(&mut self, member: u64) -> RunError {
        let running = self.running.remove(&member).unwrap();
        let ended = tokio::time::timeout(PATIENCE, running.task).await;
        ended.expect("the member ends").unwrap().unwrap_err()
    }

    /// Adds or removes a member, step by step.
    pub async fn change(&self, client: &ControlClient, member: u64, adds: bool) -> Result<(), ControlError> {
        let end = tokio::time::Instant::now() + PATIENCE;
        let address = self.address(member).to_string();
        loop {
            let change = match adds {
                true => client.add_member(member, &address).await?,
                false => client.remove_member(member).await?,
            };
            if change.done {
                return Ok(());
            }
            assert!(tokio::time::Instant::now() < end, "{}", change.waits_for);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn run(&mut self, member: u64, listener: TcpListener) {
        let (stop, series) = (CancellationToken::new(), Series::default());
        let node = ControlPlane::build_on(listener, self.configs[&member].clone(), &series)
            .await
            .unwrap();
        let health = Box::new(node.health());
        let task = tokio::spawn(node.run(stop.clone()));
        let running = Member {
            stop,
            series,
            health,
            task,
        };
        self.running.insert(member, running);
    }

    pub async fn stop(&mut self, member: u64) {
        let running = self.running.remove(&member).unwrap();
        running.stop.cancel();
        running.task.await.unwrap().unwrap();
    }

    pub async fn restart(&mut self, member: u64) {
        let listener = TcpListener::bind(self.configs[&member].listen).await.unwrap();
        self.run(member, listener).await;
    }

    /// Changes the configuration of a stopped member.
    pub fn configure(&mut self, member: u64, edit: impl FnOnce(&mut Config)) {
        edit(self.configs.get_mut(&member).unwrap());
    }

    /// Starts a stopped member that will not start; gives the reason, causes and all.
    pub async fn refused(&self, member: u64) -> String {
        let config = self.configs[&member].clone();
        let error = ControlPlane::build(config, &Series::default())
            .await
            .err()
            .unwrap();
        format!("{:#}", anyhow::Error::from(error))
    }

    /// Removes what a stopped member had on disk.
    pub fn wipe(&self, member: u64) {
        std::fs::remove_dir_all(self.configs[&member].data_dir.as_ref().unwrap()).unwrap();
    }

    /// Where a member keeps its bundles.
    pub fn bundles(&self, member: u64) -> PathBuf {
        self.configs[&member].data_dir.as_ref().unwrap().join("bundles")
    }

    pub fn members(&self) -> Vec<u64> {
        self.running.keys().copied().collect()
    }

    pub fn address(&self, member: u64) -> SocketAddr {
        self.configs[&member].listen
    }

    /// Why a member does not work, if it says so.
    pub fn illness(&self, member: u64) -> Option<String> {
        (self.running[&member].health)().err()
    }

    /// A member's series, as its admin endpoint gives them, without the prefix of their names.
    pub fn page(&self, member: u64) -> Vec<String> {
        let text = render(&[&self.running[&member].series]);
        let own = text
            .lines()
            .filter_map(|line| line.strip_prefix("mosec_control_plane_"));
        own.map(str::to_owned).collect()
    }

    /// The value of one of a member's gauges.
    pub fn gauge(&self, member: u64, name: &str) -> f64 {
        let families = self.running[&member].series.registry().gather();
        let family = families
            .iter()
            .find(|family| family.name() == format!("mosec_control_plane_{name}"))
            .unwrap();
        family.get_metric()[0].get_gauge().get_value()
    }

    /// The member that leads, once there is one.
    pub async fn leader(&self) -> u64 {
        let leading = || {
            self.members()
                .into_iter()
                .find(|&member| self.gauge(member, "leader") > 0.0)
        };
        eventually("a leader", || std::future::ready(leading())).await
    }

    pub async fn followers(&self) -> Vec<u64> {
        let leader = self.leader().await;
        self.members()
            .into_iter()
            .filter(|&member| member != leader)
            .collect()
    }

    /// A client that knows these members.
    pub fn client(&self, members: &[u64]) -> ControlClient {
        self.client_as(
            members,
            self.ca.as_ref().map(|ca| ca.issue(Role::Admin, "test").unwrap()),
        )
    }

    pub fn client_as(&self, members: &[u64], identity: Option<Identity>) -> ControlClient {
        let endpoints = members
            .iter()
            .map(|&member| self.address(member).to_string())
            .collect();
        ControlClient::new(ClientConfig {
            call_timeout: PATIENCE,
            ..ClientConfig::new(endpoints, identity)
        })
        .unwrap()
    }

    /// A bare service client of one member.
    pub fn service(&self, member: u64, identity: Option<&Identity>) -> ControlPlaneClient<Channel> {
        ControlPlaneClient::new(endpoint::channel(&self.address(member).to_string(), identity).unwrap())
    }
}

/// Follows the topology until dropped.
pub struct Watch {
    pub topology: watch::Receiver<Arc<Topology>>,
    _cancel: tokio_util::sync::DropGuard,
}

impl Watch {
    pub fn start(client: &ControlClient, known: Topology) -> Self {
        let cancel = CancellationToken::new();
        let topology = client.watch_topology(known, &TaskTracker::new(), cancel.clone());
        Self {
            topology,
            _cancel: cancel.drop_guard(),
        }
    }

    /// Waits for a topology that passes.
    pub async fn until(&mut self, what: &str, pass: impl Fn(&Topology) -> bool) -> Arc<Topology> {
        let waited = tokio::time::timeout(PATIENCE, self.topology.wait_for(|topology| pass(topology))).await;
        let found = waited.ok().map(|topology| topology.unwrap().clone());
        found.unwrap_or_else(|| panic!("no topology with {what}: {:#?}", self.topology.borrow()))
    }

    /// Waits for a revision of which `pass` is true.
    pub async fn until_revision(
        &mut self,
        revision: Revision,
        pass: impl Fn(&Deployment) -> bool,
    ) -> Deployment {
        let what = format!("the awaited revision {revision}");
        let topology = self
            .until(&what, |topology| topology.deployment(revision).is_some_and(&pass))
            .await;
        topology.deployment(revision).unwrap().clone()
    }

    /// Waits for a node of which `pass` is true.
    pub async fn until_node(&mut self, id: &str, pass: impl Fn(&Node) -> bool) -> Arc<Topology> {
        let id = NodeId::new(id).unwrap();
        self.until(&format!("the awaited node {id}"), |topology| {
            topology.node(&id).is_some_and(&pass)
        })
        .await
    }
}

/// Waits until `look` gives something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, look: impl Fn() -> F) -> T {
    let waiting = async {
        loop {
            match look().await {
                Some(found) => return found,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// A pipeline of one stage, whose route is named after it.
pub fn pipeline(name: &str, replicas: u32) -> PipelineSpec {
    let source = PythonSource {
        dir: "/srv".into(),
        main: Some("server.py".into()),
        ..Default::default()
    };
    let stage = StageSpec {
        replicas,
        ..StageSpec::new("Echo_1", "__main__", "Echo")
    };
    PipelineSpec {
        routes: vec![RouteSpec {
            path: format!("/{name}"),
            stages: vec![StageIndex(0)],
        }],
        ..PipelineSpec::new(PipelineName::new(name).unwrap(), source, vec![stage])
    }
}

/// A request to deploy `spec` that carries a number.
pub fn numbered(spec: &PipelineSpec, seq: u64) -> proto::DeployRequest {
    let dedup = proto::Dedup {
        client: "a-client".into(),
        seq,
    };
    proto::DeployRequest {
        spec: Some(spec.into()),
        dedup: Some(dedup),
        healthy_deadline_ms: 0,
        by: String::new(),
    }
}
