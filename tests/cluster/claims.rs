//! What only one process can have: ports, and folders of state.

use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use mosec_tests::{Cluster, Daemon, Options, binary, python};

const PATIENCE: Duration = Duration::from_secs(30);

async fn cluster() -> anyhow::Result<Cluster> {
    let options = Options {
        control: 1,
        gateways: 0,
        cert_ttl: Some("1h"),
        agents: vec!["a"],
    };
    Cluster::start(options).await
}

/// The log of a process that ends by itself, with an error.
async fn refused(cluster: &Cluster, name: &str, program: &str, args: &[String]) -> anyhow::Result<String> {
    let mut daemon = Daemon::start(name, cluster.dir(), &binary(program), args)?;
    let code = daemon.ended(PATIENCE).await?;
    anyhow::ensure!(code == Some(1), "it ended with {code:?}: {}", daemon.log());
    Ok(daemon.log())
}

fn token(cluster: &Cluster, role: &str) -> anyhow::Result<String> {
    let made = cluster.mosectl(&["token", "create", "--role", role])?;
    Ok(String::from_utf8(made.stdout)?.trim().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_does_not_use_up_a_token() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let [control_plane, _] = cluster.flags_for(1);
    let udp = UdpSocket::bind("127.0.0.1:0")?;
    let tcp = TcpListener::bind("127.0.0.1:0")?;
    let (udp, tcp) = (udp.local_addr()?.port(), (tcp.local_addr()?.port(), tcp, udp));
    let tcp_port = tcp.0;
    let python = format!("--python={}", python().display());
    for (name, role, program, taken, free, words) in [
        (
            "new-agent",
            "agent",
            "mosec-node-agent",
            vec![format!("--listen=127.0.0.1:{udp}"), python.clone()],
            vec!["--listen=127.0.0.1:0".to_owned(), python.clone()],
            format!("socket 127.0.0.1:{udp} could not be opened"),
        ),
        (
            "watched-agent",
            "agent",
            "mosec-node-agent",
            vec![
                "--listen=127.0.0.1:0".to_owned(),
                python.clone(),
                format!("--admin=127.0.0.1:{tcp_port}"),
            ],
            vec!["--listen=127.0.0.1:0".to_owned(), python],
            format!("cannot listen on 127.0.0.1:{tcp_port}"),
        ),
        (
            "new-gateway",
            "gateway",
            "mosec-gateway",
            vec!["--address=127.0.0.1".to_owned(), format!("--port={tcp_port}")],
            vec!["--address=127.0.0.1".to_owned(), "--port=0".to_owned()],
            format!("cannot listen on 127.0.0.1:{tcp_port}"),
        ),
        (
            "new-member",
            "control-plane",
            "mosec-control-plane",
            vec![format!("--listen=127.0.0.1:{tcp_port}")],
            vec!["--listen=127.0.0.1:0".to_owned()],
            format!("cannot listen on 127.0.0.1:{tcp_port}"),
        ),
    ] {
        // Good for one.
        let token = token(&cluster, role)?;
        let at = control_plane.trim_start_matches("--control-plane=");
        let finding = match role {
            "control-plane" => vec![
                "--cluster-id=test".to_owned(),
                "--node-id=2".into(),
                format!("--seeds={at}"),
                format!("--data-dir={}", cluster.dir().join("data-2").display()),
            ],
            _ => vec![control_plane.clone()],
        };
        let joining = [
            format!("--identity={}", cluster.dir().join(name).display()),
            format!("--join={token}"),
            format!("--name={name}"),
        ];
        let joining = [finding, joining.to_vec()].concat();
        let args = |of_its_own: Vec<String>| joining.iter().cloned().chain(of_its_own).collect::<Vec<_>>();
        let log = refused(&cluster, name, program, &args(taken)).await?;
        assert!(
            log.contains(&words) && log.contains("Address already in use"),
            "{log}"
        );
        let daemon = Daemon::start(name, cluster.dir(), &binary(program), &args(free))?;
        let joined = daemon.logged("joined the cluster", "identity").await?;
        assert_eq!(joined, format!("{role}/{name}"));
    }
    cluster.end();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_state_is_one_process_s() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let [control_plane, _] = cluster.flags_for(1);
    let dir = |name: &str| cluster.dir().join(name).display().to_string();
    let agent = [
        control_plane,
        "--listen=127.0.0.1:0".into(),
        format!("--identity={}", dir("a")),
        format!("--state-dir={}", dir("state-a")),
    ];
    let log = refused(&cluster, "second-agent", "mosec-node-agent", &agent).await?;
    let words = format!(
        "the state folder {} is in use by another node agent",
        dir("state-a")
    );
    assert!(log.contains(&words), "{log}");

    let member = [
        "--cluster-id=test".into(),
        "--listen=127.0.0.1:0".into(),
        format!("--identity={}", dir("control-1")),
        format!("--data-dir={}", dir("data-1")),
    ];
    let log = refused(&cluster, "second-member", "mosec-control-plane", &member).await?;
    let words = format!("the data folder {} is in use by another member", dir("data-1"));
    assert!(log.contains(&words), "{log}");
    cluster.end();
    Ok(())
}
