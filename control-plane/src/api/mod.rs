//! The public gRPC service.
//!
//! Any member answers. What needs the leader is forwarded to it once ([`forward`]); heartbeats are redirected instead,
//! as they are a stream and frequent.

mod audit;
mod backup;
mod bundles;
mod changes;
mod forward;
mod heartbeat;
pub(crate) mod join;
mod logs;
pub(crate) mod members;
mod plan;
mod revisions;
mod sending;
mod status;
mod tokens;
mod traffic;
mod watch;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{Stream, StreamExt as _};
use mosec_types::resources::MAX_GPUS;
use mosec_types::{Capacity, Incarnation, NodeId, PipelineName};
use mosec_wire::control::port_of;
use mosec_wire::control::proto::{self, control_plane_server};
use tokio::sync::{Semaphore, watch as channel};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use self::members::MissingBundles;
use crate::access;
use crate::authority::Authority;
use crate::bundles::Bundles;
use crate::feed::Feed;
use crate::metrics::Metrics;
use crate::raft::handle::{Handle, ProposeError};
use crate::raft::members::Members;
use crate::raft::network::Network;
use crate::reconcile::Leadership;
use crate::relay::Relay;
use crate::state::{Command, Dedup, Model, Origin, Proposal, Refusal, Reply};

/// Longest client name in a dedup number: longer ones would fill the state.
const MAX_CLIENT_BYTES: usize = 64;
/// Longest name of a GPU.
const MAX_MODEL_BYTES: usize = 256;
/// Longest address and labels of a node.
const MAX_NODE_BYTES: usize = 16 * 1024;

/// The service's state; a cheap handle.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) cluster_id: String,
    pub(crate) handle: Handle,
    pub(crate) model: channel::Receiver<Arc<Model>>,
    pub(crate) leadership: Arc<Leadership>,
    pub(crate) feed: Arc<Feed>,
    pub(crate) healthy_deadline: Duration,
    /// Signs certificates; absent at members that do not hold the authority's key.
    pub(crate) authority: Option<Authority>,
    /// Bounds the strangers that are joining.
    pub(crate) joins: Arc<Semaphore>,
    pub(crate) bundles: Bundles,
    pub(crate) members: Members<Network, MissingBundles>,
    /// Who waits for the output of workers.
    pub(crate) relay: Relay,
    pub(crate) metrics: Metrics,
    /// Ends the streams.
    pub(crate) closing: CancellationToken,
}

type ReplyStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl control_plane_server::ControlPlane for Api {
    async fn register_node(
        &self,
        request: Request<proto::RegisterNodeRequest>,
    ) -> Result<Response<proto::RegisterNodeResponse>, Status> {
        let speaker = access::speaks_for(&request);
        let command = registration(request.get_ref())?;
        if let Command::RegisterNode { id, .. } = &command {
            access::check_node(speaker.as_ref(), id)?;
        }
        match self.handle.register(command).await {
            Err(ProposeError::NotLeader { leader }) => {
                let send =
                    |mut client: forward::Client, request| async move { client.register_node(request).await };
                self.forward(leader, request, send).await
            }
            reply => match answer(reply)? {
                Reply::Done { version } => Ok(Response::new(proto::RegisterNodeResponse { version })),
                other => Err(unexpected(&other)),
            },
        }
    }

    type HeartbeatStream = ReplyStream<proto::HeartbeatReply>;

    async fn heartbeat(
        &self,
        request: Request<Streaming<proto::HeartbeatRequest>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let speaker = access::speaks_for(&request);
        let expiry = access::expiry(access::caller(&request));
        let replies = heartbeat::answer(self.clone(), speaker, request.into_inner());
        Ok(Response::new(Box::pin(replies.take_until(expiry))))
    }

    async fn deploy(
        &self,
        request: Request<proto::DeployRequest>,
    ) -> Result<Response<proto::DeployResponse>, Status> {
        revisions::deploy(self, request).await
    }

    async fn rollback(
        &self,
        request: Request<proto::RollbackRequest>,
    ) -> Result<Response<proto::DeployResponse>, Status> {
        revisions::rollback(self, request).await
    }

    async fn history(
        &self,
        request: Request<proto::HistoryRequest>,
    ) -> Result<Response<proto::HistoryResponse>, Status> {
        revisions::history(self, request).await
    }

    async fn delete(
        &self,
        mut request: Request<proto::DeleteRequest>,
    ) -> Result<Response<proto::DeleteResponse>, Status> {
        let by = access::asked_by(&request, &request.get_ref().by);
        let message = request.get_ref();
        let pipeline = PipelineName::new(&message.pipeline).map_err(|error| invalid("pipeline", error))?;
        let dedup = dedup(message.dedup.clone())?;
        let origin = origin(&by);
        request.get_mut().by = by;
        let proposal = Proposal {
            command: Command::Delete { pipeline, origin },
            dedup,
        };
        match self.handle.propose(proposal).await {
            Err(ProposeError::NotLeader { leader }) => {
                let send = |mut client: forward::Client, request| async move { client.delete(request).await };
                self.forward(leader, request, send).await
            }
            reply => answer(reply).map(|_| Response::new(proto::DeleteResponse {})),
        }
    }

    async fn promote(
        &self,
        request: Request<proto::PromoteRequest>,
    ) -> Result<Response<proto::ChangeResponse>, Status> {
        let send = |mut client: forward::Client, request| async move { client.promote(request).await };
        changes::make(self, request, send).await
    }

    async fn abort(
        &self,
        request: Request<proto::AbortRequest>,
    ) -> Result<Response<proto::ChangeResponse>, Status> {
        let send = |mut client: forward::Client, request| async move { client.abort(request).await };
        changes::make(self, request, send).await
    }

    async fn scale(
        &self,
        request: Request<proto::ScaleRequest>,
    ) -> Result<Response<proto::ChangeResponse>, Status> {
        let send = |mut client: forward::Client, request| async move { client.scale(request).await };
        changes::make(self, request, send).await
    }

    async fn set_traffic(
        &self,
        request: Request<proto::SetTrafficRequest>,
    ) -> Result<Response<proto::ChangeResponse>, Status> {
        let send = |mut client: forward::Client, request| async move { client.set_traffic(request).await };
        changes::make(self, request, send).await
    }

    async fn drain_node(
        &self,
        request: Request<proto::DrainNodeRequest>,
    ) -> Result<Response<proto::ChangeResponse>, Status> {
        let send = |mut client: forward::Client, request| async move { client.drain_node(request).await };
        changes::make(self, request, send).await
    }

    async fn remove_node(
        &self,
        request: Request<proto::RemoveNodeRequest>,
    ) -> Result<Response<proto::ChangeResponse>, Status> {
        let send = |mut client: forward::Client, request| async move { client.remove_node(request).await };
        changes::make(self, request, send).await
    }

    async fn plan(
        &self,
        request: Request<proto::PlanRequest>,
    ) -> Result<Response<proto::PlanResponse>, Status> {
        plan::plan(self, request).await
    }

    async fn report_traffic(
        &self,
        request: Request<proto::TrafficReport>,
    ) -> Result<Response<proto::TrafficAck>, Status> {
        traffic::report(self, request).await
    }

    async fn put_bundle(
        &self,
        request: Request<Streaming<proto::BundleChunk>>,
    ) -> Result<Response<proto::PutBundleResponse>, Status> {
        bundles::put(self, request).await
    }

    async fn has_bundle(
        &self,
        request: Request<proto::HasBundleRequest>,
    ) -> Result<Response<proto::HasBundleResponse>, Status> {
        bundles::has(self, request).await
    }

    type GetBundleStream = ReplyStream<proto::BundleChunk>;

    async fn get_bundle(
        &self,
        request: Request<proto::GetBundleRequest>,
    ) -> Result<Response<Self::GetBundleStream>, Status> {
        bundles::give(self, request).await
    }

    type BackupStream = ReplyStream<proto::BackupChunk>;

    async fn backup(
        &self,
        request: Request<proto::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        backup::give(self, &request).await
    }

    async fn status(
        &self,
        request: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::StatusResponse>, Status> {
        let send = |mut client: forward::Client, request| async move { client.status(request).await };
        self.read(request, send, |_| Ok(status::build(self))).await
    }

    type WatchTopologyStream = ReplyStream<proto::TopologyUpdate>;

    async fn watch_topology(
        &self,
        request: Request<proto::WatchTopologyRequest>,
    ) -> Result<Response<Self::WatchTopologyStream>, Status> {
        let expiry = access::expiry(access::caller(&request));
        let updates = watch::follow(self.clone(), request.get_ref())?;
        Ok(Response::new(Box::pin(updates.take_until(expiry))))
    }

    async fn audit(
        &self,
        request: Request<proto::AuditRequest>,
    ) -> Result<Response<proto::AuditResponse>, Status> {
        audit::audit(self, request).await
    }

    type LogsStream = ReplyStream<proto::LogsReply>;

    async fn logs(&self, request: Request<proto::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        logs::ask(self, request).await
    }

    async fn send_logs(
        &self,
        request: Request<Streaming<proto::LogsChunk>>,
    ) -> Result<Response<proto::SendLogsResponse>, Status> {
        logs::answer(self, request).await
    }

    async fn create_token(
        &self,
        request: Request<proto::CreateTokenRequest>,
    ) -> Result<Response<proto::CreateTokenResponse>, Status> {
        tokens::create(self, request).await
    }

    async fn list_tokens(
        &self,
        request: Request<proto::ListTokensRequest>,
    ) -> Result<Response<proto::ListTokensResponse>, Status> {
        tokens::list(self, request).await
    }

    async fn revoke_token(
        &self,
        request: Request<proto::RevokeTokenRequest>,
    ) -> Result<Response<proto::RevokeTokenResponse>, Status> {
        tokens::revoke(self, request).await
    }

    async fn join(&self, request: Request<proto::JoinRequest>) -> Result<Response<proto::Certified>, Status> {
        join::join(self, request).await
    }

    async fn use_token(
        &self,
        request: Request<proto::UseTokenRequest>,
    ) -> Result<Response<proto::UseTokenResponse>, Status> {
        join::use_token(self, request).await
    }

    async fn renew(
        &self,
        request: Request<proto::RenewRequest>,
    ) -> Result<Response<proto::Certified>, Status> {
        join::renew(self, request).await
    }

    async fn list_members(
        &self,
        request: Request<proto::ListMembersRequest>,
    ) -> Result<Response<proto::ListMembersResponse>, Status> {
        Ok(Response::new(members::list(self, request).await))
    }

    async fn add_member(
        &self,
        request: Request<proto::AddMemberRequest>,
    ) -> Result<Response<proto::MemberChange>, Status> {
        members::add(self, request).await
    }

    async fn remove_member(
        &self,
        request: Request<proto::RemoveMemberRequest>,
    ) -> Result<Response<proto::MemberChange>, Status> {
        members::remove(self, request).await
    }
}

/// Who asks, and the time of this member.
fn origin(by: &str) -> Origin {
    // A clock before 1970 tells no time.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Origin {
        by: by.to_owned(),
        at_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
    }
}

fn registration(message: &proto::RegisterNodeRequest) -> Result<Command, Status> {
    let bytes = message.address.len()
        + message.build.as_deref().map_or(0, str::len)
        + message
            .labels
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum::<usize>();
    if bytes > MAX_NODE_BYTES {
        return Err(invalid(
            "labels",
            format!("expected at most {MAX_NODE_BYTES} bytes, found {bytes}"),
        ));
    }
    // What gateways dial: a mistake shows here, not as an unreachable node.
    port_of(&message.address).map_err(|problem| invalid("address", problem))?;
    Ok(Command::RegisterNode {
        id: NodeId::new(&message.id).map_err(|error| invalid("id", error))?,
        incarnation: Incarnation(message.incarnation),
        address: message.address.clone(),
        labels: message.labels.clone(),
        capacity: capacity(message.capacity.clone().unwrap_or_default())?,
        build: message.build.clone(),
    })
}

fn capacity(message: proto::Capacity) -> Result<Capacity, Status> {
    let gpus = message.gpus.len();
    if gpus > MAX_GPUS {
        return Err(invalid(
            "capacity.gpus",
            format!("expected at most {MAX_GPUS}, found {gpus}"),
        ));
    }
    if let Some(gpu) = message.gpus.iter().find(|gpu| gpu.model.len() > MAX_MODEL_BYTES) {
        let found = gpu.model.len();
        return Err(invalid(
            "capacity.gpus.model",
            format!("expected at most {MAX_MODEL_BYTES} bytes, found {found}"),
        ));
    }
    Ok(message.into())
}

fn dedup(message: Option<proto::Dedup>) -> Result<Option<Dedup>, Status> {
    let Some(proto::Dedup { client, seq }) = message else {
        return Ok(None);
    };
    if !(1..=MAX_CLIENT_BYTES).contains(&client.len()) {
        return Err(invalid(
            "dedup.client",
            format!("expected 1 to {MAX_CLIENT_BYTES} bytes, found {}", client.len()),
        ));
    }
    Ok(Some(Dedup { client, seq }))
}

fn invalid(field: &str, problem: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("{field}: {problem}"))
}

/// The state's reply, its refusals as errors.
fn answer(reply: Result<Reply, ProposeError>) -> Result<Reply, Status> {
    match reply {
        Ok(Reply::Refused(refusal)) => Err(refused(&refusal)),
        Ok(reply) => Ok(reply),
        Err(error) => Err(forward::failure(error)),
    }
}

fn refused(refusal: &Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        // The code by which an agent learns that it has been replaced.
        Refusal::StaleIncarnation { .. } | Refusal::StaleWrite { .. } => Status::aborted(text),
        Refusal::Token { problem, .. } => tokens::refused(problem, text),
        Refusal::TooManyNodes(_) | Refusal::TooManyReplicas { .. } => Status::resource_exhausted(text),
        Refusal::UnknownPipeline(_)
        | Refusal::UnknownRevision(_)
        | Refusal::ForgottenRevision { .. }
        | Refusal::UnknownStage { .. }
        | Refusal::UnknownNode(_) => Status::not_found(text),
        Refusal::RouteTaken { .. }
        | Refusal::NotStarting { .. }
        | Refusal::NothingBefore(_)
        | Refusal::AlreadyThere { .. }
        | Refusal::NoRollout(_)
        | Refusal::NoCanary { .. }
        | Refusal::TooFewEnvironments { .. }
        | Refusal::NodeInUse { .. } => Status::failed_precondition(text),
    }
}

/// A dedup number that a client has used for a write of another kind.
fn unexpected(reply: &Reply) -> Status {
    Status::internal(format!(
        "the write was answered with {reply:?}: was its number used for another write?"
    ))
}
