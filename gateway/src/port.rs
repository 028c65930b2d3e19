//! The address a gateway listens on: resolved and taken early, open when there is something to serve.

use std::io;
use std::net::SocketAddr;

use anyhow::Context as _;
use mosec_wire::port;
use tokio::net::TcpListener;

/// A port that is taken and does not listen yet: clients are refused by the kernel until it does.
pub struct Port(port::Port);

impl Port {
    /// Takes `port` on `address`: an IPv4 or IPv6 address, in brackets or not, or a host's name.
    ///
    /// Errors: the name does not resolve, or the port is in use.
    pub async fn take(address: &str, port: u16) -> anyhow::Result<Self> {
        let host = address
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(address);
        let found = tokio::net::lookup_host((host, port))
            .await
            .with_context(|| format!("the address {address:?} does not resolve"))?;
        let mut candidates: Vec<_> = found.collect();
        // A name with addresses of both kinds, such as localhost: clients of either try IPv4 in the end.
        candidates.sort_by_key(SocketAddr::is_ipv6);
        let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "the name has no address");
        for candidate in candidates {
            match port::Port::take(candidate) {
                Ok(port) => return Ok(Self(port)),
                Err(error) => last = error,
            }
        }
        Err(last).with_context(|| format!("cannot listen on {address}:{port}"))
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.0.local_addr()
    }

    /// Opens the port.
    pub(crate) fn listen(self) -> io::Result<TcpListener> {
        self.0.listen()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_and_both_kinds_of_addresses_are_taken() {
        for (address, expected) in [
            ("127.0.0.1", "127.0.0.1"),
            ("localhost", "127.0.0.1"),
            ("0.0.0.0", "0.0.0.0"),
            ("::1", "::1"),
            ("[::1]", "::1"),
            ("::", "::"),
        ] {
            let port = Port::take(address, 0).await.unwrap();
            assert_eq!(port.local_addr().ip().to_string(), expected, "{address}");
        }
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_is_named() {
        let Err(error) = Port::take("no such host", 8000).await else {
            panic!("it resolved");
        };
        assert_eq!(error.to_string(), "the address \"no such host\" does not resolve");
    }
}
