//! Answers to members of the control plane that ask for output.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::{Stream, stream};
use mosec_types::{Incarnation, NodeId, ReplicaId, Revision, StageIndex, StageKey};
use mosec_wire::control::{Asked, ControlClient, MAX_CHUNK_BYTES, proto};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::store::{Reader, Slot};
use super::{Output, unix_ms};

/// Most answers at a time: what the leader lets people ask, and as much again of one that led before it.
const MAX_ANSWERS: usize = 32;
/// New lines are gathered for so long, which nobody sees, so that a worker that writes them one by one makes few messages.
const GATHER: Duration = Duration::from_millis(50);

/// Answers questions until `stop`.
///
/// `output`: absent where this agent keeps none.
pub(crate) async fn answer(
    output: Option<Output>,
    control: ControlClient,
    (node, incarnation): (NodeId, Incarnation),
    mut questions: mpsc::Receiver<Asked>,
    stop: CancellationToken,
) {
    let mut running = BTreeSet::new();
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            Some(Asked { member, wanted }) = questions.recv() => {
                let name = (member.clone(), wanted.id);
                // A question comes with every reply until its answer has begun.
                if !running.insert(name.clone()) {
                    continue;
                }
                let own = NodeOutputOf { node: node.clone(), incarnation };
                let refusal = match &output {
                    None => Some("its agent keeps no output of workers"),
                    Some(_) if answers.len() >= MAX_ANSWERS => Some("too many people read its output already"),
                    Some(_) => None,
                };
                let chunks = match (&output, refusal) {
                    (Some(output), None) => Answer::new(output.clone(), own, &wanted),
                    (_, refusal) => Answer::refusal(wanted.id, own, refusal.unwrap_or_default()),
                };
                let control = control.clone();
                answers.spawn(async move {
                    let over = chunks.over.clone();
                    let sent = control.send_logs(&member, chunks.stream()).await;
                    // Whatever still waits for news ends with the call.
                    over.cancel();
                    if let Err(status) = sent {
                        tracing::debug!(member, %status, "output is no longer wanted");
                    }
                    name
                });
            }
            Some(ended) = answers.join_next(), if !answers.is_empty() => {
                match ended {
                    Ok(name) => drop(running.remove(&name)),
                    Err(error) => {
                        // A bug of ours. Its name stays, so that it is not tried again and again.
                        tracing::error!(%error, "an answer failed");
                    }
                }
            }
            () = stop.cancelled() => return,
            else => return,
        }
    }
}

/// Whose output it is.
#[derive(Clone)]
struct NodeOutputOf {
    node: NodeId,
    incarnation: Incarnation,
}

/// An answer that is being given.
struct Answer {
    id: u64,
    own: NodeOutputOf,
    source: Option<Source>,
    refusal: &'static str,
    begun: bool,
    caught_up: bool,
    over: CancellationToken,
}

struct Source {
    output: Output,
    news: watch::Receiver<()>,
    reader: Reader,
}

impl Answer {
    fn new(output: Output, own: NodeOutputOf, wanted: &proto::LogsWanted) -> Self {
        let seen = wanted.seen.iter().filter_map(|seen| own.position(seen));
        let query = wanted.query.clone().unwrap_or_default();
        let reader = Reader::new(query, seen.collect(), wanted.caught_up, unix_ms());
        let news = output.0.news.subscribe();
        Self {
            source: Some(Source { output, news, reader }),
            ..Self::refusal(wanted.id, own, "")
        }
    }

    fn refusal(id: u64, own: NodeOutputOf, refusal: &'static str) -> Self {
        Self {
            id,
            own,
            source: None,
            refusal,
            begun: false,
            caught_up: false,
            over: CancellationToken::new(),
        }
    }

    /// The chunks. Each is made when there is room for it on the way: what a slow reader misses meanwhile is lost to it.
    fn stream(self) -> impl Stream<Item = proto::LogsChunk> + Send + 'static {
        stream::unfold(self, |mut answer| async move {
            let over = answer.over.clone();
            tokio::select! {
                chunk = answer.next() => chunk.map(|chunk| (chunk, answer)),
                () = over.cancelled() => None,
            }
        })
    }

    async fn next(&mut self) -> Option<proto::LogsChunk> {
        if !std::mem::replace(&mut self.begun, true) {
            // At once, so that the member knows that somebody answers.
            return Some(proto::LogsChunk {
                id: self.id,
                refusal: self.refusal.to_owned(),
                output: Some(self.own.output(Vec::new())),
                ..Default::default()
            });
        }
        let Source { output, news, reader } = self.source.as_mut()?;
        loop {
            news.mark_unchanged();
            let workers = output.read(reader, MAX_CHUNK_BYTES);
            let is_all = workers.is_empty();
            if is_all && self.caught_up {
                if !reader.follows() {
                    return None;
                }
                news.changed().await.ok()?;
                tokio::time::sleep(GATHER).await;
                continue;
            }
            self.caught_up |= is_all;
            return Some(proto::LogsChunk {
                output: Some(self.own.output(workers)),
                caught_up: self.caught_up,
                ..Default::default()
            });
        }
    }
}

impl NodeOutputOf {
    fn output(&self, workers: Vec<proto::WorkerOutput>) -> proto::NodeOutput {
        proto::NodeOutput {
            node: self.node.to_string(),
            incarnation: self.incarnation.0,
            workers,
        }
    }

    /// How far a reader was, where that was in this run of this agent.
    fn position(&self, seen: &proto::LogsPosition) -> Option<(Slot, u64)> {
        let key = StageKey {
            revision: Revision(seen.revision),
            stage: StageIndex(u16::try_from(seen.stage).ok()?),
        };
        let is_own = seen.node == self.node.as_str() && seen.incarnation == self.incarnation.0;
        is_own.then_some(((key, ReplicaId(seen.replica)), seen.next))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The answer to question 7, for everything that a pipeline "ocr" says.
    pub(in crate::output) fn chunks(
        output: &Output,
        follow: bool,
    ) -> impl Stream<Item = proto::LogsChunk> + use<> {
        let own = NodeOutputOf {
            node: NodeId::new("a").expect("a valid name"),
            incarnation: Incarnation(1),
        };
        let wanted = proto::LogsWanted {
            id: 7,
            query: Some(proto::LogsQuery {
                pipeline: "ocr".into(),
                tail: 100,
                follow,
                ..Default::default()
            }),
            ..Default::default()
        };
        Answer::new(output.clone(), own, &wanted).stream()
    }
}
