//! Single stories that histories come upon too seldom.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mosec_control_plane::raft::MemberId;
use mosec_control_plane::state::{Command, Proposal, Reply};
use mosec_types::{Incarnation, NodeId};
use openraft::ServerState;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::client::view;
use crate::member::Member;
use crate::net::Net;
use crate::run::{Setup, in_virtual_time, members};

/// Virtual time after which something that is awaited will not come.
const PATIENCE: Duration = Duration::from_secs(20);

struct Cluster {
    net: Arc<Net>,
    members: BTreeMap<MemberId, Member>,
}

impl Cluster {
    async fn start(seed: u64) -> Self {
        let (mut seeds, net) = (StdRng::seed_from_u64(seed), Net::new(seed));
        let setup = Setup {
            members: 3,
            ..Setup::default()
        };
        let mut members = members(&mut seeds, &net, setup);
        for member in members.values_mut() {
            member.start().await.unwrap();
        }
        Self { net, members }
    }

    fn member(&mut self, id: MemberId) -> &mut Member {
        self.members.get_mut(&id).unwrap()
    }

    fn leader(&self) -> Option<MemberId> {
        self.members.keys().copied().find(|&id| {
            let raft = self.net.member(id).map(|live| live.handle.raft.metrics());
            raft.is_some_and(|metrics| metrics.borrow().state == ServerState::Leader)
        })
    }

    /// Registers a node through whichever member can; gives the version that has it.
    async fn register(&self, node: &str) -> u64 {
        let command = Command::RegisterNode {
            id: NodeId::new(node).unwrap(),
            incarnation: Incarnation(1),
            address: "host:7443".into(),
            labels: BTreeMap::new(),
            capacity: Default::default(),
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
    async fn nodes(&self, version: u64) -> Vec<Vec<String>> {
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
