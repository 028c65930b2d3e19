//! Makes links to agents.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mosec_types::NodeId;
use quinn::{Connection, ConnectionError, Endpoint, EndpointConfig, TokioRuntime};
use rustls_pki_types::CertificateDer;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::code::{Code, close, lost};
use super::config::{ByDistance, IDLE, Settings, client_configs, limit_packets};
use super::follower::Follower;
use super::link::{QuicLink, Shared};
use super::reader::{FrameReader, StreamError};
use super::{SetupError, socket};
use crate::frame::{Frame, FrameError, MAX_EVENT_BYTES};
use crate::link::{LinkError, LinkEvent};
use crate::tls::{LiveIdentity, PeerIdentity, Role};

/// Dials agents. One socket serves all links.
#[derive(Debug, Clone)]
pub struct QuicConnector {
    endpoint: Endpoint,
    configs: ByDistance<quinn::ClientConfig>,
    settings: Settings,
    receive_buffer_bytes: Option<usize>,
}

impl QuicConnector {
    /// `identity`: a gateway's or an agent's. Needs a tokio runtime.
    pub fn new(identity: impl Into<LiveIdentity>, settings: Settings) -> Result<Self, SetupError> {
        let socket = socket::open_any()?;
        let receive_buffer_bytes = socket::receive_buffer_bytes(&socket).ok();
        let mut config = EndpointConfig::default();
        limit_packets(&mut config)?;
        let endpoint = Endpoint::new(config, None, socket, Arc::new(TokioRuntime)).map_err(|source| {
            SetupError::Socket {
                address: (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
                source,
            }
        })?;
        Ok(Self {
            endpoint,
            configs: client_configs(identity.into())?,
            settings,
            receive_buffer_bytes,
        })
    }

    /// Bytes that the system keeps of what has arrived and is not read, if it says so.
    pub fn receive_buffer_bytes(&self) -> Option<usize> {
        self.receive_buffer_bytes
    }

    /// Connects to the agent at `address`, a `host:port` that is resolved anew each time.
    ///
    /// `expected`: the node that has to answer; `None` takes any agent. `Hello` has arrived when this completes, and
    /// is the link's first event.
    pub async fn connect(&self, address: &str, expected: Option<&NodeId>) -> Result<QuicLink, LinkError> {
        let failed = |reason: String| LinkError::Connect {
            peer: address.to_owned(),
            reason,
        };
        match timeout(self.settings.connect_timeout, self.try_each(address, expected)).await {
            Ok(Ok(link)) => Ok(link),
            Ok(Err(Failure::Peer(error))) => Err(LinkError::Protocol(error)),
            Ok(Err(Failure::Other(reason))) => Err(failed(reason)),
            Err(_) => Err(failed(no_answer_within(self.settings.connect_timeout))),
        }
    }

    /// Waits until the peers of links that have been closed know it. For the end of a process.
    pub async fn wait_idle(&self) {
        let _ = timeout(self.settings.close_grace, self.endpoint.wait_idle()).await;
    }

    async fn try_each(&self, address: &str, expected: Option<&NodeId>) -> Result<QuicLink, Failure> {
        let mut last = Failure::Other("the name has no address".into());
        for address in tokio::net::lookup_host(address).await? {
            match self.dial(address, expected).await {
                Ok(link) => return Ok(link),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    async fn dial(&self, address: SocketAddr, expected: Option<&NodeId>) -> Result<QuicLink, Failure> {
        let config = self.configs.of(address).clone();
        let connecting = self
            .endpoint
            .connect_with(config, address, Role::Agent.dns_name())
            .map_err(|error| Failure::Other(error.to_string()))?;
        let connection = connecting.await.map_err(|error| not_made(&error))?;
        let greeted = self.greet(&connection, expected).await;
        if let Err(Failure::Peer(_)) = &greeted {
            close(&connection, Code::Protocol);
        }
        let (reader, hello, peer) = greeted?;
        let shared = Arc::new(Shared::default());
        shared.inbox.push(hello);
        let follower = Follower {
            reader,
            connection: connection.clone(),
            shared: Arc::clone(&shared),
            settings: self.settings.clone(),
        };
        let follower = AbortOnDropHandle::new(tokio::spawn(follower.run()));
        Ok(QuicLink::new(connection, peer, &self.settings, shared, follower))
    }

    /// Takes the control stream and its `Hello`, and checks that all of them name the peer that was meant.
    async fn greet(
        &self,
        connection: &Connection,
        expected: Option<&NodeId>,
    ) -> Result<(FrameReader, LinkEvent, PeerIdentity), Failure> {
        let peer =
            peer_of(connection).ok_or_else(|| Failure::Other("its certificate names no peer".into()))?;
        let expected = expected.unwrap_or(&peer.name);
        check_name(expected, &peer.name)?;
        // An agent that refuses this end's certificate says so only here.
        let stream = connection.accept_uni().await.map_err(|error| not_made(&error))?;
        let mut reader = FrameReader::new(stream, MAX_EVENT_BYTES);
        match reader.next().await {
            Ok(Some(Frame::Event(hello @ LinkEvent::Hello { .. }))) => {
                if let LinkEvent::Hello { node, .. } = &hello {
                    check_name(expected, node)?;
                }
                Ok((reader, hello, peer))
            }
            Ok(Some(other)) => Err(FrameError::Misplaced(other.kind()).into()),
            Err(StreamError::Frame(error)) => Err(error.into()),
            Err(StreamError::Lost(error)) => Err(not_made(&error)),
            Ok(None) | Err(StreamError::CutOff | StreamError::Reset) => {
                Err(Failure::Other("it closed the control stream".into()))
            }
        }
    }
}

/// Why an attempt failed.
enum Failure {
    /// The peer is another one, or breaks the protocol.
    Peer(FrameError),
    Other(String),
}

impl From<FrameError> for Failure {
    fn from(error: FrameError) -> Self {
        Self::Peer(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

/// Why a connection has ended before it was a link.
fn not_made(error: &ConnectionError) -> Failure {
    Failure::Other(match (error, lost(error)) {
        // The idle timer may be faster than that of the attempt, and what it means is the same.
        (ConnectionError::TimedOut, _) => no_answer_within(IDLE),
        (_, LinkError::Lost(reason)) => reason,
        (_, other) => other.to_string(),
    })
}

fn no_answer_within(time: Duration) -> String {
    format!("no answer within {time:?}")
}

fn check_name(expected: &NodeId, found: &NodeId) -> Result<(), Failure> {
    if expected == found {
        return Ok(());
    }
    Err(FrameError::WrongPeer {
        expected: expected.to_string(),
        found: found.to_string(),
    }
    .into())
}

/// Role and name in the certificate that the peer has proven to own.
pub(super) fn peer_of(connection: &Connection) -> Option<PeerIdentity> {
    let certificates = connection
        .peer_identity()?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?;
    PeerIdentity::from_certificate(certificates.first()?).ok()
}
