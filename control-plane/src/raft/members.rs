//! Who belongs to the control plane: members come and go one at a time, while it works.
//!
//! A new member first follows as a learner, without a vote, until it has the log and the code; only then it counts in
//! majorities. A member leaves only where a majority of those that stay has everything. What comes next is decided
//! purely, from what the leader knows and the members say; whoever asked asks again until it is done, so that a leader
//! that fails in between leaves nothing half: each step is whole, and the next leader goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use futures_util::future::join_all;
use openraft::{BasicNode, ChangeMembers, Membership};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::describe::{Ask, Description, Position};
use super::elector::Heard;
use super::handle::{Handle, ProposeError};
use super::{LogId, MemberId};
use crate::peers::are_majority;
use crate::state::{Format, Formats};

/// Most members. Each write waits for a majority of them, and more than two losses at once are rare.
pub const MAX_MEMBERS: usize = 7;
/// Entries that a member may lack when it becomes a voter: less than a second of a busy log.
const MAX_LAG: u64 = 50;
/// How long a change of voters that its leader left in the middle is left to whoever asked for it.
const FINISH_AFTER: Duration = Duration::from_secs(2);
/// How often the leader looks for one.
const FINISH_EVERY: Duration = Duration::from_millis(500);

/// Why a change of members is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("member {member} is at {there}: remove it first, or take another number")]
    OtherAddress { member: MemberId, there: String },
    #[error("{address} is the address of member {member}")]
    AddressTaken { address: String, member: MemberId },
    #[error("there are {MAX_MEMBERS} members, which is the most there can be")]
    TooMany,
    #[error("at {address} there is {found}, expected {expected}")]
    Stranger {
        address: String,
        found: String,
        expected: String,
    },
    #[error(
        "member {member} at {address} has a log of its own, of a cluster that it founded or was removed from: start it \
         with an empty --data-dir and --seeds"
    )]
    NotEmpty { member: MemberId, address: String },
    #[error(
        "member {member} at {address} runs build {build}, which supports {formats}, and the cluster is at {in_force}: \
         start it with the build that the others run"
    )]
    Build {
        member: MemberId,
        address: String,
        build: String,
        formats: Formats,
        in_force: Format,
    },
    #[error("member {0} is the only one: without it there is no control plane")]
    Last(MemberId),
    #[error(
        "member {0} is the last that holds the authority's key: nobody could join any more, and no certificate be renewed; \
         start another member with --ca first"
    )]
    LastSigner(MemberId),
    #[error(
        "without member {member}, {needed} of {of} members must have everything, and {} do{}",
        whole.len(), in_words(missing)
    )]
    NoMajority {
        member: MemberId,
        of: usize,
        needed: usize,
        whole: BTreeSet<MemberId>,
        missing: BTreeMap<MemberId, String>,
    },
}

fn in_words(missing: &BTreeMap<MemberId, String>) -> String {
    missing
        .iter()
        .map(|(member, why)| format!("; member {member} {why}"))
        .collect()
}

/// Why a member was not added or removed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Done,
    /// Nothing can be done now, and why.
    Wait(String),
    AddLearner,
    MakeVoter,
    RemoveLearner,
    RemoveVoter,
}

/// How far a change has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    Done,
    /// To be asked for again; what it waits for, for people.
    Waits(String),
}

/// What the leader knows.
#[derive(Debug, Clone)]
struct View {
    membership: Membership<MemberId, BasicNode>,
    /// Whether a majority has agreed on it, and there is one set of voters.
    is_settled: bool,
    /// The format of commands and state that is in force.
    format: Format,
    last_log: u64,
    /// Up to where the member's log is known to be as the leader's.
    matched: Option<u64>,
}

/// What a member that was asked says of itself, or why it says nothing; and how many bundles it lacks.
type Answer = (Result<Description, String>, usize);

fn next_to_add(
    view: &View,
    cluster_id: &str,
    member: MemberId,
    address: &str,
    (answer, lacking): &Answer,
) -> Result<Step, Refusal> {
    let is_voter = view.membership.voter_ids().any(|voter| voter == member);
    if let Some(node) = view.membership.get_node(&member)
        && node.addr != address
    {
        let there = node.addr.clone();
        return Err(Refusal::OtherAddress { member, there });
    }
    let mut nodes = view.membership.nodes();
    if let Some((&other, _)) = nodes.find(|(other, node)| **other != member && node.addr == address) {
        let address = address.to_owned();
        return Err(Refusal::AddressTaken {
            address,
            member: other,
        });
    }
    let is_known = view.membership.get_node(&member).is_some();
    if !is_known && view.membership.nodes().count() >= MAX_MEMBERS {
        return Err(Refusal::TooMany);
    }
    if !view.is_settled {
        return Ok(unsettled());
    }
    if is_voter {
        return Ok(Step::Done);
    }
    let described = match answer {
        Ok(described) => described,
        Err(why) => {
            let text = format!("member {member} does not answer at {address}: {why}");
            return Ok(Step::Wait(text));
        }
    };
    if described.cluster_id != cluster_id || described.member != member {
        let name = |cluster: &str, member| format!("member {member} of cluster {cluster:?}");
        return Err(Refusal::Stranger {
            address: address.to_owned(),
            found: name(&described.cluster_id, described.member),
            expected: name(cluster_id, member),
        });
    }
    if described.formats.check(view.format).is_err() {
        return Err(Refusal::Build {
            member,
            address: address.to_owned(),
            build: described.build.clone(),
            formats: described.formats,
            in_force: view.format,
        });
    }
    if !is_known {
        if described.position.last_log_id.is_some() {
            let address = address.to_owned();
            return Err(Refusal::NotEmpty { member, address });
        }
        return Ok(Step::AddLearner);
    }
    let matched = view.matched.unwrap_or(0);
    if !described.is_level || matched + MAX_LAG < view.last_log {
        let last = view.last_log;
        let text = format!("member {member} is filled: it has entry {matched} of {last}");
        return Ok(Step::Wait(text));
    }
    if *lacking > 0 {
        let text = format!("member {member} fetches code: it lacks {lacking} bundles");
        return Ok(Step::Wait(text));
    }
    Ok(Step::MakeVoter)
}

/// Not even what looks done is, as long as a majority may not have it.
fn unsettled() -> Step {
    Step::Wait("a change of members is under way".into())
}

fn next_to_remove(
    view: &View,
    member: MemberId,
    answers: &BTreeMap<MemberId, Answer>,
) -> Result<Step, Refusal> {
    if !view.is_settled {
        return Ok(unsettled());
    }
    let membership = &view.membership;
    if membership.get_node(&member).is_none() {
        return Ok(Step::Done);
    }
    let voters: BTreeSet<_> = membership.voter_ids().collect();
    if !voters.contains(&member) {
        return Ok(Step::RemoveLearner);
    }
    let staying: BTreeSet<_> = voters.into_iter().filter(|voter| *voter != member).collect();
    if staying.is_empty() {
        return Err(Refusal::Last(member));
    }
    let (mut whole, mut missing) = (BTreeSet::new(), BTreeMap::new());
    for &voter in &staying {
        let lack = match answers.get(&voter) {
            Some((Ok(described), 0)) if described.is_level => None,
            Some((Ok(described), 0)) if !described.is_level => {
                Some("is not level with the others".to_owned())
            }
            Some((Ok(_), lacking)) => Some(format!("lacks {lacking} bundles of code")),
            Some((Err(why), _)) => Some(format!("does not answer: {why}")),
            None => Some("was not asked".to_owned()),
        };
        match lack {
            None => drop(whole.insert(voter)),
            Some(lack) => drop(missing.insert(voter, lack)),
        }
    }
    let (of, needed) = (staying.len(), staying.len() / 2 + 1);
    if whole.len() < needed {
        return Err(Refusal::NoMajority {
            member,
            of,
            needed,
            whole,
            missing,
        });
    }
    let signs = |answer: &Answer| answer.0.as_ref().is_ok_and(|described| described.signs);
    let other_signs = answers
        .iter()
        .any(|(other, answer)| *other != member && signs(answer));
    if answers.get(&member).is_some_and(signs) && !other_signs {
        return Err(Refusal::LastSigner(member));
    }
    Ok(Step::RemoveVoter)
}

/// Tells how many bundles of code a member lacks.
pub trait Code: Send + Sync {
    fn lacking(&self, member: MemberId, address: &str) -> impl Future<Output = Result<usize, String>> + Send;
}

/// Adds and removes members, on the leader. A cheap handle.
#[derive(Clone)]
pub struct Members<A, C> {
    pub cluster_id: String,
    pub handle: Handle,
    pub asker: A,
    pub code: C,
}

impl<A: Ask, C: Code> Members<A, C> {
    /// Takes the next step to have a member that votes. `note` is called before the first one, and can refuse it.
    pub async fn add<E: From<ChangeError>>(
        &self,
        member: MemberId,
        address: &str,
        note: impl AsyncFnOnce() -> Result<(), E>,
    ) -> Result<Progress, E> {
        self.barrier().await?;
        let membership = self.handle.peers.membership();
        let known = membership.get_node(&member).is_some();
        let answer = self.answer(member, address, known).await;
        let view = self.view(member);
        let step =
            next_to_add(&view, &self.cluster_id, member, address, &answer).map_err(ChangeError::Refused)?;
        match step {
            Step::Done => Ok(Progress::Done),
            Step::Wait(why) => Ok(Progress::Waits(why)),
            Step::MakeVoter => {
                self.change(ChangeMembers::AddVoterIds(BTreeSet::from([member])))
                    .await?;
                tracing::info!(member, address, "member votes");
                Ok(Progress::Done)
            }
            _ => {
                note().await?;
                let nodes = BTreeMap::from([(member, BasicNode::new(address))]);
                self.change(ChangeMembers::AddNodes(nodes)).await?;
                tracing::info!(member, address, "member follows, and is filled");
                Ok(Progress::Waits(format!("member {member} follows, and is filled")))
            }
        }
    }

    /// Takes the next step to be without a member. `note` is called before it is removed, and can refuse it.
    pub async fn remove<E: From<ChangeError>>(
        &self,
        member: MemberId,
        note: impl AsyncFnOnce() -> Result<(), E>,
    ) -> Result<Progress, E> {
        self.barrier().await?;
        let membership = self.handle.peers.membership();
        let answers = join_all(membership.nodes().map(|(&other, node)| async move {
            let address = self.handle.peers.address(other, &node.addr);
            (other, self.answer(other, address, true).await)
        }));
        let answers = answers.await.into_iter().collect();
        let step = next_to_remove(&self.view(member), member, &answers).map_err(ChangeError::Refused)?;
        let change = match step {
            Step::Done => return Ok(Progress::Done),
            Step::Wait(why) => return Ok(Progress::Waits(why)),
            Step::RemoveLearner => ChangeMembers::RemoveNodes(BTreeSet::from([member])),
            _ => ChangeMembers::RemoveVoters(BTreeSet::from([member])),
        };
        note().await?;
        self.change(change).await?;
        tracing::info!(member, "member removed");
        Ok(Progress::Done)
    }

    async fn barrier(&self) -> Result<(), ChangeError> {
        Ok(self.handle.read_barrier().await?)
    }

    /// Asks a member where it stands, and where it is known to the others, what it lacks.
    async fn answer(&self, member: MemberId, address: &str, known: bool) -> Answer {
        match self.asker.describe(address).await {
            Ok(described) if known && described.member == member => {
                match self.code.lacking(member, address).await {
                    Ok(lacking) => (Ok(described), lacking),
                    Err(why) => (Err(why), 0),
                }
            }
            answer => (answer, 0),
        }
    }

    fn view(&self, member: MemberId) -> View {
        let metrics = self.handle.raft.metrics();
        let metrics = metrics.borrow();
        let matched = metrics
            .replication
            .as_ref()
            .and_then(|matched| (*matched.get(&member)?).map(|log_id| log_id.index));
        let newest = &metrics.membership_config;
        View {
            is_settled: newest.membership().get_joint_config().len() == 1
                && *newest.log_id() <= metrics.last_applied,
            membership: newest.membership().clone(),
            format: self.handle.model.borrow().format,
            last_log: metrics.last_log_index.unwrap_or(0),
            matched,
        }
    }

    async fn change(&self, change: ChangeMembers<MemberId, BasicNode>) -> Result<(), ChangeError> {
        Ok(self.handle.change_members(change).await?)
    }
}

/// Ends a change of voters that a leader did not live to end, wherever this member leads, until `stop`.
///
/// Until then both sets of voters must agree to everything.
pub async fn finish_changes(handle: Handle, stop: CancellationToken) {
    let mut metrics = handle.raft.metrics();
    let mut since = None::<Instant>;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(FINISH_EVERY) => {}
        }
        let goal = {
            let metrics = metrics.borrow_and_update();
            let sets = metrics.membership_config.membership().get_joint_config();
            (sets.len() > 1).then(|| sets.last().cloned()).flatten()
        };
        let Some(goal) = goal.filter(|_| handle.leading_term().is_some()) else {
            since = None;
            continue;
        };
        if since.get_or_insert_with(Instant::now).elapsed() < FINISH_AFTER {
            continue;
        }
        match handle.change_members(ChangeMembers::ReplaceAllVoters(goal)).await {
            Ok(()) => tracing::info!("ended a change of members that another leader began"),
            Err(error) => tracing::debug!(%error, "a change of members cannot be ended yet"),
        }
        since = None;
    }
}

/// Returns when this member has been removed. Asks the others whenever it has not heard of a leader for longer than the
/// election of a new one takes.
pub async fn until_removed<A: Ask>(handle: &Handle, cluster_id: &str, asker: &A, heard: &Heard) {
    let silence = handle.lease * 5;
    loop {
        tokio::time::sleep(silence / 2).await;
        if heard.silence() < silence || handle.leading_term().is_some() {
            continue;
        }
        let asked = handle.peers.others(handle.member);
        let told = join_all(asked.iter().map(|(_, address)| asker.describe(address))).await;
        let told = told
            .into_iter()
            .flatten()
            .filter(|told| told.cluster_id == cluster_id);
        let positions: BTreeMap<_, _> = told.map(|told| (told.member, told.position)).collect();
        let known = *handle.raft.metrics().borrow().membership_config.log_id();
        if is_removed(handle.member, known, &positions) {
            return;
        }
    }
}

/// Whether the others' answers say that `own`, which knows the membership at `known`, belongs to them no more.
///
/// A majority of those that the newest membership names has answered, so that there is no newer one.
fn is_removed(own: MemberId, known: Option<LogId>, answers: &BTreeMap<MemberId, Position>) -> bool {
    let Some(newest) = answers
        .values()
        .map(|position| &position.membership)
        .max_by_key(|membership| *membership.log_id())
    else {
        return false;
    };
    let answered = answers.keys().copied().collect();
    // One that was never added knows none. A leader that was removed wrote the newest itself.
    known.is_some()
        && *newest.log_id() >= known
        && newest.membership().get_node(&own).is_none()
        && are_majority(newest.membership(), &answered)
}

#[cfg(test)]
#[path = "members_tests.rs"]
mod tests;
