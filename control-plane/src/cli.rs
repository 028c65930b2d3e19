//! The `mosec-control-plane` command: arguments, assembly, exit code.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use mosec_telemetry::{Admin, run_daemon, stop_on_signal};
use mosec_wire::tls::Identity;
use prometheus::Registry;
use tokio_util::sync::CancellationToken;

use crate::config::DEFAULT_HEALTHY_DEADLINE;
use crate::{Config, ControlPlane, LeaseTiming, RaftTiming, Security};

/// Runs one node of the control plane: keeps what should run where, and sees to it.
#[derive(Debug, Parser)]
#[command(name = "mosec-control-plane", version)]
struct Args {
    /// Name of the cluster, the same on all nodes.
    #[arg(long, env = "MOSEC_CLUSTER_ID")]
    cluster_id: String,
    /// Number of this node among the peers.
    #[arg(long, env = "MOSEC_NODE_ID", default_value_t = 1)]
    node_id: u64,
    /// All nodes, this one included, as 1=host:port,2=host:port,3=host:port, the same on each. A single node needs
    /// none, unless clients reach it under another address than it listens on.
    #[arg(long, env = "MOSEC_PEERS", value_delimiter = ',', value_parser = parse_peer)]
    peers: Vec<(u64, String)>,
    /// Address to serve clients and the other nodes on.
    #[arg(long, env = "MOSEC_LISTEN", default_value = "0.0.0.0:7400")]
    listen: SocketAddr,
    /// Folder of the log and the snapshots.
    #[arg(long, env = "MOSEC_DATA_DIR")]
    data_dir: PathBuf,
    /// Folder with ca.pem, cert.pem and key.pem of a control-plane node.
    #[arg(long, env = "MOSEC_IDENTITY", required_unless_present = "insecure")]
    identity: Option<PathBuf>,
    /// Plain text and no certificates: whoever reaches the port rules the cluster.
    #[arg(long, env = "MOSEC_INSECURE", conflicts_with = "identity")]
    insecure: bool,
    /// Address of the admin endpoint (/metrics, /healthz). None where absent.
    #[arg(long, env = "MOSEC_ADMIN")]
    admin: Option<SocketAddr>,
    /// Seconds a revision may take to become healthy where its deployer does not say.
    #[arg(long, env = "MOSEC_HEALTHY_DEADLINE", default_value_t = DEFAULT_HEALTHY_DEADLINE.as_secs())]
    healthy_deadline: u64,
    /// Seconds a silent node stays suspect before its replicas are placed elsewhere.
    #[arg(long, env = "MOSEC_NODE_GRACE", default_value_t = LeaseTiming::default().down_after.as_secs())]
    node_grace: u64,
    /// Milliseconds between Raft heartbeats; a lost leader is replaced after six to nine of them.
    #[arg(long, env = "MOSEC_RAFT_HEARTBEAT_MS", default_value_t = 150)]
    raft_heartbeat_ms: u32,
    /// debug, info, warning, error, or a filter as `mosec=debug`.
    #[arg(long, env = "MOSEC_LOG_LEVEL", default_value = "info")]
    log_level: String,
}

fn parse_peer(text: &str) -> Result<(u64, String), String> {
    let (id, address) = text
        .split_once('=')
        .ok_or_else(|| format!("expected id=host:port, found {text:?}"))?;
    let id = id
        .parse()
        .map_err(|error| format!("expected a number before '=', found {id:?}: {error}"))?;
    Ok((id, address.to_owned()))
}

impl Args {
    fn config(&self) -> anyhow::Result<Config> {
        let mut peers = BTreeMap::new();
        for (id, address) in &self.peers {
            anyhow::ensure!(
                peers.insert(*id, address.clone()).is_none(),
                "peers: node {id} comes twice"
            );
        }
        let security = match &self.identity {
            Some(dir) => {
                let identity = Identity::load(dir);
                let identity =
                    identity.with_context(|| format!("cannot load the identity in {}", dir.display()))?;
                Security::Tls(Box::new(identity))
            }
            None => Security::Insecure,
        };
        let heartbeat = Duration::from_millis(self.raft_heartbeat_ms.into());
        let raft = RaftTiming {
            heartbeat,
            ..RaftTiming::default()
        };
        let down_after = Duration::from_secs(self.node_grace);
        Ok(Config {
            cluster_id: self.cluster_id.clone(),
            member: self.node_id,
            listen: self.listen,
            peers,
            data_dir: Some(self.data_dir.clone()),
            security,
            authority: None,
            raft,
            leases: LeaseTiming {
                down_after,
                ..LeaseTiming::default()
            },
            healthy_deadline: Duration::from_secs(self.healthy_deadline),
        })
    }
}

/// Runs the command with these arguments, the program's name first; its exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    run_daemon(
        args,
        |args: &Args| &args.log_level,
        "control-plane node failed",
        run,
    )
}

fn run(args: Args) -> anyhow::Result<()> {
    let config = args.config()?;
    if args.insecure {
        tracing::warn!("connections are neither encrypted nor checked");
    }
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let stop = stop_on_signal()?;
        let registry = Registry::new();
        let admin = match args.admin {
            Some(address) => Some(
                Admin::bind(address, registry.clone())
                    .await
                    .context("cannot bind the admin address")?,
            ),
            None => None,
        };
        let node = ControlPlane::build(config, &registry).await?;
        tracing::info!(address = %node.local_addr(), "control-plane node is running");
        serve(node, admin, stop).await
    })
}

/// Runs the node, and the admin endpoint for as long as it.
async fn serve(node: ControlPlane, admin: Option<Admin>, stop: CancellationToken) -> anyhow::Result<()> {
    let ended = CancellationToken::new();
    let admin = admin.map(|admin| tokio::spawn(admin.run(ended.clone())));
    let result = node.run(stop).await;
    ended.cancel();
    if let Some(admin) = admin {
        admin.await?;
    }
    Ok(result?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn plain_text_needs_its_flag() {
        assert!(parse("x --cluster-id c --data-dir /d").is_err());
        assert!(parse("x --cluster-id c --data-dir /d --identity /i --insecure").is_err());
        let config = parse("x --cluster-id c --data-dir /d --insecure")
            .unwrap()
            .config()
            .unwrap();
        assert!(matches!(config.security, Security::Insecure));
        assert_eq!(config.validate(), Ok(()));
    }

    #[test]
    fn peers_are_numbered_addresses() {
        let base = "x --cluster-id c --data-dir /d --insecure --node-id 2 --peers";
        let config = parse(&format!("{base} 1=a:1,2=b:1,3=[::1]:1"))
            .unwrap()
            .config()
            .unwrap();
        assert_eq!(config.peers[&3], "[::1]:1");
        assert_eq!(config.validate(), Ok(()));
        assert!(
            parse(&format!("{base} 1=a:1,1=b:1,3=c:1"))
                .unwrap()
                .config()
                .is_err()
        );
        assert!(parse(&format!("{base} a:1")).is_err());
    }
}
