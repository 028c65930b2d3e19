//! One process's certificate and key, and the authority it trusts.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::validity::Validity;
use super::{PeerIdentity, Role, TlsError, config, files};

const CA_FILE: &str = "ca.pem";
const CERT_FILE: &str = "cert.pem";
pub(super) const KEY_FILE: &str = "key.pem";
/// The certificate of a key that is about to be replaced: there between the two steps of [`Identity::save`] alone.
const NEXT_CERT_FILE: &str = "cert-next.pem";

/// What a process needs to prove who it is and to check who others are.
#[derive(Clone)]
pub struct Identity {
    peer: PeerIdentity,
    validity: Validity,
    ca_pem: String,
    cert_pem: String,
    key_pem: String,
    certified: Arc<CertifiedKey>,
    /// With the authority's certificate behind the own one.
    introduced: Arc<CertifiedKey>,
}

impl Identity {
    /// Takes the trusted authority's certificate, the own certificate and its private key, all as PEM.
    pub fn from_pem(ca_pem: &str, cert_pem: &str, key_pem: &str) -> Result<Self, TlsError> {
        let chain = certificates(cert_pem, "certificate")?;
        let peer = PeerIdentity::from_certificate(&chain[0])?;
        let validity = Validity::of(&chain[0])?;
        let authority = certificates(ca_pem, "authority's certificate")?;
        let provider = config::provider();
        let certified = CertifiedKey::from_der(chain, private_key(key_pem)?, &provider)
            .map_err(|error| TlsError::unusable("private key", error))?;
        let introduction = [&certified.cert[..], &authority].concat();
        Ok(Self {
            peer,
            validity,
            ca_pem: ca_pem.to_owned(),
            cert_pem: cert_pem.to_owned(),
            key_pem: key_pem.to_owned(),
            introduced: Arc::new(CertifiedKey::new(introduction, Arc::clone(&certified.key))),
            certified: Arc::new(certified),
        })
    }

    /// Reads the identity that [`Identity::save`] wrote into `dir`.
    pub fn load(dir: &Path) -> Result<Self, TlsError> {
        let read = |name| files::read(&dir.join(name));
        let (ca, key) = (read(CA_FILE)?, read(KEY_FILE)?);
        let found = read(CERT_FILE).and_then(|cert| Self::from_pem(&ca, &cert, &key));
        if found.is_err() && dir.join(NEXT_CERT_FILE).exists() {
            // A save was interrupted after it had replaced the key.
            let next = Self::from_pem(&ca, &read(NEXT_CERT_FILE)?, &key)?;
            next.save(dir)?;
            return Ok(next);
        }
        found
    }

    /// Whether `dir` has an identity, good or not.
    pub fn is_in(dir: &Path) -> bool {
        [CERT_FILE, NEXT_CERT_FILE]
            .iter()
            .any(|name| dir.join(name).exists())
    }

    /// Reads the identity in `dir` for a process of this role.
    ///
    /// Errors: there is none, or it is another role's.
    pub fn load_as(dir: &Path, role: Role) -> Result<Self, TlsError> {
        let identity = Self::load(dir)?;
        if identity.role() == role {
            return Ok(identity);
        }
        Err(TlsError::Role {
            path: dir.to_owned(),
            found: identity.role().name(),
            expected: role.name(),
        })
    }

    /// Writes `ca.pem`, `cert.pem` and `key.pem` into `dir`, the key readable by its owner only. Replaces older ones.
    ///
    /// Interrupted at any point, [`Identity::load`] finds the old identity or the new one.
    pub fn save(&self, dir: &Path) -> Result<(), TlsError> {
        files::create_dir(dir)?;
        files::write(&dir.join(CA_FILE), files::PUBLIC, &self.ca_pem)?;
        files::write(&dir.join(NEXT_CERT_FILE), files::PUBLIC, &self.cert_pem)?;
        files::write(&dir.join(KEY_FILE), files::SECRET, &self.key_pem)?;
        files::rename(&dir.join(NEXT_CERT_FILE), &dir.join(CERT_FILE))
    }

    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    pub fn role(&self) -> Role {
        self.peer.role
    }

    pub fn name(&self) -> &str {
        self.peer.name.as_str()
    }

    /// The authority's certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The own certificate, or its chain with the own one first.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The own private key.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// When the certificate is good.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    pub(super) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    pub(super) fn introduced(&self) -> &Arc<CertifiedKey> {
        &self.introduced
    }

    pub(super) fn roots(&self) -> Result<rustls::RootCertStore, TlsError> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in certificates(&self.ca_pem, "authority's certificate")? {
            roots.add(certificate)?;
        }
        Ok(roots)
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        (&self.ca_pem, &self.cert_pem, &self.key_pem) == (&other.ca_pem, &other.cert_pem, &other.key_pem)
    }
}

impl Eq for Identity {}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.peer).finish() // the key stays out of logs
    }
}

/// The certificates in `pem`, at least one.
pub(super) fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match found {
        Ok(found) if found.is_empty() => Err(TlsError::unusable(what, "the text has no certificate")),
        Ok(found) => Ok(found),
        Err(error) => Err(TlsError::unusable(what, error)),
    }
}

fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| TlsError::unusable("private key", error))
}
