//! Members of different builds in one control plane.

use std::collections::BTreeMap;
use std::time::Duration;

use mosec_control_plane::state::{Command, Format, Formats};
use mosec_types::{Incarnation, NodeId};

use crate::directed::{Cluster, PATIENCE};
use crate::run::in_virtual_time;

/// Builds before and after a change of what is logged.
const OLDER: Formats = Formats {
    min: Format(1),
    max: Format(2),
};
const NEWER: Formats = Formats {
    min: Format(1),
    max: Format(3),
};
/// The leader asks each second, and may have to be found first.
const SETTLED: Duration = Duration::from_secs(5);

impl Cluster {
    async fn older(seed: u64) -> Self {
        let cluster = Self::start_with(seed, |member| member.install(OLDER)).await;
        cluster.format_becomes(2, &[1, 2, 3]).await;
        cluster
    }

    /// Ends a member without warning and starts it with a build.
    async fn change_build(&mut self, member: u64, formats: Formats) -> Result<(), String> {
        self.member(member).kill(false);
        self.member(member).install(formats);
        self.member(member).start().await
    }

    fn format(&self, member: u64) -> u8 {
        self.net.member(member).unwrap().model.borrow().format.0
    }

    async fn format_becomes(&self, format: u8, members: &[u64]) {
        for &id in members {
            let mut model = self.net.member(id).unwrap().model.clone();
            let there =
                tokio::time::timeout(PATIENCE, model.wait_for(|model| model.format == Format(format))).await;
            there.expect("the format comes into force").unwrap();
        }
    }
}

#[test]
fn one_member_after_the_other_is_upgraded_under_writes() {
    for seed in 0..10 {
        in_virtual_time(async {
            let mut cluster = Cluster::older(seed).await;
            let mut names = Vec::new();
            for upgraded in 1..=3 {
                assert_eq!(
                    cluster.format(upgraded),
                    2,
                    "seed {seed}: member {upgraded} is upgraded too late"
                );
                for turn in ["before", "after"] {
                    if turn == "after" {
                        cluster.change_build(upgraded, NEWER).await.unwrap();
                    }
                    for n in 0..10 {
                        names.push(format!("{turn}-{upgraded}-{n}"));
                        cluster.register(names.last().unwrap()).await;
                    }
                }
                if upgraded < 3 {
                    tokio::time::sleep(SETTLED).await;
                }
            }
            cluster.format_becomes(3, &[1, 2, 3]).await;
            let version = cluster.register("last").await;
            names.push("last".into());
            names.sort();
            assert_eq!(cluster.nodes(version).await, vec![names; 3], "seed {seed}");
        });
    }
}

#[test]
fn a_member_that_is_away_holds_the_format_back() {
    in_virtual_time(async {
        let mut cluster = Cluster::older(1).await;
        cluster.member(3).kill(false);
        for member in [1, 2] {
            cluster.change_build(member, NEWER).await.unwrap();
        }
        cluster.register("a").await;
        tokio::time::sleep(SETTLED).await;
        assert_eq!(cluster.format(1), 2);
        cluster.member(3).install(NEWER);
        cluster.member(3).start().await.unwrap();
        cluster.format_becomes(3, &[1, 2, 3]).await;
    });
}

#[test]
fn a_newer_member_works_with_older_ones_in_their_format() {
    for newer in 1..=3 {
        in_virtual_time(async {
            let mut cluster = Cluster::older(newer).await;
            cluster.change_build(newer, NEWER).await.unwrap();
            // It has to lead, too.
            for other in (1..=3).filter(|&other| other != newer) {
                cluster.change_build(other, OLDER).await.unwrap();
                let version = cluster.register(&format!("n{other}")).await;
                cluster.nodes(version).await;
                tokio::time::sleep(SETTLED).await;
            }
            for member in 1..=3 {
                assert_eq!(cluster.format(member), 2);
                assert_eq!(cluster.net.member(member).unwrap().failure(), None);
            }
        });
    }
}

#[test]
fn what_a_leader_has_not_applied_yet_is_in_force() {
    for seed in 0..10 {
        in_virtual_time(async {
            let mut cluster = Cluster::start(seed).await;
            cluster.format_becomes(Formats::BUILD.max.0, &[1, 2, 3]).await;
            // None of them knows at first how much of its log was committed.
            for member in 1..=3 {
                cluster.member(member).kill(true);
            }
            for member in 1..=3 {
                cluster.member(member).start().await.unwrap();
            }
            let command = Command::RegisterNode {
                id: NodeId::new("a").unwrap(),
                incarnation: Incarnation(1),
                address: "host:7443".into(),
                labels: BTreeMap::new(),
                capacity: Default::default(),
                build: Some("1.2.3".into()),
            };
            let first = async {
                loop {
                    for member in 1..=3 {
                        let handle = cluster.net.member(member).unwrap().handle.clone();
                        if handle.register(command.clone()).await.is_ok() {
                            return handle;
                        }
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let leader = tokio::time::timeout(PATIENCE, first).await.unwrap();
            let model = leader.model.borrow().clone();
            let node = model.nodes.values().next().unwrap();
            assert_eq!(
                node.build.as_deref(),
                Some("1.2.3"),
                "seed {seed}: it was left out"
            );
        });
    }
}

#[test]
fn a_build_that_is_too_old_says_so_and_takes_no_part() {
    in_virtual_time(async {
        let mut cluster = Cluster::start_with(1, |member| member.install(NEWER)).await;
        cluster.format_becomes(3, &[1, 2, 3]).await;
        // With the disk that it has.
        let refused = cluster.change_build(3, OLDER).await.unwrap_err();
        assert!(
            refused.starts_with("the cluster is at format 3, and this build"),
            "{refused}"
        );
        // With an empty one, which says nothing of formats.
        cluster.member(3).wipe();
        cluster.member(3).start().await.unwrap();
        let live = cluster.net.member(3).unwrap();
        let noted = tokio::time::timeout(PATIENCE, live.inbox.outdated.wait()).await;
        let text = noted.expect("it learns of the format").to_string();
        assert!(
            text.starts_with("the cluster is at format 3, and this build"),
            "{text}"
        );
        assert_eq!(live.model.borrow().version, 0, "it has applied nothing");
        // The others do not need it.
        cluster.register("a").await;
    });
}
