//! Updates under load: no request fails, and none is served by two revisions.

use std::time::Duration;

use mosec_tests::{Cluster, Load, Options, eventually, services};
use serde_json::Value;

/// `apart`: each stage on an agent of its own, so that what the first has done crosses a link to get to the last.
fn manifest(revision: u32, apart: bool) -> String {
    let [first, last] = if apart {
        ["labels: {zone: a}", "labels: {zone: b}"]
    } else {
        ["labels: {}"; 2]
    };
    format!(
        "pipeline: revised
source: {}
timeout: 20s
stages:
  - name: slow
    worker: revised:Slow
    replicas: 2
    max_batch_size: 4
    max_wait: 5ms
    env: {{REVISION: r{revision}}}
    {first}
  - name: last
    worker: revised:Last
    replicas: 2
    max_batch_size: 8
    max_wait: 1ms
    env: {{REVISION: r{revision}}}
    {last}
routes:
  - {{path: /revised, stages: [slow, last]}}
",
        services().display()
    )
}

fn of_one_revision(answer: &Value) -> Result<(), String> {
    if answer["first"] == answer["last"] && answer["first"].is_string() {
        Ok(())
    } else {
        Err(format!("served by two revisions: {answer}"))
    }
}

async fn updates_under_load(apart: bool) -> anyhow::Result<()> {
    const UPDATES: u32 = 4;
    let cluster = Cluster::start(Options::default()).await?;
    cluster.deploy(&manifest(0, apart)).await?;
    cluster.routed(0, "/revised").await?;
    let client = cluster.client(0);
    let load = Load {
        concurrency: 24,
        check: of_one_revision,
        ..Load::of(client.clone(), "/revised")
    }
    .start();
    for revision in 1..=UPDATES {
        let before = load.sent();
        eventually("the load goes on", Duration::from_secs(30), || async {
            (load.sent() > before + 48).then_some(())
        })
        .await?;
        cluster.deploy(&manifest(revision, apart)).await?;
    }
    let newest = format!("r{UPDATES}");
    eventually("the newest revision answers", Duration::from_secs(10), || async {
        let answer = client.post("/revised", "{\"id\": 0}").await.ok()?.json().ok()?;
        (answer["first"] == newest.as_str()).then_some(())
    })
    .await?;
    load.stop();
    let report = load.finish().await;
    assert_eq!(
        report.wrong_count, 0,
        "{} answered; {:#?}",
        report.answered, report.wrong
    );
    eprintln!(
        "{} requests over {UPDATES} updates, p50 {:?}, longest {:?}",
        report.answered,
        report.quantile(0.5),
        report.quantile(1.0)
    );
    cluster.end();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_fail_no_request_when_the_stages_are_on_different_agents() -> anyhow::Result<()> {
    updates_under_load(true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_fail_no_request_when_each_agent_has_every_stage() -> anyhow::Result<()> {
    updates_under_load(false).await
}
