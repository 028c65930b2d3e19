//! A node's side of its lease: registers, then sends heartbeats to whichever node leads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use mosec_types::{Capacity, Incarnation, NodeId, Unreachable, WorkerStatus};
use rand::Rng;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::client::{ControlClient, ControlError, leader_hint};
use super::logs::Asked;
use super::proto;
use super::proto::heartbeat_reply::Reply;

/// A leader that has not answered for so many intervals is given up for another.
const PATIENCE: u32 = 3;
/// Least time between heartbeats when workers change state: sudden changes of many workers go out together.
const MIN_GAP: Duration = Duration::from_millis(50);
/// Most text of errors in one heartbeat; with it, a thousand failing workers still fit into a message.
const MAX_ERRORS_BYTES: usize = 2 * 1024 * 1024;

/// What a node tells the cluster about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    pub id: NodeId,
    pub incarnation: Incarnation,
    /// `host:port` of its link, as gateways and other nodes reach it.
    pub address: String,
    pub labels: BTreeMap<String, String>,
    pub capacity: Capacity,
}

impl From<&Registration> for proto::RegisterNodeRequest {
    fn from(node: &Registration) -> Self {
        Self {
            id: node.id.to_string(),
            incarnation: node.incarnation.0,
            address: node.address.clone(),
            labels: node.labels.clone(),
            capacity: Some((&node.capacity).into()),
            build: Some(env!("CARGO_PKG_VERSION").to_owned()),
        }
    }
}

/// What a node's heartbeats say, and where what comes back goes.
pub struct Heartbeats {
    pub node: Registration,
    /// The node's workers; a change is reported at once.
    pub workers: watch::Receiver<Vec<WorkerStatus>>,
    /// Time between heartbeats.
    pub every: Duration,
    /// The other nodes that this one cannot reach now, up to [`MAX_UNREACHABLE`](mosec_types::reach::MAX_UNREACHABLE).
    pub unreachable: Arc<dyn Fn() -> Vec<Unreachable> + Send + Sync>,
    /// Takes what members ask the node for. Questions for which there is no room are dropped: they come again.
    pub asked: mpsc::Sender<Asked>,
    /// Told when the leader last acknowledged a heartbeat; the first time, the node has registered.
    pub acknowledged: watch::Sender<Option<Instant>>,
}

/// Why a node stopped its heartbeats. Both are for good.
#[derive(Debug, thiserror::Error)]
pub enum HeartbeatError {
    #[error("a newer incarnation of node {0} has registered")]
    Replaced(NodeId),
    #[error("node {node} was refused by the control plane")]
    Refused { node: NodeId, source: ControlError },
}

/// How a stream of heartbeats ended.
enum End {
    NotRegistered,
    Replaced,
    Lost(Status),
}

impl ControlClient {
    /// Registers the node and keeps its lease until `cancel`, through losses of control-plane nodes.
    pub async fn run_heartbeats(
        &self,
        beats: Heartbeats,
        cancel: CancellationToken,
    ) -> Result<(), HeartbeatError> {
        tokio::select! {
            result = self.keep_lease(beats) => result,
            () = cancel.cancelled() => Ok(()),
        }
    }

    async fn keep_lease(&self, mut beats: Heartbeats) -> Result<(), HeartbeatError> {
        let every = beats.every;
        let mut route = self.route();
        let mut registered = false;
        loop {
            if !registered {
                self.register(&beats.node).await?;
                route = self.route();
                registered = true;
            }
            route.learn(self.endpoints());
            let target = route.next();
            let started = Instant::now();
            let status = match self.beat(&target, &mut beats).await {
                Ok(never) => match never {},
                Err(End::Replaced) => return Err(HeartbeatError::Replaced(beats.node.id.clone())),
                Err(End::NotRegistered) => {
                    registered = false;
                    continue;
                }
                Err(End::Lost(status)) => status,
            };
            if started.elapsed() > every * PATIENCE {
                route.succeeded();
            }
            tracing::debug!(%target, %status, "heartbeat stream lost");
            let pause = route.failed(leader_hint(&status).filter(|hint| self.admit(hint)));
            tokio::time::sleep(pause).await;
        }
    }

    /// Registers, for as long as it takes.
    async fn register(&self, node: &Registration) -> Result<(), HeartbeatError> {
        loop {
            match self.register_node(node).await {
                Ok(version) => {
                    tracing::info!(node = %node.id, incarnation = %node.incarnation, version, "registered");
                    return Ok(());
                }
                Err(ControlError::Refused {
                    code: Code::Aborted, ..
                }) => {
                    return Err(HeartbeatError::Replaced(node.id.clone()));
                }
                Err(error @ ControlError::Unavailable { .. }) => tracing::warn!(%error, "not registered yet"),
                Err(source) => {
                    return Err(HeartbeatError::Refused {
                        node: node.id.clone(),
                        source,
                    });
                }
            }
        }
    }

    /// Sends heartbeats to `target` until the stream ends.
    async fn beat(&self, target: &str, beats: &mut Heartbeats) -> Result<std::convert::Infallible, End> {
        let Heartbeats {
            node,
            workers,
            every,
            unreachable,
            asked,
            acknowledged,
        } = beats;
        let every = *every;
        // Two: one on the way while the next is due. A peer that reads neither is stuck.
        let (sender, receiver) = mpsc::channel(2);
        let mut service = self.service(target);
        let open = tokio::time::timeout(every * PATIENCE, service.heartbeat(into_stream(receiver)));
        let mut seq = 0;
        let mut send = |workers: &mut watch::Receiver<Vec<WorkerStatus>>| {
            seq += 1;
            let beat = heartbeat(node, seq, &workers.borrow_and_update(), &unreachable());
            sender
                .try_send(beat)
                .map_err(|_| End::Lost(Status::unavailable("heartbeats are not read")))
        };
        send(workers)?;
        let mut replies = match open.await {
            Ok(opened) => opened.map_err(End::Lost)?.into_inner(),
            Err(_) => {
                return Err(End::Lost(Status::deadline_exceeded(
                    "the stream was not opened in time",
                )));
            }
        };
        let mut next = Instant::now() + jittered(every);
        let mut earliest = Instant::now() + MIN_GAP;
        let mut answered = Instant::now();
        let mut supervised = true;
        loop {
            tokio::select! {
                reply = next_reply(&mut replies) => {
                    let ack = reply?;
                    answered = Instant::now();
                    acknowledged.send_replace(Some(answered));
                    tracing::trace!(acknowledged = ack.seq, "heartbeat acknowledged");
                    for wanted in ack.logs {
                        let member = target.to_owned();
                        let _ = asked.try_send(Asked { member, wanted });
                    }
                }
                () = sleep_until(next) => {
                    if answered.elapsed() > every * PATIENCE {
                        return Err(End::Lost(Status::deadline_exceeded("heartbeats are not answered")));
                    }
                    send(workers)?;
                    (next, earliest) = (Instant::now() + jittered(every), Instant::now() + MIN_GAP);
                }
                changed = workers.changed(), if supervised => match changed {
                    Ok(()) => next = next.min(earliest),
                    // The supervisor is gone: the lease lives on with what it said last.
                    Err(_) => supervised = false,
                },
            }
        }
    }
}

/// The next acknowledgement, or how the stream ended.
async fn next_reply(replies: &mut Streaming<proto::HeartbeatReply>) -> Result<proto::HeartbeatAck, End> {
    let message = replies.message().await.map_err(End::Lost)?;
    let message = message.ok_or_else(|| End::Lost(Status::unavailable("the stream ended")))?;
    match message.reply {
        Some(Reply::Ack(ack)) => Ok(ack),
        Some(Reply::Redirect(redirect)) => Err(End::Lost(redirected(redirect))),
        Some(Reply::Refused(refusal)) => match proto::HeartbeatRefusal::try_from(refusal) {
            Ok(proto::HeartbeatRefusal::NotRegistered) => Err(End::NotRegistered),
            Ok(proto::HeartbeatRefusal::StaleIncarnation) => Err(End::Replaced),
            _ => Err(End::Lost(Status::unimplemented(format!(
                "refusal {refusal} is not known here"
            )))),
        },
        None => Err(End::Lost(Status::unimplemented(
            "the reply is of a kind not known here",
        ))),
    }
}

/// A redirect as the error that an ordinary call gives.
fn redirected(redirect: proto::LeaderRedirect) -> Status {
    let mut status = Status::unavailable("the node does not lead");
    if let Some(Ok(address)) = redirect.leader.map(|leader| leader.address.parse()) {
        status.metadata_mut().insert(super::LEADER_KEY, address);
    }
    status
}

fn heartbeat(
    node: &Registration,
    seq: u64,
    workers: &[WorkerStatus],
    unreachable: &[Unreachable],
) -> proto::HeartbeatRequest {
    let mut left = MAX_ERRORS_BYTES;
    let convert = |worker: &WorkerStatus| {
        let mut message = proto::WorkerStatus::from(worker);
        let length = message.last_error.as_ref().map_or(0, String::len);
        match left.checked_sub(length) {
            Some(rest) => left = rest,
            None => message.last_error = Some("(left out: too many errors at once)".into()),
        }
        message
    };
    let workers = workers.iter().map(convert).collect();
    proto::HeartbeatRequest {
        node: node.id.to_string(),
        incarnation: node.incarnation.0,
        seq,
        workers,
        unreachable: unreachable.iter().map(Into::into).collect(),
    }
}

/// Up to a tenth more or less, so that nodes started together do not beat together.
fn jittered(every: Duration) -> Duration {
    every.mul_f64(rand::rng().random_range(0.9..1.1))
}

fn into_stream<T: Send + 'static>(receiver: mpsc::Receiver<T>) -> impl Stream<Item = T> + Send + 'static {
    futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|item| (item, receiver))
    })
}
