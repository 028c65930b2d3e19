//! A gateway of a cluster: routes from the control plane's watch, batches over QUIC.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use mosec_dispatch::{DispatchMetrics, Links, Registry};
use mosec_types::Topology;
use mosec_wire::control::{ClientConfig, ControlClient};
use mosec_wire::quic::{QuicConnector, Settings};
use mosec_wire::tls::Identity;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{Config, Gateway};

/// A gateway with its port, its links and its control plane.
pub struct Service {
    gateway: Gateway,
    control: ControlClient,
    links: Links,
}

impl Service {
    /// Takes the port and sets up what it takes to reach the others. Connects to nobody yet.
    pub async fn build(
        config: Config,
        control_plane: Vec<String>,
        identity: &Identity,
    ) -> anyhow::Result<Self> {
        let series = prometheus::Registry::new();
        let registry = Registry::new(DispatchMetrics::new(&series)?);
        let control = ControlClient::new(ClientConfig::new(control_plane, Some(identity.clone())))
            .context("the control plane's addresses are not usable")?;
        let connector =
            QuicConnector::new(identity, Settings::default()).context("QUIC could not be set up")?;
        let links = Links::new(Arc::new(connector), registry.clone());
        let gateway = Gateway::bind(config, registry, series).await?;
        Ok(Self {
            gateway,
            control,
            links,
        })
    }

    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.gateway.local_addr()
    }

    /// Serves until `stop`, then drains.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let tasks = TaskTracker::new();
        let watching = CancellationToken::new();
        let topology = self
            .control
            .watch_topology(Topology::default(), &tasks, watching.clone());
        let result = self.gateway.run(topology, Some(self.links), stop).await;
        watching.cancel();
        tasks.close();
        tasks.wait().await;
        result
    }
}
