//! Hot path. The data plane's frames, version 1.

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a frame")]
pub struct FrameError;
