//! Channels to control-plane nodes: addresses, TLS and the time after which a silent peer counts as gone.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncBufReadExt as _;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::{Service, ServiceExt as _, service_fn};

use super::ALPN;
use crate::tls::{self, Fingerprint, Identity, LiveIdentity, Role, TlsError};

/// How long a TCP and TLS handshake may take. Beyond it another node answers sooner.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A peer that answers no HTTP/2 ping for 3 s, asked every 5 s, is gone: streams end within 8 s without traffic.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// Nodes are a handful; a table that grows beyond this holds stale addresses.
const MAX_CHANNELS: usize = 64;

/// The port of `host:port`.
pub fn port_of(address: &str) -> Result<u16, String> {
    let parts = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    parts
        .and_then(|(_, port)| port.parse().ok())
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("expected host:port, found {address:?}"))
}

/// Reads an address that can be dialled: without its port nothing would answer, and nothing say why.
pub fn parse_address(text: &str) -> Result<String, String> {
    port_of(text).map_err(|_| "expected host:port, as 10.0.0.1:7400".to_owned())?;
    Ok(text.to_owned())
}

/// Why no channel to an address can be made.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("no control-plane address given")]
    None,
    #[error("invalid control-plane address {address:?}")]
    Address {
        address: String,
        source: tonic::transport::Error,
    },
    #[error("invalid TLS material for {address:?}")]
    Tls { address: String, source: TlsError },
}

/// Makes a channel to `address` (`host:port`) that connects upon its first use, and again after each loss.
///
/// Plain text without an `identity`.
pub fn channel(address: &str, identity: Option<&Identity>) -> Result<Channel, EndpointError> {
    live_channel(address, identity.map(LiveIdentity::from).as_ref())
}

/// As [`channel`], each connection with the identity that is current then.
pub fn live_channel(address: &str, identity: Option<&LiveIdentity>) -> Result<Channel, EndpointError> {
    let endpoint = endpoint(address)?;
    match identity {
        Some(identity) => {
            let config = tls::client_config(identity, ALPN);
            secure(&endpoint, address, config)
        }
        None => Ok(endpoint.connect_lazy()),
    }
}

/// A channel without a certificate of one's own, to a node whose authority has this fingerprint.
pub fn joining_channel(address: &str, fingerprint: Fingerprint) -> Result<Channel, EndpointError> {
    secure(
        &endpoint(address)?,
        address,
        tls::joining_config(fingerprint, ALPN),
    )
}

/// Channels by address, all made with the identity that is current.
///
/// When that is replaced, new channels take the place of those there are: connections under a certificate are refused
/// once it has expired. Calls under way go on.
pub struct Channels {
    identity: Option<LiveIdentity>,
    made_with: Option<Arc<Identity>>,
    open: BTreeMap<String, Channel>,
}

impl Channels {
    /// Plain text without an `identity`.
    pub fn new(identity: Option<LiveIdentity>) -> Self {
        Self {
            made_with: identity.as_ref().map(LiveIdentity::current),
            identity,
            open: BTreeMap::new(),
        }
    }

    /// The channel to `address`, opened if there is none.
    pub fn get(&mut self, address: &str) -> Result<Channel, EndpointError> {
        let current = self.identity.as_ref().map(LiveIdentity::current);
        let is_replaced = current
            .as_ref()
            .zip(self.made_with.as_ref())
            .is_some_and(|(current, made_with)| !Arc::ptr_eq(current, made_with));
        if is_replaced || self.open.len() >= MAX_CHANNELS {
            self.made_with = current;
            self.open.clear();
        }
        if let Some(channel) = self.open.get(address) {
            return Ok(channel.clone());
        }
        let channel = live_channel(address, self.identity.as_ref())?;
        self.open.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// A channel to `address` that nobody else is given.
    pub fn own(&self, address: &str) -> Result<Channel, EndpointError> {
        live_channel(address, self.identity.as_ref())
    }
}

fn endpoint(address: &str) -> Result<Endpoint, EndpointError> {
    // TLS is the connector's part, so that its set-up can be anything that rustls can do.
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let endpoint = endpoint.map_err(|source| EndpointError::Address {
        address: address.to_owned(),
        source,
    })?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true))
}

fn secure(
    endpoint: &Endpoint,
    address: &str,
    config: Result<rustls::ClientConfig, TlsError>,
) -> Result<Channel, EndpointError> {
    let config = config.map_err(|source| EndpointError::Tls {
        address: address.to_owned(),
        source,
    })?;
    let connector = TlsConnector::from(Arc::new(config));
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    let connect = service_fn(move |uri: Uri| {
        let (connector, mut tcp) = (connector.clone(), tcp.clone());
        async move {
            let stream = tcp.ready().await.map_err(io::Error::other)?.call(uri).await;
            let stream = stream.map_err(io::Error::other)?.into_inner();
            let name = Role::ControlPlane.server_name();
            let mut stream = connector.connect(name, stream).await?;
            // The server speaks first. Where it refuses the certificate it says so only now, and HTTP would make a mere
            // "connection closed" of it.
            stream.fill_buf().await?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    Ok(endpoint.connect_with_connector_lazy(connect))
}
