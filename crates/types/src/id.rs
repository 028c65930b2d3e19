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

#[cfg(test)]
mod tests {
    use super::*;

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
