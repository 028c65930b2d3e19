//! Streams of heartbeats: each renews a lease in the leader's memory, or ends with where else to go.

use futures_util::{Stream, stream};
use mosec_types::{Incarnation, NodeId, WorkerStatus};
use mosec_wire::control::proto;
use mosec_wire::control::proto::heartbeat_reply::Reply;
use tonic::{Status, Streaming};

use super::{Api, invalid};
use crate::access;
use crate::reconcile::lease::Unleased;

/// Answers heartbeats until one is not accepted, the node leaves, or this process ends.
pub(super) fn answer(
    api: Api,
    speaker: Option<NodeId>,
    beats: Streaming<proto::HeartbeatRequest>,
) -> impl Stream<Item = Result<proto::HeartbeatReply, Status>> {
    stream::unfold(Some((api, speaker, beats)), |state| async {
        let (api, speaker, mut beats) = state?;
        let beat = tokio::select! {
            () = api.closing.cancelled() => return Some((Err(Status::unavailable("shutting down")), None)),
            beat = beats.message() => beat.ok().flatten()?,
        };
        let reply = api.accept(speaker.as_ref(), beat);
        let goes_on = matches!(reply, Ok(Reply::Ack(_)));
        let reply = reply.map(|reply| proto::HeartbeatReply { reply: Some(reply) });
        Some((reply, goes_on.then_some((api, speaker, beats))))
    })
}

impl Api {
    fn accept(&self, speaker: Option<&NodeId>, beat: proto::HeartbeatRequest) -> Result<Reply, Status> {
        let node = NodeId::new(beat.node).map_err(|error| invalid("node", error))?;
        access::check_node(speaker, &node)?;
        let workers = beat
            .workers
            .into_iter()
            .map(WorkerStatus::try_from)
            .collect::<Result<_, _>>();
        let workers = workers.map_err(|error| invalid("workers", error))?;
        // A leader without a majority may have been replaced: its nodes must look for the new one.
        let leads = self.handle.leading_term().is_some();
        let renewed = leads.then(|| {
            let model = self.model.borrow().clone();
            self.leadership
                .renew(&model, &node, Incarnation(beat.incarnation), workers)
        });
        Ok(match renewed.flatten() {
            Some(Ok(())) => Reply::Ack(proto::HeartbeatAck { seq: beat.seq }),
            Some(Err(Unleased::NotRegistered)) => {
                Reply::Refused(proto::HeartbeatRefusal::NotRegistered.into())
            }
            Some(Err(Unleased::Stale)) => Reply::Refused(proto::HeartbeatRefusal::StaleIncarnation.into()),
            None => {
                let leader = self
                    .handle
                    .leader()
                    .filter(|leader| leader.id != self.handle.member);
                Reply::Redirect(proto::LeaderRedirect { leader })
            }
        })
    }
}
