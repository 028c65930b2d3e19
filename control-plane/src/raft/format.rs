//! Which formats of commands and state a build can work with.

use std::fmt;

use mosec_wire::control::raft::FormatRange;

/// Version of this build.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");

/// A range of formats, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Formats {
    pub min: u32,
    pub max: u32,
}

impl Formats {
    /// What this build can work with.
    pub const BUILD: Self = Self { min: 1, max: 1 };
}

impl fmt::Display for Formats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { min, max } if min == max => write!(f, "format {min}"),
            Self { min, max } => write!(f, "formats {min} to {max}"),
        }
    }
}

impl From<Formats> for FormatRange {
    fn from(Formats { min, max }: Formats) -> Self {
        Self { min, max }
    }
}
