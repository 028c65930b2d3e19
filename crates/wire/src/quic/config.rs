//! Limits and timers of QUIC links, and quinn's configuration from them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mosec_types::Incarnation;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use ring::{digest, hmac};
use tokio::sync::Semaphore;

use super::SetupError;
use crate::frame::DEFAULT_MAX_BODY_BYTES;
use crate::tls::{self, Identity, LiveIdentity, Role};

/// Protocol version as TLS negotiates it. Changes with every incompatible change of the frames.
pub const ALPN: &[u8] = b"mosec/1";

const MIB: u32 = 1024 * 1024;
/// A stream's window: at most half of the socket's buffer, as larger ones make loopback drop packets.
const STREAM_WINDOW_BYTES: u32 = 2 * MIB;
/// Bounds what one peer's unread data takes.
const CONNECTION_WINDOW_BYTES: u32 = 32 * MIB;
/// Unread datagrams, which name cancelled items and are read as they come. Beyond it the oldest are lost, and said again.
const DATAGRAM_BYTES: usize = 64 * 1024;
const SEND_WINDOW_BYTES: u64 = 32 * MIB as u64;
/// Batches in flight on one connection. Credits keep well-behaved upstreams far below.
const MAX_BATCH_STREAMS: u32 = 1024;
pub(super) const IDLE: Duration = Duration::from_secs(3);
/// Four fit into [`IDLE`], so that it takes several lost packets to end a healthy connection.
const KEEP_ALIVE: Duration = Duration::from_millis(750);
/// What Ethernet carries, less the headers of IPv6 and UDP.
const MTU: u16 = 1452;
/// For loopback. quinn sends up to ten packets in one call, and the kernel silently drops calls above 65 507 bytes.
const LOOPBACK_MTU: u16 = 6500;

/// Limits and timers of both ends.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Largest frame body, sent or received. A batch or an answer above it is refused where it is sent.
    pub max_body_bytes: usize,
    /// Bytes of batches that one connection may be in the middle of receiving; an upstream is in the middle of sending
    /// at most a quarter. One batch of `max_body_bytes` is always possible. The same at both ends.
    pub max_receiving_bytes: usize,
    /// How often an agent that has nothing else to tell gives a sign of life.
    pub heartbeat: Duration,
    /// How long an upstream waits for one before it gives the link up.
    pub silent_after: Duration,
    /// How long a connection may take to be made, `Hello` included.
    pub connect_timeout: Duration,
    /// How long answers that are finished may take to arrive after the agent has closed the link.
    pub close_grace: Duration,
}

/// Unit in which the bytes of batches under way are counted, so that a semaphore can count them.
pub(super) const BUDGET_UNIT_BYTES: usize = 1024;

/// What a batch takes of a budget.
pub(super) fn budget_units(body_bytes: usize) -> u32 {
    u32::try_from(body_bytes.div_ceil(BUDGET_UNIT_BYTES)).unwrap_or(u32::MAX)
}

impl Settings {
    /// What one connection may be in the middle of receiving.
    pub(super) fn receive_budget(&self) -> Arc<Semaphore> {
        budget(self.max_receiving_bytes.max(self.max_body_bytes))
    }

    /// What one connection may be in the middle of sending: a quarter of what the other end takes, as batches leave
    /// this count when the transport has them, a little before they have arrived.
    pub(super) fn send_budget(&self) -> Arc<Semaphore> {
        budget((self.max_receiving_bytes / 4).max(self.max_body_bytes))
    }
}

fn budget(bytes: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(bytes.div_ceil(BUDGET_UNIT_BYTES)))
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_body_bytes: DEFAULT_MAX_BODY_BYTES,
            max_receiving_bytes: 256 * MIB as usize,
            heartbeat: Duration::from_millis(250),
            silent_after: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(3),
            close_grace: Duration::from_secs(1),
        }
    }
}

/// What an agent's listener is made from.
#[derive(Debug, Clone)]
pub struct ListenerConfig {
    /// An agent's; its name is the node's.
    pub identity: LiveIdentity,
    pub incarnation: Incarnation,
    /// Roles that may connect.
    pub allowed: Vec<Role>,
    pub reset_secret: ResetSecret,
    pub settings: Settings,
}

impl ListenerConfig {
    /// Defaults: gateways and agents may connect, and the identity's key is the source of the reset secret.
    pub fn new(identity: impl Into<LiveIdentity>, incarnation: Incarnation) -> Self {
        let identity = identity.into();
        let reset_secret = ResetSecret::of(&identity.current());
        let allowed = vec![Role::Gateway, Role::Agent];
        Self {
            identity,
            incarnation,
            allowed,
            reset_secret,
            settings: Settings::default(),
        }
    }
}

/// Lets a restarted agent tell peers of its former self at once that their connections are gone.
///
/// Has to outlive the process and stay with the address: without it such peers wait for their timeouts.
#[derive(Clone, Copy)]
pub struct ResetSecret([u8; 32]);

impl ResetSecret {
    pub fn new(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    /// A secret kept in `dir`: it outlives identities that are renewed, too.
    pub fn kept_in(dir: &Path) -> Result<Self, SetupError> {
        Ok(Self(tls::kept_secret(&dir.join("reset-secret"))?))
    }

    /// Derives the secret from an identity's private key, which outlives the process too.
    pub fn of(identity: &Identity) -> Self {
        let key = digest::digest(&digest::SHA256, identity.key_pem().as_bytes());
        Self(derive(key.as_ref(), b"mosec reset secret"))
    }

    /// quinn's endpoint, with both keys that recognizing an older connection's packets takes.
    pub(super) fn endpoint_config(&self) -> Result<EndpointConfig, SetupError> {
        let reset_key = hmac::Key::new(hmac::HMAC_SHA256, &derive(&self.0, b"mosec quic stateless reset"));
        let [a, b, c, d, e, f, g, h, ..] = derive(&self.0, b"mosec quic connection ids");
        let id_key = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let mut config = EndpointConfig::new(Arc::new(reset_key));
        config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(id_key)));
        limit_packets(&mut config)?;
        Ok(config)
    }
}

impl fmt::Debug for ResetSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetSecret")
    }
}

fn derive(secret: &[u8], purpose: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), purpose);
    tag.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// The largest packet this end takes. A larger one than either end's never goes out.
pub(super) fn limit_packets(config: &mut EndpointConfig) -> Result<(), SetupError> {
    config.max_udp_payload_size(LOOPBACK_MTU).map_err(setting)?;
    Ok(())
}

/// Configurations of connections to and from other hosts, and within this one.
#[derive(Debug, Clone)]
pub(super) struct ByDistance<T> {
    remote: T,
    local: T,
}

impl<T> ByDistance<T> {
    pub(super) fn of(&self, peer: SocketAddr) -> &T {
        // An IPv4 peer of an IPv6 socket has a mapped address.
        let ip: IpAddr = peer.ip().to_canonical();
        if ip.is_loopback() {
            &self.local
        } else {
            &self.remote
        }
    }
}

pub(super) fn server_configs(
    config: &ListenerConfig,
) -> Result<ByDistance<Arc<quinn::ServerConfig>>, SetupError> {
    let tls = tls::server_config(&config.identity, &config.allowed, ALPN)?;
    let crypto = Arc::new(QuicServerConfig::try_from(tls).map_err(setting)?);
    let with_mtu = |mtu| {
        let mut transport = transport(mtu)?;
        transport.max_concurrent_bidi_streams(VarInt::from_u32(MAX_BATCH_STREAMS));
        transport.max_concurrent_uni_streams(VarInt::from_u32(0));
        let mut server = quinn::ServerConfig::with_crypto(crypto.clone());
        server.transport_config(Arc::new(transport)).migration(false);
        Ok::<_, SetupError>(Arc::new(server))
    };
    Ok(ByDistance {
        remote: with_mtu(MTU)?,
        local: with_mtu(LOOPBACK_MTU)?,
    })
}

pub(super) fn client_configs(identity: LiveIdentity) -> Result<ByDistance<quinn::ClientConfig>, SetupError> {
    let tls = tls::client_config(identity, ALPN)?;
    let crypto = Arc::new(QuicClientConfig::try_from(tls).map_err(setting)?);
    let with_mtu = |mtu| {
        let mut transport = transport(mtu)?;
        transport.max_concurrent_bidi_streams(VarInt::from_u32(0));
        transport.max_concurrent_uni_streams(VarInt::from_u32(1)); // the control stream
        let mut client = quinn::ClientConfig::new(crypto.clone());
        client.transport_config(Arc::new(transport));
        Ok::<_, SetupError>(client)
    };
    Ok(ByDistance {
        remote: with_mtu(MTU)?,
        local: with_mtu(LOOPBACK_MTU)?,
    })
}

fn transport(mtu: u16) -> Result<TransportConfig, SetupError> {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(mtu);
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE).map_err(setting)?))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(Some(DATAGRAM_BYTES)) // `None` would keep this end from sending, too
        .mtu_discovery_config(Some(discovery));
    Ok(transport)
}

fn setting(error: impl ToString) -> SetupError {
    SetupError::Setting(error.to_string())
}
