//! Takes connections from upstreams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quinn::{Endpoint, TokioRuntime};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::code::{Code, close};
use super::config::{ByDistance, ListenerConfig, server_configs};
use super::connector::peer_of;
use super::server::{QuicServer, ServerParts};
use super::{LinkSocket, SetupError};
use crate::link::{BoxFuture, LinkEvent};

/// Handshakes in progress, beyond which new ones are refused.
const MAX_HANDSHAKES: usize = 64;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// An agent's open socket.
pub struct QuicListener {
    endpoint: Endpoint,
    configs: ByDistance<Arc<quinn::ServerConfig>>,
    config: ListenerConfig,
    handshakes: Mutex<FuturesUnordered<BoxFuture<'static, Option<QuicServer>>>>,
    /// The speakers of all connections.
    tasks: TaskTracker,
}

impl QuicListener {
    /// Opens the socket. Needs a tokio runtime.
    pub fn bind(address: SocketAddr, config: ListenerConfig) -> Result<Self, SetupError> {
        Self::on(LinkSocket::take(address)?, config)
    }

    /// Listens on a socket that was taken before. Needs a tokio runtime.
    pub fn on(socket: LinkSocket, config: ListenerConfig) -> Result<Self, SetupError> {
        let address = socket.local_addr();
        let configs = server_configs(&config)?;
        let endpoint_config = config.reset_secret.endpoint_config()?;
        let server_config = configs.of(address).as_ref().clone();
        let endpoint = Endpoint::new(
            endpoint_config,
            Some(server_config),
            socket.into_socket(),
            Arc::new(TokioRuntime),
        )
        .map_err(|source| SetupError::Socket { address, source })?;
        Ok(Self {
            endpoint,
            configs,
            config,
            handshakes: Mutex::default(),
            tasks: TaskTracker::new(),
        })
    }

    /// Where the socket is, its port filled in.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// The next upstream that has proven who it is; `None` after [`QuicListener::shutdown`].
    ///
    /// One caller at a time; cancel safe. Handshakes proceed only while it is awaited.
    pub async fn accept(&self) -> Option<QuicServer> {
        let mut handshakes = self.handshakes.lock().await;
        loop {
            tokio::select! {
                Some(server) = handshakes.next() => {
                    if server.is_some() {
                        return server;
                    }
                }
                incoming = self.endpoint.accept() => {
                    let incoming = incoming?;
                    if handshakes.len() < MAX_HANDSHAKES {
                        handshakes.push(self.shake_hands(incoming));
                    } else {
                        debug!(address = %incoming.remote_address(), "refused: too many handshakes in progress");
                        incoming.refuse();
                    }
                }
            }
        }
    }

    /// Closes the socket. Links that have been closed get their grace first; others are lost.
    pub async fn shutdown(&self) {
        self.tasks.close();
        self.endpoint.set_server_config(None);
        let grace = self.config.settings.close_grace * 2;
        let _ = timeout(grace, self.tasks.wait()).await;
        self.endpoint.close(Code::Draining.to_wire(), b"");
        let _ = timeout(grace, self.endpoint.wait_idle()).await;
    }

    fn shake_hands(&self, incoming: quinn::Incoming) -> BoxFuture<'static, Option<QuicServer>> {
        let address = incoming.remote_address();
        let quinn_config = Arc::clone(self.configs.of(address));
        let config = self.config.clone();
        let tasks = self.tasks.clone();
        Box::pin(async move {
            match timeout(HANDSHAKE_TIMEOUT, accept_one(incoming, quinn_config, &config)).await {
                Ok(Ok(parts)) => Some(QuicServer::start(parts, &tasks)),
                Ok(Err(error)) => {
                    debug!(%address, %error, "connection refused");
                    None
                }
                Err(_) => {
                    debug!(%address, "connection refused: handshake took too long");
                    None
                }
            }
        })
    }
}

async fn accept_one(
    incoming: quinn::Incoming,
    quinn_config: Arc<quinn::ServerConfig>,
    config: &ListenerConfig,
) -> Result<ServerParts, quinn::ConnectionError> {
    let connection = incoming.accept_with(quinn_config)?.await?;
    let control = connection.open_uni().await?;
    // TLS has checked the certificate's names already, so this only gets them.
    let Some(peer) = peer_of(&connection) else {
        close(&connection, Code::Protocol);
        return Err(quinn::ConnectionError::LocallyClosed);
    };
    let node = config.identity.current().peer().name.clone();
    let hello = LinkEvent::Hello {
        node,
        incarnation: config.incarnation,
    };
    Ok(ServerParts {
        connection,
        control,
        peer,
        hello,
        settings: config.settings.clone(),
    })
}
