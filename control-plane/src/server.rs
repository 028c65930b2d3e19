//! Assembles a control-plane node and runs it.
//!
//! Tasks of a running node, all awaited by [`ControlPlane::run`]: the gRPC server (public API and Raft on one port, so
//! that a member has one address, and a leader hint is one a client can use; who may call what is decided by the
//! caller's certificate, see [`crate::access`]), the leader's loop, the keeper of the bundles, and a monitor that keeps the metrics and ends
//! the node when Raft has stopped: a store that failed once must not be trusted again by the same process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mosec_telemetry::{Series, register_identity, register_process};
use mosec_wire::control::proto::control_plane_server::ControlPlaneServer;
use mosec_wire::control::raft::raft_server::RaftServer;
use mosec_wire::control::{ClientConfig, ControlClient, EndpointError, MAX_MESSAGE_BYTES, keep_fresh};
use mosec_wire::tls::{Identity, LiveIdentity, TlsError};
use openraft::error::{InitializeError, RaftError};
use openraft::{BasicNode, SnapshotPolicy};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;
use tonic::transport::{self, Server};
use tower::layer::util::{Identity as NoLayer, Stack};

use crate::access::layer::AccessLayer;
use crate::api::Api;
use crate::api::join::MAX_JOINS;
use crate::api::members::MissingBundles;
use crate::authority::Authority;
use crate::backup;
use crate::bundles::Bundles;
use crate::bundles::files::BundleFiles;
use crate::bundles::keeper::Keeper;
use crate::bundles::memory::MemoryBundles;
use crate::bundles::store::{BundleStore, StoreError};
use crate::config::{Config, ConfigError};
use crate::feed::Feed;
use crate::health::Health;
use crate::incoming::connections;
use crate::metrics::Metrics;
use crate::monitor::Monitor;
use crate::peers::Peers;
use crate::raft::admission::{self, Admission, Others};
use crate::raft::blocking::Blocking;
use crate::raft::elector::{self, Heard, Turns};
use crate::raft::handle::Handle;
use crate::raft::inbox::Inbox;
use crate::raft::kv::{KvError, LogKv};
use crate::raft::log_store::{LogStore, OpenError, Owner};
use crate::raft::members::{Members, finish_changes, until_removed};
use crate::raft::memory_kv::MemoryKv;
use crate::raft::network::Network;
use crate::raft::raise;
use crate::raft::service::RaftService;
use crate::raft::sled_kv::SledKv;
use crate::raft::snapshot::{SnapshotDir, SnapshotError};
use crate::raft::state_machine::{RestoreError, Snapshots, StateMachine};
use crate::raft::{MemberId, Raft};
use crate::reconcile::{Leadership, Reconciler};
use crate::relay::Relay;
use crate::state::{FormatError, Model};

/// How long a restarted node waits for its predecessor to release the store.
const STORE_PATIENCE: Duration = Duration::from_secs(10);
/// How long a write may take to reach a majority.
pub const QUORUM_TIMEOUT: Duration = Duration::from_secs(4);
/// A client that answers no HTTP/2 ping for 5 s, asked every 10 s, is gone.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls and streams of one connection; a client needs a handful.
const MAX_STREAMS: u32 = 256;
/// How often the client that renews this node's certificate is told of the members. Renewals are weeks apart.
const LEARN_EVERY: Duration = Duration::from_secs(60);
/// How long open calls may take to end when the node stops.
const DRAIN: Duration = Duration::from_secs(2);

/// Why a node could not be started.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("invalid configuration")]
    Config(#[from] ConfigError),
    #[error("{address} could not be bound")]
    Bind {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("the log could not be opened")]
    Log(#[from] OpenError),
    #[error("the log store could not be opened")]
    Kv(#[from] KvError),
    #[error("the data folder {} is in use by another member: expected a --data-dir for each", .0.display())]
    InUse(PathBuf),
    #[error("the snapshots could not be opened")]
    Snapshots(#[from] SnapshotError),
    #[error("the bundles could not be opened")]
    Bundles(#[from] StoreError),
    #[error("the state could not be restored")]
    Restore(#[from] RestoreError),
    #[error("a restore into {} was interrupted: run `mosectl restore` again", .0.display())]
    Unfinished(PathBuf),
    #[error("raft could not be started: {0}")]
    Raft(String),
    #[error("the metrics could not be registered")]
    Metrics(#[from] prometheus::Error),
    #[error("the authority is another one than that of this node's identity")]
    OtherAuthority,
    #[error("the addresses of the peers are not usable")]
    Peers(#[from] EndpointError),
    #[error("starting up was interrupted")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// Why a node stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("TLS could not be set up")]
    Tls(#[from] TlsError),
    #[error("the server failed")]
    Serve(#[from] transport::Error),
    #[error("raft has stopped: {0}")]
    Raft(String),
    #[error(
        "member {0} was removed from the cluster: its --data-dir is of no more use, and another start of no help"
    )]
    Removed(MemberId),
    #[error(transparent)]
    Outdated(#[from] FormatError),
    #[error("a task of the node panicked")]
    Task(#[from] tokio::task::JoinError),
}

/// A node that is built and bound, and not yet running.
pub struct ControlPlane {
    address: SocketAddr,
    listener: TcpListener,
    router: Router<Stack<AccessLayer, NoLayer>>,
    identity: Option<LiveIdentity>,
    /// Renews the identity.
    renewal: Option<(ControlClient, PathBuf)>,
    reconciler: Reconciler,
    /// The watchers' feed, and what it follows.
    following: (Arc<Feed>, watch::Receiver<Arc<Model>>),
    keeper: Keeper,
    monitor: Monitor,
    closing: CancellationToken,
    inbox: Inbox,
    others: Others<Network>,
    heartbeat: Duration,
    /// Everyone's address, where this node founds the cluster.
    founding: Option<BTreeMap<u64, BasicNode>>,
}

impl ControlPlane {
    /// Opens the store and binds the address. Metrics go into `series`.
    pub async fn build(config: Config, series: &Series) -> Result<Self, BuildError> {
        let address = config.listen;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| BuildError::Bind { address, source })?;
        Self::build_on(listener, config, series).await
    }

    /// As [`ControlPlane::build`], on a listener that is bound already. `config.listen` is not looked at.
    pub async fn build_on(
        listener: TcpListener,
        mut config: Config,
        series: &Series,
    ) -> Result<Self, BuildError> {
        config.validate()?;
        let address = listener.local_addr().map_err(|source| BuildError::Bind {
            address: config.listen,
            source,
        })?;
        if config.peers.is_empty() && config.seeds.is_empty() {
            config.peers.insert(config.member, address.to_string());
        }
        let trusted = config.security.identity().map(Identity::ca_pem);
        let held = config.authority.as_ref().map(Authority::ca_pem);
        if held.is_some() && held != trusted {
            return Err(BuildError::OtherAuthority);
        }
        register_process(series, "control-plane")?;
        let metrics = Metrics::register(series)?;
        let (log, machine, model) = open_storage(&config).await?;
        let identity = config.security.identity().map(LiveIdentity::from);
        if let Some(identity) = &identity {
            register_identity(series, identity)?;
        }
        let peers = Arc::new(Peers::new(config.peers.clone(), identity.clone()));
        let heard = Arc::new(Heard::default());
        let renewal = match (&identity, config.identity_dir.clone()) {
            (Some(identity), Some(dir)) => {
                let addresses = config.peers.values().chain(&config.seeds).cloned().collect();
                let client = ControlClient::new(ClientConfig::live(addresses, Some(identity.clone())))?;
                Some((client, dir))
            }
            _ => None,
        };
        let network = Network {
            cluster_id: config.cluster_id.clone(),
            from: config.member,
            peers: peers.clone(),
            heard: heard.clone(),
        };
        let raft_config = Arc::new(raft_config(&config)?);
        let raft = Raft::new(config.member, raft_config, network.clone(), log.clone(), machine).await;
        let raft = raft.map_err(|error| BuildError::Raft(error.to_string()))?;
        peers.follow(raft.metrics());
        let lease = Turns::lease(config.raft.heartbeat);
        let handle = Handle {
            raft,
            member: config.member,
            peers,
            quorum_timeout: QUORUM_TIMEOUT,
            changes: Arc::default(),
            lease,
            model: model.clone(),
        };
        let leadership = Arc::new(Leadership::default());
        let store = open_bundles(&config).await?;
        let bundles = Bundles::new(store, config.bundles, config.member, handle.peers.clone());
        let closing = CancellationToken::new();
        let feed = Arc::new(Feed::default());
        let following = (feed.clone(), model.clone());
        let api = Api {
            cluster_id: config.cluster_id.clone(),
            handle: handle.clone(),
            model: model.clone(),
            leadership: leadership.clone(),
            feed: feed.clone(),
            healthy_deadline: config.healthy_deadline,
            authority: config.authority.clone(),
            joins: Arc::new(Semaphore::new(MAX_JOINS)),
            members: Members {
                cluster_id: config.cluster_id.clone(),
                handle: handle.clone(),
                asker: network.clone(),
                code: MissingBundles {
                    bundles: bundles.clone(),
                    model: model.clone(),
                },
            },
            bundles: bundles.clone(),
            relay: Relay::default(),
            metrics: metrics.clone(),
            closing: closing.clone(),
        };
        let inbox = Inbox {
            raft: handle.raft.clone(),
            heard,
            admission: Arc::new(Admission::new(log.is_newcomer())),
            formats: config.formats,
            outdated: Arc::default(),
        };
        let health = Health {
            handle: handle.clone(),
            heard: inbox.heard.clone(),
            admission: inbox.admission.clone(),
        };
        let raft_service = RaftService {
            inbox: inbox.clone(),
            cluster_id: config.cluster_id.clone(),
            member: config.member,
            model: model.clone(),
            signs: config.authority.is_some(),
        };
        Ok(Self {
            address,
            listener,
            router: router(api, raft_service),
            identity,
            renewal,
            founding: founding(&config),
            others: Others {
                asker: network.clone(),
                cluster_id: config.cluster_id.clone(),
                own: config.member,
                founders: nodes(&config),
                seeds: config.seeds.clone(),
            },
            inbox,
            heartbeat: config.raft.heartbeat,
            monitor: Monitor {
                handle: handle.clone(),
                health,
                leadership: leadership.clone(),
                metrics,
                log,
            },
            following,
            keeper: Keeper {
                bundles,
                handle: handle.clone(),
                model: model.clone(),
            },
            reconciler: Reconciler {
                handle,
                model,
                leadership,
                timing: config.leases,
            },
            closing,
        })
    }

    /// Where the node listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Says of the node, for as long as it runs, why it does not work where it does not. Cheap.
    pub fn health(&self) -> impl Fn() -> Result<(), String> + Send + Sync + 'static {
        let health = self.monitor.health.clone();
        move || health.check()
    }

    /// Runs until `stop`, or until Raft or the server fail.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RunError> {
        let raft = self.monitor.handle.raft.clone();
        let peers = self.monitor.handle.peers.clone();
        let (member, log) = (self.monitor.handle.member, self.monitor.log.clone());
        let closing = self.closing;
        let incoming = connections(self.listener, self.identity.clone())?;
        let drained = closing.clone().cancelled_owned();
        let serving = self.router.serve_with_incoming_shutdown(incoming, drained);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { serving.await.map_err(RunError::from) });
        let (reconciler, ended) = (self.reconciler, closing.clone());
        tasks.spawn(async move {
            reconciler.run(ended.clone()).await;
            // It ends with Raft, too. The monitor ends the node then, and says why.
            ended.cancelled().await;
            Ok(())
        });
        let (keeper, ended) = (self.keeper, closing.clone());
        tasks.spawn(async move {
            keeper.run(ended).await;
            Ok(())
        });
        let (formats, ask, ended) = (self.inbox.formats, self.others.asker.clone(), closing.clone());
        let handle = self.monitor.handle.clone();
        let name = self.others.cluster_id.clone();
        tasks.spawn(async move {
            raise::run(handle, name, formats, ask, ended).await;
            Ok(())
        });
        let (handle, ended) = (self.monitor.handle.clone(), closing.clone());
        tasks.spawn(async move {
            finish_changes(handle, ended).await;
            Ok(())
        });
        let (handle, heard) = (self.monitor.handle.clone(), self.inbox.heard.clone());
        let (cluster_id, asker) = (self.others.cluster_id.clone(), self.others.asker.clone());
        let ended = closing.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = ended.cancelled() => Ok(()),
                () = until_removed(&handle, &cluster_id, &asker, &heard) => Err(RunError::Removed(member)),
            }
        });
        tasks.spawn(self.monitor.run(closing.clone()));
        let ((feed, model), ended) = (self.following, closing.clone());
        tasks.spawn(async move {
            feed.run(model, ended.clone()).await;
            ended.cancelled().await;
            Ok(())
        });
        if let (Some(identity), Some((client, dir))) = (self.identity, self.renewal) {
            let learner = client.clone();
            let ended = closing.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = keep_fresh(client, identity, dir, ended) => {}
                    // Who signs may be none of those in the flags any more.
                    () = async { loop { learner.learn(peers.addresses()); sleep(LEARN_EVERY).await } } => {}
                }
                Ok(())
            });
        }
        let (inbox, heartbeat, ended) = (self.inbox.clone(), self.heartbeat, closing.clone());
        tasks.spawn(async move {
            elector::run(inbox, member, heartbeat, ended).await;
            Ok(())
        });
        let outdated = self.inbox.outdated.clone();
        let ended = closing.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = ended.cancelled() => Ok(()),
                why = outdated.wait() => Err(why.into()),
            }
        });
        let (inbox, others, founding, ended) = (self.inbox, self.others, self.founding, closing.clone());
        tasks.spawn(async move {
            admission::run(&inbox.admission, &inbox.raft, &log, others, &ended).await;
            if let Some(members) = founding.filter(|_| inbox.admission.is_level()) {
                found(&inbox.raft, members).await?;
            }
            ended.cancelled().await;
            Ok(())
        });
        let mut result = tokio::select! {
            () = stop.cancelled() => Ok(()),
            Some(ended) = tasks.join_next() => ended.map_err(RunError::from).flatten(),
        };
        closing.cancel();
        let stopped = raft.shutdown().await.map_err(RunError::from);
        result = result.and(stopped);
        let drain = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drain).await.is_err() {
            tracing::debug!("open calls were dropped");
        }
        tasks.shutdown().await;
        result
    }
}

async fn open_storage(
    config: &Config,
) -> Result<(LogStore, StateMachine, watch::Receiver<Arc<Model>>), BuildError> {
    let owner = Owner {
        cluster_id: config.cluster_id.clone(),
        member: config.member,
    };
    let (data_dir, formats) = (config.data_dir.clone(), config.formats);
    tokio::task::spawn_blocking(move || {
        let (kv, snapshots) = match data_dir {
            Some(dir) => open_files(&dir)?,
            None => (
                Arc::new(MemoryKv::default()) as Arc<dyn LogKv>,
                Snapshots::Memory(Default::default()),
            ),
        };
        let log = LogStore::open_on(Blocking::Threads, kv, &owner, formats)?;
        let (machine, model) = StateMachine::open_on(Blocking::Threads, snapshots, formats)?;
        Ok((log, machine, model))
    })
    .await?
}

async fn open_bundles(config: &Config) -> Result<Arc<dyn BundleStore>, BuildError> {
    let Some(dir) = config.data_dir.clone() else {
        return Ok(Arc::new(MemoryBundles::default()));
    };
    let opened = tokio::task::spawn_blocking(move || BundleFiles::open(&dir.join("bundles"))).await?;
    Ok(Arc::new(opened?))
}

fn open_files(dir: &Path) -> Result<(Arc<dyn LogKv>, Snapshots), BuildError> {
    if dir.join(backup::MARKER).exists() {
        return Err(BuildError::Unfinished(dir.to_owned()));
    }
    // Its lock is the whole folder's.
    let kv = SledKv::open(&dir.join("log"), STORE_PATIENCE).map_err(|error| match error {
        KvError::InUse => BuildError::InUse(dir.to_owned()),
        other => other.into(),
    })?;
    let snapshots = SnapshotDir::open(&dir.join("snapshots"))?;
    Ok((Arc::new(kv), Snapshots::Dir(snapshots)))
}

/// What openraft is told of a node's configuration.
pub fn raft_config(config: &Config) -> Result<openraft::Config, BuildError> {
    let timing = config.raft;
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let config = openraft::Config {
        cluster_name: config.cluster_id.clone(),
        heartbeat_interval: millis(timing.heartbeat),
        // Members stand for election when `elector` says so. Of these two the first limits a vote's round trip, and the
        // second is the leader's lease.
        enable_elect: false,
        election_timeout_min: millis(timing.heartbeat * 3),
        election_timeout_max: millis(Turns::lease(timing.heartbeat)),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(timing.snapshot_every),
        // Members that were away for a while catch up from the log; those behind by more get a snapshot.
        max_in_snapshot_log_to_keep: timing.snapshot_every / 2,
        replication_lag_threshold: timing.snapshot_every * 2,
        // Well below the message limit, and the default of 200 ms per chunk is too short for a busy disk.
        snapshot_max_chunk_size: 1024 * 1024,
        install_snapshot_timeout: 10_000,
        ..Default::default()
    };
    config
        .validate()
        .map_err(|error| BuildError::Raft(error.to_string()))
}

fn router(api: Api, raft: RaftService) -> Router<Stack<AccessLayer, NoLayer>> {
    let mut server = Server::builder()
        .layer(AccessLayer)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .max_concurrent_streams(MAX_STREAMS);
    let api = ControlPlaneServer::new(api)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let raft = RaftServer::new(raft)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    server.add_service(api).add_service(raft)
}

/// The member with the lowest number founds the cluster.
fn founding(config: &Config) -> Option<BTreeMap<u64, BasicNode>> {
    let (&lowest, _) = config.peers.first_key_value()?;
    (lowest == config.member).then(|| nodes(config))
}

fn nodes(config: &Config) -> BTreeMap<u64, BasicNode> {
    let node = |(&id, address): (&u64, &String)| (id, BasicNode::new(address));
    config.peers.iter().map(node).collect()
}

/// Founds the cluster unless the log says that it exists.
pub async fn found(raft: &Raft, members: BTreeMap<u64, BasicNode>) -> Result<(), RunError> {
    let exists = raft
        .is_initialized()
        .await
        .map_err(|error| RunError::Raft(error.to_string()))?;
    if exists {
        return Ok(());
    }
    match raft.initialize(members).await {
        Ok(()) => {
            tracing::info!("cluster founded");
            Ok(())
        }
        // A leader has spoken in the meantime.
        Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
        Err(error) => Err(RunError::Raft(error.to_string())),
    }
}
