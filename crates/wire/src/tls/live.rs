//! An identity that is replaced while it is in use.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::{Identity, TlsError};

/// An identity whose certificate and key may be replaced. Clones share it.
///
/// Connections made after a replacement show the new certificate; those there are live on with the old one.
#[derive(Clone)]
pub struct LiveIdentity(Arc<ArcSwap<Identity>>);

impl LiveIdentity {
    pub fn current(&self) -> Arc<Identity> {
        self.0.load_full()
    }

    /// Takes `next` for new connections.
    ///
    /// Errors: it is of another peer or trusts another authority, which the set-ups made from this would not notice.
    pub fn replace(&self, next: Identity) -> Result<(), TlsError> {
        let current = self.current();
        if current.peer() != next.peer() || current.ca_pem() != next.ca_pem() {
            let reason = format!("it is of {}, expected one of {}", next.peer(), current.peer());
            return Err(TlsError::unusable("new identity", reason));
        }
        self.0.store(Arc::new(next));
        Ok(())
    }
}

impl From<Identity> for LiveIdentity {
    fn from(identity: Identity) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(identity)))
    }
}

impl From<&Identity> for LiveIdentity {
    fn from(identity: &Identity) -> Self {
        identity.clone().into()
    }
}

impl From<&LiveIdentity> for LiveIdentity {
    fn from(live: &LiveIdentity) -> Self {
        live.clone()
    }
}

impl fmt::Debug for LiveIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.current().fmt(f)
    }
}

impl ResolvesClientCert for LiveIdentity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.current().certified()))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for LiveIdentity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.current().certified()))
    }
}

/// Shows the authority's certificate behind the own one, to clients that know but its fingerprint.
#[derive(Debug)]
pub(super) struct Introducing(pub(super) LiveIdentity);

impl ResolvesServerCert for Introducing {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.0.current().introduced()))
    }
}
