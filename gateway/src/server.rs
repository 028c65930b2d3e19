//! The listener and its connections.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use mosec_dispatch::{Links, Registry};
use mosec_types::Topology;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::Admission;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::request::{self, Ids, Shared};
use crate::routes::Table;
use crate::topology;

/// Connections the kernel keeps for us while we do not accept.
const BACKLOG: u32 = 1024;

/// How long open connections have after the last answer to be closed by both sides.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// A gateway that has its port.
pub struct Gateway {
    config: Config,
    listener: TcpListener,
    shared: Arc<Shared>,
}

impl Gateway {
    /// Takes the port.
    ///
    /// `dispatchers` is where targets announce themselves. Errors: the address does not resolve or is in use.
    pub async fn bind(
        config: Config,
        dispatchers: Registry,
        series: prometheus::Registry,
    ) -> anyhow::Result<Self> {
        let metrics = Metrics::new(&series, &config.namespace)?;
        let listener = listen(&config.address, config.port)
            .await
            .with_context(|| format!("cannot listen on {}:{}", config.address, config.port))?;
        let shared = Arc::new(Shared {
            admission: Admission::new(metrics.remaining.clone()),
            routes: ArcSwap::from_pointee(Table::default()),
            dispatchers,
            metrics,
            series,
            ids: Ids::new(),
            body_timeout: config.body_timeout,
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
            if tokio::time::timeout(self.config.drain_timeout, self.shared.admission.drain())
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

async fn listen(address: &str, port: u16) -> io::Result<TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "the name has no address");
    for address in tokio::net::lookup_host((address, port)).await? {
        match listen_on(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(BACKLOG).unwrap_or(i32::MAX))?;
    TcpListener::from_std(socket.into())
}

async fn accept(
    listener: &TcpListener,
    shared: &Arc<Shared>,
    connections: &TaskTracker,
    closing: &CancellationToken,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(serve(stream, shared.clone(), closing.clone()));
            }
            Err(error) => {
                // Out of descriptors, most likely: connections that end free some.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>, closing: CancellationToken) {
    // Answers are written whole; waiting to fill a packet only delays them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let service = service_fn(move |http: hyper::Request<Incoming>| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(request::handle(shared, http).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    builder.http2().timer(TokioTimer::new());
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error, "connection ended");
    }
}
