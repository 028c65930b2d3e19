//! Checked conversions between protobuf messages and the shared types.
//!
//! Towards protobuf they cannot fail. From it, a missing message, an unknown enum or a number out of range is an
//! error that names the field.

mod delta;
mod reach;
mod resources;
mod rollout;
mod spec;
mod topology;
mod worker;

use std::fmt;

pub(super) use self::delta::delta;

/// Why a message does not stand for a value of the shared types.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ConvertError {
    /// The field at fault, as `spec.stages[1].delivery`.
    pub field: String,
    pub problem: String,
}

impl ConvertError {
    fn new(field: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self {
            field: field.into(),
            problem: problem.to_string(),
        }
    }

    fn missing(field: &str) -> Self {
        Self::new(field, "is missing")
    }

    fn unknown(field: &str, number: i32) -> Self {
        Self::new(field, format_args!("unknown value {number}"))
    }

    /// Puts `parent` before the field's path.
    fn within(mut self, parent: impl fmt::Display) -> Self {
        self.field = format!("{parent}.{}", self.field);
        self
    }
}

/// Converts each item, naming its position in `field` on failure.
fn each<T, U>(field: &str, items: Vec<T>) -> Result<Vec<U>, ConvertError>
where
    U: TryFrom<T, Error = ConvertError>,
{
    let convert = |(index, item)| {
        U::try_from(item).map_err(|e: ConvertError| e.within(format_args!("{field}[{index}]")))
    };
    items.into_iter().enumerate().map(convert).collect()
}

/// Checks a name, naming `field` on failure.
fn name<T>(field: &str, text: String) -> Result<T, ConvertError>
where
    T: TryFrom<String>,
    T::Error: fmt::Display,
{
    T::try_from(text).map_err(|e| ConvertError::new(field, e))
}

/// Checks that `number` is a stage's position.
fn stage_index(field: &str, number: u32) -> Result<mosec_types::StageIndex, ConvertError> {
    u16::try_from(number)
        .map(mosec_types::StageIndex)
        .map_err(|_| ConvertError::new(field, format_args!("stage {number} is out of range")))
}

fn to_millis(duration: std::time::Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
