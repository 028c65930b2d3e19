//! Deployments that cannot work: each ends within its deadline, says why on one screen, and leaves the old revision alone.

use std::time::{Duration, Instant};

use mosec_tests::{Cluster, Load, Options, services};

/// Lines of a terminal.
const SCREEN: usize = 40;
/// Enough for three starts that fail, with the pauses between them.
const STARTS: Duration = Duration::from_secs(7);
/// What is waited for in vain is waited for this long.
const SHORT: Duration = Duration::from_secs(3);

fn manifest(worker: &str, more: &str) -> String {
    format!(
        "pipeline: service
source: {}
timeout: 20s
stages:
  - name: only
    worker: bad_starts:{worker}
    timeout: 60s
{more}",
        services().display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_deployment_ends_in_time_with_its_cause() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options {
        control: 1,
        agents: vec!["a"],
        ..Options::default()
    })
    .await?;
    cluster.deploy(&manifest("Works", "")).await?;
    cluster.routed(0, "/inference").await?;
    let load = Load {
        concurrency: 2,
        ..Load::of(cluster.client(0), "/inference")
    }
    .start();
    let file = cluster.dir().join("bad.yaml");
    for (worker, more, limit, cause) in [
        ("Killed", "", STARTS, "killed by signal 9"),
        ("OutOfMemory", "", STARTS, "MemoryError"),
        (
            "NeverWarm",
            "",
            SHORT,
            "stage only replica 1 on node a is starting",
        ),
        (
            "Works",
            "    gpus: 8\n",
            SHORT,
            "stage only replica 1 fits no node: a has no GPU",
        ),
    ] {
        std::fs::write(&file, manifest(worker, more))?;
        let started = Instant::now();
        let timeout = format!("{}s", limit.as_secs());
        let output = cluster.mosectl(&["deploy", "--timeout", &timeout, &file.to_string_lossy()])?;
        let took = started.elapsed();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{worker}: {said}");
        // Its deadline, and what looking at the code takes.
        assert!(took < limit + Duration::from_secs(20), "{worker}: {took:?}");
        let error = &said[said.find("error: ").unwrap_or_default()..];
        assert!(error.contains(cause), "{worker}: {said}");
        assert!(error.contains("keeps serving"), "{worker}: {said}");
        assert!(error.lines().count() <= SCREEN, "{worker}: {said}");
    }
    // A plan says at once what a deployment would.
    for (more, cause) in [
        (
            "    replicas: 2\n    spread: {by: node, max: 1}\n",
            "a has node=a, where spread allows 1 of the stage and no more",
        ),
        (
            "    spread: {by: rack, max: 1}\n",
            "a has no label rack to spread by",
        ),
        (
            "  - {name: other, worker: 'bad_starts:Works', anti_affinity: [only]}\n",
            "stage other replica 1 fits no node: a runs stage only, which anti_affinity keeps apart",
        ),
    ] {
        std::fs::write(&file, manifest("Works", more))?;
        let output = cluster.mosectl(&["plan", "-f", &file.to_string_lossy()])?;
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(cause), "{said}");
    }
    load.stop();
    let report = load.finish().await;
    assert_eq!(report.wrong_count, 0, "{:#?}", report.wrong);
    assert!(report.answered > 100);
    cluster.end();
    Ok(())
}
