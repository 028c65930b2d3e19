//! A gateway of a cluster: routes from the control plane's watch, batches over QUIC.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mosec_dispatch::{DispatchMetrics, Links, Outages, Registry};
use mosec_telemetry::{register_identity, register_process};
use mosec_types::Revision;
use mosec_types::reach::MAX_UNREACHABLE;
use mosec_types::traffic::Counts;
use mosec_wire::control::{ClientConfig, ControlClient, GatewayReport, SavedTopology, keep_fresh};
use mosec_wire::quic::{QuicConnector, Settings};
use mosec_wire::tls::LiveIdentity;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{Config, Gateway, Port};

/// Time between reports to the control plane, by which it judges rollouts and tells people which gateways there are and which nodes
/// cannot be reached.
const REPORT: Duration = Duration::from_secs(1);
/// What the last report may take.
const LAST_REPORT: Duration = Duration::from_secs(1);

/// A gateway with its port, its links and its control plane.
pub struct Service {
    gateway: Gateway,
    control: ControlClient,
    links: Links,
    saved: Option<SavedTopology>,
    renewed: Option<(LiveIdentity, PathBuf)>,
}

impl Service {
    /// Takes the port and sets up what it takes to reach the others. Connects to nobody yet.
    ///
    /// `identity_dir`: where the identity is kept, and renewed in time; not renewed where absent.
    pub async fn build(
        config: Config,
        control_plane: Vec<String>,
        identity: impl Into<LiveIdentity>,
        identity_dir: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        let port = Port::take(&config.address, config.port).await?;
        Self::build_on(port, config, control_plane, identity, identity_dir)
    }

    /// As [`Service::build`], on a port that was taken before.
    pub fn build_on(
        port: Port,
        config: Config,
        control_plane: Vec<String>,
        identity: impl Into<LiveIdentity>,
        identity_dir: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        let identity = identity.into();
        let series = mosec_telemetry::Series::default();
        register_process(&series, "gateway")?;
        register_identity(&series, &identity)?;
        let registry = Registry::new(DispatchMetrics::new(&series)?);
        let control = ControlClient::new(ClientConfig::live(control_plane, Some(identity.clone())))
            .context("the control plane's addresses are not usable")?;
        let connector =
            QuicConnector::new(&identity, Settings::default()).context("QUIC could not be set up")?;
        let links = Links::new(Arc::new(connector), registry.clone());
        let saved = SavedTopology::in_optional_dir(config.state_dir.as_deref())?;
        let gateway = Gateway::open(port, config, registry, series)?;
        Ok(Self {
            gateway,
            control,
            links,
            saved,
            renewed: identity_dir.map(|dir| (identity, dir)),
        })
    }

    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.gateway.local_addr()
    }

    /// Serves until `stop`, then drains.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let tasks = TaskTracker::new();
        let watching = CancellationToken::new();
        let known = self.saved.as_ref().map(SavedTopology::load).unwrap_or_default();
        let topology = self.control.watch_topology(known, &tasks, watching.clone());
        if let Some(saved) = self.saved {
            tasks.spawn(saved.keep(topology.clone(), watching.clone()));
        }
        tasks.spawn(report(
            self.control.clone(),
            self.gateway.traffic(),
            self.links.outages(),
            watching.clone(),
        ));
        if let Some((identity, dir)) = self.renewed {
            tasks.spawn(keep_fresh(self.control, identity, dir, watching.clone()));
        }
        let result = self.gateway.run(topology, Some(self.links), stop).await;
        watching.cancel();
        tasks.close();
        tasks.wait().await;
        result
    }
}

/// Reports that this gateway is there, what has become of the revisions' requests, and which nodes cannot be reached, until `stop`.
/// A report that is lost is made good by the next.
async fn report(
    control: ControlClient,
    counts: impl Fn() -> Vec<(Revision, Counts)> + Send + 'static,
    outages: Outages,
    stop: CancellationToken,
) {
    let run = format!("{:032x}", rand::random::<u128>());
    let send = async |ends| {
        let report = GatewayReport {
            run: &run,
            counts: &counts(),
            unreachable: &outages.list(MAX_UNREACHABLE),
            ends,
        };
        if let Err(error) = control.report_traffic(&report).await {
            tracing::debug!(%error, "requests could not be reported");
        }
    };
    let mut tick = tokio::time::interval(REPORT);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.cancelled() => break,
        }
        tokio::select! {
            () = send(false) => {}
            () = stop.cancelled() => break,
        }
    }
    // Without it, people take the gateway for lost. No end has to wait for it.
    let _ = tokio::time::timeout(LAST_REPORT, send(true)).await;
}
