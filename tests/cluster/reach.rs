//! Agents that report to the control plane and that those who send requests cannot reach.

use std::net::UdpSocket;
use std::time::Duration;

use mosec_tests::{Client, Cluster, Load, Options, eventually, services};

const PATIENCE: Duration = Duration::from_secs(30);

/// A socket that takes what is sent to it and answers nothing.
fn silent() -> anyhow::Result<(UdpSocket, String)> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let address = socket.local_addr()?.to_string();
    Ok((socket, address))
}

fn manifest(pipeline: &str, first: &str, second: &str) -> String {
    format!(
        "pipeline: {pipeline}
source: {}
stages:
  - {{name: first, worker: \"pair:First\", {first}}}
  - {{name: second, worker: \"pair:Second\", max_batch_size: 8, max_wait: 2ms, {second}}}
routes:
  - {{path: /{pipeline}, stages: [first, second]}}
",
        services().display()
    )
}

/// A cluster with agent `a`, and with `b`, which says that it is at `address`.
async fn cluster(address: &str) -> anyhow::Result<Cluster> {
    let options = Options {
        control: 1,
        agents: vec!["a"],
        ..Options::default()
    };
    let mut cluster = Cluster::start(options).await?;
    cluster.advertise("b", Some(address));
    cluster.join_agent("b")?;
    cluster
        .until("both agents are up", PATIENCE, |status| status.nodes_up() == 2)
        .await?;
    Ok(cluster)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_the_gateway_cannot_reach_gets_no_requests_and_is_named() -> anyhow::Result<()> {
    let (_socket, address) = silent()?;
    let mut cluster = cluster(&address).await?;
    let each = "replicas: 2";
    cluster
        .deploy(&manifest("pair", each, "labels: {zone: a}"))
        .await?;
    cluster.routed(0, "/pair").await?;
    let workers = cluster.status()?.workers("pair", "first");
    assert!(workers.iter().any(|worker| worker.node == "b"), "{workers:?}");
    let load = Load {
        concurrency: 4,
        requests: 400,
        ..Load::of(cluster.client(0), "/pair")
    };
    let report = load.start().finish().await;
    assert_eq!(report.wrong_count, 0, "{:#?}", report.wrong);

    let named = [("b".into(), "gateway/gateway-0".into(), address.clone())];
    cluster
        .until("the node is named", PATIENCE, |status| {
            status.unreachable() == named
        })
        .await?;
    let sentence = format!("node b is unreachable from gateway gateway-0: {address}: no answer within 3s");
    for command in [
        &["status"] as &[&str],
        &["node", "list"],
        &["describe", "node", "b"],
        &["describe", "pair"],
    ] {
        let output = cluster.mosectl(command)?;
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(&sentence), "{command:?}:\n{text}");
    }
    let said = cluster.gateways[0].logged("node cannot be reached", "address");
    assert_eq!(said.await?, address);
    let log = cluster.gateways[0].log();
    assert!(log.contains("no answer within 3s"), "{log}");
    let series = cluster.client(0).get("/metrics").await?.text();
    assert!(series.contains("mosec_dispatch_links_down 1\n"), "{series}");

    cluster.agents.get_mut("b").expect("it runs").kill()?;
    cluster.advertise("b", None);
    cluster.start_agent("b")?;
    cluster
        .until("all is well", PATIENCE, |status| {
            status.unreachable().is_empty()
                && status
                    .workers("pair", "first")
                    .iter()
                    .all(|worker| worker.state == "ready")
        })
        .await?;
    let gateway = &cluster.gateways[0];
    eventually("the link is up", PATIENCE, || async {
        let is_up = |line: &&str| line.contains("link is up") && line.contains("\"node\":\"b\"");
        gateway.log().lines().find(is_up).map(drop)
    })
    .await?;

    // What the gateway's links count, and where its requests' time went.
    let series = cluster.client(0).get("/metrics").await?.text();
    for name in [
        "mosec_link_round_trip_seconds{node=\"b\"} ",
        "mosec_link_sent_bytes_total{node=\"b\"} ",
        "mosec_link_receive_buffer_bytes ",
        "mosec_gateway_part_seconds_count{part=\"gateway\",pipeline=\"pair\",stage=\"\"} 400\n",
        "mosec_gateway_part_seconds_count{part=\"link\",pipeline=\"pair\",stage=\"first\"} 400\n",
        "mosec_gateway_part_seconds_count{part=\"worker\",pipeline=\"pair\",stage=\"second\"} 400\n",
    ] {
        assert!(series.contains(&format!("\n{name}")), "{name}: {series}");
    }
    cluster.end();
    Ok(())
}

/// Asks until the answer is that no replica is ready, which it is once that has been so for a while.
async fn without_replica(client: &Client, path: &str) -> anyhow::Result<()> {
    eventually("no replica is ready", PATIENCE, || async {
        let answer = client.post(path, "{\"id\": 1}").await.ok()?;
        (answer.status == 503).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_replica_can_be_reached_requests_are_refused() -> anyhow::Result<()> {
    let (_socket, address) = silent()?;
    let cluster = cluster(&address).await?;
    let (on_a, on_b) = ("labels: {zone: a}", "labels: {zone: b}");
    for (pipeline, first, second, from) in [
        ("begins", on_b, on_a, "gateway/gateway-0"),
        ("goes-on", on_a, on_b, "agent/a"),
    ] {
        cluster.deploy(&manifest(pipeline, first, second)).await?;
        without_replica(&cluster.client(0), &format!("/{pipeline}")).await?;
        let named = ("b".into(), from.into(), address.clone());
        cluster
            .until("the node is named", PATIENCE, |status| {
                status.unreachable().contains(&named)
            })
            .await?;
    }
    let said = cluster.agents["a"].logged("node cannot be reached", "address");
    assert_eq!(said.await?, address);
    cluster.end();
    Ok(())
}
