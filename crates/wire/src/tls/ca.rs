//! The cluster's certificate authority.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use mosec_types::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKey, PublicKeyData, SanType,
};
use ring::digest;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};

use super::hex::to_hex;
use super::{Identity, PeerIdentity, Role, TlsError, Validity, files};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The authority outlives any cluster that does not plan its replacement.
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * DAY.as_secs());
/// How long certificates are good that are issued by hand, and that nobody renews.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(365 * DAY.as_secs());

const CERT_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca-key.pem";

/// Signs the certificates of one cluster.
///
/// Whoever holds it can become any peer: it stays with the control plane or an operator.
pub struct ClusterCa {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl ClusterCa {
    /// Makes a new authority.
    pub fn create() -> Result<Self, TlsError> {
        let key = KeyPair::generate()?;
        let certificate_pem = params().self_signed(&key)?.pem();
        Ok(Self {
            certificate_pem,
            issuer: Issuer::new(params(), key),
        })
    }

    /// Reads an authority back.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, TlsError> {
        let key = KeyPair::from_pem(key_pem)?;
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|error| TlsError::unusable("authority's certificate", error))?;
        check_pair(&der, &key)?;
        // What this authority signs names its issuer, so the parameters have to be those it was made with.
        Ok(Self {
            certificate_pem: certificate_pem.to_owned(),
            issuer: Issuer::new(params(), key),
        })
    }

    /// Reads the authority that [`ClusterCa::save`] wrote into `dir`.
    pub fn load(dir: &Path) -> Result<Self, TlsError> {
        Self::from_pem(
            &files::read(&dir.join(CERT_FILE))?,
            &files::read(&dir.join(KEY_FILE))?,
        )
    }

    /// Writes the authority into `dir`, the key readable by its owner only.
    ///
    /// Never replaces another authority: that would cut off every peer that has a certificate of the old one.
    pub fn save(&self, dir: &Path) -> Result<(), TlsError> {
        files::create_dir(dir)?;
        let key_path = dir.join(KEY_FILE);
        if key_path.exists() && files::read(&key_path)? != self.key_pem() {
            return Err(TlsError::unusable(
                "directory",
                format!("{} belongs to another authority", key_path.display()),
            ));
        }
        files::write(&key_path, files::SECRET, &self.key_pem())?;
        files::write(&dir.join(CERT_FILE), files::PUBLIC, &self.certificate_pem)
    }

    /// Issues a certificate and its key, for use as client and as server, good for [`LEAF_LIFETIME`].
    ///
    /// `name`: unique among the peers of `role`; the node's name for an agent.
    pub fn issue(&self, role: Role, name: &str) -> Result<Identity, TlsError> {
        self.issue_for(role, name, Validity::starting(SystemTime::now(), LEAF_LIFETIME))
    }

    /// As [`ClusterCa::issue`], good for another time.
    pub fn issue_for(&self, role: Role, name: &str, validity: Validity) -> Result<Identity, TlsError> {
        let peer = PeerIdentity {
            role,
            name: NodeId::new(name)?,
        };
        let key = KeyPair::generate()?;
        let certificate = leaf_params(&peer, validity)?.signed_by(&key, &self.issuer)?;
        Identity::from_pem(&self.certificate_pem, &certificate.pem(), &key.serialize_pem())
    }

    /// Certifies the key of a request as `peer`'s; gives the certificate as PEM.
    pub fn sign(
        &self,
        request: &SigningRequest,
        peer: &PeerIdentity,
        validity: Validity,
    ) -> Result<String, TlsError> {
        let certificate = leaf_params(peer, validity)?.signed_by(&request.key, &self.issuer)?;
        Ok(certificate.pem())
    }

    /// The authority's certificate, which every peer trusts.
    pub fn ca_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The authority's private key.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }
}

impl fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterCa").finish_non_exhaustive() // the key stays out of logs
    }
}

/// A request to certify a key, whose sender has proven to have the private one.
#[derive(Debug)]
pub struct SigningRequest {
    key: PublicKey,
}

impl SigningRequest {
    /// Reads a request and checks its signature. What it asks for beside the key is not looked at.
    pub fn from_der(der: &[u8]) -> Result<Self, TlsError> {
        let parsed = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
            .map_err(|error| TlsError::unusable("signing request", error))?;
        Ok(Self {
            key: parsed.public_key,
        })
    }

    /// SHA-256 of the key, which tells it from others.
    pub fn key_hash(&self) -> String {
        to_hex(digest::digest(&digest::SHA256, &self.key.subject_public_key_info()).as_ref())
    }
}

fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "mosec cluster CA");
    set_validity(&mut params, Validity::starting(SystemTime::now(), CA_LIFETIME));
    params
}

fn leaf_params(peer: &PeerIdentity, validity: Validity) -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, peer.to_string());
    params.subject_alt_names = vec![
        SanType::DnsName(peer.role.dns_name().try_into()?),
        SanType::URI(peer.uri().try_into()?),
    ];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, validity);
    Ok(params)
}

fn set_validity(params: &mut CertificateParams, validity: Validity) {
    params.not_before = validity.not_before.into();
    params.not_after = validity.not_after.into();
}

/// Checks that certificate and key belong together.
fn check_pair(certificate: &CertificateDer<'_>, key: &KeyPair) -> Result<(), TlsError> {
    let anchor = webpki::anchor_from_trusted_cert(certificate)
        .map_err(|error| TlsError::unusable("authority's certificate", error))?;
    // The anchor has the contents of the sequence that the key has whole.
    if key
        .subject_public_key_info()
        .ends_with(&anchor.subject_public_key_info)
    {
        Ok(())
    } else {
        Err(TlsError::unusable(
            "authority's key",
            "it is not the certificate's",
        ))
    }
}
