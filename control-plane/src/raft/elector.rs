//! When a member stands for election.
//!
//! openraft's own timer makes the loser of an election wait for seconds, which cannot be configured, and lets members
//! stand together. Here members take turns, the lowest number first: each stands when it has heard of no leader for
//! its own time, and again a full round later. A member that was itself stalled has not listened, and does not blame
//! the leader for it: without a pre-vote it would depose a good one.

use std::time::Duration;

use openraft::ServerState;
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{MemberId, Raft, Vote};

/// The times of an election, all in heartbeats, so that one number makes the whole calmer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turns {
    heartbeat: Duration,
    rank: u32,
    members: u32,
}

impl Turns {
    /// `rank`: this member's place among all, by number.
    pub fn new(heartbeat: Duration, rank: usize, members: usize) -> Self {
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

    /// How often to look.
    fn look(&self) -> Duration {
        self.heartbeat / 3
    }

    /// A look that comes so late was not listening: a third of the time that a leader has to be silent.
    fn stall(&self) -> Duration {
        self.heartbeat * 2
    }
}

/// What a member knows when it looks.
#[derive(Debug, Clone, Copy)]
struct View {
    leads: bool,
    /// Last word of a leader or for a candidate.
    heard: Instant,
    now: Instant,
}

/// Decides when to stand. Pure.
#[derive(Debug)]
struct Elector {
    turns: Turns,
    looked: Instant,
    stalled: Option<Instant>,
    stood: Option<Instant>,
}

impl Elector {
    fn new(turns: Turns, now: Instant) -> Self {
        Self {
            turns,
            looked: now,
            stalled: None,
            stood: None,
        }
    }

    /// Whether to stand for election now.
    fn look(&mut self, view: View) -> bool {
        let View { leads, heard, now } = view;
        let late = now.saturating_duration_since(self.looked) > self.turns.stall();
        self.looked = now;
        if leads {
            return false;
        }
        let waited = |since: Instant, time: Duration| now.saturating_duration_since(since) >= time;
        let rested = self.stood.is_none_or(|stood| waited(stood, self.turns.round()));
        if self.turns.members > 1 {
            if late {
                self.stalled = Some(now);
            }
            let quiet_since = self.stalled.map_or(heard, |stalled| stalled.max(heard));
            if !waited(quiet_since, self.turns.patience()) {
                return false;
            }
        }
        if rested {
            self.stood = Some(now);
        }
        rested
    }
}

/// The last word of a leader that this member follows, or its last vote for another member.
#[derive(Debug)]
pub struct Heard(Mutex<Instant>);

impl Default for Heard {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Heard {
    /// Notes it.
    pub fn note(&self) {
        *self.0.lock() = Instant::now();
    }

    /// Notes a leader's message, unless the leader is deposed. On arrival: what a slow disk does to the answer is not
    /// the leader's silence.
    pub fn note_leader(&self, raft: &Raft, vote: &Vote) {
        let current = raft.metrics().borrow().vote;
        if *vote >= current {
            self.note();
        }
    }

    fn at(&self) -> Instant {
        *self.0.lock()
    }
}

/// Stands for election whenever it is time, until `stop`.
pub async fn run(raft: Raft, member: MemberId, heard: &Heard, turns: Turns, stop: CancellationToken) {
    let mut elector = Elector::new(turns, Instant::now());
    let metrics = raft.metrics();
    let mut looks = tokio::time::interval(turns.look());
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = looks.tick() => {}
        }
        let leads = metrics.borrow().state == ServerState::Leader;
        let view = View {
            leads,
            heard: heard.at(),
            now: Instant::now(),
        };
        if elector.look(view) {
            tracing::debug!(member, "stands for election");
            // Raft leaves a member alone that is no voter yet.
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
        let mut elector = Elector::new(Turns::new(HEARTBEAT, rank, members), start);
        looks
            .filter(|&now| {
                elector.look(View {
                    leads: false,
                    heard: at(heard),
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
    fn nobody_has_turns_to_wait_for_alone() {
        assert_eq!(stands(0, 1, each(200), 0), [0, 120]);
    }

    #[test]
    fn a_leader_stands_no_more() {
        let start = Instant::now();
        let mut elector = Elector::new(Turns::new(HEARTBEAT, 0, 3), start);
        let leads = View {
            leads: true,
            heard: start,
            now: start + Duration::from_secs(10),
        };
        assert!(!elector.look(leads));
    }

    #[test]
    fn a_member_that_was_stalled_listens_first() {
        let looks = each(300).chain((5000..5700).step_by(30));
        assert_eq!(stands(0, 3, looks, 290), [5600]);
    }
}
