//! A deployment whose workers need more memory than there is.

use mosec_tests::{Cluster, MemoryCgroup, Options, descendants, services};

/// Room for the agent and for Python, and not for what the worker takes.
const LIMIT_BYTES: u64 = 256 << 20;

fn manifest(worker: &str) -> String {
    format!(
        "pipeline: service
source: {}
stages:
  - name: only
    worker: bad_starts:{worker}
",
        services().display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_the_kernel_kills_says_that_memory_ran_out() -> anyhow::Result<()> {
    // Before the cluster, so that it is removed after it.
    let cgroup = match MemoryCgroup::new(LIMIT_BYTES) {
        Ok(cgroup) => cgroup,
        Err(why) => {
            eprintln!("skipped: {why}");
            return Ok(());
        }
    };
    let cluster = Cluster::start(Options {
        control: 1,
        agents: vec!["a"],
        ..Options::default()
    })
    .await?;
    cluster.deploy(&manifest("Works")).await?;
    cluster.routed(0, "/inference").await?;
    let agent = cluster.agents["a"].pid();
    cgroup.add(agent)?;
    let before = cluster.status()?.workers("service", "only");

    let file = cluster.dir().join("bad.yaml");
    std::fs::write(&file, manifest("TakesAllMemory"))?;
    let output = cluster.mosectl(&["deploy", "--timeout", "60s", &file.to_string_lossy()])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in [
        "killed by signal 9, out of memory: the kernel killed ",
        "whose limit is 256 MiB",
        "keeps serving",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }

    // The agent and the revision before are as they were.
    let answer = cluster.client(0).post("/inference", "1").await?;
    assert_eq!((answer.status, &answer.body[..]), (200, &b"1"[..]));
    let after = cluster.status()?.workers("service", "only");
    let pids = |workers: &[mosec_tests::Worker]| workers.iter().map(|worker| worker.pid).collect::<Vec<_>>();
    assert_eq!(pids(&before), pids(&after));
    assert!(descendants(agent).contains(&before[0].pid.unwrap_or_default()));
    cluster.end();
    Ok(())
}
