//! A network between members that loses, delays, doubles and cuts, as a seed says.

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mosec_control_plane::raft::describe::{ASK_FOR, Ask, Description};
use mosec_control_plane::raft::elector::Heard;
use mosec_control_plane::raft::{MemberId, TypeConfig};
use openraft::error::{InstallSnapshotError, RPCError, RaftError, RemoteError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption, RPCTypes, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, BasicNode};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Notify, oneshot};

use crate::member::Live;

/// As the real network has it.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// A door that a stalled process keeps shut: nothing goes in or out, and nothing is lost.
#[derive(Default)]
pub struct Gate {
    shut: AtomicBool,
    opened: Notify,
}

impl Gate {
    pub fn set(&self, shut: bool) {
        self.shut.store(shut, Ordering::Relaxed);
        if !shut {
            self.opened.notify_waiters();
        }
    }

    pub async fn pass(&self) {
        loop {
            let opened = self.opened.notified();
            if !self.shut.load(Ordering::Relaxed) {
                return;
            }
            opened.await;
        }
    }
}

/// What the network does to messages, in chances.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    pub lose: f64,
    pub double: f64,
    /// A message that is late by far more than the others.
    pub late: f64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub sent: u64,
    pub lost: u64,
    pub cut: u64,
    pub doubled: u64,
    pub late: u64,
}

pub struct Net {
    inner: Mutex<Inner>,
}

struct Inner {
    rng: StdRng,
    weather: Weather,
    /// Directions that nothing gets through.
    cut: BTreeSet<(MemberId, MemberId)>,
    members: BTreeMap<MemberId, Arc<Live>>,
    /// Those that clients may try, be they there or not.
    roster: BTreeSet<MemberId>,
    counts: Counts,
}

/// Why there is no answer.
pub enum Lost {
    /// Nobody listens there.
    Refused,
    Late,
}

pub type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Net {
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                rng: StdRng::seed_from_u64(seed),
                weather: Weather::default(),
                cut: BTreeSet::new(),
                members: BTreeMap::new(),
                roster: BTreeSet::new(),
                counts: Counts::default(),
            }),
        })
    }

    pub fn set_weather(&self, weather: Weather) {
        self.inner.lock().weather = weather;
    }

    pub fn cut(&self, from: MemberId, to: MemberId) {
        self.inner.lock().cut.insert((from, to));
    }

    pub fn heal(&self) {
        self.inner.lock().cut.clear();
    }

    pub fn counts(&self) -> Counts {
        self.inner.lock().counts
    }

    pub fn join(&self, live: Arc<Live>) {
        self.inner.lock().members.insert(live.id(), live);
    }

    /// Tells clients of a member.
    pub fn enrol(&self, member: MemberId) {
        self.inner.lock().roster.insert(member);
    }

    /// Has clients forget a member.
    pub fn strike(&self, member: MemberId) {
        self.inner.lock().roster.remove(&member);
    }

    pub fn roster(&self) -> Vec<MemberId> {
        self.inner.lock().roster.iter().copied().collect()
    }

    pub fn leave(&self, member: MemberId) {
        self.inner.lock().members.remove(&member);
    }

    pub fn member(&self, member: MemberId) -> Option<Arc<Live>> {
        self.inner.lock().members.get(&member).cloned()
    }

    /// How long a message takes; `None` where it is lost.
    fn leg(&self, from: MemberId, to: MemberId) -> Option<Duration> {
        let mut inner = self.inner.lock();
        inner.counts.sent += 1;
        if inner.cut.contains(&(from, to)) {
            inner.counts.cut += 1;
            return None;
        }
        let weather = inner.weather;
        if inner.rng.random_bool(weather.lose) {
            inner.counts.lost += 1;
            return None;
        }
        if inner.rng.random_bool(weather.late) {
            inner.counts.late += 1;
            return Some(Duration::from_millis(inner.rng.random_range(50..900)));
        }
        Some(Duration::from_millis(inner.rng.random_range(0..6)))
    }

    fn doubles(&self) -> bool {
        let mut inner = self.inner.lock();
        let chance = inner.weather.double;
        let doubles = inner.rng.random_bool(chance);
        inner.counts.doubled += u64::from(doubles);
        doubles
    }

    fn is_cut(&self, from: MemberId, to: MemberId) -> bool {
        self.inner.lock().cut.contains(&(from, to))
    }

    /// Has `work` done at member `to`, and waits up to `limit` for the answer. It is done even where nobody waits any
    /// more, and twice where the network doubles it.
    pub async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        from: &Arc<Live>,
        to: MemberId,
        limit: Duration,
        may_double: bool,
        work: impl Fn(Arc<Live>) -> Answer<T>,
    ) -> Result<T, Lost> {
        let asked = async {
            from.gate.pass().await;
            if from.dead.is_cancelled() {
                return pending().await;
            }
            let Some(target) = self.member(to) else {
                return Err(Lost::Refused);
            };
            let (reply, answer) = oneshot::channel();
            let copy = (may_double && self.doubles()).then(|| oneshot::channel().0);
            for reply in [Some(reply), copy].into_iter().flatten() {
                if let Some(delay) = self.leg(from.id(), to) {
                    let done = work(target.clone());
                    tokio::spawn(
                        self.clone()
                            .deliver(from.id(), target.clone(), delay, done, reply),
                    );
                }
            }
            match answer.await {
                Ok(answer) => {
                    from.gate.pass().await;
                    Ok(answer)
                }
                // The message was lost, which its sender learns from its clock alone.
                Err(_) => pending().await,
            }
        };
        tokio::time::timeout(limit, asked)
            .await
            .unwrap_or(Err(Lost::Late))
    }

    async fn deliver<T>(
        self: Arc<Self>,
        from: MemberId,
        target: Arc<Live>,
        delay: Duration,
        work: Answer<T>,
        reply: oneshot::Sender<T>,
    ) {
        tokio::time::sleep(delay).await;
        target.gate.pass().await;
        if target.dead.is_cancelled() || self.is_cut(from, target.id()) {
            return;
        }
        let answer = tokio::select! {
            biased;
            () = target.dead.cancelled() => return,
            answer = work => answer,
        };
        target.gate.pass().await;
        if target.dead.is_cancelled() {
            return;
        }
        if let Some(delay) = self.leg(target.id(), from) {
            tokio::time::sleep(delay).await;
            // Who has stopped waiting has dropped the other end.
            drop(reply.send(answer));
        }
    }
}

/// Makes one member's connections. The member itself is known only after its Raft, which is made with this.
#[derive(Clone)]
pub struct Network {
    pub net: Arc<Net>,
    pub from: MemberId,
    pub life: u64,
    pub heard: Arc<Heard>,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: MemberId, _: &BasicNode) -> Connection {
        Connection {
            net: self.net.clone(),
            from: self.from,
            life: self.life,
            heard: self.heard.clone(),
            target,
        }
    }
}

impl Ask for Network {
    async fn describe(&self, at: &str) -> Result<Description, String> {
        // A dead process asks nobody, though its tasks may not know yet.
        let Some(from) = self.net.member(self.from).filter(|live| live.life == self.life) else {
            return pending().await;
        };
        let member = (1..=MAX_ID).find(|&member| address(member) == at);
        let work = |to: Arc<Live>| -> Answer<Result<Description, String>> {
            Box::pin(async move { to.description().await })
        };
        let told = self.net.call(&from, member.unwrap_or(0), ASK_FOR, false, work);
        match told.await {
            Ok(told) => told,
            Err(Lost::Refused) => Err("nobody listens".into()),
            Err(Lost::Late) => Err("no answer in time".into()),
        }
    }
}

/// Greatest number of a member.
const MAX_ID: MemberId = 1000;

/// Where a member is.
pub fn address(member: MemberId) -> String {
    format!("member-{member}:7000")
}

pub struct Connection {
    net: Arc<Net>,
    from: MemberId,
    life: u64,
    heard: Arc<Heard>,
    target: MemberId,
}

type RpcError<E = openraft::error::Infallible> = RPCError<MemberId, BasicNode, RaftError<MemberId, E>>;

impl Connection {
    async fn send<T: Send + 'static, E: std::error::Error + Send + 'static>(
        &self,
        action: RPCTypes,
        option: &RPCOption,
        may_double: bool,
        work: impl Fn(Arc<Live>) -> Answer<Result<T, RaftError<MemberId, E>>>,
    ) -> Result<T, RpcError<E>> {
        let (id, target, timeout) = (self.from, self.target, option.hard_ttl());
        // A dead process sends nothing, though its tasks may not know yet.
        let Some(from) = self.net.member(id).filter(|live| live.life == self.life) else {
            tokio::time::sleep(timeout).await;
            return Err(unreachable("the sender is dead"));
        };
        match self.net.call(&from, target, timeout, may_double, work).await {
            Ok(answer) => answer.map_err(|error| RemoteError::new(target, error).into()),
            Err(Lost::Refused) => Err(unreachable("nobody listens")),
            Err(Lost::Late) => Err(Timeout {
                action,
                id,
                target,
                timeout,
            }
            .into()),
        }
    }
}

fn unreachable<E: std::error::Error>(why: &str) -> RpcError<E> {
    Unreachable::new(&AnyError::error(why)).into()
}

impl RaftNetwork<TypeConfig> for Connection {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<MemberId>, RpcError> {
        let work = |to: Arc<Live>| -> Answer<_> {
            let rpc = rpc.clone();
            Box::pin(async move { to.inbox.append_entries(rpc).await })
        };
        self.send(RPCTypes::AppendEntries, &option, true, work).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<MemberId>,
        option: RPCOption,
    ) -> Result<VoteResponse<MemberId>, RpcError> {
        let work = |to: Arc<Live>| -> Answer<_> {
            let rpc = rpc.clone();
            Box::pin(async move { to.inbox.vote(rpc).await })
        };
        let answer = self.send(RPCTypes::Vote, &option, true, work).await?;
        self.heard.note_answer(&rpc, &answer);
        Ok(answer)
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<MemberId>, RpcError<InstallSnapshotError>> {
        let work = |to: Arc<Live>| -> Answer<_> {
            let rpc = rpc.clone();
            Box::pin(async move { to.inbox.install_snapshot(rpc).await })
        };
        self.send(RPCTypes::InstallSnapshot, &option, false, work).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY_PAUSE))
    }
}
