//! Keeps a member with an empty disk out of all decisions until it is level with the others.
//!
//! It may have had another disk, on which it voted and acknowledged entries that it knows nothing of now. Were it to vote
//! or to follow any leader that comes, a majority could be made twice, and what was acknowledged be lost. So it first
//! asks the others where they are. Of every majority that it was part of, at least one other member is among any majority
//! of the others: what those have voted and logged is what it must reach. Until then it refuses votes and leaders of
//! earlier terms, and does not stand.
//!
//! The same answers tell a new cluster, where nobody has anything: it is founded when so many of the others are there.
//!
//! Source: the recovery protocol of Liskov and Cowling, "Viewstamped Replication Revisited", 2012, section 4.3.

use std::collections::BTreeMap;
use std::time::Duration;

use openraft::BasicNode;
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::VoteRequest;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::log_store::LogStore;
use super::{LogId, MemberId, Raft, TypeConfig, Vote};

/// Pause between two rounds of questions; members that found a cluster start about together.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How long one question may take.
const ASK_FOR: Duration = Duration::from_secs(1);
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

/// What another member has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub vote: Vote,
    pub last_log_id: Option<LogId>,
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

/// What the others' answers mean, if there are enough of them among `members` in all.
fn judge(members: usize, answers: &BTreeMap<MemberId, Position>) -> Option<Standing> {
    // One of these is in every majority that this member was part of.
    let enough = (members / 2 + 1).min(members - 1);
    if answers.len() < enough {
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
pub async fn run<N: RaftNetworkFactory<TypeConfig>>(
    admission: &Admission,
    raft: &Raft,
    log: &LogStore,
    mut others: Others<N>,
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
pub struct Others<N> {
    pub network: N,
    pub members: BTreeMap<MemberId, BasicNode>,
    pub own: MemberId,
}

impl<N: RaftNetworkFactory<TypeConfig>> Others<N> {
    /// Asks until enough have answered. Answers stay true when others come later: nobody goes back.
    async fn ask(&mut self) -> Standing {
        let mut answers = BTreeMap::new();
        loop {
            if let Some(standing) = judge(self.members.len(), &answers) {
                return standing;
            }
            for (&member, node) in self.members.iter().filter(|(member, _)| **member != self.own) {
                // No vote at all: it is never granted to anybody, and the answer tells what is asked for.
                let question = VoteRequest {
                    vote: Vote::default(),
                    last_log_id: None,
                };
                let mut connection = self.network.new_client(member, node).await;
                if let Ok(answer) = connection.vote(question, RPCOption::new(ASK_FOR)).await {
                    let position = Position {
                        vote: answer.vote,
                        last_log_id: answer.last_log_id,
                    };
                    answers.insert(member, position);
                }
            }
            if judge(self.members.len(), &answers).is_none() {
                tokio::time::sleep(ASK_EVERY).await;
            }
        }
    }
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
