//! Clients that change and read the state through members drawn at random, and note what they were told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mosec_control_plane::state::history::Record;
use mosec_control_plane::state::{Command, Dedup, Model, Origin, Proposal, Refusal, Reply, Step};
use mosec_types::topology::Phase;
use mosec_types::{Incarnation, NodeId, PipelineName, PipelineSpec, Revision};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use crate::checker::Call;
use crate::net::Net;
use crate::spec::{Act, CANARY_WEIGHT, History, No, Op, Outcome, View};

/// Time for one try at one member, as in the real client.
const ATTEMPT: Duration = Duration::from_secs(3);
const PIPELINES: [&str; 2] = ["left", "right"];
const NODES: [&str; 2] = ["a", "b"];

/// What all clients of a run note.
pub struct Notes {
    start: Instant,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Places given so far in the order of beginnings and ends.
    places: u64,
    marks: u64,
    history: History,
}

impl Notes {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            inner: Mutex::default(),
        })
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A mark that no other write has.
    pub fn mark(&self) -> u64 {
        let mut inner = self.inner.lock();
        inner.marks += 1;
        inner.marks
    }

    /// Notes the beginning of a call; its outcome is unknown so far.
    pub fn begin(&self, client: u64, act: Act) -> usize {
        let at = self.now_ms();
        let mut inner = self.inner.lock();
        inner.places += 1;
        let began = inner.places;
        inner.history.push(Call {
            op: Op {
                client,
                act,
                outcome: Outcome::Unknown,
                at_ms: (at, 0),
            },
            began,
            ended: None,
        });
        inner.history.len() - 1
    }

    pub fn end(&self, call: usize, outcome: Outcome) {
        let at = self.now_ms();
        let mut inner = self.inner.lock();
        inner.places += 1;
        let place = inner.places;
        let call = &mut inner.history[call];
        call.op.at_ms.1 = at;
        call.ended = (outcome != Outcome::Unknown).then_some(place);
        call.op.outcome = outcome;
    }

    pub fn history(&self) -> History {
        self.inner.lock().history.clone()
    }
}

/// How clients misbehave, for the tests of the tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct Habits {
    /// Reads ask no majority.
    pub no_barrier: bool,
    /// Each try has a number of its own.
    pub no_dedup: bool,
}

pub struct Client {
    pub id: u64,
    pub net: Arc<Net>,
    pub notes: Arc<Notes>,
    pub habits: Habits,
    rng: StdRng,
    template: Arc<PipelineSpec>,
    seq: u64,
    /// Revisions that were seen, for rollbacks.
    seen: BTreeMap<String, Vec<u64>>,
    /// Whether rollbacks may be such as are never a canary: the format in force has them.
    pub at_once: bool,
    incarnations: Arc<Mutex<u64>>,
}

impl Client {
    pub fn new(id: u64, seed: u64, net: Arc<Net>, notes: Arc<Notes>, habits: Habits) -> Self {
        Self {
            id,
            net,
            notes,
            habits,
            rng: StdRng::seed_from_u64(seed),
            template: Arc::new(crate::fixtures::with_canary(CANARY_WEIGHT)),
            seq: 0,
            seen: BTreeMap::new(),
            at_once: false,
            incarnations: Arc::default(),
        }
    }

    /// Clients that share it register nodes with incarnations that overtake each other.
    pub fn share(&mut self, incarnations: &Arc<Mutex<u64>>) {
        self.incarnations = incarnations.clone();
    }

    /// Calls one thing after the other until `end`.
    pub async fn run(mut self, end: Instant) {
        while Instant::now() < end {
            let pause = self.rng.random_range(0..600);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let act = self.choose();
            let Outcome::View(view) = self.call(act).await else {
                continue;
            };
            let mut step = self.next_step(&view);
            while let Some(act) = step.take() {
                let outcome = self.call(act.clone()).await;
                if let (Act::Canary { pipeline, .. }, Outcome::Done(_)) = (act, outcome) {
                    step = Some(self.set_traffic(pipeline));
                }
            }
        }
    }

    /// What somebody would do next about what was just read. No reconciler is there, so clients do its part.
    fn next_step(&mut self, view: &View) -> Option<Act> {
        let pipeline = PIPELINES[self.rng.random_range(0..PIPELINES.len())].to_owned();
        let &(revision, mark) = view.pipelines.get(&pipeline)?.last()?;
        let shares = view.shares.get(&pipeline)?;
        let drawn = self.rng.random_range(0..100);
        match (shares.contains_key(&mark), shares.len()) {
            (false, 0) if drawn < 80 => Some(Act::Serve { pipeline, revision }),
            // What is no canary goes on without being one, and what was to be one may, too.
            (false, _) if drawn < 10 => Some(Act::Serve { pipeline, revision }),
            (false, _) if drawn < 80 => Some(Act::Canary {
                pipeline,
                revision,
                based_on: view.version,
            }),
            // A canary and what serves.
            (true, 2) if drawn < 80 => Some(self.set_traffic(pipeline)),
            (true, _) if drawn > 90 => Some(Act::Serve { pipeline, revision }),
            _ => None,
        }
    }

    fn set_traffic(&mut self, pipeline: String) -> Act {
        // Now and then the weight that it has.
        let weight = self.rng.random_range(0..=10) * 10;
        Act::SetTraffic { pipeline, weight }
    }

    fn choose(&mut self) -> Act {
        let pipeline = PIPELINES[self.rng.random_range(0..PIPELINES.len())].to_owned();
        match self.rng.random_range(0..100) {
            0..40 => Act::Read,
            40..58 => Act::Deploy {
                pipeline,
                mark: self.notes.mark(),
            },
            58..70 => {
                let seen = self.seen.get(&pipeline).map_or(&[][..], Vec::as_slice);
                let to = match seen.len() {
                    0 => 1,
                    // Now and then the newest, which is there already.
                    known => seen[known.saturating_sub(self.rng.random_range(1..6))],
                };
                Act::Rollback {
                    pipeline,
                    to,
                    mark: self.notes.mark(),
                    at_once: self.at_once && self.rng.random_bool(0.7),
                }
            }
            70..77 => self.set_traffic(pipeline),
            77..80 => Act::Delete { pipeline },
            _ => {
                let node = NODES[self.rng.random_range(0..NODES.len())].to_owned();
                let mut newest = self.incarnations.lock();
                *newest += 1;
                // Now and then one that is late.
                let incarnation = newest.saturating_sub(self.rng.random_range(0..4)).max(1);
                Act::Register { node, incarnation }
            }
        }
    }

    /// Makes one call with its tries.
    pub async fn call(&mut self, act: Act) -> Outcome {
        let call = self.notes.begin(self.id, act.clone());
        self.seq += 1;
        // These have no number: a second try after one that was made would be told that it is stale.
        let tries = match act {
            Act::Register { .. } | Act::Canary { .. } => 1,
            _ => self.rng.random_range(1..=6),
        };
        let mut outcome = Outcome::Unknown;
        for _ in 0..tries {
            let roster = self.net.roster();
            let member = roster[self.rng.random_range(0..roster.len())];
            outcome = self.attempt(member, &act).await;
            if outcome != Outcome::Unknown {
                break;
            }
            self.seq += u64::from(self.habits.no_dedup);
            let pause = self.rng.random_range(20..320);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self.learn(&act, &outcome);
        self.notes.end(call, outcome.clone());
        outcome
    }

    async fn attempt(&mut self, member: u64, act: &Act) -> Outcome {
        let way = |rng: &mut StdRng| Duration::from_millis(rng.random_range(0..3));
        let (there, back) = (way(&mut self.rng), way(&mut self.rng));
        let (net, act) = (self.net.clone(), act.clone());
        let barrier = !self.habits.no_barrier;
        let proposal = self.proposal(&act);
        let asked = async move {
            tokio::time::sleep(there).await;
            let live = net.member(member)?;
            live.gate.pass().await;
            let dead = live.dead.clone();
            let gate = live.gate.clone();
            let work = async {
                match proposal {
                    Some(proposal) => live.propose(net, proposal).await.map(|reply| told(&reply)),
                    None => live
                        .read(net, barrier)
                        .await
                        .map(|model| Outcome::View(view(&model))),
                }
            };
            let outcome = tokio::select! {
                biased;
                () = dead.cancelled() => None,
                outcome = work => outcome,
            };
            gate.pass().await;
            if dead.is_cancelled() {
                return None;
            }
            tokio::time::sleep(back).await;
            outcome
        };
        // As a task: a call goes on at the member when its client has given up.
        let task = tokio::spawn(asked);
        match tokio::time::timeout(ATTEMPT, task).await {
            Ok(Ok(Some(outcome))) => outcome,
            _ => Outcome::Unknown,
        }
    }

    fn proposal(&self, act: &Act) -> Option<Proposal> {
        let name = |pipeline: &String| PipelineName::new(pipeline).expect("the names are fine");
        let origin = |mark: u64| Origin {
            by: mark.to_string(),
            at_unix_ms: 0,
        };
        const HOUR_MS: u64 = 3_600_000;
        let command = match act {
            Act::Read => return None,
            Act::Deploy { pipeline, mark } => {
                let mut spec = PipelineSpec::clone(&self.template);
                spec.name = name(pipeline);
                spec.routes[0].path = format!("/{pipeline}");
                Command::Deploy {
                    spec: Arc::new(spec),
                    healthy_deadline_ms: HOUR_MS,
                    origin: origin(*mark),
                }
            }
            Act::Rollback {
                pipeline,
                to,
                mark,
                at_once,
            } => Command::Rollback {
                pipeline: name(pipeline),
                to: Some(Revision(*to)),
                healthy_deadline_ms: HOUR_MS,
                origin: origin(*mark),
                at_once: *at_once,
            },
            Act::Delete { pipeline } => Command::Delete {
                pipeline: name(pipeline),
                origin: origin(0),
            },
            Act::Canary {
                revision, based_on, ..
            } => {
                return Some(Proposal::from(Command::Advance {
                    revision: Revision(*revision),
                    step: Step {
                        phase: Phase::Canary,
                        weight: CANARY_WEIGHT,
                        replicas: vec![1],
                        predecessor: vec![1],
                    },
                    based_on: *based_on,
                }));
            }
            Act::Serve { revision, .. } => Command::SetPhase {
                revision: Revision(*revision),
                phase: Phase::Serving,
            },
            Act::SetTraffic { pipeline, weight } => Command::SetTraffic {
                pipeline: name(pipeline),
                weight: *weight,
                origin: origin(0),
            },
            Act::Register { node, incarnation } => {
                return Some(Proposal::from(Command::RegisterNode {
                    id: NodeId::new(node).expect("the names are fine"),
                    incarnation: Incarnation(*incarnation),
                    address: "host:7443".into(),
                    labels: BTreeMap::new(),
                    capacity: Default::default(),
                    build: None,
                }));
            }
        };
        Some(Proposal {
            command,
            dedup: Some(Dedup {
                client: self.id.to_string(),
                seq: self.seq,
            }),
        })
    }

    fn learn(&mut self, act: &Act, outcome: &Outcome) {
        match (act, outcome) {
            (Act::Deploy { pipeline, .. } | Act::Rollback { pipeline, .. }, Outcome::Deployed(revision)) => {
                self.seen.entry(pipeline.clone()).or_default().push(*revision);
            }
            (_, Outcome::View(view)) => {
                for (pipeline, revisions) in &view.pipelines {
                    let revisions = revisions.iter().map(|&(revision, _)| revision).collect();
                    self.seen.insert(pipeline.clone(), revisions);
                }
            }
            _ => {}
        }
    }
}

fn told(reply: &Reply) -> Outcome {
    match reply {
        Reply::Deployed { revision } => Outcome::Deployed(revision.0),
        Reply::Done { version } => Outcome::Done(Some(*version)),
        Reply::Void => Outcome::Void,
        // Nobody joins here.
        Reply::Joined { .. } => Outcome::Refused(No::Other),
        Reply::Refused(refusal) => Outcome::Refused(match refusal {
            Refusal::UnknownPipeline(_) => No::UnknownPipeline,
            Refusal::ForgottenRevision { .. } => No::ForgottenRevision,
            Refusal::AlreadyThere { .. } => No::AlreadyThere,
            Refusal::UnknownRevision(_) | Refusal::NotStarting { .. } => No::NotStarting,
            Refusal::NoRollout(_) => No::NotRollingOut,
            Refusal::NoCanary { .. } => No::NotCanary,
            Refusal::StaleIncarnation { .. } => No::StaleIncarnation,
            _ => No::Other,
        }),
    }
}

pub fn view(model: &Model) -> View {
    let mark = |record: &Record| record.origin.by.parse().unwrap_or(0);
    let mut view = View {
        version: model.version,
        ..View::default()
    };
    for (name, history) in &model.histories {
        let marks = history
            .records()
            .iter()
            .map(|record| (record.revision.0, mark(record)));
        view.pipelines.insert(name.to_string(), marks.collect());
        let shares = model.rollouts_of(name).filter_map(|rollout| {
            let deployment = &rollout.deployment;
            let takes_requests = matches!(deployment.phase, Phase::Canary | Phase::Serving);
            let record = takes_requests.then(|| history.find(deployment.revision))??;
            Some((mark(record), deployment.weight))
        });
        view.shares.insert(name.to_string(), shares.collect());
    }
    let nodes = model.nodes.iter();
    view.nodes = nodes
        .map(|(id, node)| (id.to_string(), node.incarnation.0))
        .collect();
    view
}
