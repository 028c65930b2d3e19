//! A deployment whose workers need more memory than there is.

use std::ffi::OsStr;
use std::process::Output;
use std::time::Duration;

use mosec_tests::{Cluster, MemoryCgroup, Options, descendants, eventually, services};

/// Room for the agent and for Python, and not for what the worker takes.
const LIMIT_BYTES: u64 = 256 << 20;

/// Set to 1 where these tests must not be skipped.
const MUST: &str = "MOSEC_TEST_MUST_CGROUP";

/// A cgroup with that limit; `None` where this machine lets nobody have one, and nobody has said that it must.
fn cgroup() -> anyhow::Result<Option<MemoryCgroup>> {
    or_skipped(MemoryCgroup::new(LIMIT_BYTES), std::env::var_os(MUST).as_deref())
}

fn or_skipped<T>(made: Result<T, String>, must: Option<&OsStr>) -> anyhow::Result<Option<T>> {
    match made {
        Ok(made) => Ok(Some(made)),
        Err(why) if must.is_some_and(|must| must == "1") => anyhow::bail!("{MUST}=1, and {why}"),
        Err(why) => {
            eprintln!("skipped: {why}");
            Ok(None)
        }
    }
}

fn manifest(worker: &str) -> String {
    named("service", worker)
}

fn named(name: &str, worker: &str) -> String {
    format!(
        "pipeline: {name}
source: {}
stages:
  - name: only
    worker: bad_starts:{worker}
routes:
  - {{path: /{name}, stages: [only]}}
",
        services().display()
    )
}

async fn one_of_each() -> anyhow::Result<Cluster> {
    let options = Options {
        control: 1,
        agents: vec!["a"],
        ..Options::default()
    };
    Cluster::start(options).await
}

/// What `mosectl deploy` said of a manifest that it gave a minute.
fn deploy(cluster: &Cluster, manifest: &str) -> anyhow::Result<Output> {
    let file = cluster.dir().join("bad.yaml");
    std::fs::write(&file, manifest)?;
    cluster.mosectl(&["deploy", "--timeout", "60s", &file.to_string_lossy()])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_the_kernel_kills_says_that_memory_ran_out() -> anyhow::Result<()> {
    // Before the cluster, so that it is removed after it.
    let Some(cgroup) = cgroup()? else { return Ok(()) };
    let cluster = one_of_each().await?;
    cluster.deploy(&manifest("Works")).await?;
    cluster.routed(0, "/service").await?;
    let agent = cluster.agents["a"].pid();
    cgroup.add(agent)?;
    let before = cluster.status()?.workers("service", "only");

    let output = deploy(&cluster, &manifest("TakesAllMemory"))?;
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
    let answer = cluster.client(0).post("/service", "1").await?;
    assert_eq!((answer.status, &answer.body[..]), (200, &b"1"[..]));
    let after = cluster.status()?.workers("service", "only");
    let pids = |workers: &[mosec_tests::Worker]| workers.iter().map(|worker| worker.pid).collect::<Vec<_>>();
    assert_eq!(pids(&before), pids(&after));
    assert!(descendants(agent).contains(&before[0].pid.unwrap_or_default()));
    cluster.end();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_somebody_kills_is_not_told_with_what_became_of_another() -> anyhow::Result<()> {
    let Some(cgroup) = cgroup()? else { return Ok(()) };
    let cluster = one_of_each().await?;
    cgroup.add(cluster.agents["a"].pid())?;
    cluster.deploy(&named("first", "Works")).await?;
    cluster.routed(0, "/first").await?;
    let output = deploy(&cluster, &named("second", "TakesAllMemory"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("out of memory: the kernel killed "), "{said}");

    // Both share the cgroup, and the first has watched it for longer.
    let pid = cluster.status()?.workers("first", "only")[0]
        .pid
        .expect("it runs");
    mosec_tests::kill(pid)?;
    let said = eventually("how it ended", Duration::from_secs(30), || async {
        let output = cluster.mosectl(&["logs", "first"]).ok()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.contains("killed by signal 9").then_some(said)
    })
    .await?;
    assert!(
        said.contains("killed by signal 9, not by the kernel for lack of memory"),
        "{said}"
    );
    cluster.end();
    Ok(())
}

#[test]
fn a_skip_fails_where_the_tests_must_run() {
    let none = || Err::<(), _>("there is none".to_owned());
    assert_eq!(or_skipped(none(), None).unwrap(), None);
    assert_eq!(or_skipped(none(), Some("0".as_ref())).unwrap(), None);
    assert_eq!(or_skipped(Ok(1), Some("1".as_ref())).unwrap(), Some(1));
    let error = or_skipped(none(), Some("1".as_ref())).unwrap_err();
    assert_eq!(error.to_string(), "MOSEC_TEST_MUST_CGROUP=1, and there is none");
}
