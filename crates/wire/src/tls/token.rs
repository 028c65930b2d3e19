//! Tokens with which processes and people join a cluster.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use rand::Rng as _;
use ring::digest;

use super::hex::{from_hex, to_hex};
use super::{Fingerprint, TlsError, files};

/// What a token begins with, so that scanners for leaked secrets find it.
const PREFIX: &str = "mosec1";

/// A right to join, as it is handed to who is to join.
///
/// Text: `mosec1_<id>_<secret>_<fingerprint>`. The fingerprint is the authority's, so that the joiner knows whom it talks
/// to before it shows the secret. The cluster keeps but a hash of the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: String,
    secret: [u8; 32],
    fingerprint: Fingerprint,
}

impl JoinToken {
    /// Makes a token at random.
    pub fn draw(fingerprint: Fingerprint) -> Self {
        let mut rng = rand::rng();
        Self {
            id: to_hex(&rng.random::<[u8; 6]>()),
            secret: rng.random(),
            fingerprint,
        }
    }

    /// Reads a token, or `@` and the path of a file with one: arguments are there for every user of a host to read.
    pub fn from_argument(text: &str) -> Result<Self, TlsError> {
        match text.strip_prefix('@') {
            Some(path) => files::read(Path::new(path))?.parse(),
            None => text.parse(),
        }
    }

    /// What people call it by.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The secret as it goes to the control plane.
    pub fn secret(&self) -> String {
        to_hex(&self.secret)
    }

    /// What the cluster keeps of the secret.
    pub fn secret_hash(&self) -> String {
        hash_secret(&self.id, &self.secret())
    }
}

/// What the cluster keeps of a token's secret. Drawn from 2^256, the secret needs no slow hash.
pub fn hash_secret(id: &str, secret: &str) -> String {
    let digest = digest::digest(
        &digest::SHA256,
        format!("mosec join token {id} {secret}").as_bytes(),
    );
    to_hex(digest.as_ref())
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}_{}_{}_{}", self.id, self.secret(), self.fingerprint)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("JoinToken").field(&self.id).finish() // the secret stays out of logs
    }
}

impl FromStr for JoinToken {
    type Err = TlsError;

    fn from_str(text: &str) -> Result<Self, TlsError> {
        let bad = |reason| TlsError::unusable("token", reason);
        let parts: Vec<_> = text.trim().split('_').collect();
        let [PREFIX, id, secret, fingerprint] = parts[..] else {
            return Err(bad("expected mosec1_<id>_<secret>_<fingerprint>"));
        };
        if from_hex(id).is_none_or(|id| id.len() != 6) {
            return Err(bad("its id is not 12 hexadecimal digits: is it whole?"));
        }
        let secret = from_hex(secret).and_then(|secret| secret.try_into().ok());
        Ok(Self {
            id: id.to_owned(),
            secret: secret.ok_or_else(|| bad("its secret is not 64 hexadecimal digits: is it whole?"))?,
            fingerprint: fingerprint
                .parse()
                .map_err(|_| bad("its fingerprint is not 64 hexadecimal digits: is it whole?"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::ClusterCa;

    #[test]
    fn a_token_survives_its_text_and_keeps_its_secret() {
        let ca = ClusterCa::create().unwrap();
        let token = JoinToken::draw(Fingerprint::of_pem(ca.ca_pem()).unwrap());
        let text = token.to_string();
        assert_eq!(text.parse::<JoinToken>().unwrap(), token);
        assert_eq!(format!(" {text}\n").parse::<JoinToken>().unwrap(), token);
        assert!(!format!("{token:?}").contains(&token.secret()));
        assert_ne!(token.secret_hash(), token.secret());
        for broken in [
            &text[1..],
            &text[..text.len() - 1],
            "",
            "mosec1_1_2_3",
            &text[..40],
        ] {
            let error = broken.parse::<JoinToken>().unwrap_err().to_string();
            assert!(error.starts_with("token is not usable: "), "{error}");
        }
    }
}
