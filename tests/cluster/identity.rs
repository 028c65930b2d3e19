//! Identities of real processes: how they come, how they are renewed under load, and what answers without one.

use std::net::SocketAddr;
use std::time::Duration;

use mosec_tests::{Cluster, Daemon, Load, Options, Port, descendants, eventually, open_ports, services};
use mosec_wire::control::endpoint::joining_channel;
use mosec_wire::control::proto::StatusRequest;
use mosec_wire::control::proto::control_plane_client::ControlPlaneClient;
use mosec_wire::quic::{QuicConnector, Settings};
use mosec_wire::tls::{ClusterCa, Fingerprint, Identity, Role};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;

fn manifest() -> String {
    format!(
        "pipeline: pair
source: {}
stages:
  - {{name: first, worker: \"pair:First\", replicas: 2, timeout: 20s, labels: {{zone: a}}}}
  - {{name: second, worker: \"pair:Second\", replicas: 2, max_batch_size: 8, max_wait: 2ms, labels: {{zone: b}}}}
routes:
  - {{path: /pair, stages: [first, second]}}
",
        services().display()
    )
}

fn renewals(daemon: &Daemon) -> usize {
    let log = daemon.log();
    log.lines()
        .filter(|line| line.contains("certificate renewed") && line.contains("good_for_s"))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_under_load_without_a_lost_request() -> anyhow::Result<()> {
    // Short enough for several to expire within the test.
    let options = Options {
        cert_ttl: Some("12s"),
        ..Options::default()
    };
    let mut cluster = Cluster::start(options).await?;
    cluster.deploy(&manifest()).await?;
    cluster.routed(0, "/pair").await?;
    let load = Load {
        concurrency: 8,
        ..Load::of(cluster.client(0), "/pair")
    }
    .start();
    // Twice: the first certificates have expired by then, and the second were renewed with one that was renewed.
    eventually("all have renewed twice", Duration::from_secs(60), || async {
        let mut daemons = cluster
            .control
            .values()
            .chain(&cluster.gateways)
            .chain(cluster.agents.values());
        daemons.all(|daemon| renewals(daemon) >= 2).then_some(())
    })
    .await?;
    load.stop();
    let report = load.finish().await;
    eprintln!(
        "{} requests, p50 {:?}, longest {:?}, wrong {}",
        report.answered,
        report.quantile(0.5),
        report.quantile(1.0),
        report.wrong_count
    );
    assert_eq!(
        report.wrong_count, 0,
        "{} answered; {:#?}",
        report.answered, report.wrong
    );

    for daemon in cluster.gateways.iter().chain(cluster.agents.values()) {
        assert!(
            !daemon.log().contains("link lost"),
            "{} kept its links",
            daemon.name
        );
    }
    // New connections work, in both directions: an agent comes back with the certificate that it kept, its token long used.
    let name = "b";
    cluster.agents.get_mut(name).map(Daemon::kill).transpose()?;
    cluster.start_agent(name)?;
    let client = cluster.client(0);
    eventually("the agent serves again", Duration::from_secs(30), || async {
        let answer = client.post("/pair", "{\"id\": 0}").await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await?;

    // A member whose host is replaced joins as agents do, and counts: with it, the cluster can spare another.
    cluster.replace_control(3)?;
    eventually("the member votes", Duration::from_secs(30), || async {
        let log = cluster.control[&3].log();
        (log.contains("joined the cluster") && log.contains("takes part in votes")).then_some(())
    })
    .await?;
    cluster.control.get_mut(&1).map(Daemon::kill).transpose()?;
    eventually("writes go on", Duration::from_secs(30), || async {
        let made = cluster.mosectl(&["token", "create", "--role", "viewer", "--name", "vera"]);
        made.ok().filter(|made| made.status.success()).map(drop)
    })
    .await?;

    let said = cluster.mosectl(&["token", "list", "--output", "json"])?;
    let tokens: Vec<serde_json::Value> = serde_json::from_slice(&said.stdout)?;
    assert_eq!(tokens.len(), 5, "two agents, a gateway, a member and a viewer");
    assert!(
        tokens
            .iter()
            .all(|token| (token["state"] == "open") == (token["role"] == "viewer")),
        "{tokens:#?}"
    );
    cluster.end();
    Ok(())
}

/// What a TCP port answers to some bytes, until it closes or goes silent.
async fn probe(address: SocketAddr, send: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(send).await?;
    let mut answer = vec![0; 4096];
    match timeout(Duration::from_secs(5), stream.read(&mut answer)).await {
        Ok(Ok(length)) => answer.truncate(length),
        Ok(Err(_)) | Err(_) => answer.clear(),
    }
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_the_http_port_answers_without_a_certificate() -> anyhow::Result<()> {
    /// First byte of a TLS record that says why the peer goes.
    const TLS_ALERT: u8 = 0x15;
    const HTTP: &[u8] = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let cluster = Cluster::start(Options::default()).await?;
    cluster.deploy(&manifest()).await?;
    let ca_pem = std::fs::read_to_string(cluster.dir().join("ca/ca.pem"))?;
    let fingerprint = Fingerprint::of_pem(&ca_pem)?;
    // Shows a certificate of another authority, and takes the cluster's own for good.
    let foreign = ClusterCa::create()?.issue(Role::Gateway, "eve")?;
    let foreign = Identity::from_pem(&ca_pem, foreign.cert_pem(), foreign.key_pem())?;
    let (mut tcp, mut udp) = (0, 0);
    for daemon in cluster
        .control
        .values()
        .chain(&cluster.gateways)
        .chain(cluster.agents.values())
    {
        let pids = std::iter::once(daemon.pid()).chain(descendants(daemon.pid()));
        for pid in pids {
            // A worker may be gone by now.
            for port in open_ports(pid).unwrap_or_default() {
                let name = format!("{}: {port:?}", daemon.name);
                match port {
                    Port::Tcp(address) if daemon.name.starts_with("gateway-") && pid == daemon.pid() => {
                        let answer = probe(address, HTTP).await?;
                        assert!(answer.starts_with(b"HTTP/1.1 200"), "{name} is the public one");
                    }
                    Port::Tcp(address) => {
                        tcp += 1;
                        for text in [HTTP, HTTP2, b"\n\n"] {
                            let answer = probe(address, text).await?;
                            assert!(
                                answer.first().is_none_or(|&first| first == TLS_ALERT),
                                "{name} answered {answer:?}"
                            );
                        }
                        let channel = joining_channel(&address.to_string(), fingerprint)?;
                        let answer = ControlPlaneClient::new(channel).status(StatusRequest {}).await;
                        let status = answer.err().map(|status| status.code());
                        assert_eq!(status, Some(Code::Unauthenticated), "{name}");
                    }
                    Port::Udp(address) => {
                        udp += 1;
                        let connector = QuicConnector::new(&foreign, Settings::default())?;
                        let linked = connector.connect(&address.to_string(), None).await;
                        assert!(linked.is_err(), "{name} let a stranger in");
                    }
                }
            }
        }
    }
    eprintln!("probed {tcp} TCP ports and {udp} UDP ports");
    assert_eq!(tcp, 3, "the members' ports are known to be there");
    assert!(udp >= 2, "and the agents' links");
    cluster.end();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_is_told_of_the_command_they_typed() -> anyhow::Result<()> {
    let options = Options {
        control: 1,
        gateways: 0,
        agents: vec!["a"],
        ..Options::default()
    };
    let cluster = Cluster::start(options).await?;
    // An agent's certificate, which is good for none of them.
    let identity = format!("--identity={}", cluster.dir().join("a").display());
    for (command, given) in [
        ("status", ""),
        ("describe", "p"),
        ("describe", "node a"),
        ("node list", ""),
        ("node drain", "a"),
        ("node uncordon", "a"),
        ("node remove", "a"),
        ("rollout status", "p"),
        ("rollout history", "p"),
        ("rollout promote", "p"),
        ("rollout abort", "p"),
        ("history", "p"),
        ("rollback", "p"),
        ("scale", "p s=1"),
        ("traffic", "p 10%"),
        ("logs", "p"),
        ("delete", "p"),
        ("audit", ""),
        ("token create", "--role viewer"),
        ("token list", ""),
        ("token revoke", "0123456789abcdef"),
        ("cluster status", ""),
        ("cluster add", "2=127.0.0.1:1"),
        ("cluster remove", "2"),
    ] {
        let words = command.split(' ').chain(given.split_whitespace());
        let args: Vec<_> = words.chain([identity.as_str()]).collect();
        let output = cluster.mosectl(&args)?;
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            text.contains("agent/a may not run ") && text.contains(&format!("`mosectl {command}`")),
            "{command}: {text}"
        );
    }
    cluster.end();
    Ok(())
}
