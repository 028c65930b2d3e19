//! `python server.py`: a MOSEC service as it is, on one machine.

use std::time::Duration;

use mosec_tests::{
    Client, Daemon, Load, descendants, eventually, process_exists, python, services, shared_memory_of,
};
use rustix::process::Signal;

async fn serve(dir: &std::path::Path) -> anyhow::Result<(Daemon, Client)> {
    let script = services().join("pair.py").to_string_lossy().into_owned();
    let args = [
        script,
        "--address=127.0.0.1".into(),
        "--port=0".into(),
        "--timeout=10000".into(),
    ];
    let daemon = Daemon::start("server", dir, &python(), &args)?;
    let address = daemon.logged("http service is running", "addr").await?;
    let client = Client::new(&address);
    Ok((daemon, client))
}

#[tokio::test(flavor = "multi_thread")]
async fn serves_finishes_what_it_has_and_leaves_nothing() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (mut server, client) = serve(dir.path()).await?;
    let load = Load {
        concurrency: 32,
        requests: 1000,
        ..Load::of(client.clone(), "/inference")
    }
    .start();
    let report = load.finish().await;
    assert_eq!(
        (report.answered, report.wrong_count),
        (1000, 0),
        "{:#?}",
        report.wrong
    );

    let metrics = client.get("/metrics").await?.text();
    for series in [
        "mosec_service_throughput_total{code=\"200\",endpoint=\"/inference\"} 1000\n",
        "mosec_service_process_duration_second_count{connection=\"total\",stage=\"total\"} 1000\n",
    ] {
        assert!(metrics.contains(series), "{series}{metrics}");
    }
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");

    let workers = descendants(server.pid());
    assert_eq!(workers.len(), 4);
    let in_flight = tokio::spawn({
        let client = client.clone();
        async move { client.post("/inference", "{\"id\": 7, \"sleep\": 0.5}").await }
    });
    eventually("the request is in flight", Duration::from_secs(5), || async {
        let metrics = client.get("/metrics").await.ok()?.text();
        metrics.contains("mosec_service_remaining_task 1").then_some(())
    })
    .await?;
    server.signal(Signal::TERM)?;
    let answer = in_flight.await??;
    assert_eq!((answer.status, answer.json()?["id"].as_u64()), (200, Some(7)));
    assert_eq!(
        server.ended(Duration::from_secs(10)).await?,
        Some(0),
        "{}",
        server.log()
    );
    assert!(
        !workers.iter().any(|&worker| process_exists(worker)),
        "no worker is left"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_costs_nothing_and_a_killed_server_leaves_nothing() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (mut server, client) = serve(dir.path()).await?;
    let load = Load {
        concurrency: 16,
        ..Load::of(client, "/inference")
    }
    .start();
    for _ in 0..4 {
        let before = load.sent();
        let victim = descendants(server.pid()).pop().expect("there are workers");
        mosec_tests::kill(victim)?;
        eventually(
            "the worker is replaced and the load goes on",
            Duration::from_secs(10),
            || async {
                let workers = descendants(server.pid());
                (workers.len() == 4 && !workers.contains(&victim) && load.sent() > before + 200).then_some(())
            },
        )
        .await?;
    }
    load.stop();
    let report = load.finish().await;
    assert_eq!(report.wrong_count, 0, "{:#?}", report.wrong);

    let (pid, workers) = (server.pid(), descendants(server.pid()));
    server.kill()?;
    eventually("its workers end", Duration::from_secs(5), || async {
        (!workers.iter().any(|&worker| process_exists(worker))).then_some(())
    })
    .await?;
    assert_eq!(shared_memory_of(pid), [""; 0], "nothing is left in /dev/shm");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_start_ends_the_server_with_its_traceback() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let script = services().join("fails.py").to_string_lossy().into_owned();
    let mut server = Daemon::start("server", dir.path(), &python(), &[script, "--port=0".into()])?;
    assert_eq!(
        server.ended(Duration::from_secs(20)).await?,
        Some(1),
        "{}",
        server.log()
    );
    assert!(
        server.log().contains("RuntimeError: no model here"),
        "{}",
        server.log()
    );
    Ok(())
}
