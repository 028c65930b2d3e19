//! Output of workers: from agents to the member that asked, and from there to whoever asked that.

use futures_util::Stream;
use tonic::{Request, Status, Streaming};

use super::client::{ControlClient, ControlError, explained};
use super::proto;

/// Most text of one chunk: some round trips' worth, and far below the limit of a message.
pub const MAX_CHUNK_BYTES: usize = 128 * 1024;
/// Most positions that a caller may name: as many as a pipeline may have replicas, twice.
pub const MAX_POSITIONS: usize = 8192;

/// What a member asks a node for.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// Address of the member that asks, and that gets the answer.
    pub member: String,
    pub wanted: proto::LogsWanted,
}

impl ControlClient {
    /// Opens a stream of a pipeline's output. It may break off; the positions reached make up for that.
    pub async fn logs(
        &self,
        request: proto::LogsRequest,
    ) -> Result<Streaming<proto::LogsReply>, ControlError> {
        self.call(request, |mut client, request| async move {
            client.logs(request).await
        })
        .await
    }

    /// Sends a node's output to the member at `address`, which asked for it. Returns when the member has had enough, or
    /// `chunks` end.
    pub async fn send_logs(
        &self,
        address: &str,
        chunks: impl Stream<Item = proto::LogsChunk> + Send + 'static,
    ) -> Result<(), Status> {
        let mut service = self.service(address);
        let sent = service.send_logs(Request::new(chunks)).await;
        sent.map(drop).map_err(explained)
    }
}
