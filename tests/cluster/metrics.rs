//! The series of an agent, as its admin endpoint gives them while a pipeline comes and goes.

use std::net::TcpListener;
use std::time::Duration;

use mosec_tests::{Client, Cluster, Daemon, Options, binary, eventually, python, services};

const PATIENCE: Duration = Duration::from_secs(30);

const SERIES: [&str; 8] = [
    "mosec_agent_workers{pipeline=\"pair\",stage=\"first\"} 1\n",
    "mosec_agent_ready_workers{pipeline=\"pair\",stage=\"second\"} 1\n",
    "mosec_agent_worker_seconds_count{pipeline=\"pair\",stage=\"first\"} 1\n",
    "mosec_agent_in_flight_batches{pipeline=\"pair\",stage=\"second\"} 0\n",
    "mosec_agent_backlog_batches{pipeline=\"pair\",stage=\"second\"} 0\n",
    "mosec_agent_worker_restarts_total{pipeline=\"pair\",stage=\"first\"} 0\n",
    "mosec_service_process_duration_second_count{connection=\"1\",stage=\"second\"} 1\n",
    "mosec_agent_lease_held 1\n",
];

fn manifest() -> String {
    format!(
        "pipeline: pair
source: {}
stages:
  - {{name: first, worker: \"pair:First\"}}
  - {{name: second, worker: \"pair:Second\", max_batch_size: 8}}
routes:
  - {{path: /pair, stages: [first, second]}}
",
        services().display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_has_the_series_of_what_runs_there_and_no_others() -> anyhow::Result<()> {
    let options = Options {
        control: 1,
        cert_ttl: Some("1h"),
        agents: Vec::new(),
        ..Options::default()
    };
    let cluster = Cluster::start(options).await?;
    let token = cluster.mosectl(&["token", "create", "--role", "agent"])?;
    let token = String::from_utf8(token.stdout)?;
    let admin = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let [control_plane, _] = cluster.flags_for(1);
    let args = [
        control_plane,
        "--listen=127.0.0.1:0".into(),
        "--name=watched".into(),
        format!("--identity={}", cluster.dir().join("watched").display()),
        format!("--join={}", token.trim()),
        format!("--admin={admin}"),
        format!("--python={}", python().display()),
    ];
    let _agent = Daemon::start("watched", cluster.dir(), &binary("mosec-node-agent"), &args)?;
    let watched = Client::new(&admin.to_string());
    cluster
        .until("the agent is up", PATIENCE, |status| status.nodes_up() == 1)
        .await?;
    eventually("a healthy agent", PATIENCE, || async {
        let answer = watched.get("/healthz").await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;

    cluster.deploy(&manifest()).await?;
    let client = cluster.client(0);
    eventually("an answer", PATIENCE, || async {
        let answer = client.post("/pair", "{\"id\": 1}").await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;
    eventually("the series of the pipeline", PATIENCE, || async {
        let page = watched.get("/metrics").await.ok()?.text();
        SERIES.iter().all(|line| page.contains(line)).then_some(())
    })
    .await?;

    let deleted = cluster.mosectl(&["delete", "pair"])?;
    assert!(deleted.status.success(), "{deleted:?}");
    eventually("no series of what is gone", PATIENCE, || async {
        let page = watched.get("/metrics").await.ok()?.text();
        let own = page.lines().filter(|line| line.starts_with("mosec_agent_"));
        let gone = own.clone().all(|line| !line.contains("stage=")) && !page.contains("connection=");
        (own.count() > 0 && gone).then_some(())
    })
    .await?;
    cluster.end();
    Ok(())
}
