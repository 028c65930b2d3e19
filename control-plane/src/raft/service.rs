//! Raft messages from other members, over gRPC.

use std::sync::Arc;

use mosec_wire::control::raft::{Addressing, RaftReply, RaftRequest, SnapshotChunk, raft_server};
use mosec_wire::tls::Role;
use openraft::raft::{AppendEntriesRequest, InstallSnapshotRequest};
use serde::Serialize;
use tonic::{Request, Response, Status};

use super::codec::CodecError;
use super::elector::Heard;
use super::{MemberId, Raft, TypeConfig, codec};
use crate::access;

/// Hands messages that are meant for this member to its Raft.
pub struct RaftService {
    pub raft: Raft,
    pub cluster_id: String,
    pub member: MemberId,
    pub heard: Arc<Heard>,
}

impl RaftService {
    /// Refuses what another process should have got, or what comes from another cluster.
    fn check<T>(&self, request: &Request<T>, addressing: Option<&Addressing>) -> Result<(), Status> {
        access::require(request, &[Role::ControlPlane])?;
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
        self.check(&request, request.get_ref().addressing.as_ref())?;
        let message: AppendEntriesRequest<TypeConfig> =
            codec::decode(&request.get_ref().payload).map_err(unreadable)?;
        self.heard.note_leader(&self.raft, &message.vote);
        reply(&self.raft.append_entries(message).await)
    }

    async fn vote(&self, request: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        self.check(&request, request.get_ref().addressing.as_ref())?;
        let message = codec::decode(&request.get_ref().payload).map_err(unreadable)?;
        let answer = self.raft.vote(message).await;
        if answer.as_ref().is_ok_and(|answer| answer.vote_granted) {
            self.heard.note();
        }
        reply(&answer)
    }

    async fn install_snapshot(&self, request: Request<SnapshotChunk>) -> Result<Response<RaftReply>, Status> {
        self.check(&request, request.get_ref().addressing.as_ref())?;
        let chunk = request.into_inner();
        let mut message: InstallSnapshotRequest<TypeConfig> =
            codec::decode(&chunk.payload).map_err(unreadable)?;
        message.data = chunk.data.into();
        self.heard.note_leader(&self.raft, &message.vote);
        reply(&self.raft.install_snapshot(message).await)
    }
}
