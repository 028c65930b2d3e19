//! Bad input is refused with what was wrong, where, and what was expected.

use std::time::{Duration, Instant};

use hyper::Method;
use mosec_tests::{Cluster, Options, eventually, services};

#[tokio::test(flavor = "multi_thread")]
async fn requests() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options {
        control: 1,
        agents: vec!["a"],
        ..Options::default()
    })
    .await?;
    let manifest = format!(
        "pipeline: slow
source: {}
timeout: 10s
capacity: 4
max_request_size: 1KiB
stages:
  - {{name: first, worker: \"pair:First\", timeout: 10s}}
routes:
  - {{path: /slow, stages: [first]}}
",
        services().display()
    );
    cluster.deploy(&manifest).await?;
    cluster.routed(0, "/slow").await?;
    let client = cluster.client(0);

    let answer = client.post("/nowhere", "{}").await?;
    assert_eq!((answer.status, answer.text().as_str()), (404, ""));
    let answer = client.get("/slow").await?;
    assert_eq!((answer.status, answer.headers["allow"].to_str()?), (405, "POST"));
    let answer = client.post("/slow", "{\"id\": ").await?;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (400, "decoding error: decoding error")
    );
    let answer = client.post("/slow", "[1]").await?;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (
            422,
            "request validation error: expected an object with the key 'id'"
        )
    );
    let answer = client.post("/slow", vec![b' '; 2000]).await?;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (413, "request body is too large")
    );

    // One worker with at most two batches of one, four queued: of forty at once most are refused, the others answered.
    let mut answers = tokio::task::JoinSet::new();
    for id in 0..40 {
        let client = client.clone();
        answers.spawn(async move {
            client
                .post("/slow", format!("{{\"id\": {id}, \"sleep\": 0.3}}"))
                .await
        });
    }
    let (mut ok, mut full) = (0, 0);
    while let Some(answer) = answers.join_next().await {
        let answer = answer??;
        match answer.status {
            200 => ok += 1,
            429 => {
                assert_eq!(answer.text(), "too many request: task queue is full");
                full += 1;
            }
            other => panic!("{other}: {}", answer.text()),
        }
    }
    assert!(
        ok >= 5 && full >= 20 && ok + full == 40,
        "{ok} answered, {full} refused"
    );

    cluster.agents.get_mut("a").expect("there is an agent a").kill()?;
    let answer = eventually("requests are refused", Duration::from_secs(20), || async {
        client
            .post("/slow", "{\"id\": 1}")
            .await
            .ok()
            .filter(|answer| answer.status == 503)
    })
    .await?;
    assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
    let answer = client.send(Method::GET, "/", &[], Default::default()).await?;
    assert_eq!((answer.status, answer.text().as_str()), (200, "MOSEC service"));
    cluster.end();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn deployments() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options {
        control: 1,
        agents: vec!["a"],
        ..Options::default()
    })
    .await?;
    let services = services();
    let manifest = |worker: &str, more: &str| {
        format!(
            "pipeline: bad\nsource: {}\nstages:\n  - name: only\n    worker: {worker}\n{more}",
            services.display()
        )
    };
    for (manifest, expected) in [
        (
            manifest("pair:First", "    replicsa: 2\n"),
            &["replicsa", "replicas", "pipeline.yaml:6"][..],
        ),
        (manifest("nowhere:First", ""), &["nowhere", "module"]),
        (manifest("pair:Third", ""), &["Third", "pair"]),
        (
            manifest("bad_workers:NoWorker", ""),
            &["NoWorker", "mosec.Worker"],
        ),
    ] {
        let file = cluster.dir().join("pipeline.yaml");
        std::fs::write(&file, &manifest)?;
        let output = cluster.mosectl(&["deploy", &file.to_string_lossy()])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "refused: {manifest}");
        for word in expected {
            assert!(said.contains(word), "{word} is missing in: {said}");
        }
    }

    let started = Instant::now();
    let file = cluster.dir().join("pipeline.yaml");
    std::fs::write(&file, manifest("bad_workers:FailsToStart", ""))?;
    let output = cluster.mosectl(&["deploy", "--timeout", "60s", &file.to_string_lossy()])?;
    assert!(!output.status.success() && started.elapsed() < Duration::from_secs(60));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("RuntimeError: no model here") && said.contains("bad_workers.py"),
        "{said}"
    );
    let output = cluster.mosectl(&["status"])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("RuntimeError: no model here"), "{said}");
    cluster.end();
    Ok(())
}
