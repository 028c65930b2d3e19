//! The troubles of a run: what happens to members, disks and the network, one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mosec_control_plane::raft::MemberId;
use openraft::ServerState;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::Instant;

use crate::member::Member;
use crate::net::{Net, Weather};

/// How often each fault was injected.
pub type Faults = BTreeMap<&'static str, u64>;

pub struct Troubles {
    members: BTreeMap<MemberId, Member>,
    down: BTreeSet<MemberId>,
    stalled: BTreeSet<MemberId>,
    net: Arc<Net>,
    rng: StdRng,
    wipes: bool,
    faults: Faults,
}

impl Troubles {
    pub fn new(members: BTreeMap<MemberId, Member>, net: Arc<Net>, rng: StdRng, wipes: bool) -> Self {
        Self {
            members,
            down: BTreeSet::new(),
            stalled: BTreeSet::new(),
            net,
            rng,
            wipes,
            faults: Faults::new(),
        }
    }

    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    /// Starts all members, highest number first, so that those who wait are there when the first one founds.
    pub async fn start_all(&mut self) -> Result<(), String> {
        for member in self.members.values_mut().rev() {
            member.start().await?;
        }
        Ok(())
    }

    /// Makes trouble until `end`.
    pub async fn run(&mut self, end: Instant) -> Result<(), String> {
        while Instant::now() < end {
            let pause = Duration::from_millis(self.rng.random_range(100..1500));
            tokio::time::sleep(pause).await;
            self.one().await?;
            self.check()?;
        }
        Ok(())
    }

    /// Ends all troubles.
    pub async fn heal(&mut self) -> Result<(), String> {
        self.net.heal();
        self.net.set_weather(Weather::default());
        for member in self.members.values() {
            *member.slow_disk.lock() = false;
        }
        self.resume();
        self.restart_all().await?;
        self.check()
    }

    async fn one(&mut self) -> Result<(), String> {
        match self.rng.random_range(0..100) {
            0..14 => {
                if let Some(leader) = self.leader() {
                    let power = self.rng.random_bool(0.7);
                    self.kill(
                        leader,
                        if power {
                            "leader loses power"
                        } else {
                            "leader killed"
                        },
                        power,
                    );
                }
            }
            14..24 => {
                let member = self.any();
                self.kill(member, "member loses power", true);
            }
            24..28 => {
                for member in self.up() {
                    self.kill(member, "all lose power", true);
                }
            }
            28..46 => self.restart_all().await?,
            46..54 => {
                let leader = self.leader();
                let member = if self.rng.random_bool(0.6) {
                    leader
                } else {
                    Some(self.any())
                };
                self.stall(member);
            }
            54..62 => self.resume(),
            62..69 => {
                if let Some(leader) = self.leader() {
                    self.split("leader cut off", &BTreeSet::from([leader]));
                }
            }
            69..75 => {
                let side = self
                    .members
                    .keys()
                    .copied()
                    .filter(|_| self.rng.random_bool(0.5))
                    .collect();
                self.split("partition", &side);
            }
            75..79 => {
                let (from, to) = (self.any(), self.any());
                self.net.cut(from, to);
                self.count("one way cut");
            }
            79..88 => {
                self.net.heal();
                self.count("network healed");
            }
            88..94 => {
                let mut chance = |most: f64| self.rng.random_range(0.0..most);
                let weather = Weather {
                    lose: chance(0.2),
                    double: chance(0.2),
                    late: chance(0.2),
                };
                self.net.set_weather(weather);
                self.count("bad weather");
            }
            94..97 => {
                let member = self.any();
                let slow = &self.members[&member].slow_disk;
                let before = *slow.lock();
                *slow.lock() = !before;
                self.count("disk slow or fast again");
            }
            _ => {
                self.net.set_weather(Weather::default());
                if self.wipes {
                    self.wipe().await?;
                }
            }
        }
        Ok(())
    }

    fn count(&mut self, fault: &'static str) {
        *self.faults.entry(fault).or_default() += 1;
    }

    fn any(&mut self) -> MemberId {
        self.rng.random_range(1..=self.members.len() as u64)
    }

    fn up(&self) -> Vec<MemberId> {
        let up = |id: &&MemberId| !self.down.contains(id);
        self.members.keys().filter(up).copied().collect()
    }

    /// A member that believes it leads; the one of the newest term where there are several.
    fn leader(&self) -> Option<MemberId> {
        let terms = self.up().into_iter().filter_map(|id| {
            let metrics = self.net.member(id)?.handle.raft.metrics();
            let metrics = metrics.borrow();
            (metrics.state == ServerState::Leader).then_some((metrics.current_term, id))
        });
        terms.max().map(|(_, id)| id)
    }

    fn kill(&mut self, member: MemberId, fault: &'static str, power_too: bool) {
        if self.down.insert(member) {
            self.stalled.remove(&member);
            if let Some(killed) = self.members.get_mut(&member) {
                killed.kill(power_too);
            }
            self.count(fault);
        }
    }

    async fn restart_all(&mut self) -> Result<(), String> {
        for member in std::mem::take(&mut self.down) {
            if let Some(started) = self.members.get_mut(&member) {
                started
                    .start()
                    .await
                    .map_err(|error| format!("member {member} did not start: {error}"))?;
            }
            self.count("member started again");
        }
        Ok(())
    }

    fn stall(&mut self, member: Option<MemberId>) {
        let live = member.and_then(|member| self.net.member(member));
        if let Some(live) = live {
            live.gate.set(true);
            self.stalled.insert(live.id());
            self.count("member stalled");
        }
    }

    fn resume(&mut self) {
        for member in std::mem::take(&mut self.stalled) {
            if let Some(live) = self.net.member(member) {
                live.gate.set(false);
            }
            self.count("member resumed");
        }
    }

    fn split(&mut self, fault: &'static str, side: &BTreeSet<MemberId>) {
        for &one in side {
            for &other in self.members.keys().filter(|other| !side.contains(other)) {
                self.net.cut(one, other);
                self.net.cut(other, one);
            }
        }
        self.count(fault);
    }

    /// Takes one member's disk away while all others are level and there, and nothing is cut.
    async fn wipe(&mut self) -> Result<(), String> {
        self.net.heal();
        self.resume();
        self.restart_all().await?;
        let member = self.any();
        let level = |id: &MemberId| {
            self.net
                .member(*id)
                .is_some_and(|live| live.inbox.admission.is_level())
        };
        if !self.members.keys().all(level) {
            return Ok(());
        }
        self.count("disk lost");
        if let Some(wiped) = self.members.get_mut(&member) {
            wiped.wipe();
            wiped
                .start()
                .await
                .map_err(|error| format!("member {member} did not start empty: {error}"))?;
        }
        Ok(())
    }

    /// No Raft may end by itself: these disks do not fail.
    fn check(&self) -> Result<(), String> {
        let lives = self.up().into_iter().filter_map(|id| self.net.member(id));
        let failed = lives.filter_map(|live| Some((live.id(), live.failure()?))).next();
        match failed {
            Some((member, why)) => Err(format!("raft of member {member} has ended: {why}")),
            None => Ok(()),
        }
    }
}
