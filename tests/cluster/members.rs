//! Members of the control plane are replaced, one after the other, under load.

use std::time::Duration;

use anyhow::Context as _;
use mosec_tests::{Cluster, Load, Options, eventually, services};
use serde_json::Value;

fn manifest(replicas: u32) -> String {
    format!(
        "pipeline: pair
source: {}
stages:
  - {{name: first, worker: \"pair:First\", replicas: {replicas}}}
  - {{name: second, worker: \"pair:Second\", max_batch_size: 8, max_wait: 2ms}}
routes:
  - {{path: /pair, stages: [first, second]}}
",
        services().display()
    )
}

fn run(cluster: &Cluster, args: &[&str]) -> anyhow::Result<String> {
    let output = cluster.mosectl(args)?;
    let error = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "mosectl {args:?} failed:\n{error}");
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_is_replaced_and_nobody_notices() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options {
        cert_ttl: Some("90d"),
        ..Options::default()
    })
    .await?;
    cluster.deploy(&manifest(1)).await?;
    cluster.routed(0, "/pair").await?;
    let load = Load {
        concurrency: 8,
        ..Load::of(cluster.client(0), "/pair")
    }
    .start();
    for (old, new) in [(1, 4), (2, 5), (3, 6)] {
        let member = cluster.join_control(new)?;
        let added = run(&cluster, &["cluster", "add", &member])?;
        assert!(added.starts_with(&format!("member {new} at ")), "{added}");
        // The first is lost with its host, the others run.
        if old == 1 {
            cluster.control.get_mut(&old).context("it runs")?.kill()?;
        }
        let removed = run(&cluster, &["cluster", "remove", &old.to_string()])?;
        assert!(
            removed.starts_with(&format!("member {old} is removed")),
            "{removed}"
        );
        if old == 1 {
            // Somebody starts it again.
            cluster.start_control(old)?;
        }
        let log = cluster.removed_control(old).await?;
        assert!(
            log.contains(&format!("member {old} was removed from the cluster")),
            "{log}"
        );
    }
    let status: Value = serde_json::from_str(&run(&cluster, &["cluster", "status", "--output", "json"])?)?;
    let members = status["members"].as_array().context("members")?;
    let ids: Vec<_> = members
        .iter()
        .filter_map(|member| member["id"].as_u64())
        .collect();
    assert_eq!(ids, [4, 5, 6], "{status}");
    assert_eq!(
        (&status["may_be_lost"], &status["notes"]),
        (&Value::from(1), &Value::Array(vec![]))
    );

    // Agents and gateways know none of these from their flags, and do what they say.
    cluster.deploy(&manifest(2)).await?;
    let sent = load.sent();
    eventually("the load goes on", Duration::from_secs(20), || async {
        (load.sent() > sent + 200).then_some(())
    })
    .await?;
    load.stop();
    let report = load.finish().await;
    assert_eq!(
        report.wrong_count, 0,
        "{} answered; {:#?}",
        report.answered, report.wrong
    );
    // One that has joined comes back as any other, and is a member still.
    cluster.control.get_mut(&5).context("it runs")?.kill()?;
    cluster.start_joined(5)?;
    eventually("all are level again", Duration::from_secs(20), || async {
        let status = run(&cluster, &["cluster", "status"]).ok()?;
        status.contains("may be lost 1").then_some(())
    })
    .await?;
    cluster.end();
    Ok(())
}
