//! Channels to control-plane nodes: addresses, TLS and the time after which a silent peer counts as gone.

use std::time::Duration;

use tonic::transport::{self, Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::tls::{Identity, Role};

/// How long a TCP and TLS handshake may take. Beyond it another node answers sooner.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A peer that answers no HTTP/2 ping for 3 s, asked every 5 s, is gone: streams end within 8 s without traffic.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

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
    Tls {
        address: String,
        source: tonic::transport::Error,
    },
}

/// Makes a channel to `address` (`host:port`) that connects upon its first use, and again after each loss.
///
/// Plain text without an `identity`.
pub fn channel(address: &str, identity: Option<&Identity>) -> Result<Channel, EndpointError> {
    let scheme = if identity.is_some() { "https" } else { "http" };
    let invalid = |source| EndpointError::Address {
        address: address.to_owned(),
        source,
    };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .map_err(invalid)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    if let Some(identity) = identity {
        let config = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(identity.ca_pem()))
            .identity(transport::Identity::from_pem(
                identity.cert_pem(),
                identity.key_pem(),
            ))
            .domain_name(Role::ControlPlane.dns_name());
        let invalid = |source| EndpointError::Tls {
            address: address.to_owned(),
            source,
        };
        endpoint = endpoint.tls_config(config).map_err(invalid)?;
    }
    Ok(endpoint.connect_lazy())
}
