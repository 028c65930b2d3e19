//! Three control-plane nodes, one gateway, the two stages of a pipeline on different agents.

use std::collections::BTreeSet;
use std::time::Duration;

use mosec_tests::{Cluster, Load, Options, Status, descendants, eventually, services};

fn manifest() -> String {
    format!(
        "pipeline: pair
source: {}
timeout: 20s
stages:
  - name: first
    worker: pair:First
    replicas: 2
    timeout: 20s
    labels: {{zone: a}}
  - name: second
    worker: pair:Second
    replicas: 2
    max_batch_size: 8
    max_wait: 2ms
    timeout: 20s
    labels: {{zone: b}}
routes:
  - path: /pair
    stages: [first, second]
",
        services().display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_gets_its_own_answer_while_the_leader_is_killed() -> anyhow::Result<()> {
    const REQUESTS: u64 = 2000;
    let mut cluster = Cluster::start(Options::default()).await?;
    cluster.deploy(&manifest()).await?;
    cluster.routed(0, "/pair").await?;
    let client = cluster.client(0);

    let trace = client
        .send(
            hyper::Method::POST,
            "/pair",
            &[("mosec-trace", "1")],
            "{\"id\": 1}".into(),
        )
        .await?;
    let timing = trace.headers["server-timing"].to_str()?.to_owned();
    for part in [
        "gateway", "queue-1", "link-1", "agent-1", "shm-1", "worker-1", "queue-2", "link-2", "worker-2",
    ] {
        anyhow::ensure!(timing.contains(part), "{part} is missing in {timing}");
    }

    let load = Load {
        requests: REQUESTS,
        ..Load::of(client.clone(), "/pair")
    }
    .start();
    eventually(
        "half of the requests are sent",
        Duration::from_secs(60),
        || async { (load.sent() >= REQUESTS / 2).then_some(()) },
    )
    .await?;
    let leader = cluster.leader()?;
    cluster
        .control
        .get_mut(&leader)
        .expect("the leader is one of the nodes")
        .kill()?;
    let report = load.finish().await;
    assert_eq!(
        (report.answered, report.wrong_count),
        (REQUESTS, 0),
        "{:#?}",
        report.wrong
    );

    // A new leader knows the workers from the agents' next heartbeats.
    let pids = |status: &Status, stage| {
        status
            .workers("pair", stage)
            .iter()
            .filter_map(|worker| worker.pid)
            .collect::<BTreeSet<_>>()
    };
    let status = cluster
        .until(
            "another node leads and knows the workers",
            Duration::from_secs(10),
            |status| {
                let known = pids(status, "first").len() == 2 && pids(status, "second").len() == 2;
                known && status.leader().is_some_and(|now| now != leader)
            },
        )
        .await?;
    let on = |agent| BTreeSet::from_iter(descendants(cluster.agents[agent].pid()));
    assert!(
        pids(&status, "first").is_subset(&on("a")),
        "the first stage is on agent a"
    );
    assert!(
        pids(&status, "second").is_subset(&on("b")),
        "the second stage is on agent b"
    );
    cluster.end();
    Ok(())
}
