//! Identifiers. Numbers and names that must not be mixed up are types of their own.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// Immutable version of a pipeline: the index of the log entry that committed it, hence unique in a cluster.
    Revision(u64)
);
number!(
    /// Position of a stage in its pipeline, counted from zero.
    StageIndex(u16)
);
number!(
    /// Identifies one client call from the gateway to the last worker and back.
    RequestId(u64)
);
number!(
    /// Counts the restarts of a node; a larger one replaces every smaller one.
    Incarnation(u64)
);
number!(
    /// Counts the attaches of a worker's shared memory; anything of a stale generation is refused.
    Generation(u32)
);
number!(
    /// Number of a replica of a stage, from one, unique within the stage across all nodes. Python's `worker_id`.
    ReplicaId(u32)
);

/// One stage of one revision: enough to find its queue and its workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StageKey {
    pub revision: Revision,
    pub stage: StageIndex,
}

impl fmt::Display for StageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}/{}", self.revision, self.stage)
    }
}

/// Longest name of a node or pipeline: a DNS label, as names end up in certificates and host names.
pub const MAX_NAME_BYTES: usize = 63;

/// Why a text is not a valid name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid {kind} {text:?}: expected 1 to {MAX_NAME_BYTES} of a-z, 0-9, '-' or '_', starting with a letter or digit"
)]
pub struct InvalidName {
    kind: &'static str,
    text: String,
}

fn check_name(kind: &'static str, text: &str) -> Result<(), InvalidName> {
    let valid = !text.is_empty()
        && text.len() <= MAX_NAME_BYTES
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
    if valid {
        Ok(())
    } else {
        Err(InvalidName {
            kind,
            text: text.chars().take(80).collect(),
        })
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks `text` and makes it a name.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
                let text = text.into();
                check_name($kind, &text)?;
                Ok(Self(text))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }
    };
}

name!(
    /// Name of a node, unique in its cluster.
    NodeId,
    "node name"
);
name!(
    /// Name of a pipeline, unique in its cluster.
    PipelineName,
    "pipeline name"
);

/// Names a code bundle by its content: the SHA-256 of the archive as it is stored and sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BundleId([u8; 32]);

/// Why a text is not a bundle's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid bundle id {text:?}: expected the 64 hexadecimal digits of a SHA-256, in lower case")]
pub struct InvalidBundleId {
    text: String,
}

impl BundleId {
    /// The id of what has this digest.
    pub fn from_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The first digits, for people: as many as Git shows at most.
    pub fn short(&self) -> String {
        self.to_string().chars().take(12).collect()
    }
}

impl fmt::Display for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BundleId({self})")
    }
}

impl FromStr for BundleId {
    type Err = InvalidBundleId;

    fn from_str(text: &str) -> Result<Self, InvalidBundleId> {
        let invalid = || InvalidBundleId {
            text: text.chars().take(80).collect(),
        };
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(invalid()),
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != 32 || !rest.is_empty() {
            return Err(invalid());
        }
        let mut digest = [0; 32];
        for (byte, &[high, low]) in digest.iter_mut().zip(pairs) {
            *byte = digit(high)? << 4 | digit(low)?;
        }
        Ok(Self(digest))
    }
}

impl TryFrom<String> for BundleId {
    type Error = InvalidBundleId;

    fn try_from(text: String) -> Result<Self, InvalidBundleId> {
        text.parse()
    }
}

impl From<BundleId> for String {
    fn from(id: BundleId) -> String {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_id_is_the_text_of_a_digest() {
        let text = "00ff".repeat(16);
        let id: BundleId = text.parse().unwrap();
        assert_eq!((id.to_string(), id.short()), (text, "00ff00ff00ff".into()));
        for bad in [
            "",
            "00ff",
            &"00FF".repeat(16),
            &"0".repeat(65),
            &"../x".repeat(16),
        ] {
            assert!(bad.parse::<BundleId>().is_err(), "{bad:?} should be refused");
        }
        assert!(serde_json::from_str::<BundleId>("\"zz\"").is_err());
    }

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "ocr", "file_type-2", "0a", &"x".repeat(63)] {
            assert_eq!(NodeId::new(good).map(String::from), Ok(good.to_owned()));
        }
        for bad in ["", "-a", "_a", "A", "a.b", "a b", "ä", &"x".repeat(64)] {
            assert!(PipelineName::new(bad).is_err(), "{bad:?} should be refused");
        }
    }

    #[test]
    fn names_are_checked_when_deserialized() {
        let error = serde_json::from_str::<NodeId>(r#""A b""#)
            .unwrap_err()
            .to_string();
        assert!(error.contains("invalid node name \"A b\""), "{error}");
    }
}
