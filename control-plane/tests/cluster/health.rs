//! What a member says of its own health.

use crate::harness::{Cluster, eventually};

async fn all_healthy(cluster: &Cluster) {
    eventually("three healthy members", || async {
        let ill = cluster
            .members()
            .into_iter()
            .find(|&member| cluster.illness(member).is_some());
        ill.is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_a_majority_says_so() {
    let mut cluster = Cluster::start(3).await;
    all_healthy(&cluster).await;
    let leader = cluster.leader().await;
    // A lost leader is replaced, and nobody is ill for that.
    cluster.stop(leader).await;
    let next = cluster.leader().await;
    let left = cluster.followers().await[0];
    assert_eq!((cluster.illness(next), cluster.illness(left)), (None, None));
    cluster.stop(next).await;
    let reason = eventually("an ill member", || async { cluster.illness(left) }).await;
    assert!(reason.starts_with("it has known no leader for 1"), "{reason}");
    eventually("the same in its series", || async {
        (cluster.gauge(left, "leader_known") == 0.0).then_some(())
    })
    .await;
    cluster.restart(leader).await;
    cluster.restart(next).await;
    all_healthy(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_a_majority_does_not_show_that_it_leads() {
    let mut cluster = Cluster::start(3).await;
    all_healthy(&cluster).await;
    let leader = cluster.leader().await;
    let followers = cluster.followers().await;
    let of_leader = |cluster: &Cluster| {
        let page = cluster.page(leader);
        let shown = |name| page.iter().any(|line: &String| line.starts_with(name));
        ["leader 1", "nodes{", "replication_lag_entries{"].map(shown)
    };
    eventually("what the leader sees", || async {
        (of_leader(&cluster) == [true; 3]).then_some(())
    })
    .await;
    for &follower in &followers {
        cluster.stop(follower).await;
    }
    eventually("nothing of a leader", || async {
        (of_leader(&cluster) == [false; 3]).then_some(())
    })
    .await;
    assert_eq!(
        cluster.gauge(leader, "leader_known"),
        1.0,
        "an election takes a while"
    );
    let reason = eventually("an ill member", || async { cluster.illness(leader) }).await;
    assert!(reason.starts_with("it has known no leader for 1"), "{reason}");
    eventually("the same in its series", || async {
        (cluster.gauge(leader, "leader_known") == 0.0).then_some(())
    })
    .await;
    for &follower in &followers {
        cluster.restart(follower).await;
    }
    all_healthy(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_ill_until_it_takes_part() {
    let mut cluster = Cluster::start(3).await;
    all_healthy(&cluster).await;
    let follower = cluster.followers().await[0];
    let others = cluster.followers().await[1];
    let leader = cluster.leader().await;
    // Alone, one that has lost its disk cannot know what it must reach.
    for member in [follower, others, leader] {
        cluster.stop(member).await;
    }
    cluster.wipe(follower);
    cluster.restart(follower).await;
    let reason = cluster.illness(follower).unwrap();
    assert!(reason.starts_with("it is not level"), "{reason}");
    // One that has its disk knows no leader yet.
    cluster.restart(others).await;
    let reason = cluster.illness(others).unwrap();
    assert!(reason.starts_with("it knows no leader yet"), "{reason}");
    cluster.restart(leader).await;
    all_healthy(&cluster).await;
}
