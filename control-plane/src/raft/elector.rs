//! When a member stands for election.
//!
//! openraft's own timer makes the loser of an election wait for seconds, which cannot be configured, and lets members
//! stand together. Here members take turns, the lowest number first: each stands when it has heard of no leader for
//! its own time, and again a full round later. A member that was itself stalled has not listened, and does not blame
//! the leader for it: without a pre-vote it would depose a good one.
//!
//! Two answers to a vain attempt change the time of the next. Who learns that another's log is longer cannot win before
//! that one has failed, and leaves it two rounds more. Who is told of a later vote stands again at once, as it now knows
//! the number to beat. Otherwise a member with a short log could raise its term before each attempt of the one member
//! that can win, for ever: those who refuse a vote for its log do not learn its term.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::raft::{VoteRequest, VoteResponse};
use openraft::{BasicNode, Membership, ServerState};
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::inbox::Inbox;
use super::{MemberId, Raft, Vote};

/// The times of an election, all in heartbeats, so that one number makes the whole calmer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turns {
    heartbeat: Duration,
    rank: u32,
    members: u32,
}

impl Turns {
    /// The turns of `member`, if it has any: only voters do. While a change of voters is under way, both sets take turns.
    fn of(
        member: MemberId,
        membership: &Membership<MemberId, BasicNode>,
        heartbeat: Duration,
    ) -> Option<Self> {
        let voters: BTreeSet<_> = membership.voter_ids().collect();
        let rank = voters.iter().position(|&voter| voter == member)?;
        Some(Self::new(heartbeat, rank, voters.len()))
    }

    /// `rank`: this member's place among all voters, by number.
    fn new(heartbeat: Duration, rank: usize, members: usize) -> Self {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            heartbeat,
            rank: count(rank),
            members: count(members).max(1),
        }
    }

    /// After the last word of a leader, so long every member refuses to vote for another.
    pub fn lease(heartbeat: Duration) -> Duration {
        heartbeat * 5
    }

    /// Silence after which this member stands: members heard the last word up to a heartbeat apart.
    fn patience(&self) -> Duration {
        Self::lease(self.heartbeat) + self.heartbeat * (1 + self.rank)
    }

    /// From one attempt to the next.
    fn round(&self) -> Duration {
        self.heartbeat * self.members
    }

    /// From one attempt to the next where another's log is longer: time for two attempts of that one, so that it learns
    /// this member's term with the first and wins with the second.
    fn long_rest(&self) -> Duration {
        self.round() * 3
    }

    /// From an attempt that was too low to the next: answers of other members may still be on their way.
    fn short_rest(&self) -> Duration {
        self.heartbeat / 2
    }

    /// How often to look.
    fn look(heartbeat: Duration) -> Duration {
        heartbeat / 3
    }

    /// A look that comes so late was not listening: a third of the time that a leader has to be silent.
    fn stall(&self) -> Duration {
        self.heartbeat * 2
    }
}

/// What a member knows when it looks.
#[derive(Debug, Clone, Copy)]
struct View {
    turns: Turns,
    leads: bool,
    /// Last word of a leader or for a candidate.
    heard: Instant,
    /// The answer to the last attempt, where it says when the next makes sense.
    refused: Option<Refused>,
    now: Instant,
}

/// Why a member was not voted for. Ordered by weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Refused {
    /// The other has voted in a later term, or for a higher number in the same.
    Low,
    /// The other's log is longer.
    Behind,
}

/// Decides when to stand. Pure.
#[derive(Debug)]
struct Elector {
    looked: Instant,
    stalled: Option<Instant>,
    stood: Option<Instant>,
    /// The last attempt followed at once upon the one before. A third does not.
    hurried: bool,
}

impl Elector {
    fn new(now: Instant) -> Self {
        Self {
            looked: now,
            stalled: None,
            stood: None,
            hurried: false,
        }
    }

    /// Whether to stand for election now.
    fn look(&mut self, view: View) -> bool {
        let View {
            turns,
            leads,
            heard,
            refused,
            now,
        } = view;
        let late = now.saturating_duration_since(self.looked) > turns.stall();
        self.looked = now;
        if leads {
            return false;
        }
        let waited = |since: Instant, time: Duration| now.saturating_duration_since(since) >= time;
        let hurry = refused == Some(Refused::Low) && !self.hurried;
        let rest = match refused {
            Some(Refused::Behind) => turns.long_rest(),
            Some(Refused::Low) if hurry => turns.short_rest(),
            _ => turns.round(),
        };
        let rested = self.stood.is_none_or(|stood| waited(stood, rest));
        if turns.members > 1 {
            if late {
                self.stalled = Some(now);
            }
            let quiet_since = self.stalled.map_or(heard, |stalled| stalled.max(heard));
            if !waited(quiet_since, turns.patience()) {
                return false;
            }
        }
        if rested {
            self.stood = Some(now);
            self.hurried = hurry;
        }
        rested
    }
}

/// The last word of a leader that this member follows, or its last vote for another member; and what others answered
/// when it asked for their votes.
#[derive(Debug)]
pub struct Heard {
    at: Mutex<Instant>,
    /// The last word of a leader, or when this member last led.
    leader: Mutex<Option<Instant>>,
    refused: Mutex<Option<Refused>>,
}

impl Default for Heard {
    fn default() -> Self {
        Self {
            at: Mutex::new(Instant::now()),
            leader: Mutex::default(),
            refused: Mutex::default(),
        }
    }
}

impl Heard {
    /// Notes it.
    pub fn note(&self) {
        *self.at.lock() = Instant::now();
    }

    /// Notes a leader's message, unless the leader is deposed. On arrival: what a slow disk does to the answer is not
    /// the leader's silence.
    pub fn note_leader(&self, raft: &Raft, vote: &Vote) {
        let current = raft.metrics().borrow().vote;
        if *vote >= current {
            self.note();
            self.note_leading();
        }
    }

    /// Notes that there is a leader, another or this one.
    pub fn note_leading(&self) {
        *self.leader.lock() = Some(Instant::now());
    }

    /// How long there has been no leader; `None` where there never was one.
    pub fn leaderless(&self) -> Option<Duration> {
        self.leader.lock().map(|last| last.elapsed())
    }

    /// Notes another member's answer to this one's request for a vote.
    pub fn note_answer(&self, asked: &VoteRequest<MemberId>, answer: &VoteResponse<MemberId>) {
        if answer.vote_granted {
            return;
        }
        let mut refused = self.refused.lock();
        let news = if answer.last_log_id > asked.last_log_id {
            Some(Refused::Behind)
        } else if answer.vote > asked.vote {
            Some(Refused::Low)
        } else {
            None
        };
        *refused = (*refused).max(news);
    }

    /// How long there has been no word.
    pub(super) fn silence(&self) -> Duration {
        self.at().elapsed()
    }

    fn at(&self) -> Instant {
        *self.at.lock()
    }

    fn refused(&self) -> Option<Refused> {
        *self.refused.lock()
    }

    /// Forgets the answers to earlier attempts.
    fn begin_attempt(&self) {
        *self.refused.lock() = None;
    }
}

/// Stands for election whenever it is time, until `stop`.
pub async fn run(inbox: Inbox, member: MemberId, heartbeat: Duration, stop: CancellationToken) {
    let Inbox {
        raft,
        heard,
        admission,
        ..
    } = inbox;
    let mut elector = Elector::new(Instant::now());
    let metrics = raft.metrics();
    let mut looks = tokio::time::interval(Turns::look(heartbeat));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = looks.tick() => {}
        }
        if !admission.is_level() {
            continue;
        }
        let (leads, turns) = {
            let metrics = metrics.borrow();
            let turns = Turns::of(member, metrics.membership_config.membership(), heartbeat);
            (metrics.state == ServerState::Leader, turns)
        };
        let Some(turns) = turns else {
            continue;
        };
        let view = View {
            turns,
            leads,
            heard: heard.at(),
            refused: heard.refused(),
            now: Instant::now(),
        };
        if elector.look(view) {
            tracing::debug!(member, "stands for election");
            heard.begin_attempt();
            if raft.trigger().elect().await.is_err() {
                // Raft has stopped. The monitor ends the node, and says why.
                return stop.cancelled().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Duration = Duration::from_millis(100);

    /// Looks every third of a heartbeat, from when a leader was last heard; gives when it stands, in milliseconds.
    fn stands(rank: usize, members: usize, looks: impl Iterator<Item = u64>, heard: u64) -> Vec<u64> {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let turns = Turns::new(HEARTBEAT, rank, members);
        let mut elector = Elector::new(start);
        looks
            .filter(|&now| {
                elector.look(View {
                    turns,
                    leads: false,
                    heard: at(heard),
                    refused: None,
                    now: at(now),
                })
            })
            .collect()
    }

    fn each(until: u64) -> impl Iterator<Item = u64> {
        (0..until).step_by(30)
    }

    #[test]
    fn members_take_turns() {
        assert_eq!(stands(0, 3, each(1300), 0), [600, 900, 1200]);
        assert_eq!(stands(1, 3, each(1300), 0), [720, 1020]);
        assert_eq!(stands(2, 3, each(1300), 0), [810, 1110]);
        assert_eq!(stands(0, 3, each(1300), 500), [1110], "a leader was heard later");
        assert_eq!(stands(4, 5, each(1600), 0), [1020, 1530]);
    }

    #[test]
    fn voters_of_both_sets_take_turns_and_others_none() {
        let nodes = (1..=5).map(|id| (id, BasicNode::new(id)));
        let sets = vec![BTreeSet::from([1, 3]), BTreeSet::from([3, 4])];
        let joint = Membership::new(sets, nodes.collect::<std::collections::BTreeMap<_, _>>());
        let turns = |member| Turns::of(member, &joint, HEARTBEAT);
        assert_eq!(turns(3), Some(Turns::new(HEARTBEAT, 1, 3)));
        assert_eq!(turns(4), Some(Turns::new(HEARTBEAT, 2, 3)));
        assert_eq!(turns(5), None, "a learner");
        assert_eq!(
            Turns::of(1, &Membership::default(), HEARTBEAT),
            None,
            "no log yet"
        );
    }

    #[test]
    fn nobody_has_turns_to_wait_for_alone() {
        assert_eq!(stands(0, 1, each(200), 0), [0, 120]);
    }

    #[test]
    fn a_leader_stands_no_more() {
        let start = Instant::now();
        let turns = Turns::new(HEARTBEAT, 0, 3);
        let mut elector = Elector::new(start);
        let leads = View {
            turns,
            leads: true,
            heard: start,
            refused: None,
            now: start + Duration::from_secs(10),
        };
        assert!(!elector.look(leads));
    }

    /// When member 0 of three stands, if each attempt has the answer.
    fn stands_when(refused: Refused) -> Vec<u64> {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let turns = Turns::new(HEARTBEAT, 0, 3);
        let mut elector = Elector::new(start);
        let mut answer = None;
        each(2200)
            .filter(|&now| {
                let (heard, now) = (start, at(now));
                let stands = elector.look(View {
                    turns,
                    leads: false,
                    heard,
                    refused: answer,
                    now,
                });
                answer = answer.or(stands.then_some(refused));
                stands
            })
            .collect()
    }

    #[test]
    fn a_refusal_says_when_to_stand_again() {
        assert_eq!(
            stands_when(Refused::Low),
            [600, 660, 960, 1020, 1320, 1380, 1680, 1740, 2040, 2100]
        );
        assert_eq!(stands_when(Refused::Behind), [600, 1500]);
    }

    #[tokio::test]
    async fn the_weightiest_answer_counts() {
        let heard = Heard::default();
        let log = |index| {
            Some(crate::raft::LogId::new(
                openraft::CommittedLeaderId::new(1, 1),
                index,
            ))
        };
        let asked = VoteRequest {
            vote: Vote::new(3, 1),
            last_log_id: log(5),
        };
        let answer = |vote, index| VoteResponse {
            vote,
            vote_granted: false,
            last_log_id: log(index),
        };
        heard.note_answer(&asked, &answer(Vote::new(2, 2), 5));
        assert_eq!(
            heard.refused(),
            None,
            "a leader's lease, which says nothing of this member"
        );
        heard.note_answer(&asked, &answer(Vote::new(3, 2), 4));
        assert_eq!(heard.refused(), Some(Refused::Low));
        heard.note_answer(&asked, &answer(Vote::new(2, 3), 6));
        heard.note_answer(&asked, &answer(Vote::new(3, 2), 5));
        assert_eq!(heard.refused(), Some(Refused::Behind));
        heard.begin_attempt();
        assert_eq!(heard.refused(), None);
    }

    #[test]
    fn a_member_that_was_stalled_listens_first() {
        let looks = each(300).chain((5000..5700).step_by(30));
        assert_eq!(stands(0, 3, looks, 290), [5600]);
    }
}
