//! Who may talk to whom: the cluster's certificate authority, the identities it issues, and TLS set-ups from them.
//!
//! Every link is TLS 1.3 with both sides authenticated. A certificate carries its owner's [`Role`] twice: as the DNS
//! name `<role>.mosec`, which a client checks as the server's name whatever address it dialled, and with the owner's
//! name as the URI `mosec://<role>/<name>`, which both sides read as [`PeerIdentity`].
//! Certificates are short-lived and replaced in use ([`LiveIdentity`]); the first one comes for a [`JoinToken`].
//! The crypto provider is always passed explicitly: nothing here needs or sets the process's default.

mod ca;
mod config;
mod files;
mod hex;
mod identity;
mod live;
mod peer;
mod pinned;
mod request;
mod token;
mod validity;

use std::io;
use std::path::PathBuf;

use mosec_types::id::InvalidName;

pub use ca::{ClusterCa, LEAF_LIFETIME, SigningRequest};
pub use config::{client_config, joining_config, open_server_config, server_config};
pub use files::kept_secret;
pub use identity::Identity;
pub use live::LiveIdentity;
pub use peer::{PeerIdentity, Role, UnknownRole};
pub use pinned::Fingerprint;
pub use request::PendingKey;
pub use token::{JoinToken, hash_secret};
pub use validity::{Due, Validity};

/// Why an identity or an authority could not be made, stored or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    #[error("certificate could not be made")]
    Issue(#[from] rcgen::Error),
    #[error("TLS could not be set up")]
    Setup(#[from] rustls::Error),
    #[error("{what} is not usable: {reason}")]
    Unusable { what: &'static str, reason: String },
    #[error(transparent)]
    Name(#[from] InvalidName),
    #[error("certificate names no peer: {0}")]
    NoPeer(String),
    #[error("{}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the identity in {} is of role {found}, expected {expected}", path.display())]
    Role {
        path: PathBuf,
        found: &'static str,
        expected: &'static str,
    },
}

impl TlsError {
    fn unusable(what: &'static str, reason: impl ToString) -> Self {
        Self::Unusable {
            what,
            reason: reason.to_string(),
        }
    }
}

#[cfg(test)]
mod tests;
