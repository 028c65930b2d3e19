//! A whole cluster in one process: a one-node control plane, a gateway and node agents.
//!
//! They speak mTLS gRPC and QUIC over loopback, exactly as between hosts, so what works here works there. The parts
//! are tasks of [`System::run`], which ends them in the order in which requests leave: gateway, agents, control plane.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, TryLockError};
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use mosec_control_plane::{
    Authority, Config as ControlPlaneConfig, ControlPlane, DEFAULT_CERT_TTL, RaftTiming, Security,
};
use mosec_node_agent::{Claim, host};
use mosec_types::{Capacity, NodeId};
use mosec_wire::tls::{Identity, Role};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::pki;

/// Name of the cluster; its certificates tell it from others.
const CLUSTER: &str = "local";
/// A vote of one is quick, and no stalled follower can ask for another.
const RAFT: RaftTiming = RaftTiming {
    heartbeat: Duration::from_millis(50),
    snapshot_every: 2000,
};

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the gateway listens.
    pub address: String,
    pub port: u16,
    /// Number of node agents, named `node-1` and so on.
    pub agents: u16,
    /// Interpreter for pipelines that name none.
    pub python: String,
    /// Log, snapshots and certificates. Made if it is not there.
    pub data: PathBuf,
}

/// A cluster that has its ports and does not run yet.
pub struct System {
    control_plane: ControlPlane,
    agents: Vec<(String, mosec_node_agent::Service)>,
    gateway: mosec_gateway::Service,
    http: SocketAddr,
    operator: Identity,
    operator_dir: PathBuf,
    lock: File,
}

impl System {
    /// Takes the ports, and makes or loads what is in the data folder.
    pub async fn build(options: &Options) -> anyhow::Result<Self> {
        let data = std::path::absolute(&options.data)?;
        // The authority's key is in it: whoever reads it can become any peer.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&data)
            .with_context(|| format!("cannot make the folder {}", data.display()))?;
        keep_out(&data)?;
        let lock = lock(&data)?;
        let ca = pki::authority(&data.join("ca"))?;
        let identity = |role, name: &str| pki::identity(&ca, &data.join(name), role, name);
        let operator = identity(Role::Admin, "operator")?;

        // Its address is what the others are told; it starts last, once they have all they need.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .context("cannot listen on loopback")?;
        let known = vec![listener.local_addr()?.to_string()];

        let config = mosec_gateway::Config {
            address: options.address.clone(),
            port: options.port,
            ..Default::default()
        };
        let gateway = identity(Role::Gateway, "gateway")?;
        let gateway = mosec_gateway::Service::build(config, known.clone(), &gateway, None).await?;
        let devices = host::devices();
        let whole = host::capacity(&[]);
        let mut agents = Vec::new();
        for number in 1..=options.agents {
            let name = format!("node-{number}");
            let mut config = mosec_node_agent::Config::new(NodeId::new(&name)?);
            // Each GPU is one agent's.
            let own = |index: usize| index % usize::from(options.agents) == usize::from(number - 1);
            let devices = devices.iter().enumerate().filter(|(index, _)| own(*index));
            config.devices = devices.map(|(_, device)| device.clone()).collect();
            config.python.clone_from(&options.python);
            config.output = Some(mosec_node_agent::OutputLimits::default());
            let agent = mosec_node_agent::Options {
                // Everything starts and ends together here, so no topology is kept.
                claim: Claim::take((Ipv4Addr::LOCALHOST, 0).into(), None, None, None).await?,
                control_plane: known.clone(),
                labels: BTreeMap::new(),
                capacity: Capacity {
                    gpus: host::capacity(&config.devices).gpus,
                    ..share(&whole, options.agents)
                },
                config,
                code_dir: Some(data.join("code").join(&name)),
                identity: identity(Role::Agent, &name)?.into(),
                // They are made anew at a start, when they are old.
                identity_dir: None,
            };
            let agent = mosec_node_agent::Service::build(agent).await;
            agents.push((
                name.clone(),
                agent.with_context(|| format!("{name} cannot start"))?,
            ));
        }
        let config = ControlPlaneConfig {
            data_dir: Some(data.join("state")),
            security: Security::Tls(Box::new(identity(Role::ControlPlane, "control-plane")?)),
            authority: Some(Authority::new(ca, DEFAULT_CERT_TTL)),
            raft: RAFT,
            ..ControlPlaneConfig::single(CLUSTER)
        };
        let control_plane = ControlPlane::build_on(listener, config, &mosec_telemetry::Series::default())
            .await
            .context("the control plane cannot start")?;
        let http = gateway.local_addr()?;
        Ok(Self {
            control_plane,
            agents,
            gateway,
            http,
            operator,
            operator_dir: data.join("operator"),
            lock,
        })
    }

    /// Where the gateway answers, as `http://127.0.0.1:8000`.
    pub fn url(&self) -> String {
        let mut http = self.http;
        match http {
            // Nobody can connect to "all addresses".
            SocketAddr::V4(v4) if v4.ip().is_unspecified() => http.set_ip(Ipv4Addr::LOCALHOST.into()),
            SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
                http.set_ip(std::net::Ipv6Addr::LOCALHOST.into())
            }
            _ => {}
        }
        format!("http://{http}")
    }

    /// `host:port` of the control plane.
    pub fn control_plane(&self) -> String {
        self.control_plane.local_addr().to_string()
    }

    pub fn operator(&self) -> &Identity {
        &self.operator
    }

    /// Where [`System::operator`] is kept.
    pub fn operator_dir(&self) -> &PathBuf {
        &self.operator_dir
    }

    /// Runs until `stop` or until a part ends by itself, then drains.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let ended = CancellationToken::new();
        let _lock = self.lock;
        let control_plane = self.control_plane;
        let control_plane = Part::start("control plane", &ended, |stop| async move {
            Ok(control_plane.run(stop).await?)
        });
        let agents: Vec<_> = self
            .agents
            .into_iter()
            .map(|(name, agent)| Part::start(name, &ended, |stop| agent.run(stop)))
            .collect();
        let gateway = self.gateway;
        let gateway = Part::start("gateway", &ended, |stop| gateway.run(stop));
        tokio::select! {
            () = stop.cancelled() => {}
            () = ended.cancelled() => {}
        }
        let by_itself = !stop.is_cancelled();
        let mut result = gateway.end().await;
        // All drain at the same time.
        agents.iter().for_each(Part::stop);
        for agent in agents {
            result = result.and(agent.end().await);
        }
        result = result.and(control_plane.end().await);
        anyhow::ensure!(
            result.is_err() || !by_itself,
            "a part of the cluster ended without being told to"
        );
        result
    }
}

/// A part of the cluster that runs.
struct Part {
    name: String,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Part {
    /// `ended` is cancelled when the part ends, told to or not.
    fn start<F>(
        name: impl Into<String>,
        ended: &CancellationToken,
        run: impl FnOnce(CancellationToken) -> F,
    ) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let running = run(stop.clone());
        let guard = ended.clone().drop_guard();
        let task = tokio::spawn(async move {
            let _guard = guard;
            running.await
        });
        Self {
            name: name.into(),
            stop,
            task,
        }
    }

    fn stop(&self) {
        self.stop.cancel();
    }

    async fn end(self) -> anyhow::Result<()> {
        self.stop();
        let result = self
            .task
            .await
            .map_err(anyhow::Error::from)
            .and_then(|result| result);
        result.with_context(|| format!("{} failed", self.name))
    }
}

/// What each of so many agents has of their host's processors and memory: equal parts, so that what is placed on all of them
/// is what the host has. Nothing where the host does not tell, as then nothing limits.
fn share(whole: &Capacity, agents: u16) -> Capacity {
    Capacity {
        gpus: Vec::new(),
        cpus: whole.cpus / u32::from(agents),
        memory: whole.memory / u64::from(agents),
    }
}

/// Tells Git and `mosectl deploy` that nothing in the data folder is part of what is around it.
fn keep_out(data: &Path) -> anyhow::Result<()> {
    let path = data.join(".gitignore");
    std::fs::write(&path, "*\n").with_context(|| format!("cannot write {}", path.display()))
}

/// Locks the data folder until the file is dropped. The store has a lock of its own, for which it waits.
fn lock(data: &Path) -> anyhow::Result<File> {
    let path = data.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            anyhow::bail!("{} is in use by another `mosectl up`", data.display())
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_share_their_host() {
        let whole = Capacity {
            gpus: Vec::new(),
            cpus: 2000,
            memory: 8 << 30,
        };
        let of = |agents| share(&whole, agents);
        assert_eq!((of(1).cpus, of(1).memory), (2000, 8 << 30));
        assert_eq!((of(4).cpus, of(4).memory), (500, 2 << 30));
        assert_eq!(share(&Capacity::default(), 3), Capacity::default());
    }
}
