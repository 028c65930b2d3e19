//! A gateway as a whole: made of its parts, run, drained.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use mosec_dispatch::{Links, Registry};
use mosec_types::traffic::Counts;
use mosec_types::{Revision, Topology};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::Admission;
use crate::body::Memory;
use crate::coding::Codings;
use crate::config::Config;
use crate::connection::accept;
use crate::metrics::Metrics;
use crate::port::Port;
use crate::request::{Ids, Shared, Turns};
use crate::routes::Table;
use crate::topology;
use crate::traffic::Traffic;

/// How long open connections have after the last answer to be closed by both sides.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A gateway that has its port.
pub struct Gateway {
    config: Config,
    listener: TcpListener,
    shared: Arc<Shared>,
}

impl Gateway {
    /// Takes the port and opens it.
    ///
    /// `dispatchers` is where targets announce themselves. Errors: the address does not resolve or is in use.
    pub async fn bind(
        config: Config,
        dispatchers: Registry,
        series: mosec_telemetry::Series,
    ) -> anyhow::Result<Self> {
        let port = Port::take(&config.address, config.port).await?;
        Self::open(port, config, dispatchers, series)
    }

    /// Opens a port that was taken before.
    pub fn open(
        port: Port,
        config: Config,
        dispatchers: Registry,
        series: mosec_telemetry::Series,
    ) -> anyhow::Result<Self> {
        let body_memory = Memory::new(&config);
        let metrics = Metrics::new(&config.series, body_memory.clone())?;
        let address = port.local_addr();
        let listener = port
            .listen()
            .with_context(|| format!("cannot listen on {address}"))?;
        let shared = Arc::new(Shared {
            admission: Admission::new(metrics.remaining.clone()),
            routes: ArcSwap::from_pointee(Table::default()),
            knows_topology: AtomicBool::new(false),
            dispatchers,
            metrics,
            series,
            ids: Ids::new(),
            turns: Turns::default(),
            traffic: Traffic::default(),
            body_memory,
            codings: config.compression.then(Codings::new),
            config: config.clone(),
        });
        Ok(Self {
            config,
            listener,
            shared,
        })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Tells what has become of each revision's requests so far.
    pub fn traffic(&self) -> impl Fn() -> Vec<(Revision, Counts)> + Send + Sync + 'static {
        let shared = self.shared.clone();
        move || shared.traffic.counts()
    }

    /// Serves until `stop`, then drains: new requests are refused, those in flight are finished.
    pub async fn run(
        self,
        topology: watch::Receiver<Arc<Topology>>,
        links: Option<Links>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let connections = TaskTracker::new();
        let closing = CancellationToken::new();
        // Routes are there before the first connection is.
        topology::apply(&self.shared, &self.config, &topology.borrow(), None);
        let follower = topology::follow(
            self.shared.clone(),
            self.config.clone(),
            topology,
            links,
            closing.clone(),
        );
        let follower = tokio::spawn(follower);
        let accept = accept(&self.listener, &self.shared, &connections, &closing);
        let drain = async {
            stop.cancelled().await;
            tracing::info!("gateway drains");
            // No request that was let in is cut off before its own limit.
            let longest = self.shared.routes.load().longest_request();
            let limit = self.config.drain_timeout.max(longest.unwrap_or_default());
            if tokio::time::timeout(limit, self.shared.admission.drain())
                .await
                .is_err()
            {
                tracing::warn!("requests were still in flight when the drain timeout ended");
            }
        };
        // The port stays open while draining, so that clients read 503 and not a refused connection.
        tokio::select! {
            () = accept => {}
            () = drain => {}
        }
        drop(self.listener);
        closing.cancel();
        connections.close();
        if tokio::time::timeout(CLOSE_TIMEOUT, connections.wait())
            .await
            .is_err()
        {
            tracing::debug!("some connections did not close in time");
        }
        follower.await.context("the topology's follower failed")
    }
}
