//! What one control plane that never fails would answer: the yardstick for histories of a real one.
//!
//! It is a second, much smaller description of the replicated state, written from the promises and not from the code
//! it checks. Each write that makes a revision carries a mark of its own, which reads show beside the revision: so the
//! revision of a write whose answer was lost is known too, where anybody ever saw it.

use std::collections::BTreeMap;

use crate::checker::{Call, Sequential, Verdict, check};

/// Revisions that are remembered of a pipeline.
const REMEMBERED: usize = mosec_control_plane::state::history::MAX_REMEMBERED;
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
    },
    Delete {
        pipeline: String,
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
    View(View),
    /// No answer, or one that leaves open whether the change was made.
    Unknown,
}

impl Outcome {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Deployed(_) | Self::Done(_) | Self::View(_) => "ok",
            Self::Refused(_) => "refused",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum No {
    UnknownPipeline,
    ForgottenRevision,
    AlreadyThere,
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
    pipelines: BTreeMap<String, Vec<u64>>,
    nodes: BTreeMap<String, u64>,
}

struct ControlPlane {
    /// Revision of each mark, as far as it was ever seen.
    revisions: BTreeMap<u64, u64>,
    /// How many of a pipeline's newest revisions a read shows.
    shown: usize,
}

/// Checks a history; the error says what is wrong with it. `shown`: how many of a pipeline's newest revisions a read
/// shows.
pub fn verify(history: &History, shown: usize) -> Result<(), String> {
    let spec = ControlPlane {
        revisions: revisions(history)?,
        shown: shown.min(REMEMBERED),
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
    fn revise(&self, state: &State, pipeline: &str, mark: u64) -> Option<State> {
        let mut state = state.clone();
        if let Some(&revision) = self.revisions.get(&mark) {
            state.advance(revision)?;
        }
        let marks = state.pipelines.entry(pipeline.to_owned()).or_default();
        marks.push(mark);
        if marks.len() > REMEMBERED {
            marks.remove(0);
        }
        Some(state)
    }

    fn roll_back(&self, state: &State, pipeline: &str, to: u64) -> Result<(), No> {
        let marks = state.pipelines.get(pipeline).ok_or(No::UnknownPipeline)?;
        let at = marks
            .iter()
            .position(|mark| self.revisions.get(mark) == Some(&to));
        match at {
            None => Err(No::ForgottenRevision),
            // The newest is starting, all others have been replaced before they were healthy.
            Some(at) if at + 1 == marks.len() => Err(No::AlreadyThere),
            Some(_) => Ok(()),
        }
    }

    fn shows(&self, state: &State, view: &View) -> bool {
        let same = |(name, marks): (&String, &Vec<u64>)| {
            let shown = &marks[marks.len().saturating_sub(self.shown)..];
            view.pipelines.get(name).is_some_and(|found| {
                let newest = &found[found.len().saturating_sub(self.shown)..];
                newest.iter().map(|&(_, mark)| mark).eq(shown.iter().copied())
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
}

impl Sequential for ControlPlane {
    type State = State;
    type Op = Op;

    fn initial(&self) -> State {
        State::default()
    }

    fn only_looks(&self, op: &Op) -> bool {
        matches!(op.outcome, Outcome::Refused(_))
    }

    /// The order of versions. A registration may be told an older version, as it changes nothing the second time.
    fn rank(&self, op: &Op) -> Option<u64> {
        match (&op.act, &op.outcome) {
            (Act::Register { .. }, _) => None,
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
                Outcome::Deployed(_) | Outcome::Unknown => self.revise(state, pipeline, *mark),
                _ => None,
            },
            Act::Rollback { pipeline, to, mark } => {
                match (self.roll_back(state, pipeline, *to), &op.outcome) {
                    (Ok(()), Outcome::Deployed(_) | Outcome::Unknown) => self.revise(state, pipeline, *mark),
                    (Err(no), Outcome::Refused(told)) if no == *told => Some(state.clone()),
                    (Err(_), Outcome::Unknown) => Some(state.clone()),
                    _ => None,
                }
            }
            Act::Delete { pipeline } => {
                let mut after = state.clone();
                match (after.pipelines.remove(pipeline), &op.outcome) {
                    (Some(_), Outcome::Done(Some(version))) => after.advance(*version)?,
                    (Some(_), Outcome::Done(None) | Outcome::Unknown) => {}
                    (None, Outcome::Refused(No::UnknownPipeline) | Outcome::Unknown) => {}
                    _ => return None,
                }
                Some(after)
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
