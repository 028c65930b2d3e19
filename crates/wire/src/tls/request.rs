//! A key of one's own, and the request to have it certified.

use std::path::Path;

use rcgen::{CertificateParams, KeyPair};

use super::identity::KEY_FILE;
use super::{Identity, TlsError, files};

/// A private key that has no certificate yet. It never leaves its process but for its own folder.
pub struct PendingKey(KeyPair);

impl PendingKey {
    pub fn generate() -> Result<Self, TlsError> {
        Ok(Self(KeyPair::generate()?))
    }

    pub fn from_pem(key_pem: &str) -> Result<Self, TlsError> {
        Ok(Self(KeyPair::from_pem(key_pem)?))
    }

    /// The key in `dir`, made if there is none.
    pub fn kept_in(dir: &Path) -> Result<Self, TlsError> {
        let path = dir.join(KEY_FILE);
        if path.exists() {
            return Self::from_pem(&files::read(&path)?);
        }
        let key = Self::generate()?;
        files::create_dir(dir)?;
        files::write(&path, files::SECRET, &key.pem())?;
        Ok(key)
    }

    pub fn pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// The signing request, DER. Who its owner is does not stand in it: the signer knows.
    pub fn request(&self) -> Result<Vec<u8>, TlsError> {
        let request = CertificateParams::default().serialize_request(&self.0)?;
        Ok(request.der().to_vec())
    }

    /// The identity that the certificate makes of the key.
    pub fn certified(self, ca_pem: &str, cert_pem: &str) -> Result<Identity, TlsError> {
        Identity::from_pem(ca_pem, cert_pem, &self.pem())
    }
}
