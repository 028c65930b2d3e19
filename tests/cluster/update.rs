//! Updates under load: no request fails, and none is served by two revisions.

use std::time::Duration;

use mosec_tests::{Client, Cluster, Load, Options, Running, eventually, services};
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

async fn answers(client: &Client, revision: &str) -> anyhow::Result<()> {
    eventually(revision, Duration::from_secs(10), || async {
        let answer = client.post("/revised", "{\"id\": 0}").await.ok()?.json().ok()?;
        (answer["first"] == revision).then_some(())
    })
    .await
}

fn load(client: &Client) -> Running {
    Load {
        concurrency: 24,
        check: of_one_revision,
        ..Load::of(client.clone(), "/revised")
    }
    .start()
}

/// Waits until so many more requests are under way that every worker has had its share.
async fn goes_on(load: &Running) -> anyhow::Result<()> {
    let before = load.sent();
    eventually("the load goes on", Duration::from_secs(30), || async {
        (load.sent() > before + 48).then_some(())
    })
    .await
}

async fn updates_under_load(apart: bool) -> anyhow::Result<()> {
    const UPDATES: u32 = 4;
    let cluster = Cluster::start(Options::default()).await?;
    cluster.deploy(&manifest(0, apart)).await?;
    cluster.routed(0, "/revised").await?;
    let client = cluster.client(0);
    let load = load(&client);
    for revision in 1..=UPDATES {
        goes_on(&load).await?;
        cluster.deploy(&manifest(revision, apart)).await?;
    }
    answers(&client, &format!("r{UPDATES}")).await?;
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

/// One column of `mosectl history --output json`.
fn history(cluster: &Cluster, key: &str) -> anyhow::Result<Vec<Value>> {
    let output = cluster.mosectl(&["history", "revised", "--output", "json"])?;
    let records: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    Ok(records.into_iter().map(|record| record[key].clone()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_under_load_fails_no_request() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    for revision in 0..3 {
        cluster.deploy(&manifest(revision, true)).await?;
    }
    cluster.routed(0, "/revised").await?;
    let client = cluster.client(0);
    answers(&client, "r2").await?;
    let revisions = history(&cluster, "revision")?;
    assert_eq!(history(&cluster, "outcome")?, ["replaced", "replaced", "serving"]);
    assert_eq!(history(&cluster, "by")?, ["tests"; 3]);

    let load = load(&client);
    goes_on(&load).await?;
    let said = cluster.mosectl(&["rollback", "revised"])?;
    let out = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success() && out.contains(" is serving\n"), "{said:?}");
    answers(&client, "r1").await?;
    goes_on(&load).await?;
    // By number, to one that is further back.
    let first = revisions[0].to_string();
    let said = cluster.mosectl(&["rollback", "revised", &first])?;
    assert!(said.status.success(), "{said:?}");
    answers(&client, "r0").await?;
    load.stop();
    let report = load.finish().await;
    assert_eq!(
        report.wrong_count, 0,
        "{} answered; {:#?}",
        report.answered, report.wrong
    );

    let back: Vec<_> = history(&cluster, "rollback_of")?.into_iter().skip(3).collect();
    assert_eq!(back, [revisions[1].clone(), revisions[0].clone()]);
    for (arguments, reason) in [
        (
            ["rollback", "revised", "1"],
            "no revision 1 of pipeline revised is remembered, only ",
        ),
        (["rollback", "other", "1"], "there is no pipeline other"),
    ] {
        let refused = cluster.mosectl(&arguments)?;
        let error = String::from_utf8_lossy(&refused.stderr);
        assert!(
            refused.status.code() == Some(1) && error.contains(reason),
            "{error}"
        );
    }
    cluster.end();
    Ok(())
}
