//! What a worker hears of clients, two links away from them.

use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use mosec_tests::{Cluster, Options, eventually, services};
use serde_json::json;

fn manifest() -> String {
    format!(
        "pipeline: leave
source: {}
timeout: 60s
stages:
  - {{name: prepare, worker: \"leave:Prepare\", labels: {{zone: a}}}}
  - {{name: run, worker: \"leave:Run\", labels: {{zone: b}}, max_batch_size: 2, max_wait: 60s, timeout: 60s}}
routes:
  - {{path: /leave, stages: [prepare, run]}}
",
        services().display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_told_which_client_of_a_batch_has_left() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options {
        control: 1,
        ..Options::default()
    })
    .await?;
    cluster.deploy(&manifest()).await?;
    cluster.routed(0, "/leave").await?;
    let notes = cluster.dir().join("notes");
    let body = Bytes::from(json!({"notes": notes}).to_string());
    let send = |name: &'static str| {
        let (client, body) = (cluster.client(0), body.clone());
        async move {
            let headers = [("x-client", name)];
            client.send(Method::POST, "/leave", &headers, body).await?.json()
        }
    };
    let stays = tokio::spawn(send("stays"));
    let leaves = tokio::spawn(send("leaves"));
    eventually("a batch of two", Duration::from_secs(20), || async {
        (std::fs::read_to_string(&notes).ok()? == "2\n").then_some(())
    })
    .await?;
    leaves.abort();
    assert_eq!(stays.await??, json!({"batch": 2, "left": ["leaves"]}));
    cluster.end();
    Ok(())
}
