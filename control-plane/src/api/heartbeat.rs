//! Streams of heartbeats: each renews a lease in the leader's memory, or ends with where else to go.

use futures_util::{Stream, stream};
use mosec_types::{Incarnation, NodeId, WorkerStatus};
use mosec_wire::control::proto;
use mosec_wire::control::proto::heartbeat_reply::Reply;
use tokio::sync::watch;
use tonic::{Status, Streaming};

use super::{Api, invalid, traffic};
use crate::access;
use crate::reconcile::lease::Unleased;

/// Answers heartbeats until one is not accepted, the node leaves, or this process ends.
pub(super) fn answer(
    api: Api,
    speaker: Option<NodeId>,
    beats: Streaming<proto::HeartbeatRequest>,
) -> impl Stream<Item = Result<proto::HeartbeatReply, Status>> {
    let answers = Answers {
        questions: api.relay.subscribe(),
        api,
        speaker,
        beats,
        accepted: None,
    };
    stream::unfold(Some(answers), |answers| async {
        let mut answers = answers?;
        let reply = answers.next().await?;
        let goes_on = matches!(reply, Ok(Reply::Ack(_)));
        let reply = reply.map(|reply| proto::HeartbeatReply { reply: Some(reply) });
        Some((reply, goes_on.then_some(answers)))
    })
}

/// The answers on one stream.
struct Answers {
    api: Api,
    speaker: Option<NodeId>,
    beats: Streaming<proto::HeartbeatRequest>,
    questions: watch::Receiver<()>,
    /// The node, once a heartbeat was accepted, and the last one's number.
    accepted: Option<(NodeId, u64)>,
}

impl Answers {
    /// The next answer; `None` where the node has left.
    async fn next(&mut self) -> Option<Result<Reply, Status>> {
        loop {
            tokio::select! {
                () = self.api.closing.cancelled() => return Some(Err(Status::unavailable("shutting down"))),
                beat = self.beats.message() => return Some(self.accept(beat.ok().flatten()?)),
                // Somebody waits for output: the last answer is given once more, with the question.
                Ok(()) = self.questions.changed() => {
                    if let Some((node, seq)) = &self.accepted {
                        let logs = self.api.relay.wanted(node);
                        if !logs.is_empty() {
                            return Some(Ok(Reply::Ack(proto::HeartbeatAck { seq: *seq, logs })));
                        }
                    }
                }
            }
        }
    }

    fn accept(&mut self, beat: proto::HeartbeatRequest) -> Result<Reply, Status> {
        let node = NodeId::new(&beat.node).map_err(|error| invalid("node", error))?;
        let mut reply = self.api.accept(self.speaker.as_ref(), &node, beat)?;
        if let Reply::Ack(ack) = &mut reply {
            ack.logs = self.api.relay.wanted(&node);
            self.accepted = Some((node, ack.seq));
        }
        Ok(reply)
    }
}

impl Api {
    fn accept(
        &self,
        speaker: Option<&NodeId>,
        node: &NodeId,
        beat: proto::HeartbeatRequest,
    ) -> Result<Reply, Status> {
        access::check_node(speaker, node)?;
        let workers = beat
            .workers
            .into_iter()
            .map(WorkerStatus::try_from)
            .collect::<Result<_, _>>();
        let workers = workers.map_err(|error| invalid("workers", error))?;
        let unreachable = traffic::unreachable(&beat.unreachable);
        // A leader without a majority may have been replaced: its nodes must look for the new one.
        let leads = self.handle.leading_term().is_some();
        let renewed = leads.then(|| {
            let model = self.model.borrow().clone();
            self.leadership
                .renew(&model, node, Incarnation(beat.incarnation), workers)
        });
        Ok(match renewed.flatten() {
            Some(Ok(())) => {
                let from = format!("agent/{node}");
                self.leadership.note_unreachable(&from, &from, unreachable);
                Reply::Ack(proto::HeartbeatAck {
                    seq: beat.seq,
                    logs: Vec::new(),
                })
            }
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
