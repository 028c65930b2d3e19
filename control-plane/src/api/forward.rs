//! Sends a call on to the leader, once.

use std::future::Future;
use std::time::Duration;

use mosec_wire::control::proto::LeaderInfo;
use mosec_wire::control::proto::control_plane_client::ControlPlaneClient;
use mosec_wire::control::{FORWARDED_KEY, LEADER_KEY, MAX_MESSAGE_BYTES, explained};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::Api;
use crate::raft::handle::ProposeError;

pub(super) type Client = ControlPlaneClient<Channel>;

/// What the way to the leader and back may add to the leader's own time.
const MARGIN: Duration = Duration::from_secs(1);

impl Api {
    /// Sends `request` to the leader. One that was forwarded before goes back to its caller, with the leader named.
    pub(super) async fn forward<Q, R, F, Fut>(
        &self,
        leader: Option<LeaderInfo>,
        request: Request<Q>,
        send: F,
    ) -> Result<Response<R>, Status>
    where
        F: FnOnce(Client, Request<Q>) -> Fut,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        let target = leader.clone().filter(|leader| leader.id != self.handle.member);
        let forwarded = request.metadata().contains_key(FORWARDED_KEY);
        let (Some(target), false) = (target, forwarded) else {
            return Err(not_leader(leader.as_ref()));
        };
        let channel = self.handle.peers.channel(target.id, &target.address);
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        let client = ControlPlaneClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let mut onward = Request::new(request.into_inner());
        onward
            .metadata_mut()
            .insert(FORWARDED_KEY, self.handle.member.into());
        let limit = self.handle.quorum_timeout + MARGIN;
        match tokio::time::timeout(limit, send(client, onward)).await {
            Ok(answer) => answer.map_err(explained),
            Err(_) => Err(Status::unavailable(format!(
                "the leader at {} did not answer",
                target.address
            ))),
        }
    }
}

impl Api {
    /// Answers a question from the state as the leader has it, here or there.
    pub(super) async fn read<Q, R, F, Fut>(
        &self,
        request: Request<Q>,
        send: F,
        answer: impl FnOnce(&Q) -> Result<R, Status>,
    ) -> Result<Response<R>, Status>
    where
        F: FnOnce(Client, Request<Q>) -> Fut,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        match self.handle.read_barrier().await {
            Err(ProposeError::NotLeader { leader }) => self.forward(leader, request, send).await,
            Err(error) => Err(failure(error)),
            Ok(()) => answer(request.get_ref()).map(Response::new),
        }
    }
}

/// Tells a caller that this node cannot answer, and who can.
pub(super) fn not_leader(leader: Option<&LeaderInfo>) -> Status {
    let Some(leader) = leader else {
        return Status::unavailable("no leader is known");
    };
    let mut status = Status::unavailable(format!(
        "the leader is member {} at {}",
        leader.id, leader.address
    ));
    if let Ok(address) = leader.address.parse() {
        status.metadata_mut().insert(LEADER_KEY, address);
    }
    status
}

/// An error of Raft as the caller sees it.
pub(super) fn failure(error: ProposeError) -> Status {
    match error {
        ProposeError::TooLarge { .. } => Status::invalid_argument(error.to_string()),
        ProposeError::Format { .. } => Status::failed_precondition(error.to_string()),
        ProposeError::NotLeader { leader } => not_leader(leader.as_ref()),
        ProposeError::NoQuorum(_) | ProposeError::ChangeUnderWay => Status::unavailable(error.to_string()),
        ProposeError::Stopped(source) => Status::unavailable(format!("this node has stopped: {source}")),
    }
}
