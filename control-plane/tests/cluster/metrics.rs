//! The series of members, as their admin endpoints give them.

use mosec_types::WorkerState::{Ready, Starting};
use mosec_types::topology::{NodeHealth, Phase};
use mosec_types::{PipelineName, Topology};

use crate::agents::Agent;
use crate::harness::{Cluster, Watch, eventually, pipeline};

/// Waits until a member's page has all these lines.
async fn until_shown(cluster: &Cluster, member: u64, lines: &[String]) {
    eventually(&format!("{lines:?}"), || async {
        let page = cluster.page(member);
        lines.iter().all(|line| page.contains(line)).then_some(())
    })
    .await;
}

fn lines(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|&line| line.to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_shows_what_the_cluster_runs() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client(&[1, 2, 3]);
    let mut watch = Watch::start(&client, Topology::default());
    let (a, b) = (Agent::start(&client, "a", 1), Agent::start(&client, "b", 1));
    watch.until_node("a", |node| node.health == NodeHealth::Up).await;
    watch.until_node("b", |node| node.health == NodeHealth::Up).await;
    let first = client.deploy(&pipeline("p", 2), None).await.unwrap();
    let placed = watch.until_revision(first, |deployment| deployment.placements.len() == 2);
    let placed = placed.await;
    for (placement, state) in placed.placements.iter().zip([Ready, Starting]) {
        let agent = if placement.node.as_str() == "a" { &a } else { &b };
        agent.report(first, placement.replica.0, state, None);
    }
    let leader = cluster.leader().await;
    let followers = cluster.followers().await;
    let mut shown = lines(&[
        "leader 1",
        "leader_known 1",
        "members 3",
        "leases 2",
        "leases_lost_total 0",
        "pipelines 1",
        "nodes{state=\"up\"} 2",
        "nodes{state=\"down\"} 0",
        "replicas{state=\"ready\"} 1",
        "replicas{state=\"starting\"} 1",
        "replicas{state=\"unplaced\"} 0",
        "rollouts{state=\"starting\"} 1",
        "rollouts_finished_total{outcome=\"promoted\"} 0",
        "apply_lag_entries 0",
    ]);
    let lag = |member: &u64| format!("replication_lag_entries{{member=\"{member}\"}} 0");
    shown.extend(followers.iter().map(lag));
    until_shown(&cluster, leader, &shown).await;
    // It may have lost its majority for a moment, and so come to lead twice.
    assert!(!cluster.page(leader).contains(&"leaderships_total 0".to_owned()));
    for &follower in &followers {
        let page = cluster.page(follower);
        let of_leader = |line: &&String| {
            let only = ["nodes{", "replicas{", "rollouts{", "replication_lag_entries{"];
            only.iter().any(|name| line.starts_with(name))
        };
        assert_eq!(page.iter().find(of_leader), None, "{page:?}");
        let expected = lines(&[
            "leader 0",
            "leader_known 1",
            "leaderships_total 0",
            "members 3",
            "leases 0",
            "pipelines 0",
        ]);
        until_shown(&cluster, follower, &expected).await;
    }

    let second = client.deploy(&pipeline("p", 1), None).await.unwrap();
    watch
        .until_revision(first, |deployment| {
            matches!(deployment.phase, Phase::Failed { .. })
        })
        .await;
    let placed = watch.until_revision(second, |deployment| deployment.placements.len() == 1);
    let placed = placed.await;
    let agent = if placed.placements[0].node.as_str() == "a" {
        &a
    } else {
        &b
    };
    agent.report(second, 1, Ready, None);
    let shown = lines(&[
        "rollouts{state=\"serving\"} 1",
        "rollouts{state=\"starting\"} 0",
        "rollouts_finished_total{outcome=\"promoted\"} 1",
        "rollouts_finished_total{outcome=\"superseded\"} 1",
        "rollouts_finished_total{outcome=\"reverted\"} 0",
    ]);
    until_shown(&cluster, leader, &shown).await;

    b.stop().await;
    let shown = lines(&[
        "leases_lost_total 1",
        "nodes{state=\"down\"} 1",
        "nodes{state=\"up\"} 1",
    ]);
    until_shown(&cluster, leader, &shown).await;

    client.delete(&PipelineName::new("p").unwrap()).await.unwrap();
    until_shown(
        &cluster,
        leader,
        &lines(&["pipelines 0", "rollouts{state=\"serving\"} 0"]),
    )
    .await;

    cluster.change(&client, followers[0], false).await.unwrap();
    let gone = lag(&followers[0]);
    eventually("one member less", || async {
        let page = cluster.page(leader);
        (page.contains(&"members 2".to_owned()) && !page.contains(&gone)).then_some(())
    })
    .await;
    cluster.ended(followers[0]).await;
    a.stop().await;
}
