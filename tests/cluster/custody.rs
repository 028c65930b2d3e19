//! Requests survive the workers and the agents that have them.

use std::time::{Duration, Instant};

use mosec_tests::{Cluster, Load, Options, eventually, process_exists, services, shared_memory_of};

/// Time between two kills of a worker.
const KILL_EVERY: Duration = Duration::from_secs(2);
const KILLS: u32 = 6;

fn manifest() -> String {
    format!(
        "pipeline: pair
source: {}
timeout: 20s
stages:
  - {{name: first, worker: \"pair:First\", replicas: 4, timeout: 20s}}
  - {{name: second, worker: \"pair:Second\", replicas: 4, max_batch_size: 8, max_wait: 2ms, timeout: 20s}}
routes:
  - {{path: /pair, stages: [first, second]}}
",
        services().display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_workers_and_an_agent_are_killed() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    cluster.deploy(&manifest()).await?;
    cluster.routed(0, "/pair").await?;
    let load = Load::of(cluster.client(0), "/pair").start();

    for round in 0..KILLS {
        tokio::time::sleep(KILL_EVERY).await;
        let stage = if round % 2 == 0 { "first" } else { "second" };
        let before = load.sent();
        cluster.kill_worker("pair", stage)?;
        eventually("the load goes on", Duration::from_secs(10), || async {
            (load.sent() > before + 200).then_some(())
        })
        .await?;
        if round == KILLS / 2 {
            kill_agent(&mut cluster).await?;
        }
    }
    let restarted = cluster
        .until("workers have been restarted", Duration::from_secs(20), |status| {
            let workers = ["first", "second"]
                .map(|stage| status.workers("pair", stage))
                .concat();
            workers.len() == 8
                && workers.iter().all(|worker| worker.state == "ready")
                && workers.iter().any(|worker| worker.restarts > 0)
        })
        .await?;
    assert!(restarted.nodes_up() == 2, "{restarted:?}");
    load.stop();
    let report = load.finish().await;
    assert_eq!(
        report.wrong_count, 0,
        "{} answered; {:#?}",
        report.answered, report.wrong
    );
    assert_eq!(report.answered, report.latencies.len() as u64);
    eprintln!(
        "{} requests, p50 {:?}, p99 {:?}, longest {:?}",
        report.answered,
        report.quantile(0.5),
        report.quantile(0.99),
        report.quantile(1.0)
    );
    cluster.end();
    Ok(())
}

/// Kills an agent, checks that it leaves nothing, and starts it again.
async fn kill_agent(cluster: &mut Cluster) -> anyhow::Result<()> {
    let agent = cluster.agents.get_mut("b").expect("there is an agent b");
    let (pid, workers) = (agent.pid(), mosec_tests::descendants(agent.pid()));
    assert!(!workers.is_empty(), "the agent has workers");
    agent.kill()?;
    let killed = Instant::now();
    eventually("its workers end", Duration::from_secs(5), || async {
        (!workers.iter().any(|&worker| process_exists(worker))).then_some(())
    })
    .await?;
    eprintln!(
        "{} workers ended {:?} after their agent",
        workers.len(),
        killed.elapsed()
    );
    assert_eq!(shared_memory_of(pid), [""; 0], "nothing is left in /dev/shm");
    cluster.start_agent("b")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_kills_workers_is_refused_and_its_neighbours_are_not() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options {
        control: 1,
        agents: vec!["a"],
        ..Options::default()
    })
    .await?;
    let manifest = format!(
        "pipeline: poison
source: {}
timeout: 30s
stages:
  - {{name: only, worker: \"poison:Poison\", replicas: 2, max_batch_size: 8, max_wait: 100ms, timeout: 20s}}
routes:
  - {{path: /poison, stages: [only]}}
",
        services().display()
    );
    cluster.deploy(&manifest).await?;
    cluster.routed(0, "/poison").await?;
    let client = cluster.client(0);
    let mut answers = tokio::task::JoinSet::new();
    for id in 0..8 {
        let client = client.clone();
        let body = format!("{{\"id\": {id}, \"die\": {}}}", id == 3);
        answers.spawn(async move { (id, client.post("/poison", body).await) });
    }
    while let Some(answer) = answers.join_next().await {
        let (id, answer) = answer?;
        let answer = answer?;
        let expected = if id == 3 { 500 } else { 200 };
        assert_eq!(answer.status, expected, "request {id}: {}", answer.text());
    }
    cluster.end();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_stage_does_not_run_twice_when_the_agent_of_an_earlier_one_is_killed() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options {
        control: 1,
        ..Options::default()
    })
    .await?;
    let manifest = format!(
        "pipeline: once
source: {}
timeout: 30s
stages:
  - {{name: first, worker: \"once:First\", labels: {{zone: a}}}}
  - {{name: once, worker: \"once:Once\", timeout: 30s, labels: {{zone: b}}, delivery: at_most_once}}
routes:
  - {{path: /once, stages: [first, once]}}
",
        services().display()
    );
    cluster.deploy(&manifest).await?;
    cluster.routed(0, "/once").await?;
    let log = cluster.dir().join("begun");
    let begun = || std::fs::read_to_string(&log).unwrap_or_default();
    let (client, body) = (
        cluster.client(0),
        format!("{{\"id\": 7, \"sleep\": 2, \"log\": \"{}\"}}", log.display()),
    );
    let answer = tokio::spawn(async move { client.post("/once", body).await });
    eventually("the later stage has begun", Duration::from_secs(20), || async {
        (begun() == "7\n").then_some(())
    })
    .await?;
    cluster.agents.get_mut("a").expect("there is an agent a").kill()?;
    // Its way to the request is lost, and with it what has become of it. Another try would find the agent back.
    cluster.start_agent("a")?;
    let answer = answer.await??;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (503, "the replica was lost before it answered")
    );
    // Another request gets through, so whatever was to run has run.
    let (client, body) = (
        cluster.client(0),
        format!("{{\"id\": 8, \"sleep\": 0, \"log\": \"{}\"}}", log.display()),
    );
    eventually("the pipeline serves again", Duration::from_secs(30), || async {
        let answer = client.post("/once", body.clone()).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    assert_eq!(begun().lines().filter(|id| *id == "7").count(), 1);
    cluster.end();
    Ok(())
}
