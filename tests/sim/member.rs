//! One member of a simulated control plane: the real Raft, log, state machine, handle and elector.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use mosec_control_plane::Config;
use mosec_control_plane::peers::Peers;
use mosec_control_plane::raft::MemberId;
use mosec_control_plane::raft::admission::{self, Admission, Others};
use mosec_control_plane::raft::blocking::Blocking;
use mosec_control_plane::raft::describe::Description;
use mosec_control_plane::raft::elector::{self, Heard, Turns};
use mosec_control_plane::raft::handle::{Handle, ProposeError};
use mosec_control_plane::raft::inbox::Inbox;
use mosec_control_plane::raft::log_store::{LogStore, Owner};
use mosec_control_plane::raft::members::{Code, Members, finish_changes};
use mosec_control_plane::raft::raise;
use mosec_control_plane::raft::snapshot::Stored;
use mosec_control_plane::raft::state_machine::{Snapshots, StateMachine};
use mosec_control_plane::server::{QUORUM_TIMEOUT, found, raft_config};
use mosec_control_plane::state::{Formats, Model, Proposal, Reply};
use openraft::{BasicNode, Raft};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::disk::{Disk, Lie};
use crate::net::{Gate, Net, Network};

/// What the way to the leader and back may add, as in the real API.
const FORWARD_LIMIT: Duration = Duration::from_secs(5);

/// A member through all its lives.
pub struct Member {
    config: Config,
    net: Arc<Net>,
    pub disk: Disk,
    pub slow_disk: Arc<Mutex<bool>>,
    snapshot: Arc<Mutex<Option<Stored>>>,
    rng: StdRng,
    lives: u64,
}

/// One life of a member's process.
pub struct Live {
    pub life: u64,
    pub handle: Handle,
    pub model: watch::Receiver<Arc<Model>>,
    pub inbox: Inbox,
    pub members: Members<Network, NoCode>,
    pub gate: Arc<Gate>,
    pub dead: CancellationToken,
}

/// Of the code that revisions name, which has tests of its own.
#[derive(Clone)]
pub struct NoCode;

impl Code for NoCode {
    async fn lacking(&self, _: MemberId, _: &str) -> Result<usize, String> {
        Ok(0)
    }
}

impl Member {
    pub fn new(config: Config, net: Arc<Net>, seed: u64, lie: Lie) -> Self {
        Self {
            config,
            net,
            disk: Disk::new(lie),
            slow_disk: Arc::default(),
            snapshot: Arc::default(),
            rng: StdRng::seed_from_u64(seed),
            lives: 0,
        }
    }

    /// Gives it another build from its next start on.
    pub fn install(&mut self, formats: Formats) {
        self.config.formats = formats;
    }

    /// Starts its process, as `ControlPlane::build` and `run` do.
    pub async fn start(&mut self) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        self.lives += 1;
        let gate = Arc::new(Gate::default());
        let blocking = Blocking::InLine(self.pace(&gate));
        let (config, member) = (&self.config, self.config.member);
        let owner = Owner {
            cluster_id: config.cluster_id.clone(),
            member,
        };
        let log = LogStore::open_on(blocking.clone(), self.disk.open(), &owner, config.formats)
            .map_err(|e| text(&e))?;
        let (machine, model) =
            StateMachine::open_on(blocking, Snapshots::Memory(self.snapshot.clone()), config.formats)
                .map_err(|e| text(&e))?;
        let heard = Arc::new(Heard::default());
        let network = Network {
            net: self.net.clone(),
            from: member,
            life: self.lives,
            heard: heard.clone(),
        };
        let raft = raft_config(config).map_err(|e| text(&e))?;
        let raft = Raft::new(member, Arc::new(raft), network.clone(), log.clone(), machine)
            .await
            .map_err(|e| text(&e))?;
        let handle = Handle {
            raft: raft.clone(),
            member,
            peers: Arc::new(Peers::new(config.peers.clone(), None)),
            quorum_timeout: QUORUM_TIMEOUT,
            changes: Arc::default(),
            lease: Turns::lease(config.raft.heartbeat),
            model: model.clone(),
        };
        handle.peers.follow(raft.metrics());
        let live = Arc::new(Live {
            life: self.lives,
            members: Members {
                cluster_id: config.cluster_id.clone(),
                handle: handle.clone(),
                asker: network.clone(),
                code: NoCode,
            },
            handle: handle.clone(),
            model,
            inbox: Inbox {
                raft: raft.clone(),
                heard,
                admission: Arc::new(Admission::new(log.is_newcomer())),
                formats: config.formats,
                outdated: Arc::default(),
            },
            gate: gate.clone(),
            dead: CancellationToken::new(),
        });
        self.net.join(live.clone());
        let founds = config.peers.keys().next() == Some(&member);
        let heartbeat = config.raft.heartbeat;
        let nodes: BTreeMap<_, _> = config
            .peers
            .iter()
            .map(|(&id, address)| (id, BasicNode::new(address)))
            .collect();
        let asker = network;
        let others = Others {
            asker: asker.clone(),
            cluster_id: config.cluster_id.clone(),
            own: member,
            founders: nodes.clone(),
            seeds: config.seeds.clone(),
        };
        let (inbox, dead) = (live.inbox.clone(), live.dead.clone());
        spawn_gated(
            &gate,
            elector::run(inbox.clone(), member, heartbeat, dead.clone()),
        );
        spawn_gated(&gate, finish_changes(handle.clone(), dead.clone()));
        let raising = raise::run(
            handle,
            config.cluster_id.clone(),
            config.formats,
            asker,
            dead.clone(),
        );
        spawn_gated(&gate, raising);
        spawn_gated(&gate, async move {
            admission::run(&inbox.admission, &inbox.raft, &log, others, &dead).await;
            if founds && inbox.admission.is_level() {
                // It fails where the process is dead.
                found(&inbox.raft, nodes).await.ok();
            }
        });
        Ok(())
    }

    /// How long a sync takes.
    fn pace(&mut self, gate: &Arc<Gate>) -> mosec_control_plane::raft::blocking::Pace {
        let rng = Arc::new(Mutex::new(StdRng::seed_from_u64(self.rng.random())));
        let (slow, gate) = (self.slow_disk.clone(), gate.clone());
        Arc::new(move || {
            let most = if *slow.lock() { 400 } else { 4 };
            let took = Duration::from_millis(rng.lock().random_range(0..most));
            let gate = gate.clone();
            Box::pin(async move {
                tokio::time::sleep(took).await;
                gate.pass().await;
            })
        })
    }

    /// Ends its process at once.
    pub fn kill(&mut self, power_too: bool) {
        if power_too {
            self.disk.lose_power(&mut self.rng);
        } else {
            self.disk.lose_process();
        }
        self.leave();
    }

    /// Ends its process and takes its disk away.
    pub fn wipe(&mut self) {
        self.disk.wipe();
        self.leave();
        self.snapshot = Arc::default();
    }

    fn leave(&mut self) {
        if let Some(live) = self.net.member(self.config.member) {
            live.dead.cancel();
            // A dead process has no next message; the gate must not hold its tasks for ever.
            live.gate.set(false);
            let raft = live.handle.raft.clone();
            tokio::spawn(async move { raft.shutdown().await.ok() });
        }
        self.net.leave(self.config.member);
        // A copy: what tasks of the dead process may still write reaches nobody.
        let kept = self.snapshot.lock().clone();
        self.snapshot = Arc::new(Mutex::new(kept));
    }
}

impl Live {
    pub fn id(&self) -> MemberId {
        self.handle.member
    }

    /// A write as the API does it: here, or forwarded to the leader once.
    pub async fn propose(self: Arc<Self>, net: Arc<Net>, proposal: Proposal) -> Option<Reply> {
        let leader = match self.handle.propose(proposal.clone()).await {
            Ok(reply) => return Some(reply),
            Err(ProposeError::NotLeader { leader }) => leader?.id,
            Err(_) => return None,
        };
        if leader == self.id() {
            return None;
        }
        let work = |to: Arc<Self>| -> crate::net::Answer<Option<Reply>> {
            let proposal = proposal.clone();
            Box::pin(async move { to.handle.propose(proposal).await.ok() })
        };
        // Refused or late is no answer either.
        net.call(&self, leader, FORWARD_LIMIT, false, work)
            .await
            .unwrap_or_default()
    }

    /// A linearizable read as the API does it. Without `barrier`, what this member happens to know.
    pub async fn read(self: Arc<Self>, net: Arc<Net>, barrier: bool) -> Option<Arc<Model>> {
        let leader = match self.clone().read_here(barrier).await {
            Ok(model) => return Some(model),
            Err(ProposeError::NotLeader { leader }) => leader?.id,
            Err(_) => return None,
        };
        if leader == self.id() {
            return None;
        }
        let work = |to: Arc<Self>| -> crate::net::Answer<Option<Arc<Model>>> {
            Box::pin(async move { to.read_here(barrier).await.ok() })
        };
        net.call(&self, leader, FORWARD_LIMIT, false, work)
            .await
            .unwrap_or_default()
    }

    async fn read_here(self: Arc<Self>, barrier: bool) -> Result<Arc<Model>, ProposeError> {
        if barrier {
            self.handle.read_barrier().await?;
        }
        Ok(self.model.borrow().clone())
    }

    /// What it says of itself to others.
    pub async fn description(&self) -> Result<Description, String> {
        let position = self.inbox.position().await.map_err(|error| error.to_string())?;
        let metrics = self.handle.raft.metrics();
        let metrics = metrics.borrow();
        Ok(Description {
            cluster_id: "sim".into(),
            member: self.id(),
            build: String::new(),
            formats: self.inbox.formats,
            format: self.model.borrow().format,
            is_level: self.inbox.admission.is_level(),
            signs: false,
            leader: metrics.current_leader,
            last_applied: metrics.last_applied,
            position,
        })
    }

    /// What it believes, for people.
    pub fn describe(&self) -> String {
        let metrics = self.handle.raft.metrics();
        let metrics = metrics.borrow();
        format!(
            "member {} {:?}, vote {}, log to {:?}, applied {:?}, leader {:?}, {:?}",
            self.id(),
            metrics.state,
            metrics.vote,
            metrics.last_log_index,
            metrics.last_applied,
            metrics.current_leader,
            metrics.running_state,
        )
    }

    /// Why its Raft has ended by itself, if it has.
    pub fn failure(&self) -> Option<String> {
        let metrics = self.handle.raft.metrics();
        let state = metrics.borrow().running_state.clone();
        let ended = metrics.has_changed().is_err();
        match state {
            Err(fatal) => Some(fatal.to_string()),
            Ok(()) if ended => Some("its task has panicked".into()),
            Ok(()) => None,
        }
    }
}

fn spawn_gated(gate: &Arc<Gate>, work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(Gated {
        gate: gate.clone(),
        work: Box::pin(work),
        waiting: None,
    });
}

/// A task that makes no step while its process is stalled.
struct Gated {
    gate: Arc<Gate>,
    work: Pin<Box<dyn Future<Output = ()> + Send>>,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Future for Gated {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let gate = self.gate.clone();
        let mut waiting = self
            .waiting
            .take()
            .unwrap_or_else(|| Box::pin(async move { gate.pass().await }));
        if pin!(&mut waiting).poll(context).is_pending() {
            self.waiting = Some(waiting);
            return Poll::Pending;
        }
        self.work.as_mut().poll(context)
    }
}
