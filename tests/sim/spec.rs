//! What one control plane that never fails would answer: the yardstick for histories of a real one.
//!
//! It is a second, much smaller description of the replicated state, written from the promises and not from the code
//! it checks. Each write that makes a revision carries a mark of its own, which reads show beside the revision: so the
//! revision of a write whose answer was lost is known too, where anybody ever saw it.

use std::collections::BTreeMap;

use crate::checker::{Call, Sequential, Verdict, check};

/// Revisions that are remembered of a pipeline.
const REMEMBERED: usize = mosec_control_plane::state::history::MAX_REMEMBERED;
/// Percent of the requests that a canary takes at first.
pub const CANARY_WEIGHT: u32 = 10;
/// Steps of the search: a good history of some hundred calls takes a few thousand.
const STEPS: u64 = 200_000;

/// What a client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    Deploy {
        pipeline: String,
        mark: u64,
    },
    /// Back to a revision that was seen.
    Rollback {
        pipeline: String,
        to: u64,
        mark: u64,
        /// Never as a canary.
        at_once: bool,
    },
    Delete {
        pipeline: String,
    },
    /// A revision that starts, seen at version `based_on`, takes some of the requests of the one that serves.
    Canary {
        pipeline: String,
        revision: u64,
        based_on: u64,
    },
    /// A revision that is on its way serves, and replaces the one that does.
    Serve {
        pipeline: String,
        revision: u64,
    },
    /// The share of a pipeline's canary, in percent.
    SetTraffic {
        pipeline: String,
        weight: u32,
    },
    Register {
        node: String,
        incarnation: u64,
    },
    Read,
}

impl Act {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Deploy { .. } => "deploy",
            Self::Rollback { .. } => "rollback",
            Self::Delete { .. } => "delete",
            Self::Canary { .. } => "canary",
            Self::Serve { .. } => "serve",
            Self::SetTraffic { .. } => "set traffic",
            Self::Register { .. } => "register",
            Self::Read => "read",
        }
    }
}

/// What a client was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Deployed(u64),
    /// The version that has the change, where it is told.
    Done(Option<u64>),
    Refused(No),
    /// Nothing was changed, as something else was since the version that the change was based on.
    Void,
    View(View),
    /// No answer, or one that leaves open whether the change was made.
    Unknown,
}

impl Outcome {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Deployed(_) | Self::Done(_) | Self::View(_) => "ok",
            Self::Refused(_) | Self::Void => "refused",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum No {
    UnknownPipeline,
    ForgottenRevision,
    AlreadyThere,
    /// The revision is not on its way to serve, or no longer there.
    NotStarting,
    /// No revision of the pipeline is on its way to serve.
    NotRollingOut,
    /// The revision on its way to serve is no canary.
    NotCanary,
    StaleIncarnation,
    /// Nothing that the yardstick ever says.
    Other,
}

/// The state as a read shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    pub version: u64,
    /// Revision and mark of what is remembered of each pipeline, oldest first.
    pub pipelines: BTreeMap<String, Vec<(u64, u64)>>,
    /// Of each pipeline the percent of requests that go to the revision that serves and to the canary, by their marks.
    pub shares: BTreeMap<String, BTreeMap<u64, u32>>,
    pub nodes: BTreeMap<String, u64>,
}

/// An act and its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    pub client: u64,
    pub act: Act,
    pub outcome: Outcome,
    /// Virtual or real time of its beginning and end, for people.
    pub at_ms: (u64, u64),
}

pub type History = Vec<Call<Op>>;

/// The state of the yardstick: marks stand for revisions.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct State {
    /// No later change can have this version or a lower one.
    version: u64,
    pipelines: BTreeMap<String, Pipeline>,
    nodes: BTreeMap<String, u64>,
}

/// What there is of a pipeline. The newest revision serves, or is on its way to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Pipeline {
    /// What is remembered, oldest first.
    marks: Vec<u64>,
    /// The mark of what serves.
    serving: Option<u64>,
    /// Percent of the requests that the newest revision takes, where it is a canary. Where a reconciler makes it one,
    /// what it takes once it is.
    canary: Option<u32>,
    /// Whether the newest revision goes back at once, and so never comes to be a canary.
    at_once: bool,
}

impl Pipeline {
    fn newest(&self) -> Option<u64> {
        self.marks.last().copied()
    }

    /// Whether the newest revision has not come to serve.
    fn rolls_out(&self) -> bool {
        self.newest() != self.serving
    }

    /// Adds a revision that starts. What was on its way is replaced by it, what serves goes on and is not forgotten.
    fn begin(&mut self, mark: u64, at_once: bool, rollouts: Rollouts) {
        self.marks.push(mark);
        self.at_once = at_once;
        self.canary = (rollouts == Rollouts::ByReconciler && !at_once).then_some(CANARY_WEIGHT);
        // A reconciler may have let any of them serve, which is not forgotten.
        if self.marks.len() > REMEMBERED && rollouts == Rollouts::ByCalls {
            let oldest = self.marks.iter().position(|&mark| Some(mark) != self.serving);
            self.marks.remove(oldest.unwrap_or(0));
        }
    }

    /// Whether a read can show these revisions, oldest first, and these shares.
    fn is(&self, marks: &[u64], shares: &BTreeMap<u64, u32>, rollouts: Rollouts) -> bool {
        match rollouts {
            Rollouts::ByCalls => marks == self.marks && *shares == self.shares(),
            Rollouts::ByReconciler => {
                let mut known = self.marks.iter();
                let in_order = marks.iter().all(|mark| known.any(|other| other == mark));
                in_order && marks.last() == self.marks.last() && self.can_share(shares)
            }
        }
    }

    fn shares(&self) -> BTreeMap<u64, u32> {
        let canary = self.newest().zip(self.canary);
        let serving = self.serving.map(|mark| (mark, 100 - self.canary.unwrap_or(0)));
        serving.into_iter().chain(canary).collect()
    }

    /// Whether a reconciler can have come to these shares: at most one revision serves, and it takes all requests but
    /// those of a canary.
    fn can_share(&self, shares: &BTreeMap<u64, u32>) -> bool {
        let mut serving = shares.clone();
        let canary = match (shares.len(), self.newest(), self.canary) {
            (0 | 1, ..) => 0,
            (2, Some(newest), Some(weight)) if serving.remove(&newest) == Some(weight) => weight,
            _ => return false,
        };
        serving.values().all(|&weight| weight == 100 - canary)
    }
}

struct ControlPlane {
    /// Revision of each mark, as far as it was ever seen.
    revisions: BTreeMap<u64, u64>,
    rollouts: Rollouts,
}

/// Who takes the steps of rollouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rollouts {
    /// Calls of the history. Reads show all that is remembered.
    ByCalls,
    /// A reconciler, at any time: a revision may come to be a canary or to serve between any two calls. Reads show the
    /// newest revision, and of older ones those that are not over.
    ByReconciler,
}

/// Checks a history; the error says what is wrong with it.
pub fn verify(history: &History, rollouts: Rollouts) -> Result<(), String> {
    let spec = ControlPlane {
        revisions: revisions(history)?,
        rollouts,
    };
    // A read without an answer says nothing.
    let told = |call: &&Call<Op>| call.op.act != Act::Read || call.op.outcome != Outcome::Unknown;
    let calls: Vec<_> = history.iter().filter(told).cloned().collect();
    match check(&spec, &calls, STEPS) {
        Verdict::Linearizable => Ok(()),
        Verdict::Undecided { longest } => Err(format!(
            "not decided within {STEPS} steps: {}",
            explain(&calls, &longest)
        )),
        Verdict::Violation { longest } => Err(explain(&calls, &longest)),
    }
}

/// The revision of each mark; two revisions with one mark are one write that was made twice.
fn revisions(history: &History) -> Result<BTreeMap<u64, u64>, String> {
    let mut found = BTreeMap::new();
    let mut learn = |mark: u64, revision: u64| match found.insert(mark, revision) {
        Some(other) if other != revision => Err(format!(
            "write {mark} made revision {other} and revision {revision}"
        )),
        _ => Ok(()),
    };
    for Call { op, .. } in history {
        match (&op.act, &op.outcome) {
            (Act::Deploy { mark, .. } | Act::Rollback { mark, .. }, Outcome::Deployed(revision)) => {
                learn(*mark, *revision)?;
            }
            (_, Outcome::View(view)) => {
                for &(revision, mark) in view.pipelines.values().flatten() {
                    learn(mark, revision)?;
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

fn explain(calls: &[Call<Op>], longest: &[usize]) -> String {
    let mut text = format!(
        "no order explains the history; {} calls could be ordered, the last of them:",
        longest.len()
    );
    let line = |call: &Call<Op>| format!("\n  {:?}", call.op);
    let last = &longest[longest.len().saturating_sub(12)..];
    text.extend(last.iter().map(|&index| line(&calls[index])));
    text += "\nand of the others these first:";
    let mut others: Vec<_> = (0..calls.len())
        .filter(|index| !longest.contains(index) && calls[*index].ended.is_some())
        .collect();
    others.sort_by_key(|&index| calls[index].ended);
    text.extend(others.iter().take(6).map(|&index| line(&calls[index])));
    text
}

impl ControlPlane {
    /// The state with one more revision, if it can come after what there is.
    fn revise(&self, state: &State, pipeline: &str, mark: u64, at_once: bool) -> Option<State> {
        let mut state = state.clone();
        if let Some(&revision) = self.revisions.get(&mark) {
            state.advance(revision)?;
        }
        state
            .pipelines
            .entry(pipeline.to_owned())
            .or_default()
            .begin(mark, at_once, self.rollouts);
        Some(state)
    }

    fn roll_back(&self, state: &State, pipeline: &str, to: u64) -> Result<(), No> {
        let pipeline = state.pipelines.get(pipeline).ok_or(No::UnknownPipeline)?;
        let mut marks = pipeline.marks.iter().copied();
        match marks.find(|&mark| self.is(mark, to)) {
            None => Err(No::ForgottenRevision),
            // All others have been replaced, whether they were healthy before or not.
            mark if mark == pipeline.newest() || mark == pipeline.serving => Err(No::AlreadyThere),
            Some(_) => Ok(()),
        }
    }

    fn is(&self, mark: u64, revision: u64) -> bool {
        self.revisions.get(&mark) == Some(&revision)
    }

    /// The pipeline, if `revision` is its newest and on its way to serve.
    fn starting<'a>(
        &self,
        state: &'a mut State,
        pipeline: &str,
        revision: u64,
    ) -> Result<&'a mut Pipeline, No> {
        let pipeline = state.pipelines.get_mut(pipeline).ok_or(No::NotStarting)?;
        let is_newest = pipeline.newest().is_some_and(|mark| self.is(mark, revision));
        (is_newest && pipeline.rolls_out())
            .then_some(pipeline)
            .ok_or(No::NotStarting)
    }

    fn make_canary(&self, state: &State, (pipeline, revision): (&str, u64), based_on: u64) -> Option<State> {
        let mut after = state.clone();
        // The state was that of `based_on`: nothing that came later is in it, and what was made of it comes later.
        if after.version > based_on {
            return None;
        }
        after.version = based_on;
        let pipeline = self.starting(&mut after, pipeline, revision).ok()?;
        if pipeline.serving.is_none() || pipeline.canary.is_some() || pipeline.at_once {
            return None;
        }
        pipeline.canary = Some(CANARY_WEIGHT);
        Some(after)
    }

    fn serve(&self, state: &State, pipeline: &str, revision: u64) -> Result<State, No> {
        let mut after = state.clone();
        let pipeline = self.starting(&mut after, pipeline, revision)?;
        pipeline.serving = pipeline.newest();
        pipeline.canary = None;
        Ok(after)
    }

    fn set_traffic(&self, state: &State, pipeline: &str, weight: u32) -> Result<State, No> {
        let mut after = state.clone();
        let pipeline = after.pipelines.get_mut(pipeline).ok_or(No::NotRollingOut)?;
        if !pipeline.rolls_out() {
            return Err(No::NotRollingOut);
        }
        *pipeline.canary.as_mut().ok_or(No::NotCanary)? = weight;
        Ok(after)
    }

    fn shows(&self, state: &State, view: &View) -> bool {
        let same = |(name, pipeline): (&String, &Pipeline)| {
            let shown = view.pipelines.get(name).zip(view.shares.get(name));
            shown.is_some_and(|(revisions, shares)| {
                let marks: Vec<_> = revisions.iter().map(|&(_, mark)| mark).collect();
                pipeline.is(&marks, shares, self.rollouts)
            })
        };
        view.nodes == state.nodes
            && view.pipelines.len() == state.pipelines.len()
            && state.pipelines.iter().all(same)
    }
}

impl State {
    /// Notes a change's version, if it is later than those before.
    fn advance(&mut self, version: u64) -> Option<()> {
        let later = version > self.version;
        self.version = self.version.max(version);
        later.then_some(())
    }

    /// The state after a change whose version may have been told.
    fn told(mut self, outcome: &Outcome) -> Option<Self> {
        if let Outcome::Done(Some(version)) = outcome {
            self.advance(*version)?;
        }
        Some(self)
    }
}

/// The state after a call that makes `after` of it, or is refused, if it can have been answered so.
fn answered(state: &State, after: Result<State, No>, outcome: &Outcome) -> Option<State> {
    match (after, outcome) {
        (Ok(after), outcome) if changes(outcome) => after.told(outcome),
        (Err(no), Outcome::Refused(told)) if no == *told => Some(state.clone()),
        (Err(_), Outcome::Unknown) => Some(state.clone()),
        _ => None,
    }
}

/// Whether a call with this outcome can have changed something.
fn changes(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Done(_) | Outcome::Unknown)
}

impl Sequential for ControlPlane {
    type State = State;
    type Op = Op;

    fn initial(&self) -> State {
        State::default()
    }

    fn only_looks(&self, op: &Op) -> bool {
        matches!(op.outcome, Outcome::Refused(_) | Outcome::Void)
    }

    /// The order of versions. A registration and a weight may be told an older version, as they change nothing the
    /// second time.
    fn rank(&self, op: &Op) -> Option<u64> {
        match (&op.act, &op.outcome) {
            (Act::Register { .. } | Act::SetTraffic { .. }, _) => None,
            (_, Outcome::View(view)) => Some(view.version * 2 + 1),
            (_, Outcome::Deployed(version) | Outcome::Done(Some(version))) => Some(version * 2),
            (Act::Deploy { mark, .. } | Act::Rollback { mark, .. }, Outcome::Unknown) => {
                self.revisions.get(mark).map(|revision| revision * 2)
            }
            _ => None,
        }
    }

    /// What changes nothing comes as soon as it can, what may never have happened comes last.
    fn guess(&self, op: &Op) -> u64 {
        match (self.rank(op), &op.outcome) {
            (Some(rank), _) => rank,
            (None, Outcome::Done(Some(version))) => version * 2,
            (None, Outcome::Unknown) => u64::MAX,
            (None, Outcome::Done(None)) => u64::MAX - 1,
            (None, _) => 0,
        }
    }

    fn step(&self, state: &State, op: &Op) -> Option<State> {
        match &op.act {
            Act::Deploy { pipeline, mark } => match op.outcome {
                Outcome::Deployed(_) | Outcome::Unknown => self.revise(state, pipeline, *mark, false),
                _ => None,
            },
            Act::Rollback {
                pipeline,
                to,
                mark,
                at_once,
            } => match (self.roll_back(state, pipeline, *to), &op.outcome) {
                (Ok(()), Outcome::Deployed(_) | Outcome::Unknown) => {
                    self.revise(state, pipeline, *mark, *at_once)
                }
                (Err(no), Outcome::Refused(told)) if no == *told => Some(state.clone()),
                (Err(_), Outcome::Unknown) => Some(state.clone()),
                _ => None,
            },
            Act::Delete { pipeline } => {
                let mut after = state.clone();
                let there = after.pipelines.remove(pipeline).ok_or(No::UnknownPipeline);
                answered(state, there.map(|_| after), &op.outcome)
            }
            Act::Canary {
                pipeline,
                revision,
                based_on,
            } => match (
                self.make_canary(state, (pipeline, *revision), *based_on),
                &op.outcome,
            ) {
                (Some(after), outcome) if changes(outcome) => after.told(outcome),
                (_, Outcome::Void) | (None, Outcome::Unknown) => Some(state.clone()),
                _ => None,
            },
            Act::Serve { pipeline, revision } => {
                answered(state, self.serve(state, pipeline, *revision), &op.outcome)
            }
            Act::SetTraffic { pipeline, weight } => {
                let after = self.set_traffic(state, pipeline, *weight);
                match (&after, &op.outcome) {
                    // It has not come to be a canary, has come to serve, or is not there.
                    (_, Outcome::Refused(No::NotCanary | No::NotRollingOut))
                        if self.rollouts == Rollouts::ByReconciler =>
                    {
                        Some(state.clone())
                    }
                    // It has that weight: the answer is the version that there is.
                    (Ok(same), Outcome::Done(Some(version))) if same == state => {
                        let mut after = state.clone();
                        after.version = *version;
                        (*version >= state.version).then_some(after)
                    }
                    (_, outcome) => answered(state, after, outcome),
                }
            }
            Act::Register { node, incarnation } => {
                let mut after = state.clone();
                let current = state.nodes.get(node).copied().unwrap_or(0);
                match (incarnation.cmp(&current), &op.outcome) {
                    (std::cmp::Ordering::Less, Outcome::Refused(No::StaleIncarnation) | Outcome::Unknown) => {
                    }
                    // Told anew what it was told before.
                    (std::cmp::Ordering::Equal, Outcome::Done(_) | Outcome::Unknown) => {}
                    (std::cmp::Ordering::Greater, Outcome::Done(Some(version))) => {
                        after.advance(*version)?;
                        after.nodes.insert(node.clone(), *incarnation);
                    }
                    (std::cmp::Ordering::Greater, Outcome::Done(None) | Outcome::Unknown) => {
                        after.nodes.insert(node.clone(), *incarnation);
                    }
                    _ => return None,
                }
                Some(after)
            }
            Act::Read => match &op.outcome {
                Outcome::View(view) if view.version >= state.version && self.shows(state, view) => {
                    let mut after = state.clone();
                    after.version = view.version;
                    Some(after)
                }
                _ => None,
            },
        }
    }
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
