//! The leader's loop: compares what the state wants with what nodes report, and proposes what follows.
//!
//! [`lease`] and [`rollout`] decide, this carries out. It runs on every member and does nothing but on the leader. One
//! task; its memory is a [`Tenure`], which begins and ends with leadership and which the API shares.

pub mod gateways;
pub mod lease;
pub mod reach;
pub mod retire;
pub mod rollout;
pub mod traffic;
mod update;
pub mod view;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mosec_types::topology::{NodeHealth, Phase};
use mosec_types::traffic::Counts;
use mosec_types::{Incarnation, NodeId, Revision, Unreachable, WorkerStatus};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use self::gateways::Gateways;
use self::lease::{LeaseTiming, Leases, Unleased};
use self::reach::Reach;
use self::retire::Retiring;
use self::rollout::Watched;
use self::traffic::Traffic;
pub use self::update::Awaited;
use crate::raft::handle::{Handle, ProposeError};
use crate::state::{Command, Model, Reply, Rollout};

/// How often time alone is looked at. A tenth of the shortest lease is fine enough.
const TICK: Duration = Duration::from_millis(250);

/// What a leader knows beyond the state.
pub struct Tenure {
    term: u64,
    pub leases: Leases,
    pub traffic: Traffic,
    pub gateways: Gateways,
    pub reach: Reach,
    pub watched: Watched,
    retiring: Retiring,
    /// Version of the state for which all replicas have their places.
    planned: Option<u64>,
}

impl Tenure {
    fn begin(term: u64, timing: LeaseTiming, model: &Model, now: Instant) -> Self {
        let leases = Leases::take_over(timing, &model.nodes, now);
        Self {
            term,
            leases,
            traffic: Traffic::default(),
            gateways: Gateways::default(),
            reach: Reach::default(),
            watched: Watched::default(),
            retiring: Retiring::default(),
            planned: None,
        }
    }

    /// What is to be proposed now. Nodes first, as placements follow from them, and phases from placements.
    fn decide(&mut self, model: &Model, now: Instant) -> Vec<Command> {
        self.leases.observe(&model.nodes, now);
        self.watched.observe(model, &self.leases, now);
        self.retiring.observe(model, now);
        let marks = self.leases.transitions(&model.nodes, now);
        if !marks.is_empty() {
            return marks;
        }
        if self.planned != Some(model.version) || rollout::moves(model) {
            if let Some(placement) = rollout::next_placement(model, &self.leases, now) {
                return vec![placement];
            }
            self.planned = Some(model.version);
        }
        if let Some(fewer) = self.retiring.next(model, &self.leases, now) {
            return vec![fewer];
        }
        rollout::next_steps(model, &self.leases, &self.traffic, &self.watched, now)
    }
}

impl Tenure {
    /// What a rollout waits for; `None` where it is none, or goes on at once.
    pub fn waits_for(&self, model: &Model, rollout: &Rollout, now: Instant) -> Option<Awaited> {
        rollout::waits_for(model, &self.leases, &self.traffic, &self.watched, rollout, now)
    }
}

/// What a gateway reports.
pub struct GatewayReport {
    /// Names one run of it, with which its counts began.
    pub run: String,
    /// Its name, as people know it.
    pub name: String,
    /// Absent where it does not report all the time, so that its silence says nothing.
    pub build: Option<String>,
    /// It ends with this report.
    pub ends: bool,
    pub counts: BTreeMap<Revision, Counts>,
    /// All nodes that it cannot reach now.
    pub unreachable: Vec<Unreachable>,
}

/// The current tenure, shared between the loop and the API.
#[derive(Default)]
pub struct Leadership {
    tenure: Mutex<Option<Tenure>>,
    news: Notify,
    /// Leases that ran out in all tenures of this process.
    lost_leases: AtomicU64,
    /// Tenures that this process has begun.
    begun: AtomicU64,
}

impl Leadership {
    /// Looks at the tenure; `None` where this member does not lead.
    pub fn with<T>(&self, look: impl FnOnce(&Tenure) -> T) -> Option<T> {
        self.tenure.lock().as_ref().map(look)
    }

    /// How many leases have run out while this member led.
    pub fn lost_leases(&self) -> u64 {
        self.lost_leases.load(Ordering::Relaxed)
    }

    /// How often this member came to lead.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Takes a gateway's report; false where this member does not lead.
    pub fn report(&self, report: GatewayReport) -> bool {
        let mut tenure = self.tenure.lock();
        let Some(tenure) = tenure.as_mut() else {
            return false;
        };
        let now = Instant::now();
        let GatewayReport { run, name, .. } = report;
        if report.ends {
            tenure.gateways.ended(&name, &run);
        } else if let Some(build) = &report.build {
            tenure.gateways.heard(&name, &run, build, now);
        }
        tenure.traffic.report(&run, report.counts, now);
        let from = format!("gateway/{name}");
        tenure.reach.report(&run, &from, report.unreachable, now);
        true
    }

    /// Takes note of the nodes that somebody cannot reach, where this member leads. `reporter` tells its reports from those
    /// of others, `from` tells people who it is.
    pub fn note_unreachable(&self, reporter: &str, from: &str, nodes: Vec<Unreachable>) {
        if let Some(tenure) = self.tenure.lock().as_mut() {
            tenure.reach.report(reporter, from, nodes, Instant::now());
        }
    }

    /// Notes a node's heartbeat; `None` where this member does not lead.
    pub fn renew(
        &self,
        model: &Model,
        node: &NodeId,
        incarnation: Incarnation,
        workers: Vec<WorkerStatus>,
    ) -> Option<Result<(), Unleased>> {
        let mut tenure = self.tenure.lock();
        let leases = &mut tenure.as_mut()?.leases;
        let news = leases.renew(model.nodes.get(node), incarnation, workers, Instant::now());
        if news == Ok(true) {
            self.news.notify_one();
        }
        Some(news.map(drop))
    }
}

/// The loop.
pub struct Reconciler {
    pub handle: Handle,
    pub model: watch::Receiver<Arc<Model>>,
    pub leadership: Arc<Leadership>,
    pub timing: LeaseTiming,
}

impl Reconciler {
    pub async fn run(mut self, stop: CancellationToken) {
        let mut metrics = self.handle.raft.server_metrics();
        loop {
            metrics.mark_unchanged();
            if self.lead().await {
                self.settle().await;
            }
            tokio::select! {
                () = stop.cancelled() => break,
                changed = metrics.changed() => if changed.is_err() { break },
                changed = self.model.changed() => if changed.is_err() { break },
                () = self.leadership.news.notified() => {}
                () = tokio::time::sleep(TICK) => {}
            }
        }
        *self.leadership.tenure.lock() = None;
    }

    /// Begins or ends the tenure as leadership has changed; true where this member leads.
    async fn lead(&mut self) -> bool {
        let Some(term) = self.handle.leading_term() else {
            if self.leadership.tenure.lock().take().is_some() {
                tracing::info!("leadership lost");
            }
            return false;
        };
        if self.leadership.with(|tenure| tenure.term) == Some(term) {
            return true;
        }
        // The state may lag behind what earlier leaders committed.
        if let Err(error) = self.handle.read_barrier().await {
            tracing::debug!(%error, "leadership is not confirmed yet");
            return false;
        }
        let model = self.model.borrow().clone();
        self.leadership.begun.fetch_add(1, Ordering::Relaxed);
        *self.leadership.tenure.lock() = Some(Tenure::begin(term, self.timing, &model, Instant::now()));
        tracing::info!(term, "leadership gained");
        true
    }

    /// Proposes until nothing is left to be done.
    async fn settle(&mut self) {
        loop {
            let model = self.model.borrow_and_update().clone();
            let commands = match self.leadership.tenure.lock().as_mut() {
                Some(tenure) => tenure.decide(&model, Instant::now()),
                None => return,
            };
            if commands.is_empty() {
                return;
            }
            for command in commands {
                if !self.carry_out(command).await {
                    return;
                }
            }
        }
    }

    /// Proposes one command; false where going on would be in vain.
    async fn carry_out(&self, command: Command) -> bool {
        announce(&command);
        let revision = match &command {
            Command::SetPlacement { revision, .. } => Some(*revision),
            _ => None,
        };
        let loses_lease = self.loses_lease(&command);
        match self.handle.propose(command.into()).await {
            Ok(Reply::Refused(refusal)) => {
                tracing::debug!(%refusal, "the state has moved on");
                true
            }
            Ok(reply) => {
                if loses_lease && matches!(reply, Reply::Done { .. }) {
                    self.leadership.lost_leases.fetch_add(1, Ordering::Relaxed);
                }
                true
            }
            Err(ProposeError::TooLarge { bytes }) => {
                // Refused for its size once, it always will be. Only a placement grows with the cluster.
                let reason = format!("its placement takes {bytes} bytes, more than a log entry holds");
                match revision {
                    Some(revision) => self.give_up(revision, reason).await,
                    None => false,
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a decision could not be logged");
                false
            }
        }
    }

    /// Whether the command is the end of a lease, and not a further step of a node that was silent before.
    fn loses_lease(&self, command: &Command) -> bool {
        let Command::MarkNode { node, health, .. } = command else {
            return false;
        };
        let model = self.model.borrow();
        let was_up = model
            .nodes
            .get(node)
            .is_some_and(|node| node.health == NodeHealth::Up);
        was_up && *health != NodeHealth::Up
    }

    async fn give_up(&self, revision: Revision, reason: String) -> bool {
        tracing::error!(%revision, reason, "revision cannot be placed");
        let command = Command::SetPhase {
            revision,
            phase: Phase::Failed { reason },
        };
        matches!(self.handle.propose(command.into()).await, Ok(Reply::Done { .. }))
    }
}

fn announce(command: &Command) {
    match command {
        Command::MarkNode {
            node,
            incarnation,
            health,
        } => {
            tracing::info!(%node, %incarnation, health = health.name(), "node health changes");
        }
        Command::SetPlacement { revision, .. } => tracing::info!(%revision, "replicas are placed"),
        Command::SetPhase {
            revision,
            phase: Phase::Failed { reason },
        } => {
            tracing::warn!(%revision, reason, "revision failed");
        }
        Command::Advance { revision, step, .. } => {
            let (phase, weight) = (step.phase.name(), step.weight);
            tracing::info!(%revision, phase, weight, replicas = ?step.replicas, left = ?step.predecessor, "rollout goes on");
        }
        Command::SetPhase { revision, phase } => {
            tracing::info!(%revision, phase = phase.name(), "revision changes")
        }
        _ => {}
    }
}
