//! In which formats commands and state are written, and which of them this build can work with.
//!
//! A format is a number. It is raised whenever a build writes something that an earlier one would not read, or would
//! read and drop: its state would then differ from the others'. Which format is in force is part of the state: a command
//! raises it, which the leader proposes when every member has said that it supports the new one (`raft::raise`). Until
//! then a member writes what the format in force has, whatever more it could.
//!
//! Each record on disk and on the wire begins with the lowest format that has all that is in it. So a build that is too
//! old for what it reads says so, instead of guessing, and never takes part with a state of its own.
//!
//! A format is frozen with the first release that has it. Until then it may grow: nothing but builds between releases has
//! it, and the members of a cluster are then of one such build. What such a build has written, only itself need read.
//!
//! A change to what is logged, step by step:
//! 1. the constant below of the format that no release has yet says what is added; where all are released, a new one, one
//!    above the last, with which [`Formats::BUILD`] ends;
//! 2. a new command or field gets its line in [`Command::format`];
//! 3. what the cluster can do without is left out by [`Command::fitted`] until the format is in force; a command with
//!    anything else is refused in words by whoever proposes it;
//! 4. new fields of the state have a serde default, and appear only through such commands.
//!
//! The meaning of what is released is never changed in place, and nothing is removed before the lowest format of all builds in use has gone
//! past it.

use std::fmt;

use mosec_types::{PipelineSpec, StageSpec};
use serde::{Deserialize, Serialize};

use super::command::Command;

/// Version of this build.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");

/// A format of commands and state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Format(pub u8);

/// The first one, which is that of a state that does not say.
pub const FIRST: Format = Format(1);
/// What came with the second, which no release has yet:
/// - nodes say which build they run;
/// - the audit trail has who changes the members;
/// - stages are kept apart (`spread` and `anti_affinity`), and a rollout has a `progress_deadline`;
/// - a rollback has no canary (`at_once`);
/// - what a newer revision took the place of on its way is kept as superseded in the history, and not as failed.
pub const SECOND: Format = Format(2);

impl Default for Format {
    fn default() -> Self {
        FIRST
    }
}

impl Format {
    pub(super) fn is_first(&self) -> bool {
        *self == FIRST
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "format {}", self.0)
    }
}

/// Formats that a build can work with: from `min` to `max`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Formats {
    /// The lowest that may be in force.
    pub min: Format,
    pub max: Format,
}

impl Formats {
    /// What this build can work with.
    pub const BUILD: Self = Self {
        min: FIRST,
        max: SECOND,
    };

    /// Whether this build can work with a state of which `in_force` is in force.
    pub fn check(self, in_force: Format) -> Result<(), FormatError> {
        if in_force > self.max {
            Err(FormatError::TooNew {
                found: in_force,
                supported: self,
            })
        } else if in_force < self.min {
            Err(FormatError::TooOld {
                found: in_force,
                supported: self,
            })
        } else {
            Ok(())
        }
    }

    /// Whether this build can read what is of `format`. Not so for those above; what is below stays readable.
    pub fn can_read(self, format: Format) -> Result<(), FormatError> {
        self.check(format.max(self.min))
    }
}

impl fmt::Display for Formats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { min, max } if min == max => write!(f, "{min} alone"),
            Self { min, max } => write!(f, "formats {} to {}", min.0, max.0),
        }
    }
}

/// Why a build cannot work with what it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error(
        "the cluster is at {found}, and this build ({BUILD}) supports {supported}: start this member with the build \
         that the other members run, or a later one"
    )]
    TooNew { found: Format, supported: Formats },
    #[error(
        "the cluster is at {found}, and this build ({BUILD}) supports {supported}: upgrade all members to a build in \
         between first"
    )]
    TooOld { found: Format, supported: Formats },
}

/// Whether a specification has what came with [`SECOND`].
fn spec_says_more(spec: &PipelineSpec) -> bool {
    let keeps_apart = |stage: &StageSpec| !stage.spread.is_empty() || !stage.anti_affinity.is_empty();
    spec.rollout.progress_deadline.is_some() || spec.stages.iter().any(keeps_apart)
}

impl Command {
    /// The lowest format that has this command with all that it says.
    ///
    /// Exhaustive, so that nothing new is logged without a thought about members that do not know it.
    pub fn format(&self) -> Format {
        match self {
            Self::RegisterNode { build: Some(_), .. }
            | Self::AddMember { .. }
            | Self::RemoveMember { .. } => SECOND,
            Self::Deploy { spec, .. } if spec_says_more(spec) => SECOND,
            Self::Rollback { at_once: true, .. } => SECOND,
            // Whoever reads it must know what comes after it.
            Self::RaiseFormat { to } => *to,
            Self::RegisterNode { build: None, .. }
            | Self::MarkNode { .. }
            | Self::Deploy { .. }
            | Self::Rollback { at_once: false, .. }
            | Self::SetPlacement { .. }
            | Self::Advance { .. }
            | Self::SetPhase { .. }
            | Self::Promote { .. }
            | Self::Abort { .. }
            | Self::Scale { .. }
            | Self::SetTraffic { .. }
            | Self::DrainNode { .. }
            | Self::RemoveNode { .. }
            | Self::Delete { .. }
            | Self::CreateToken { .. }
            | Self::UseToken { .. }
            | Self::RevokeToken { .. } => FIRST,
        }
    }

    /// The command without what `in_force` does not have, where the cluster can do without it.
    pub fn fitted(mut self, in_force: Format) -> Self {
        if in_force >= SECOND {
            return self;
        }
        match &mut self {
            Self::RegisterNode { build, .. } => *build = None,
            // Going back as earlier builds do, with the canary that the specification has, is better than not at all:
            // it can be promoted.
            Self::Rollback { at_once, .. } => *at_once = false,
            _ => {}
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEXT: Formats = Formats {
        min: Format(2),
        max: Format(3),
    };

    #[test]
    fn a_build_works_with_its_own_range() {
        assert_eq!(NEXT.check(Format(2)), Ok(()));
        assert_eq!(NEXT.check(Format(3)), Ok(()));
        assert_eq!(NEXT.can_read(Format(1)), Ok(()), "entries stay as they are");
        let text = NEXT.check(Format(4)).unwrap_err().to_string();
        let start = "the cluster is at format 4, and this build (";
        assert!(
            text.starts_with(start) && text.contains("supports formats 2 to 3"),
            "{text}"
        );
        assert_eq!(NEXT.can_read(Format(4)).unwrap_err().to_string(), text);
        let text = NEXT.check(Format(1)).unwrap_err().to_string();
        assert!(
            text.contains("upgrade all members to a build in between"),
            "{text}"
        );
    }

    #[test]
    fn what_a_specification_says_more_needs_a_later_format() {
        use crate::fixtures::{pipeline, stage};
        let deploy = |spec| Command::Deploy {
            spec: std::sync::Arc::new(spec),
            healthy_deadline_ms: 1,
            origin: Default::default(),
        };
        let plain = pipeline("p", vec![stage("A", 1), stage("B", 1)]);
        assert_eq!(deploy(plain.clone()).format(), FIRST);
        let mut apart = plain.clone();
        apart.stages[1].anti_affinity = vec![mosec_types::StageIndex(0)];
        assert_eq!(deploy(apart).format(), SECOND);
        let mut patient = plain;
        patient.rollout.progress_deadline = Some(std::time::Duration::from_secs(1));
        assert_eq!(deploy(patient).format(), SECOND);
    }

    #[test]
    fn a_rollback_is_as_earlier_builds_know_it_until_all_know_more() {
        let back = Command::Rollback {
            pipeline: mosec_types::PipelineName::new("p").unwrap(),
            to: None,
            healthy_deadline_ms: 1,
            origin: Default::default(),
            at_once: true,
        };
        assert_eq!(back.format(), SECOND);
        assert_eq!(back.clone().fitted(SECOND), back);
        let fitted = back.fitted(FIRST);
        assert_eq!(fitted.format(), FIRST);
        let text = serde_json::to_string(&fitted).unwrap();
        assert!(!text.contains("at_once"), "{text}");
        assert_eq!(serde_json::from_str::<Command>(&text).unwrap(), fitted);
    }

    #[test]
    fn a_command_is_fitted_to_the_format_in_force() {
        let registration = Command::RegisterNode {
            id: crate::fixtures::node_id("a"),
            incarnation: mosec_types::Incarnation(1),
            address: "a:1".into(),
            labels: Default::default(),
            capacity: Default::default(),
            build: Some("9.9.9".into()),
        };
        assert_eq!(registration.format(), SECOND);
        assert_eq!(registration.clone().fitted(SECOND), registration);
        let fitted = registration.fitted(FIRST);
        assert_eq!(fitted.format(), FIRST);
        // As earlier builds write it, byte for byte.
        let text = serde_json::to_string(&fitted).unwrap();
        assert!(!text.contains("build"), "{text}");
    }
}
