//! Raft messages from other members, over gRPC.

use std::sync::Arc;

use mosec_wire::control::raft::{
    Addressing, DescribeReply, DescribeRequest, RaftReply, RaftRequest, SnapshotChunk, raft_server,
};
use openraft::error::RaftError;
use openraft::raft::InstallSnapshotRequest;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::codec::CodecError;
use super::describe::Description;
use super::inbox::Inbox;
use super::{MemberId, TypeConfig, codec};
use crate::state::Model;
use crate::state::format::BUILD;

/// Hands messages that are meant for this member to its Raft.
pub struct RaftService {
    pub inbox: Inbox,
    pub cluster_id: String,
    pub member: MemberId,
    pub model: watch::Receiver<Arc<Model>>,
    /// Whether this member holds the authority's key.
    pub signs: bool,
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

    /// Reads a message, if it is of a format that this build has. One of a later format comes from a leader of a cluster
    /// that has gone past this build.
    fn read<T: DeserializeOwned>(&self, payload: &[u8]) -> Result<T, Status> {
        codec::decode_as(self.inbox.formats, payload).map_err(|error| match error {
            CodecError::Format(error) => {
                self.inbox.outdated.note(error);
                Status::failed_precondition(format!("member {} refuses: {error}", self.member))
            }
            error => Status::invalid_argument(format!("payload: {error}")),
        })
    }
}

fn stopped(error: RaftError<MemberId>) -> Status {
    Status::unavailable(format!("this member has stopped: {error}"))
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
        let message = self.read(&request.get_ref().payload)?;
        reply(&self.inbox.append_entries(message).await)
    }

    async fn vote(&self, request: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        self.check(request.get_ref().addressing.as_ref())?;
        let message = self.read(&request.get_ref().payload)?;
        reply(&self.inbox.vote(message).await)
    }

    async fn install_snapshot(&self, request: Request<SnapshotChunk>) -> Result<Response<RaftReply>, Status> {
        self.check(request.get_ref().addressing.as_ref())?;
        let chunk = request.into_inner();
        let mut message: InstallSnapshotRequest<TypeConfig> = self.read(&chunk.payload)?;
        message.data = chunk.data.into();
        reply(&self.inbox.install_snapshot(message).await)
    }

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeReply>, Status> {
        let position = self.inbox.position().await.map_err(stopped)?;
        let metrics = self.inbox.raft.metrics();
        let metrics = metrics.borrow();
        let described = Description {
            cluster_id: self.cluster_id.clone(),
            member: self.member,
            build: BUILD.to_owned(),
            formats: self.inbox.formats,
            format: self.model.borrow().format,
            is_level: self.inbox.admission.is_level(),
            signs: self.signs,
            leader: metrics.current_leader,
            last_applied: metrics.last_applied,
            position,
        };
        Ok(Response::new(described.into()))
    }
}
