//! The `mosec-control-plane` command: arguments, assembly, exit code.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use clap::Parser;
use mosec_telemetry::{Admin, Series, run_daemon, stop_on_signal};
use mosec_types::NodeId;
use mosec_wire::control::{JoinTarget, identity_in, parse_address, port_of};
use mosec_wire::port::Port;
use mosec_wire::tls::{ClusterCa, Identity, PeerIdentity, Role};
use tokio_util::sync::CancellationToken;

use crate::config::DEFAULT_HEALTHY_DEADLINE;
use crate::state::Formats;
use crate::{Authority, BundleLimits, Config, ControlPlane, LeaseTiming, RaftTiming, Security};

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
    /// All nodes that found the cluster, this one included, as 1=host:port,2=host:port,3=host:port, the same on each. A
    /// single node needs none, unless it is reached under another address than it listens on.
    #[arg(long, env = "MOSEC_PEERS", value_delimiter = ',', value_parser = parse_peer)]
    peers: Vec<(u64, String)>,
    /// Some nodes of a cluster that exists, as host:port,host:port, instead of --peers: this node is empty, and added
    /// to it with `mosectl cluster add`.
    #[arg(long, env = "MOSEC_SEEDS", value_delimiter = ',', conflicts_with = "peers", value_parser = parse_address)]
    seeds: Vec<String>,
    /// Address to serve clients and the other nodes on.
    #[arg(long, env = "MOSEC_LISTEN", default_value = "0.0.0.0:7400")]
    listen: SocketAddr,
    /// Folder of the log and the snapshots.
    #[arg(long, env = "MOSEC_DATA_DIR")]
    data_dir: PathBuf,
    /// Folder with ca.pem, cert.pem and key.pem of a control-plane node.
    #[arg(long, env = "MOSEC_IDENTITY", required_unless_present = "insecure")]
    identity: Option<PathBuf>,
    /// Token to join the cluster with, or @ and a file with it. Only used where the identity's folder has none yet.
    #[arg(
        long,
        env = "MOSEC_JOIN_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        requires = "identity"
    )]
    join: Option<String>,
    /// Name to join as. The token's own where absent, else control- and the node's number.
    #[arg(long, env = "MOSEC_NAME")]
    name: Option<String>,
    /// Folder with the cluster's authority, ca.pem and ca-key.pem. This node then signs the certificates of those that
    /// join and renew, and makes its own where it has none. Two nodes should.
    #[arg(long, env = "MOSEC_CA", value_name = "DIR", requires = "identity")]
    ca: Option<PathBuf>,
    /// How long the certificates are good that this node signs, as 90d, 12h, 30m or 60s. They are renewed when a third is
    /// left.
    #[arg(long, env = "MOSEC_CERT_TTL", default_value = "90d", value_parser = parse_lifetime)]
    cert_ttl: Duration,
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
    /// Largest bundle of code that is taken, in MiB.
    #[arg(long, env = "MOSEC_MAX_BUNDLE_MIB", default_value_t = BundleLimits::default().max_bytes >> 20)]
    max_bundle_mib: u64,
    /// Milliseconds between Raft heartbeats; a lost leader is replaced after six to nine of them.
    #[arg(long, env = "MOSEC_RAFT_HEARTBEAT_MS", default_value_t = 150)]
    raft_heartbeat_ms: u32,
    /// debug, info, warning, error, or a filter as `mosec=debug`.
    #[arg(long, env = "MOSEC_LOG_LEVEL", default_value = "info")]
    log_level: String,
}

/// A member of `--peers`, `1=host:port`.
pub fn parse_peer(text: &str) -> Result<(u64, String), String> {
    let (id, address) = text
        .split_once('=')
        .ok_or_else(|| format!("expected id=host:port, found {text:?}"))?;
    let id = id
        .parse()
        .map_err(|error| format!("expected a number before '=', found {id:?}: {error}"))?;
    port_of(address).map_err(|problem| format!("{problem} after '{id}='"))?;
    Ok((id, address.to_owned()))
}

/// A certificate that lasts less is renewed all the time.
const SHORTEST_LIFETIME: Duration = Duration::from_secs(10);

/// A lifetime, as `90d`, `12h`, `30m` or `60s`.
pub fn parse_lifetime(text: &str) -> Result<Duration, String> {
    let expected = || format!("expected a time as 90d, 12h, 30m or 60s, found {text:?}");
    let unit = text.chars().last().ok_or_else(expected)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        _ => return Err(expected()),
    };
    let number = text[..text.len() - 1].parse::<u32>().map_err(|_| expected())?;
    let lifetime = Duration::from_secs(u64::from(number) * seconds);
    if lifetime < SHORTEST_LIFETIME {
        return Err(format!("expected at least {SHORTEST_LIFETIME:?}, found {text:?}"));
    }
    Ok(lifetime)
}

impl Args {
    fn authority(&self) -> anyhow::Result<Option<Authority>> {
        let Some(dir) = &self.ca else {
            return Ok(None);
        };
        let ca = ClusterCa::load(dir);
        let ca = ca.with_context(|| format!("cannot load the authority in {}", dir.display()))?;
        Ok(Some(Authority::new(ca, self.cert_ttl)))
    }

    /// The node's own identity: as kept, else from the authority at hand, else for the token.
    async fn identity(&self, dir: &Path, authority: Option<&Authority>) -> anyhow::Result<Identity> {
        let default = format!("control-{}", self.node_id);
        if let (Some(authority), false) = (authority, Identity::is_in(dir)) {
            let peer = PeerIdentity {
                role: Role::ControlPlane,
                name: NodeId::new(self.name.as_ref().unwrap_or(&default))?,
            };
            let identity = authority.issue(&peer, SystemTime::now())?;
            identity.save(dir)?;
            return Ok(identity);
        }
        let others = self.peers.iter().filter(|(id, _)| *id != self.node_id);
        let others = others.map(|(_, address)| address);
        let others: Vec<_> = others.chain(&self.seeds).cloned().collect();
        let target = JoinTarget {
            dir,
            control_plane: &others,
            roles: &[Role::ControlPlane],
            name: self.name.as_deref(),
            fallback_name: Some(&default),
        };
        Ok(identity_in(&target, self.join.as_deref()).await?)
    }

    async fn config(&self) -> anyhow::Result<Config> {
        let mut peers = BTreeMap::new();
        for (id, address) in &self.peers {
            anyhow::ensure!(
                peers.insert(*id, address.clone()).is_none(),
                "peers: node {id} comes twice"
            );
        }
        let authority = self.authority()?;
        let security = match &self.identity {
            Some(dir) => Security::Tls(Box::new(self.identity(dir, authority.as_ref()).await?)),
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
            seeds: self.seeds.clone(),
            data_dir: Some(self.data_dir.clone()),
            security,
            authority,
            identity_dir: self.identity.clone(),
            raft,
            leases: LeaseTiming {
                down_after,
                ..LeaseTiming::default()
            },
            bundles: BundleLimits {
                max_bytes: self.max_bundle_mib.saturating_mul(1 << 20),
                ..BundleLimits::default()
            },
            healthy_deadline: Duration::from_secs(self.healthy_deadline),
            formats: Formats::BUILD,
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
    if args.insecure {
        tracing::warn!("connections are neither encrypted nor checked");
    }
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        // Before the token is used: it may be good for one join.
        let listen = args.listen;
        let port = Port::take(listen).with_context(|| format!("cannot listen on {listen}"))?;
        let series = Series::default();
        let admin = match args.admin {
            Some(address) => Some(
                Admin::bind(address, series.clone())
                    .await
                    .context("cannot bind the admin address")?,
            ),
            None => None,
        };
        let config = args.config().await?;
        let stop = stop_on_signal()?;
        let listener = port.listen();
        let listener = listener.with_context(|| format!("cannot listen on {listen}"))?;
        let node = ControlPlane::build_on(listener, config, &series).await?;
        tracing::info!(address = %node.local_addr(), "control-plane node is running");
        serve(node, admin, stop).await
    })
}

/// Runs the node, and the admin endpoint for as long as it.
async fn serve(node: ControlPlane, admin: Option<Admin>, stop: CancellationToken) -> anyhow::Result<()> {
    let ended = CancellationToken::new();
    let admin = admin.map(|admin| tokio::spawn(admin.with_health(node.health()).run(ended.clone())));
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
    fn seeds_have_a_port() {
        let line = |seeds| format!("x --cluster-id c --data-dir /d --insecure --seeds {seeds}");
        assert_eq!(parse(&line("a:1,b:2")).unwrap().seeds, ["a:1", "b:2"]);
        let text = parse(&line("a:1,b")).unwrap_err().to_string();
        assert!(text.contains("expected host:port, as 10.0.0.1:7400"), "{text}");
    }

    #[tokio::test]
    async fn plain_text_needs_its_flag() {
        assert!(parse("x --cluster-id c --data-dir /d").is_err());
        assert!(parse("x --cluster-id c --data-dir /d --identity /i --insecure").is_err());
        let config = parse("x --cluster-id c --data-dir /d --insecure --listen 127.0.0.1:7400")
            .unwrap()
            .config()
            .await
            .unwrap();
        assert!(matches!(config.security, Security::Insecure));
        assert_eq!(config.validate(), Ok(()));
    }

    #[tokio::test]
    async fn peers_are_numbered_addresses() {
        let base = "x --cluster-id c --data-dir /d --insecure --node-id 2 --peers";
        let config = parse(&format!("{base} 1=a:1,2=b:1,3=[::1]:1"))
            .unwrap()
            .config()
            .await
            .unwrap();
        assert_eq!(config.peers[&3], "[::1]:1");
        assert_eq!(config.validate(), Ok(()));
        assert!(
            parse(&format!("{base} 1=a:1,1=b:1,3=c:1"))
                .unwrap()
                .config()
                .await
                .is_err()
        );
        assert!(parse(&format!("{base} a:1")).is_err());
        for bad in ["4=127.0.0.1", "4=:1", "4=a:0", "4=a:b", "x=a:1", "4"] {
            assert!(parse_peer(bad).is_err(), "{bad}");
        }
        let text = parse_peer("4=127.0.0.1").unwrap_err();
        assert_eq!(text, "expected host:port, found \"127.0.0.1\" after '4='");
    }

    #[test]
    fn lifetimes_have_a_unit_and_are_not_tiny() {
        let days = |days: u64| Ok(Duration::from_secs(days * 24 * 60 * 60));
        assert_eq!(parse_lifetime("90d"), days(90));
        assert_eq!(parse_lifetime("48h"), days(2));
        for bad in ["", "d", "5", "9s", "1.5h", "-1d", "1w", "5é"] {
            assert!(parse_lifetime(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_node_with_the_authority_makes_its_own_identity_once() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, home) = (dir.path().join("ca"), dir.path().join("home"));
        let line = format!(
            "x --cluster-id c --data-dir /d --node-id 1 --ca {} --identity {}",
            ca.display(),
            home.display()
        );
        let error = parse(&line).unwrap().config().await.err().unwrap();
        assert!(
            format!("{error:#}").contains("cannot load the authority"),
            "{error:#}"
        );
        ClusterCa::create().unwrap().save(&ca).unwrap();
        let first = parse(&line).unwrap().config().await.unwrap();
        let identity = first.security.identity().unwrap().clone();
        assert_eq!(identity.peer().to_string(), "control-plane/control-1");
        let second = parse(&line).unwrap().config().await.unwrap();
        assert_eq!(second.security.identity(), Some(&identity));
        let without = format!(
            "x --cluster-id c --data-dir /d --identity {}",
            dir.path().join("n").display()
        );
        let error = parse(&without).unwrap().config().await.err().unwrap();
        assert!(
            error.to_string().ends_with("and no token to get one with"),
            "{error:#}"
        );
    }
}
