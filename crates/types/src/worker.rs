//! What a node reports about its workers.

use serde::{Deserialize, Serialize};

use crate::{ReplicaId, StageKey};

/// Where a worker process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// The process runs and has not finished its warm-up.
    Starting,
    /// Warmed up and answering.
    Ready,
    /// Ended; the next start waits for its back-off.
    BackOff,
    /// Finishing what it has; no new batch.
    Draining,
    /// Ended for good.
    Stopped,
}

impl WorkerState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::BackOff => "back-off",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }
}

/// Longest error text a worker's status carries; a traceback's end says the most, so the start is cut.
pub const MAX_ERROR_BYTES: usize = 16 * 1024;

/// A worker as its node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    pub stage: StageKey,
    pub replica: ReplicaId,
    pub state: WorkerState,
    pub pid: Option<u32>,
    /// Starts after the first.
    pub restarts: u32,
    /// Starts that failed in a row, zero once ready.
    pub failed_starts: u32,
    /// Why the last process ended or could not start: a Python traceback where there is one.
    pub last_error: Option<String>,
}

/// Cuts `text` to its last [`MAX_ERROR_BYTES`].
pub fn trim_error(text: &str) -> String {
    if text.len() <= MAX_ERROR_BYTES {
        return text.to_owned();
    }
    let start = (text.len() - MAX_ERROR_BYTES..text.len())
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(text.len());
    format!("...{}", &text[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_end() {
        assert_eq!(trim_error("short"), "short");
        let long = format!("{}é the end", "ä".repeat(MAX_ERROR_BYTES));
        let trimmed = trim_error(&long);
        assert!(trimmed.len() <= MAX_ERROR_BYTES + 3 && trimmed.ends_with("é the end"));
    }
}
