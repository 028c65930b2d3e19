//! Single stories that histories come upon too seldom.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mosec_control_plane::raft::MemberId;
use mosec_control_plane::raft::members::Progress;
use mosec_control_plane::state::{Command, Proposal, Reply};
use mosec_types::{Incarnation, NodeId};
use openraft::{ChangeMembers, ServerState};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::client::view;
use crate::faults::step;
use crate::member::Member;
use crate::net::Net;
use crate::run::{Setup, another, in_virtual_time, members};

/// Virtual time after which something that is awaited will not come.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Cluster {
    pub net: Arc<Net>,
    pub members: BTreeMap<MemberId, Member>,
}

impl Cluster {
    pub async fn start(seed: u64) -> Self {
        Self::start_with(seed, |_| {}).await
    }

    pub async fn start_with(seed: u64, edit: impl Fn(&mut Member)) -> Self {
        let (mut seeds, net) = (StdRng::seed_from_u64(seed), Net::new(seed));
        let setup = Setup {
            members: 3,
            ..Setup::default()
        };
        let mut members = members(&mut seeds, &net, setup);
        for member in members.values_mut() {
            edit(member);
            member.start().await.unwrap();
        }
        Self { net, members }
    }

    pub fn member(&mut self, id: MemberId) -> &mut Member {
        self.members.get_mut(&id).unwrap()
    }

    /// Takes steps of a change until it is done or refused.
    async fn change(&self, member: MemberId, adds: bool) -> Result<(), String> {
        let steps = async {
            loop {
                if let Some(leader) = self.leader().and_then(|id| self.net.member(id)) {
                    match step(self.net.clone(), leader, member, adds).await {
                        Some(Ok(Progress::Done)) => return Ok(()),
                        Some(Err(refused)) if refused.by_policy => return Err(refused.why),
                        _ => {}
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, steps)
            .await
            .expect("a change of members ends")
    }

    async fn add(&mut self, member: MemberId) {
        let mut added = another(member, member, &self.net, self.members.keys().copied());
        added.start().await.unwrap();
        self.members.insert(member, added);
        self.change(member, true).await.unwrap();
    }

    /// Removes a member, and ends its process.
    async fn remove(&mut self, member: MemberId) {
        self.change(member, false).await.unwrap();
        self.members.remove(&member).unwrap().kill(false);
    }

    fn leader(&self) -> Option<MemberId> {
        self.members.keys().copied().find(|&id| {
            let raft = self.net.member(id).map(|live| live.handle.raft.metrics());
            raft.is_some_and(|metrics| metrics.borrow().state == ServerState::Leader)
        })
    }

    /// Registers a node through whichever member can; gives the version that has it.
    pub async fn register(&self, node: &str) -> u64 {
        let command = Command::RegisterNode {
            id: NodeId::new(node).unwrap(),
            incarnation: Incarnation(1),
            address: "host:7443".into(),
            labels: BTreeMap::new(),
            capacity: Default::default(),
            build: None,
        };
        let tries = async {
            loop {
                for id in self.members.keys() {
                    let Some(live) = self.net.member(*id) else {
                        continue;
                    };
                    let reply = live
                        .propose(self.net.clone(), Proposal::from(command.clone()))
                        .await;
                    if let Some(Reply::Done { version }) = reply {
                        return version;
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, tries)
            .await
            .expect("a registration succeeds")
    }

    /// The nodes that each member knows, once all have the state of `version`.
    pub async fn nodes(&self, version: u64) -> Vec<Vec<String>> {
        let mut all = Vec::new();
        for id in self.members.keys() {
            let mut model = self.net.member(*id).unwrap().model.clone();
            let there =
                tokio::time::timeout(PATIENCE, model.wait_for(|model| model.version >= version)).await;
            let state = view(&there.expect("the members become level").unwrap());
            all.push(state.nodes.into_keys().collect());
        }
        all
    }
}

#[test]
fn a_leader_that_lost_the_end_of_its_log_gives_no_number_away_twice() {
    for seed in 0..20 {
        in_virtual_time(async {
            let mut cluster = Cluster::start(seed).await;
            cluster.register("a").await;
            let leader = cluster.leader().expect("somebody leads");
            // Its followers make the majority; its own disk takes longer, and may lose what is not synced.
            *cluster.members[&leader].slow_disk.lock() = true;
            cluster.register("b").await;
            let restarted = cluster.member(leader);
            *restarted.slow_disk.lock() = false;
            restarted.kill(true);
            restarted.start().await.unwrap();
            let version = cluster.register("c").await;
            assert_eq!(
                cluster.nodes(version).await,
                vec![["a", "b", "c"]; 3],
                "seed {seed}"
            );
        });
    }
}

#[test]
fn members_are_replaced_one_by_one() {
    in_virtual_time(async {
        let mut cluster = Cluster::start(7).await;
        cluster.register("n0").await;
        for (old, new) in [(1, 4), (2, 5), (3, 6)] {
            cluster.add(new).await;
            cluster.remove(old).await;
        }
        let version = cluster.register("n1").await;
        assert_eq!(cluster.nodes(version).await, vec![["n0", "n1"]; 3]);
        cluster.remove(4).await;
        cluster.remove(5).await;
        let version = cluster.register("n2").await;
        assert_eq!(cluster.nodes(version).await, vec![["n0", "n1", "n2"]]);
        let refused = cluster.change(6, false).await;
        assert_eq!(
            refused,
            Err("member 6 is the only one: without it there is no control plane".to_owned())
        );
    });
}

#[test]
fn a_change_that_its_leader_left_in_the_middle_is_ended_by_the_next() {
    for seed in 0..10 {
        in_virtual_time(async {
            let mut cluster = Cluster::start(seed).await;
            let version = cluster.register("a").await;
            cluster.nodes(version).await;
            let leader = cluster.leader().expect("somebody leads");
            let (gone, stays) = (leader % 3 + 1, (leader + 1) % 3 + 1);
            // Its way back is cut: the first half reaches the other, and its leader does not learn of that.
            cluster.net.cut(stays, leader);
            let raft = cluster.net.member(leader).unwrap().handle.raft.clone();
            cluster.member(gone).kill(false);
            let removal = ChangeMembers::RemoveVoters([gone].into());
            let asked = tokio::spawn(async move { raft.change_membership(removal, false).await });
            let mut there = cluster.net.member(stays).unwrap().handle.raft.metrics();
            let is_joint = |sets: &Vec<_>| sets.len() > 1;
            let joint =
                there.wait_for(|raft| is_joint(raft.membership_config.membership().get_joint_config()));
            tokio::time::timeout(PATIENCE, joint).await.unwrap().unwrap();
            cluster.member(leader).kill(false);
            asked.abort();
            cluster.net.heal();
            cluster.member(gone).start().await.unwrap();
            cluster.member(leader).start().await.unwrap();
            let voters = [leader.min(stays), leader.max(stays)];
            let ended = there.wait_for(|raft| {
                let membership = raft.membership_config.membership();
                !is_joint(membership.get_joint_config()) && membership.voter_ids().eq(voters)
            });
            let ended = tokio::time::timeout(PATIENCE, ended).await;
            assert!(ended.is_ok(), "seed {seed}");
        });
    }
}

#[test]
fn a_member_with_an_empty_disk_makes_no_majority_with_one_that_is_behind() {
    for seed in 0..10 {
        in_virtual_time(async {
            let mut cluster = Cluster::start(seed).await;
            let version = cluster.register("a").await;
            cluster.nodes(version).await;
            let leader = cluster.leader().expect("somebody leads");
            let (behind, empty) = (leader % 3 + 1, (leader + 1) % 3 + 1);
            cluster.member(behind).kill(false);
            let version = cluster.register("b").await;
            cluster.member(leader).kill(false);
            cluster.member(empty).wipe();
            cluster.member(empty).start().await.unwrap();
            cluster.member(behind).start().await.unwrap();
            tokio::time::sleep(PATIENCE).await;
            assert_eq!(cluster.leader(), None, "seed {seed}");
            cluster.member(leader).start().await.unwrap();
            let later = cluster.register("c").await;
            assert!(later > version);
            assert_eq!(
                cluster.nodes(later).await,
                vec![["a", "b", "c"]; 3],
                "seed {seed}"
            );
        });
    }
}
