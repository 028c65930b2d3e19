//! A node agent of a cluster: registered with the control plane, serving its link, following the watch.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use futures_util::FutureExt as _;
use mosec_dispatch::{DispatchMetrics, Links, Registry};
use mosec_telemetry::{Admin, register_identity, register_process};
use mosec_types::reach::MAX_UNREACHABLE;
use mosec_types::{Capacity, Incarnation};
use mosec_wire::control::{ClientConfig, ControlClient, Heartbeats, Registration, SavedTopology, keep_fresh};
use mosec_wire::quic::{ListenerConfig, QuicConnector, QuicListener, ResetSecret, Settings};
use mosec_wire::tls::{LiveIdentity, Role};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::claim::{Claim, StateDir};
use crate::code::{Code, Fetch};
use crate::output::answer;
use crate::standing::{health, register_lease};
use crate::{Agent, Config, Upstream, serve_link};

/// Time between heartbeats; three missed make a node suspect.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);
/// Questions of members that may wait to be looked at. Those beyond it come again with the next reply.
const MAX_QUESTIONS: usize = 64;

/// What a node agent of a cluster needs to know.
pub struct Options {
    pub config: Config,
    pub claim: Claim,
    pub control_plane: Vec<String>,
    pub labels: BTreeMap<String, String>,
    /// What the node has for replicas; its GPUs are those of `config`.
    pub capacity: Capacity,
    /// Where code and environments are kept. The state folder where absent, or a temporary one without that.
    pub code_dir: Option<PathBuf>,
    pub identity: LiveIdentity,
    /// Where the identity is kept, and renewed in time. Not renewed where absent.
    pub identity_dir: Option<PathBuf>,
}

/// A node agent with its socket, its links and its control plane.
pub struct Service {
    agent: Agent,
    listener: QuicListener,
    links: Links,
    control: ControlClient,
    node: Registration,
    /// When a heartbeat was last acknowledged.
    acknowledged: watch::Sender<Option<Instant>>,
    admin: Option<Admin>,
    saved: Option<SavedTopology>,
    renewed: Option<(LiveIdentity, PathBuf)>,
    /// Removed at the end.
    code_dir: Option<TempDir>,
    /// Held until the end.
    state: Option<StateDir>,
}

impl Service {
    /// Opens the link and sets up what it takes to reach the others. Registers with nobody yet.
    pub async fn build(options: Options) -> anyhow::Result<Self> {
        // A name is only left behind by a process that was killed within the microseconds between making and unlinking.
        let swept = mosec_shm_ring::sweep_stale(&options.config.arena.shm.prefix)
            .context("cannot look for stale shared memory")?;
        if swept > 0 {
            tracing::info!(swept, "removed shared memory of dead processes");
        }
        let Claim {
            socket,
            address,
            admin,
            series,
            state,
        } = options.claim;
        register_process(&series, "agent")?;
        register_identity(&series, &options.identity)?;
        let acknowledged = watch::Sender::new(None);
        register_lease(&series, acknowledged.subscribe())?;
        let registry = Registry::new(DispatchMetrics::new(&series)?);
        let incarnation = Incarnation(now_millis()?);
        let mut listener = ListenerConfig::new(&options.identity, incarnation);
        if let Some(dir) = &options.identity_dir {
            listener.reset_secret = ResetSecret::kept_in(dir)?;
        }
        let listener = QuicListener::on(socket, listener)?;
        let node = Registration {
            id: options.config.node.clone(),
            incarnation,
            address,
            labels: options.labels,
            capacity: options.capacity,
        };
        let connector = QuicConnector::new(&options.identity, Settings::default())?;
        let links = Links::new(Arc::new(connector), registry.clone());
        let config = ClientConfig::live(options.control_plane, Some(options.identity.clone()));
        let control = ControlClient::new(config).context("the control plane's addresses are not usable")?;
        let saved = SavedTopology::in_optional_dir(state.as_ref().map(|state| state.path.as_path()))?;
        let (code_dir, temporary) = match options
            .code_dir
            .or(state.as_ref().map(|state| state.path.clone()))
        {
            Some(dir) => (dir, None),
            None => {
                let made = tempfile::Builder::new().prefix("mosec-agent-").tempdir();
                let made = made.context("cannot make a temporary folder for code")?;
                (made.path().to_owned(), Some(made))
            }
        };
        let code = Code::open(&code_dir, fetch_from(control.clone()));
        let code =
            code.with_context(|| format!("the folder {} cannot be used for code", code_dir.display()))?;
        let agent = Agent::build_with(options.config, registry, &series, Some(code))?;
        Ok(Self {
            agent,
            listener,
            links,
            control,
            node,
            acknowledged,
            admin,
            saved,
            renewed: options.identity_dir.map(|dir| (options.identity, dir)),
            code_dir: temporary,
            state,
        })
    }

    /// `host:port` under which the link is reached.
    pub fn address(&self) -> &str {
        &self.node.address
    }

    /// Serves until `stop`, then drains: upstreams are told, what they have sent is finished, workers leave.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Self {
            agent,
            listener,
            links,
            control,
            node,
            acknowledged,
            admin,
            saved,
            renewed,
            code_dir: _code_dir,
            state: _state,
        } = self;
        let tasks = TaskTracker::new();
        // The control plane is kept informed, and the admin endpoint open, until everything else has ended.
        let done = CancellationToken::new();
        let known = saved.as_ref().map(SavedTopology::load).unwrap_or_default();
        let knows = known.version > 0;
        let topology = control.watch_topology(known, &tasks, done.clone());
        if let Some(saved) = saved {
            tasks.spawn(saved.keep(topology.clone(), done.clone()));
        }
        if let Some(admin) = admin {
            let (acknowledged, draining) = (acknowledged.subscribe(), stop.clone());
            let check = move || health(acknowledged.borrow().is_some(), knows, draining.is_cancelled());
            tasks.spawn(admin.with_health(check).run(done.clone()));
        }
        if let Some((identity, dir)) = renewed {
            tasks.spawn(keep_fresh(control.clone(), identity, dir, done.clone()));
        }
        let (asked, questions) = mpsc::channel(MAX_QUESTIONS);
        let own = (node.id.clone(), node.incarnation);
        let output = agent.output().cloned();
        tasks.spawn(answer(output, control.clone(), own, questions, done.clone()));
        let outages = links.outages();
        let lease = {
            let beats = Heartbeats {
                node,
                workers: agent.workers(),
                every: HEARTBEAT,
                unreachable: Arc::new(move || outages.list(MAX_UNREACHABLE)),
                asked,
                acknowledged,
            };
            let (stop, done) = (stop.clone(), done.clone());
            tasks.spawn(async move {
                let result = control.run_heartbeats(beats, done).await;
                // Without a lease nothing may run here.
                if result.is_err() {
                    stop.cancel();
                }
                result
            })
        };
        let evict = CancellationToken::new();
        let running = tokio::spawn(agent.clone().run(topology, Some(links), stop.clone(), evict));
        serve(&agent, &listener, &stop).await;
        running.await.context("the reconciler failed")?;
        listener.shutdown().await;
        done.cancel();
        tasks.close();
        tasks.wait().await;
        lease
            .await
            .context("the heartbeat task failed")?
            .context("the lease was lost")
    }
}

/// Fetches bundles from whichever member of the control plane answers.
fn fetch_from(control: ControlClient) -> Fetch {
    Arc::new(move |id| {
        let control = control.clone();
        async move {
            let bytes = control.get_bundle(&id, mosec_bundle::MAX_BYTES).await;
            bytes.map_err(|error| error.to_string())
        }
        .boxed()
    })
}

/// Accepts links until `stop`, then waits for those there are to finish.
async fn serve(agent: &Agent, listener: &QuicListener, stop: &CancellationToken) {
    let links = TaskTracker::new();
    loop {
        let server = tokio::select! {
            server = listener.accept() => server,
            () = stop.cancelled() => break,
        };
        let Some(server) = server else { break };
        let peer = server.peer().clone();
        let upstream = match peer.role {
            Role::Gateway => Upstream::Gateway,
            _ => Upstream::Agent,
        };
        let (agent, stop) = (agent.clone(), stop.clone());
        links.spawn(async move {
            tracing::info!(peer = %peer.name, role = peer.role.name(), "upstream connected");
            let error = serve_link(agent, Arc::new(server), upstream, stop).await;
            tracing::info!(peer = %peer.name, role = peer.role.name(), %error, "upstream gone");
        });
    }
    links.close();
    if tokio::time::timeout(agent.config().drain_timeout, links.wait())
        .await
        .is_err()
    {
        tracing::warn!("batches were still out when the drain timeout ended");
    }
}

/// Milliseconds since 1970: larger at each start, as long as the clock is not set back by more than a restart takes.
fn now_millis() -> anyhow::Result<u64> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970")?;
    Ok(u64::try_from(now.as_millis())?)
}
