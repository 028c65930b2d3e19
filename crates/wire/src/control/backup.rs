//! Backups of the control plane.

use std::time::Duration;

use bytes::Bytes;
use tonic::Streaming;

use super::client::{ControlClient, ControlError};
use super::proto;

/// How long a member may take to open the stream: a turn among the transfers, and a majority's answer.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
const OPEN_CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the next bytes may take: a bundle may have to be fetched from another member first.
const NEXT_TIMEOUT: Duration = Duration::from_secs(200);

/// A backup that arrives, part by part.
pub struct BackupStream {
    chunks: Streaming<proto::BackupChunk>,
}

impl ControlClient {
    /// Has the leader make a backup. What arrives is as long as the stream has not failed, and whole when it has ended and
    /// its checksums match.
    pub async fn backup(&self) -> Result<BackupStream, ControlError> {
        let limits = (OPEN_TIMEOUT, OPEN_CALL_TIMEOUT);
        let request = proto::BackupRequest {};
        let chunks = self.call_within(limits, request, |mut client, request| async move {
            client.backup(request).await
        });
        Ok(BackupStream {
            chunks: chunks.await?,
        })
    }
}

impl BackupStream {
    /// The next bytes of the file; `None` at its end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ControlError> {
        let refused = |status: tonic::Status| ControlError::Refused {
            code: status.code(),
            message: status.message().to_owned(),
        };
        match tokio::time::timeout(NEXT_TIMEOUT, self.chunks.message()).await {
            Ok(chunk) => Ok(chunk.map_err(refused)?.map(|chunk| chunk.data)),
            Err(_) => Err(refused(tonic::Status::deadline_exceeded(format!(
                "no more of the backup came within {NEXT_TIMEOUT:?}"
            )))),
        }
    }
}
