//! Raft messages from other members, over gRPC.

use mosec_wire::control::raft::{Addressing, RaftReply, RaftRequest, SnapshotChunk, raft_server};
use openraft::raft::InstallSnapshotRequest;
use serde::Serialize;
use tonic::{Request, Response, Status};

use super::codec::CodecError;
use super::inbox::Inbox;
use super::{MemberId, TypeConfig, codec};

/// Hands messages that are meant for this member to its Raft.
pub struct RaftService {
    pub inbox: Inbox,
    pub cluster_id: String,
    pub member: MemberId,
}

impl RaftService {
    /// Refuses what another process should have got, or what comes from another cluster.
    fn check(&self, addressing: Option<&Addressing>) -> Result<(), Status> {
        let addressing = addressing.ok_or_else(|| Status::invalid_argument("addressing: is missing"))?;
        if addressing.cluster_id != self.cluster_id {
            let (theirs, ours) = (&addressing.cluster_id, &self.cluster_id);
            return Err(Status::failed_precondition(format!(
                "a message of cluster {theirs:?} reached {ours:?}"
            )));
        }
        if addressing.to != self.member {
            let (to, member) = (addressing.to, self.member);
            return Err(Status::failed_precondition(format!(
                "a message to member {to} reached member {member}"
            )));
        }
        Ok(())
    }
}

fn unreadable(error: CodecError) -> Status {
    Status::invalid_argument(format!("payload: {error}"))
}

fn reply<T: Serialize>(result: &T) -> Result<Response<RaftReply>, Status> {
    let payload = codec::encode(result)
        .map_err(|error| Status::internal(error.to_string()))?
        .into();
    Ok(Response::new(RaftReply { payload }))
}

#[tonic::async_trait]
impl raft_server::Raft for RaftService {
    async fn append_entries(&self, request: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        self.check(request.get_ref().addressing.as_ref())?;
        let message = codec::decode(&request.get_ref().payload).map_err(unreadable)?;
        reply(&self.inbox.append_entries(message).await)
    }

    async fn vote(&self, request: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        self.check(request.get_ref().addressing.as_ref())?;
        let message = codec::decode(&request.get_ref().payload).map_err(unreadable)?;
        reply(&self.inbox.vote(message).await)
    }

    async fn install_snapshot(&self, request: Request<SnapshotChunk>) -> Result<Response<RaftReply>, Status> {
        self.check(request.get_ref().addressing.as_ref())?;
        let chunk = request.into_inner();
        let mut message: InstallSnapshotRequest<TypeConfig> =
            codec::decode(&chunk.payload).map_err(unreadable)?;
        message.data = chunk.data.into();
        reply(&self.inbox.install_snapshot(message).await)
    }
}
