//! The troubles of a run: what happens to members, disks and the network, one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mosec_control_plane::raft::MemberId;
use mosec_control_plane::raft::members::{ChangeError, Progress};
use openraft::ServerState;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::member::{Live, Member};
use crate::net::{Answer, Net, Weather, address};
use crate::run::another;

/// Time for a change of members with nothing in the way: elections, filling, and as much again.
const CHANGE: Duration = Duration::from_secs(20);
/// Time for one step of it.
const STEP: Duration = Duration::from_secs(6);

/// How often each fault was injected.
pub type Faults = BTreeMap<&'static str, u64>;

pub struct Troubles {
    members: BTreeMap<MemberId, Member>,
    down: BTreeSet<MemberId>,
    stalled: BTreeSet<MemberId>,
    net: Arc<Net>,
    rng: StdRng,
    wipes: bool,
    changes: bool,
    /// The change of members that is under way.
    change: Option<Change>,
    last_id: MemberId,
    /// The last answer, for people.
    answered: Answered,
    faults: Faults,
}

/// A member that comes or goes.
struct Change {
    member: MemberId,
    adds: bool,
    /// The step that a leader was asked for.
    step: Option<JoinHandle<Answered>>,
}

/// What a leader answered, if it did.
type Answered = Option<Result<Progress, Refused>>;

/// Why a leader takes no step.
#[derive(Debug)]
pub struct Refused {
    pub by_policy: bool,
    pub why: String,
}

impl Troubles {
    pub fn new(
        members: BTreeMap<MemberId, Member>,
        net: Arc<Net>,
        rng: StdRng,
        wipes: bool,
        changes: bool,
    ) -> Self {
        Self {
            changes,
            change: None,
            answered: None,
            last_id: members.keys().next_back().copied().unwrap_or(0),
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

    /// Those that there are.
    pub fn members(&self) -> Vec<MemberId> {
        self.members.keys().copied().collect()
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
            self.change_members().await?;
        }
        Ok(())
    }

    /// Begins a change of members now and then, and takes the next step of the one that is under way.
    async fn change_members(&mut self) -> Result<(), String> {
        if !self.changes {
            return Ok(());
        }
        let Some(change) = &mut self.change else {
            if self.rng.random_bool(0.3) {
                self.begin_change().await?;
            }
            return Ok(());
        };
        let (member, adds) = (change.member, change.adds);
        if let Some(step) = change.step.take_if(|step| step.is_finished())
            && let Ok(answered) = step.await
        {
            self.answered = answered;
            if !matches!(self.answered, Some(Ok(Progress::Done))) {
                return Ok(());
            }
            self.change = None;
            match adds {
                true => self.count("member added"),
                false => {
                    self.retire(member);
                    self.count("member removed");
                }
            }
            return Ok(());
        }
        if let Some(leader) = self.leader().and_then(|id| self.net.member(id))
            && let Some(change) = &mut self.change
            && change.step.is_none()
        {
            change.step = Some(tokio::spawn(step(self.net.clone(), leader, member, adds)));
        }
        Ok(())
    }

    async fn begin_change(&mut self) -> Result<(), String> {
        let there = self.members.len();
        let adds = there <= 2 || (there < 6 && self.rng.random_bool(0.5));
        let member = match adds {
            true => {
                self.last_id += 1;
                let id = self.last_id;
                let mut member = another(id, self.rng.random(), &self.net, self.members.keys().copied());
                member.start().await?;
                self.members.insert(id, member);
                self.net.enrol(id);
                id
            }
            false => self.any(),
        };
        self.change = Some(Change {
            member,
            adds,
            step: None,
        });
        Ok(())
    }

    /// Ends a member that belongs to the others no more, for good.
    fn retire(&mut self, member: MemberId) {
        self.net.strike(member);
        self.down.remove(&member);
        self.stalled.remove(&member);
        if let Some(mut retired) = self.members.remove(&member) {
            retired.kill(false);
        }
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
        let end = Instant::now() + CHANGE;
        while self.change.is_some() {
            self.change_members().await?;
            if Instant::now() > end {
                let members = self.members.keys().filter_map(|&id| self.net.member(id));
                let members: Vec<_> = members.map(|live| live.describe()).collect();
                let change = self.change.as_ref().map(|change| (change.member, change.adds));
                return Err(format!(
                    "a change of members ({change:?}, {:?}) did not end within {CHANGE:?}: {members:#?}",
                    self.answered
                ));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
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
        let members = self.members();
        members[self.rng.random_range(0..members.len())]
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
        // One that is being added or removed has been promised nothing of the kind, nor have two: both make each majority.
        if self.change.is_some() || self.members.len() < 3 || !self.members.keys().all(level) {
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

/// Asks a leader for the next step of a change.
pub async fn step(net: Arc<Net>, leader: Arc<Live>, member: MemberId, adds: bool) -> Answered {
    let work = |leader: Arc<Live>| -> Answer<Answered> {
        Box::pin(async move {
            let note = async || Ok::<_, ChangeError>(());
            let done = match adds {
                true => leader.members.add(member, &address(member), note).await,
                false => leader.members.remove(member, note).await,
            };
            Some(done.map_err(|error| Refused {
                by_policy: matches!(error, ChangeError::Refused(_)),
                why: error.to_string(),
            }))
        })
    };
    net.call(&leader, leader.id(), STEP, false, work)
        .await
        .unwrap_or_default()
}
