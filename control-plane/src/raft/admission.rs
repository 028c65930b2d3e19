//! Keeps a member with an empty disk out of all decisions until it is level with the others.
//!
//! It may have had another disk, on which it voted and acknowledged entries that it knows nothing of now. Were it to vote
//! or to follow any leader that comes, a majority could be made twice, and what was acknowledged be lost. So it first
//! asks the others where they are. Of every majority that it was part of, at least one other member is among any majority
//! of the others: what those have voted and logged is what it must reach. Until then it refuses votes and leaders of
//! earlier terms, and does not stand.
//!
//! Who the others are, the answers tell, too: members may have come and gone since this one's disk was lost. A member that
//! has been added by nobody yet is like one without its disk, until the leader has sent it everything.
//!
//! The same answers tell a new cluster, where nobody has anything: it is founded when so many of the others are there.
//!
//! Source: the recovery protocol of Liskov and Cowling, "Viewstamped Replication Revisited", 2012, section 4.3.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::BasicNode;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::describe::{Ask, Position};
use super::log_store::LogStore;
use super::{LogId, MemberId, Raft, Vote};

/// Pause between two rounds of questions; members that found a cluster start about together.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// A leader's message waits so long for the others' answers: less than a heartbeat, so that none piles up.
const HOLD: Duration = Duration::from_millis(100);

/// Where a member stands with the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It takes part in everything.
    Level,
    /// Its disk was empty, and it does not know yet what it must reach.
    Asking,
    /// It follows leaders of at least this vote, until its state goes as far as this entry.
    Behind { vote: Vote, log: Option<LogId> },
}

/// Where this member stands with the others.
#[derive(Debug)]
pub struct Admission(watch::Sender<Standing>);

impl Admission {
    /// `newcomer`: its disk was empty, and it has not been level since.
    pub fn new(newcomer: bool) -> Self {
        let standing = if newcomer {
            Standing::Asking
        } else {
            Standing::Level
        };
        Self(watch::Sender::new(standing))
    }

    pub fn is_level(&self) -> bool {
        *self.0.borrow() == Standing::Level
    }

    /// Waits until this member takes part in everything.
    pub async fn level(&self) {
        let mut standing = self.0.subscribe();
        // The sender lives as long as this.
        drop(standing.wait_for(|standing| *standing == Standing::Level).await);
    }

    /// Whether to hand on a leader's message. Waits a moment for the others' answers.
    pub async fn admit(&self, leader: &Vote) -> Admit {
        let mut standing = self.0.subscribe();
        let known = standing.wait_for(|standing| *standing != Standing::Asking);
        match tokio::time::timeout(HOLD, known).await {
            Ok(Ok(standing)) => admit(*standing, leader),
            _ => Admit::NotYet,
        }
    }
}

/// What to do with a leader's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit {
    Take,
    /// The leader is of the past: another vote has been made.
    Refuse(Vote),
    NotYet,
}

fn admit(standing: Standing, leader: &Vote) -> Admit {
    match standing {
        Standing::Level => Admit::Take,
        Standing::Asking => Admit::NotYet,
        Standing::Behind { vote, .. } if *leader >= vote => Admit::Take,
        Standing::Behind { vote, .. } => Admit::Refuse(vote),
    }
}

/// What the others' answers mean to member `own`, if there are enough of them. `founders` found a new cluster.
///
/// Enough are so many that one of them is in each majority that this member was part of, in each membership that any of
/// them knows. A later membership than those would have been agreed on by a majority of one of them, so one of these
/// would know it.
fn judge(
    own: MemberId,
    founders: &BTreeSet<MemberId>,
    answers: &BTreeMap<MemberId, Position>,
) -> Option<Standing> {
    let logged: Vec<_> = answers
        .values()
        .flat_map(|answer| answer.membership.membership().get_joint_config())
        .collect();
    let sets = match logged.is_empty() {
        false => logged,
        // This member founds nothing, so there must be a cluster.
        true if founders.is_empty() => return None,
        true => vec![founders],
    };
    let enough = |voters: &BTreeSet<MemberId>| {
        let others = voters.iter().filter(|voter| **voter != own);
        let needed = match voters.contains(&own) {
            true => voters.len().div_ceil(2).min(voters.len() - 1),
            false => voters.len() / 2 + 1,
        };
        others.filter(|voter| answers.contains_key(voter)).count() >= needed
    };
    if !sets.into_iter().all(enough) {
        return None;
    }
    let vote = answers
        .values()
        .map(|answer| answer.vote)
        .fold(Vote::default(), later);
    let log = answers.values().filter_map(|answer| answer.last_log_id).max();
    // A founder has its first entry before anybody has voted.
    let nothing = log.is_none_or(|log| log.index == 0) && !vote.committed;
    Some(if nothing {
        Standing::Level
    } else {
        Standing::Behind { vote, log }
    })
}

/// Of votes that are not comparable, which this Raft does not have, either does.
fn later(one: Vote, other: Vote) -> Vote {
    if other > one { other } else { one }
}

/// Brings a newcomer to where it takes part in everything, unless `stop` comes first.
pub async fn run<A: Ask>(
    admission: &Admission,
    raft: &Raft,
    log: &LogStore,
    others: Others<A>,
    stop: &CancellationToken,
) {
    if admission.is_level() {
        return;
    }
    let settle = async {
        let standing = others.ask().await;
        match standing {
            Standing::Level => tracing::info!("nobody has a log yet: this is a new cluster"),
            _ => tracing::info!(?standing, "the disk is empty: takes no part until it is level"),
        }
        admission.0.send_replace(standing);
        if let Standing::Behind { vote, log } = standing {
            let mut metrics = raft.metrics();
            let reached = metrics.wait_for(|own| own.vote >= vote && own.last_applied >= log);
            if reached.await.is_err() {
                // Raft has stopped. The monitor ends the node, and says why.
                return stop.cancelled().await;
            }
        }
        // Behind the entries that were written to get here, and durable with them.
        if let Err(error) = log.note_level().await {
            tracing::error!(%error, "the log cannot note that it is level");
            return stop.cancelled().await;
        }
        admission.0.send_replace(Standing::Level);
        tracing::info!("takes part in votes");
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = settle => {}
    }
}

/// The other members, to be asked where they are.
pub struct Others<A> {
    pub asker: A,
    pub cluster_id: String,
    pub own: MemberId,
    /// Those that found the cluster, this one included. Empty where this one is to be added to it.
    pub founders: BTreeMap<MemberId, BasicNode>,
    /// Addresses of members where there are no founders.
    pub seeds: Vec<String>,
}

impl<A: Ask> Others<A> {
    /// Asks until enough have answered. Answers stay true when others come later: nobody goes back.
    async fn ask(&self) -> Standing {
        let founders: BTreeSet<_> = self.founders.keys().copied().collect();
        let mut answers = BTreeMap::<MemberId, Position>::new();
        let mut told = false;
        loop {
            if let Some(standing) = judge(self.own, &founders, &answers) {
                return standing;
            }
            for address in self.addresses(&answers) {
                match self.asker.describe(&address).await {
                    Ok(other) if other.cluster_id == self.cluster_id && other.member != self.own => {
                        answers.insert(other.member, other.position);
                    }
                    _ => {}
                }
            }
            let is_member =
                |position: &Position| position.membership.membership().get_node(&self.own).is_some();
            if !told && !answers.is_empty() && !answers.values().any(is_member) && founders.is_empty() {
                told = true;
                tracing::info!(
                    member = self.own,
                    "nobody has added this member yet: `mosectl cluster add` does"
                );
            }
            if judge(self.own, &founders, &answers).is_none() {
                tokio::time::sleep(ASK_EVERY).await;
            }
        }
    }

    /// Everywhere that a member is known to be.
    fn addresses(&self, answers: &BTreeMap<MemberId, Position>) -> BTreeSet<String> {
        let logged = answers.values().flat_map(|answer| answer.membership.nodes());
        let mut nodes: BTreeMap<_, _> = logged.map(|(member, node)| (*member, &node.addr)).collect();
        // The configuration wins over the log.
        nodes.extend(self.founders.iter().map(|(member, node)| (*member, &node.addr)));
        nodes.remove(&self.own);
        nodes.into_values().chain(&self.seeds).cloned().collect()
    }
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
