//! Who may call what.
//!
//! [`table`] says which role may make which call; [`layer`] refuses everything else before a message is decoded, on every
//! service of the port. What remains for a call itself is whom it may speak for, and who asked.

pub(crate) mod layer;
pub(crate) mod table;

use std::fmt;
use std::time::{Duration, SystemTime};

use mosec_types::NodeId;
use mosec_wire::tls::{PeerIdentity, Role, TlsError, Validity};
use tonic::{Request, Status};

/// Who is at the other end of a connection. The server puts it into each request that comes over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    /// The connection is plain text, which was allowed to whoever reaches the port.
    Unchecked,
    /// TLS, but no certificate: somebody who may join, and nothing else.
    Stranger,
    /// Shown by a certificate that the TLS handshake has verified.
    Peer(Box<Known>),
}

/// A peer and until when its certificate is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) peer: PeerIdentity,
    pub(crate) not_after: SystemTime,
}

impl Caller {
    /// From the certificates that a handshake has verified.
    pub(crate) fn of_chain(chain: Option<&[rustls_pki_types::CertificateDer<'_>]>) -> Result<Self, TlsError> {
        let Some(leaf) = chain.and_then(<[_]>::first) else {
            return Ok(Self::Stranger);
        };
        Ok(Self::Peer(Box::new(Known {
            peer: PeerIdentity::from_certificate(leaf)?,
            not_after: Validity::of(leaf)?.not_after,
        })))
    }

    pub(crate) fn peer(&self) -> Option<&PeerIdentity> {
        match self {
            Self::Peer(known) => Some(&known.peer),
            Self::Unchecked | Self::Stranger => None,
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unchecked => f.write_str("unchecked"),
            Self::Stranger => f.write_str("without a certificate"),
            Self::Peer(known) => known.peer.fmt(f),
        }
    }
}

/// The caller of a request. One that the server has not marked counts as a stranger.
pub(crate) fn caller<T>(request: &Request<T>) -> Caller {
    let marked = request.extensions().get::<Caller>();
    marked.cloned().unwrap_or(Caller::Stranger)
}

/// Completes when the caller's certificate has expired; never where there is none that could.
///
/// For streams, which outlive the check at their beginning. Their client comes back with the certificate it has by then.
pub(crate) async fn expiry(caller: Caller) {
    /// The clock may be set, or the host be suspended, while this sleeps.
    const LOOK: Duration = Duration::from_secs(60);
    let Caller::Peer(known) = caller else {
        return std::future::pending().await;
    };
    while let Ok(left) = known.not_after.duration_since(SystemTime::now())
        && !left.is_zero()
    {
        tokio::time::sleep(left.min(LOOK)).await;
    }
}

/// Who asks for a change: the caller, or whom a member says that it forwards for.
pub(crate) fn asked_by<T>(request: &Request<T>, forwarded_for: &str) -> String {
    match caller(request).peer() {
        Some(peer) if peer.role == Role::ControlPlane => forwarded_for.to_owned(),
        Some(peer) => peer.name.to_string(),
        None => String::new(),
    }
}

/// The node that an agent may speak for: its own. `None` for callers that may speak for any.
pub(crate) fn speaks_for<T>(request: &Request<T>) -> Option<NodeId> {
    let caller = caller(request);
    let agent = caller.peer().filter(|peer| peer.role == Role::Agent);
    agent.map(|peer| peer.name.clone())
}

/// Refuses an agent that speaks for another node.
pub(crate) fn check_node(speaker: Option<&NodeId>, node: &NodeId) -> Result<(), Status> {
    match speaker {
        Some(own) if own != node => Err(Status::permission_denied(format!(
            "node {own} may not speak for node {node}"
        ))),
        _ => Ok(()),
    }
}
