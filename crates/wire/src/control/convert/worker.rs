//! What nodes report about their workers.

use mosec_types::worker::trim_error;
use mosec_types::{ReplicaId, Revision, StageKey, WorkerState, WorkerStatus};

use super::{ConvertError, stage_index};
use crate::control::proto;

impl From<&WorkerStatus> for proto::WorkerStatus {
    fn from(worker: &WorkerStatus) -> Self {
        let state = match worker.state {
            WorkerState::Starting => proto::WorkerState::Starting,
            WorkerState::Ready => proto::WorkerState::Ready,
            WorkerState::BackOff => proto::WorkerState::BackOff,
            WorkerState::Draining => proto::WorkerState::Draining,
            WorkerState::Stopped => proto::WorkerState::Stopped,
        };
        Self {
            revision: worker.stage.revision.0,
            stage: worker.stage.stage.0.into(),
            replica: worker.replica.0,
            state: state.into(),
            pid: worker.pid,
            restarts: worker.restarts,
            failed_starts: worker.failed_starts,
            last_error: worker.last_error.as_deref().map(trim_error),
        }
    }
}

impl TryFrom<proto::WorkerStatus> for WorkerStatus {
    type Error = ConvertError;

    fn try_from(message: proto::WorkerStatus) -> Result<Self, ConvertError> {
        let state = match proto::WorkerState::try_from(message.state) {
            Ok(proto::WorkerState::Starting) => WorkerState::Starting,
            Ok(proto::WorkerState::Ready) => WorkerState::Ready,
            Ok(proto::WorkerState::BackOff) => WorkerState::BackOff,
            Ok(proto::WorkerState::Draining) => WorkerState::Draining,
            Ok(proto::WorkerState::Stopped) => WorkerState::Stopped,
            Ok(proto::WorkerState::Unspecified) => return Err(ConvertError::missing("state")),
            Err(_) => return Err(ConvertError::unknown("state", message.state)),
        };
        Ok(Self {
            stage: StageKey {
                revision: Revision(message.revision),
                stage: stage_index("stage", message.stage)?,
            },
            replica: ReplicaId(message.replica),
            state,
            pid: message.pid,
            restarts: message.restarts,
            failed_starts: message.failed_starts,
            last_error: message.last_error.map(|text| trim_error(&text)),
        })
    }
}
