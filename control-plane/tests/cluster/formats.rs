//! Members of different builds, over the network.

use std::collections::BTreeMap;

use mosec_control_plane::Config;
use mosec_control_plane::state::{Format, Formats};
use mosec_types::{Capacity, Incarnation, NodeId};
use mosec_wire::control::Registration;
use mosec_wire::control::endpoint;
use mosec_wire::control::raft::DescribeRequest;
use mosec_wire::control::raft::raft_client::RaftClient;
use tokio_util::sync::CancellationToken;

use crate::harness::{Cluster, Watch, eventually, pipeline};

/// The first builds, which know no formats but answer as these do.
const FIRST: Formats = Formats {
    min: Format(1),
    max: Format(1),
};
const NEWER: Formats = Formats {
    min: Format(1),
    max: Format(3),
};

fn install(formats: Formats) -> impl Fn(&mut Config) {
    move |config| config.formats = formats
}

/// The format that a member says is in force.
async fn format(cluster: &Cluster, member: u64) -> u32 {
    let channel = endpoint::channel(&cluster.address(member).to_string(), None).unwrap();
    let reply = RaftClient::new(channel).describe(DescribeRequest {}).await;
    reply.unwrap().into_inner().format
}

pub async fn format_becomes(cluster: &Cluster, wanted: u32) {
    for member in cluster.members() {
        eventually("the format to come into force", || async {
            (format(cluster, member).await == wanted).then_some(())
        })
        .await;
    }
}

fn registration(name: &str) -> Registration {
    Registration {
        id: NodeId::new(name).unwrap(),
        incarnation: Incarnation(1),
        address: "127.0.0.1:7443".into(),
        labels: BTreeMap::new(),
        capacity: Capacity::default(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_upgraded_one_after_the_other_under_writes() {
    let mut cluster = Cluster::start_with(3, None, install(FIRST)).await;
    cluster.leader().await;
    let client = cluster.client(&[1, 2, 3]);
    client.register_node(&registration("early")).await.unwrap();
    let stop = CancellationToken::new();
    let (writer, stopped) = (client.clone(), stop.clone());
    let writes = tokio::spawn(async move {
        let mut written = Vec::new();
        while !stopped.is_cancelled() {
            let name = format!("p{}", written.len());
            let revision = writer.deploy(&pipeline(&name, 1), None).await.unwrap();
            written.push((name, revision));
        }
        written
    });
    let newest = Formats {
        max: Format(3),
        ..Formats::BUILD
    };
    for member in 1..=3 {
        assert_eq!(
            format(&cluster, member).await,
            1,
            "no member is ahead of the others"
        );
        cluster.stop(member).await;
        cluster.configure(member, install(newest));
        cluster.restart(member).await;
        cluster.leader().await;
    }
    format_becomes(&cluster, 3).await;
    stop.cancel();
    let written = writes.await.unwrap();
    assert!(written.len() >= 3, "{written:?}");
    client.register_node(&registration("late")).await.unwrap();
    for member in 1..=3 {
        let mut watch = Watch::start(&cluster.client(&[member]), Default::default());
        for (_, revision) in &written {
            watch.until_revision(*revision, |_| true).await;
        }
        let build = |name: &str, topology: &mosec_types::Topology| {
            let node = topology.node(&NodeId::new(name).unwrap());
            node.map(|node| node.build.clone())
        };
        let topology = watch.until_node("late", |_| true).await;
        assert_eq!(
            build("early", &topology),
            Some(None),
            "the first format has no builds"
        );
        assert_eq!(
            build("late", &topology),
            Some(Some(env!("CARGO_PKG_VERSION").into()))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_too_old_ends_with_both_numbers() {
    let mut cluster = Cluster::start_with(3, None, install(NEWER)).await;
    format_becomes(&cluster, 3).await;
    let says = |text: &str| {
        let expected = "the cluster is at format 3, and this build (";
        assert!(text.contains(expected), "{text}");
        assert!(
            text.contains("supports formats 1 to 2: start this member with"),
            "{text}"
        );
    };
    // With its disk, from which it sees by itself.
    cluster.stop(3).await;
    cluster.configure(3, install(Formats::BUILD));
    says(&cluster.refused(3).await);
    // Without, from what the leader sends.
    cluster.wipe(3);
    cluster.restart(3).await;
    says(&cluster.ended(3).await.to_string());
    // With a snapshot and nothing else.
    cluster.configure(3, |config| {
        config.formats = NEWER;
        config.raft.snapshot_every = 10;
    });
    cluster.wipe(3);
    cluster.restart(3).await;
    let client = cluster.client(&[1, 2, 3]);
    for n in 0..40 {
        client.deploy(&pipeline(&format!("p{n}"), 1), None).await.unwrap();
    }
    let snapshots = cluster.bundles(3).with_file_name("snapshots");
    eventually("a snapshot", || async {
        std::fs::read_dir(&snapshots).ok()?.next().map(|_| ())
    })
    .await;
    cluster.stop(3).await;
    cluster.configure(3, install(Formats::BUILD));
    says(&cluster.refused(3).await);
    // Nothing was lost by that.
    cluster.configure(3, install(NEWER));
    cluster.restart(3).await;
    format_becomes(&cluster, 3).await;
}
