//! Streams of events through two links, between stages on different nodes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mosec_tests::{Client, Cluster, EventReader, Options, eventually, services};

/// Between two events at most, which here come far sooner; a stream may be longer.
const TIMEOUT: Duration = Duration::from_secs(3);

fn manifest() -> String {
    format!(
        "pipeline: talk
source: {}
timeout: {TIMEOUT:?}
stages:
  - {{name: prepare, worker: \"stream:Prepare\", labels: {{zone: a}}}}
  - {{name: talk, worker: \"stream:Talk\", replicas: 2, labels: {{zone: b}}, timeout: 60s}}
routes:
  - {{path: /talk, stages: [prepare, talk]}}
",
        services().display()
    )
}

async fn start() -> anyhow::Result<Cluster> {
    let cluster = Cluster::start(Options {
        control: 1,
        ..Options::default()
    })
    .await?;
    cluster.deploy(&manifest()).await?;
    cluster.routed(0, "/talk").await?;
    Ok(cluster)
}

async fn talk(client: &Client, notes: &Path, count: u32, pause: f32) -> anyhow::Result<EventReader> {
    let notes = notes.display();
    let body = format!("{{\"notes\": \"{notes}\", \"count\": {count}, \"pause\": {pause}}}");
    client.stream("/talk", body).await
}

async fn noted(notes: &PathBuf, expected: &str) -> anyhow::Result<()> {
    let found = eventually(expected, Duration::from_secs(20), || async {
        (std::fs::read_to_string(notes).ok()? == expected).then_some(())
    });
    found.await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_may_be_longer_than_the_timeout_at_every_hop() -> anyhow::Result<()> {
    let cluster = start().await?;
    let notes = cluster.dir().join("notes");
    let mut events = talk(&cluster.client(0), &notes, 12, 0.3).await?;
    for count in 0..12 {
        assert_eq!(events.next().await?, Some(format!("data: {count}")));
    }
    assert_eq!(events.next().await?, None);
    noted(&notes, "began\nended\n").await?;
    cluster.end();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_two_links_away_is_told_that_its_client_has_left() -> anyhow::Result<()> {
    let cluster = start().await?;
    let notes = cluster.dir().join("notes");
    let mut events = talk(&cluster.client(0), &notes, 1_000_000, 0.01).await?;
    assert_eq!(events.next().await?, Some("data: 0".to_owned()));
    drop(events);
    noted(&notes, "began\ntold\n").await?;
    cluster.end();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_agent_is_lost_ends_and_is_not_begun_again() -> anyhow::Result<()> {
    let mut cluster = start().await?;
    let notes = cluster.dir().join("notes");
    let mut events = talk(&cluster.client(0), &notes, 1_000_000, 0.1).await?;
    assert_eq!(events.next().await?, Some("data: 0".to_owned()));
    cluster.agents.get_mut("b").expect("there is an agent b").kill()?;
    let mut last = String::new();
    while let Some(event) = events.next().await? {
        last = event;
    }
    assert!(
        last.starts_with("event: error\ndata: SSE inference error: "),
        "{last}"
    );
    // Back in service, and nobody has begun it again.
    cluster.start_agent("b")?;
    let other = cluster.dir().join("other");
    let client = cluster.client(0);
    eventually("another stream", Duration::from_secs(30), || async {
        let mut events = talk(&client, &other, 1, 0.0).await.ok()?;
        (events.next().await.ok()? == Some("data: 0".to_owned())).then_some(())
    })
    .await?;
    assert_eq!(std::fs::read_to_string(&notes)?, "began\n");
    cluster.end();
    Ok(())
}
