//! The whole control plane is gone: what runs goes on, and what starts finds what it ran last.

use std::collections::BTreeSet;
use std::time::Duration;

use mosec_tests::{Cluster, Load, Options, descendants, eventually, kill, services};

fn manifest() -> String {
    format!(
        "pipeline: pair
source: {}
timeout: 20s
stages:
  - {{name: first, worker: \"pair:First\", replicas: 2, timeout: 20s, labels: {{zone: a}}}}
  - {{name: second, worker: \"pair:Second\", replicas: 2, max_batch_size: 8, max_wait: 2ms, labels: {{zone: b}}}}
routes:
  - {{path: /pair, stages: [first, second]}}
",
        services().display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_serves_restarts_and_heals_without_the_control_plane() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    cluster.deploy(&manifest()).await?;
    cluster.routed(0, "/pair").await?;
    let workers = cluster.status()?.workers("pair", "first");
    let load = Load {
        concurrency: 16,
        ..Load::of(cluster.client(0), "/pair")
    }
    .start();
    let on = |sent: u64| {
        let load = &load;
        let more = move || async move { (load.sent() > sent + 500).then_some(()) };
        eventually("the load goes on", Duration::from_secs(20), more)
    };
    on(load.sent()).await?;
    for member in cluster.control.values_mut() {
        member.kill()?;
    }
    on(load.sent()).await?;

    // A worker that dies is started again.
    let victim = workers[0].pid.expect("a ready worker has a process");
    let before: BTreeSet<_> = descendants(cluster.agents["a"].pid()).into_iter().collect();
    kill(victim)?;
    eventually("the worker is replaced", Duration::from_secs(20), || async {
        let now: BTreeSet<_> = descendants(cluster.agents["a"].pid()).into_iter().collect();
        let replaced = !now.contains(&victim) && now.difference(&before).next().is_some();
        replaced.then_some(())
    })
    .await?;
    on(load.sent()).await?;
    load.stop();
    let report = load.finish().await;
    assert_eq!(
        report.wrong_count, 0,
        "{} answered; {:#?}",
        report.answered, report.wrong
    );

    // A gateway and an agent that start now find the pipeline.
    cluster.restart_gateway(0).await?;
    serves(&cluster).await?;
    let agent = cluster.agents.get_mut("b").expect("there is an agent b");
    agent.kill()?;
    cluster.start_agent("b")?;
    serves(&cluster).await?;

    for member in 1..=3 {
        cluster.start_control(member)?;
    }
    cluster
        .until(
            "the control plane knows everybody",
            Duration::from_secs(30),
            |status| {
                let workers = [status.workers("pair", "first"), status.workers("pair", "second")].concat();
                status.nodes_up() == 2
                    && workers.len() == 4
                    && workers.iter().all(|worker| worker.state == "ready")
            },
        )
        .await?;
    serves(&cluster).await?;
    cluster.end();
    Ok(())
}

/// Waits for a first answer, and from then on expects nothing else.
async fn serves(cluster: &Cluster) -> anyhow::Result<()> {
    let client = cluster.client(0);
    eventually("an answer", Duration::from_secs(20), || async {
        let answer = client.post("/pair", "{\"id\": 0}").await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    let report = Load {
        concurrency: 16,
        requests: 300,
        ..Load::of(client, "/pair")
    }
    .start()
    .finish()
    .await;
    assert_eq!(
        report.wrong_count, 0,
        "{} answered; {:#?}",
        report.answered, report.wrong
    );
    Ok(())
}
