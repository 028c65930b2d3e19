//! TLS set-ups from identities: TLS 1.3, both sides authenticated, no resumption.
//!
//! Links live long, so a resumed handshake would save next to nothing and would skip the check of the certificate.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::live::Introducing;
use super::pinned::Pinned;
use super::{Fingerprint, LiveIdentity, PeerIdentity, Role, TlsError};

/// For servers: demands a certificate of the own authority and of one of the roles `allowed`.
pub fn server_config(
    identity: impl Into<LiveIdentity>,
    allowed: &[Role],
    alpn: &[u8],
) -> Result<ServerConfig, TlsError> {
    let identity = identity.into();
    let roots = Arc::new(identity.current().roots()?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|error| TlsError::unusable("authority's certificate", error))?;
    let verifier = Arc::new(RoleVerifier {
        inner: verifier,
        allowed: allowed.to_vec(),
    });
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(identity));
    limit(&mut config, alpn);
    Ok(config)
}

/// For the server that processes join at: clients may have no certificate, which it is up to the server to act on, and
/// those with a certificate need one of the own authority. Shows the authority to those that know its fingerprint.
pub fn open_server_config(identity: impl Into<LiveIdentity>, alpn: &[u8]) -> Result<ServerConfig, TlsError> {
    let identity = identity.into();
    let roots = Arc::new(identity.current().roots()?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TlsError::unusable("authority's certificate", error))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Introducing(identity)));
    limit(&mut config, alpn);
    Ok(config)
}

fn limit(config: &mut ServerConfig, alpn: &[u8]) {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
}

/// For clients: checks the server against the own authority and the server name it is given for each connection,
/// [`Role::dns_name`].
pub fn client_config(identity: impl Into<LiveIdentity>, alpn: &[u8]) -> Result<ClientConfig, TlsError> {
    let identity = identity.into();
    let roots = identity.current().roots()?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::new(identity));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// For a client that has no certificate yet and knows the authority's fingerprint alone.
pub fn joining_config(fingerprint: Fingerprint, alpn: &[u8]) -> Result<ClientConfig, TlsError> {
    let pinned = Pinned {
        fingerprint,
        provider: provider(),
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous() // the verifier checks all that the ordinary one does, once it has found the authority
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Refuses, in the handshake, peers whose role has no business at this server.
#[derive(Debug)]
struct RoleVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    allowed: Vec<Role>,
}

impl ClientCertVerifier for RoleVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        match PeerIdentity::from_certificate(end_entity) {
            Ok(peer) if self.allowed.contains(&peer.role) => Ok(verified),
            _ => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
