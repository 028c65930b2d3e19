//! Raft messages to other members, over gRPC.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use mosec_wire::control::raft::raft_client::RaftClient;
use mosec_wire::control::raft::{Addressing, DescribeRequest, RaftReply, RaftRequest, SnapshotChunk};
use mosec_wire::control::{MAX_MESSAGE_BYTES, explained};
use openraft::BasicNode;
use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Timeout, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RPCTypes, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::describe::{ASK_FOR, Ask, Description};
use super::elector::Heard;
use super::{MemberId, TypeConfig, codec, format_of};
use crate::peers::Peers;
use crate::state::Format;
use crate::state::format::FIRST;

/// Pause before an unreachable member is tried again: it may be back within a heartbeat or two.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

type RpcError<E = openraft::error::Infallible> = RPCError<MemberId, BasicNode, RaftError<MemberId, E>>;

/// Makes a connection for each member. A cheap handle.
#[derive(Clone)]
pub struct Network {
    pub cluster_id: String,
    pub from: MemberId,
    pub peers: Arc<Peers>,
    pub heard: Arc<Heard>,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: MemberId, node: &BasicNode) -> Connection {
        let addressing = Addressing {
            cluster_id: self.cluster_id.clone(),
            from: self.from,
            to: target,
        };
        let peers = self.peers.clone();
        Connection {
            logged: node.addr.clone(),
            addressing,
            peers,
            heard: self.heard.clone(),
        }
    }
}

impl Ask for Network {
    async fn describe(&self, address: &str) -> Result<Description, String> {
        let channel = self.peers.channel_at(address);
        let mut client = RaftClient::new(channel.map_err(|error| error.to_string())?);
        match tokio::time::timeout(ASK_FOR, client.describe(DescribeRequest {})).await {
            Ok(Ok(reply)) => Ok(reply.into_inner().into()),
            // What an earlier build answers to a question that it does not know.
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                Err("its build is too old to say where it stands".to_owned())
            }
            Ok(Err(status)) => Err(explained(status).message().to_owned()),
            Err(_) => Err(format!("no answer within {ASK_FOR:?}")),
        }
    }
}

/// Sends to one member.
pub struct Connection {
    /// The member's address in the log.
    logged: String,
    addressing: Addressing,
    peers: Arc<Peers>,
    heard: Arc<Heard>,
}

impl Connection {
    fn request<T: Serialize>(&self, format: Format, message: &T) -> Result<RaftRequest, NetworkError> {
        let payload = codec::encode_as(format, message)
            .map_err(|error| NetworkError::new(&error))?
            .into();
        Ok(RaftRequest {
            addressing: Some(self.addressing.clone()),
            payload,
        })
    }

    fn client(&self) -> Result<RaftClient<Channel>, Unreachable> {
        // An address that is none shows as an unreachable member, not as a crash.
        let channel = self.peers.channel(self.addressing.to, &self.logged);
        let channel = channel.map_err(|error| Unreachable::new(&error))?;
        Ok(RaftClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// Waits for a reply within the time openraft gives.
    async fn receive<T, E>(
        &self,
        action: RPCTypes,
        option: &RPCOption,
        sent: impl Future<Output = Result<Response<RaftReply>, Status>>,
    ) -> Result<T, RpcError<E>>
    where
        T: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let timeout = option.hard_ttl();
        let (id, target) = (self.addressing.from, self.addressing.to);
        let reply = match tokio::time::timeout(timeout, sent).await {
            Ok(Ok(reply)) => reply.into_inner(),
            Ok(Err(status)) => {
                self.peers.note(target, Some(&status));
                return Err(transport_error(&status));
            }
            Err(_) => {
                self.peers
                    .note(target, Some(&Status::deadline_exceeded("no answer in time")));
                return Err(Timeout {
                    action,
                    id,
                    target,
                    timeout,
                }
                .into());
            }
        };
        self.peers.note(target, None);
        let result: Result<T, RaftError<MemberId, E>> =
            codec::decode(&reply.payload).map_err(|error| NetworkError::new(&error))?;
        result.map_err(|error| RemoteError::new(target, error).into())
    }
}

/// Unreachable means "wait before the next try": right for all but a broken message.
fn transport_error<E: std::error::Error>(status: &Status) -> RpcError<E> {
    match status.code() {
        Code::InvalidArgument | Code::DataLoss => NetworkError::new(status).into(),
        _ => Unreachable::new(status).into(),
    }
}

impl RaftNetwork<TypeConfig> for Connection {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<MemberId>, RpcError> {
        let format = rpc.entries.iter().map(format_of).max().unwrap_or(FIRST);
        let (mut client, request) = (self.client()?, self.request(format, &rpc)?);
        self.receive(RPCTypes::AppendEntries, &option, client.append_entries(request))
            .await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<MemberId>,
        option: RPCOption,
    ) -> Result<VoteResponse<MemberId>, RpcError> {
        let (mut client, request) = (self.client()?, self.request(FIRST, &rpc)?);
        let answer = self
            .receive(RPCTypes::Vote, &option, client.vote(request))
            .await?;
        self.heard.note_answer(&rpc, &answer);
        Ok(answer)
    }

    async fn install_snapshot(
        &mut self,
        mut rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<MemberId>, RpcError<InstallSnapshotError>> {
        let data = std::mem::take(&mut rpc.data);
        // The snapshot's own, said where it begins: who cannot read it is not sent all of it first.
        let format = if rpc.offset == 0 {
            codec::format_of(&data)
        } else {
            FIRST
        };
        let data = data.into();
        let (mut client, request) = (self.client()?, self.request(format, &rpc)?);
        let chunk = SnapshotChunk {
            addressing: request.addressing,
            payload: request.payload,
            data,
        };
        self.receive(RPCTypes::InstallSnapshot, &option, client.install_snapshot(chunk))
            .await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY_PAUSE))
    }
}
