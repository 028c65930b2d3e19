//! The cluster's authority, at the members that hold its key.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mosec_wire::tls::{ClusterCa, Identity, PeerIdentity, SigningRequest, TlsError, Validity};

/// How long certificates are good that are renewed by themselves. A third of it is left when they are renewed: a month,
/// for which the control plane may be away before an agent is shut out.
pub const DEFAULT_CERT_TTL: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// Signs certificates. A cheap handle.
#[derive(Debug, Clone)]
pub struct Authority {
    ca: Arc<ClusterCa>,
    cert_ttl: Duration,
}

impl Authority {
    /// `cert_ttl`: how long the certificates are good.
    pub fn new(ca: ClusterCa, cert_ttl: Duration) -> Self {
        Self {
            ca: Arc::new(ca),
            cert_ttl,
        }
    }

    /// The authority's certificate.
    pub fn ca_pem(&self) -> &str {
        self.ca.ca_pem()
    }

    /// A certificate with a key of its own.
    pub fn issue(&self, peer: &PeerIdentity, now: SystemTime) -> Result<Identity, TlsError> {
        let validity = Validity::starting(now, self.cert_ttl);
        self.ca.issue_for(peer.role, peer.name.as_str(), validity)
    }

    /// A certificate for the key of `request`, as PEM.
    pub fn sign(
        &self,
        request: &SigningRequest,
        peer: &PeerIdentity,
        now: SystemTime,
    ) -> Result<String, TlsError> {
        self.ca
            .sign(request, peer, Validity::starting(now, self.cert_ttl))
    }
}
