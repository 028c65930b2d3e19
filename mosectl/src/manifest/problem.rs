//! What is wrong with a manifest, in words that lead to the place.

use std::fmt;

use super::yaml::Place;

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line and column, both from one, where known.
    pub place: Option<(u64, u64)>,
    /// The key at fault, as `stages[1].replicas`; empty for the file as a whole.
    pub key: String,
    pub message: String,
}

/// Why a manifest cannot be deployed: every mistake found, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ManifestError {
    pub file: String,
    pub problems: Vec<Problem>,
}

impl ManifestError {
    pub(super) fn new(file: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.place);
        Self {
            file: file.to_owned(),
            problems,
        }
    }

    pub(super) fn one(file: &str, key: &str, place: Place, message: impl Into<String>) -> Self {
        let problem = Problem {
            place,
            key: key.to_owned(),
            message: message.into(),
        };
        Self::new(file, vec![problem])
    }
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let Problem { place, key, message } = problem;
            if index > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&self.file)?;
            if let Some((line, column)) = place {
                write!(f, ":{line}:{column}")?;
            }
            if !key.is_empty() {
                write!(f, ": {key}")?;
            }
            write!(f, ": {message}")?;
        }
        Ok(())
    }
}
