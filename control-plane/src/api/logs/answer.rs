//! An agent's answer.

use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use mosec_types::NodeId;
use mosec_wire::control::{MAX_CHUNK_BYTES, proto};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::access;
use crate::api::{Api, invalid};
use crate::relay::{Answering, Part};

/// How long an agent that answers may take for its next chunk of what it has.
const NEXT_CHUNK: Duration = Duration::from_secs(15);
/// How long somebody may read nothing: a pager that is left open for a while.
const UNREAD: Duration = Duration::from_secs(300);
/// Most bytes of a chunk, with what surrounds its lines: names, and workers without any.
const MAX_ENCODED_BYTES: usize = 8 * MAX_CHUNK_BYTES;

/// Takes a node's answer and passes it on.
pub(in crate::api) async fn answer(
    api: &Api,
    request: Request<Streaming<proto::LogsChunk>>,
) -> Result<Response<proto::SendLogsResponse>, Status> {
    let speaker = access::speaks_for(&request);
    let mut chunks = request.into_inner();
    let first = timeout(NEXT_CHUNK, chunks.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no chunk came"))??;
    let first = first.ok_or_else(|| invalid("chunks", "expected at least one, found none"))?;
    let output = first.output.clone().unwrap_or_default();
    let node = NodeId::new(output.node).map_err(|error| invalid("output.node", error))?;
    access::check_node(speaker.as_ref(), &node)?;
    let answering = api.relay.begin(first.id, &node);
    let answering = answering.ok_or_else(|| Status::not_found("nobody waits for this output"))?;
    pass_on_while_wanted(answering, first, chunks, &api.closing).await?;
    Ok(Response::new(proto::SendLogsResponse {}))
}

/// Passes chunks on until they end, or nobody waits for them.
async fn pass_on_while_wanted(
    answering: Answering,
    first: proto::LogsChunk,
    chunks: impl Stream<Item = Result<proto::LogsChunk, Status>> + Unpin,
    closing: &CancellationToken,
) -> Result<(), Status> {
    tokio::select! {
        passed = pass_on(&answering, first, chunks) => passed,
        // Whoever asked has left, or has not read for too long.
        () = answering.over.cancelled() => Ok(()),
        () = closing.cancelled() => Ok(()),
    }
}

/// Passes chunks on until they end, and says how they did.
async fn pass_on(
    answering: &Answering,
    first: proto::LogsChunk,
    mut chunks: impl Stream<Item = Result<proto::LogsChunk, Status>> + Unpin,
) -> Result<(), Status> {
    let node = &answering.node;
    if !first.refusal.is_empty() {
        return send(answering, Part::Problem(node.clone(), first.refusal)).await;
    }
    let mut caught_up = false;
    loop {
        let next = async {
            if caught_up {
                return chunks.next().await.transpose();
            }
            let late = |_| Status::deadline_exceeded(format!("sent nothing for {NEXT_CHUNK:?}"));
            timeout(NEXT_CHUNK, chunks.next())
                .await
                .map_err(late)?
                .transpose()
        };
        let problem = match next.await {
            Ok(Some(chunk)) => match part(node, &chunk) {
                Ok(part) => {
                    if let Some(part) = part {
                        send(answering, part).await?;
                    }
                    if chunk.caught_up && !caught_up {
                        caught_up = true;
                        answering.has_caught_up();
                        send(answering, Part::CaughtUp(node.clone())).await?;
                    }
                    continue;
                }
                Err(status) => {
                    let text = format!("broke the protocol: {}", status.message());
                    send(answering, Part::Problem(node.clone(), text)).await?;
                    return Err(status);
                }
            },
            Ok(None) if caught_up => "has ended its answer",
            Ok(None) => "has broken off its answer",
            Err(status) => {
                tracing::debug!(%node, %status, "output broke off");
                "has broken off its answer"
            }
        };
        // Nobody needs to be told of the end of an answer that was to end.
        let told = Part::Problem(node.clone(), problem.into());
        return if caught_up && answering.is_complete() {
            Ok(())
        } else {
            send(answering, told).await
        };
    }
}

/// What a chunk has to tell; `None` where that is nothing.
fn part(node: &NodeId, chunk: &proto::LogsChunk) -> Result<Option<Part>, Status> {
    use prost::Message as _;
    let length = chunk.encoded_len();
    if length > MAX_ENCODED_BYTES {
        return Err(invalid(
            "output",
            format!("expected at most {MAX_ENCODED_BYTES} bytes, found {length}"),
        ));
    }
    let output = chunk.output.clone().unwrap_or_default();
    if output.node != node.as_str() {
        return Err(invalid(
            "output.node",
            format!("expected {node}, found {}", output.node),
        ));
    }
    Ok((!output.workers.is_empty()).then_some(Part::Output(output)))
}

/// Hands a part to the one who asked; ends the question where nobody reads.
async fn send(answering: &Answering, part: Part) -> Result<(), Status> {
    match timeout(UNREAD, answering.parts.send(part)).await {
        // One who has left is noticed elsewhere.
        Ok(_) => Ok(()),
        Err(_) => {
            answering.give_up();
            Err(Status::aborted("nobody reads the output"))
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;
    use crate::fixtures::node_id;
    use crate::relay::{Question, Relay};

    /// A chunk with as many workers that have no lines.
    fn said(node: &str, workers: usize, caught_up: bool) -> proto::LogsChunk {
        proto::LogsChunk {
            output: Some(proto::NodeOutput {
                node: node.into(),
                incarnation: 1,
                workers: vec![proto::WorkerOutput::default(); workers],
            }),
            caught_up,
            ..Default::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_reads_nothing_loses_the_quiet_answers_with_the_busy_ones() {
        let relay = Relay::default();
        let nodes = ["busy", "quiet"].map(node_id);
        let mut asker = relay
            .ask(Question {
                query: proto::LogsQuery {
                    follow: true,
                    ..Default::default()
                },
                nodes: nodes.clone().into(),
                every_node: true,
                seen: Vec::new(),
                caught_up: false,
            })
            .unwrap();
        let begin = |node| relay.begin(relay.wanted(node)[0].id, node).unwrap();
        let [busy, quiet] = nodes.each_ref().map(begin);
        let closing = CancellationToken::new();
        let babble = stream::repeat_with(|| Ok(said("busy", 1, true)));
        let silence = stream::iter([Ok(said("quiet", 0, true))]).chain(stream::pending());
        let parts = &mut asker.parts;
        let then_busy = async {
            // While there is room for it on the way.
            assert_eq!(parts.recv().await, Some(Part::CaughtUp(node_id("quiet"))));
            pass_on_while_wanted(busy, said("busy", 0, false), babble, &closing).await
        };
        let (busy, quiet) = tokio::join!(
            then_busy,
            pass_on_while_wanted(quiet, said("quiet", 0, false), Box::pin(silence), &closing),
        );
        assert_eq!(busy.unwrap_err().code(), tonic::Code::Aborted);
        quiet.expect("it is told that nobody waits");
        let on_the_way = async { while asker.parts.recv().await.is_some() {} };
        let heard = timeout(Duration::from_secs(1), on_the_way).await;
        heard.expect("the one who asked hears that it is over, after what was on the way");
        assert!(nodes.iter().all(|node| relay.wanted(node).is_empty()));
    }

    #[test]
    fn an_agent_speaks_for_its_own_node_in_chunks_that_are_not_too_large() {
        let chunk = |node: &str, text: usize| proto::LogsChunk {
            output: Some(proto::NodeOutput {
                node: node.into(),
                incarnation: 1,
                workers: vec![proto::WorkerOutput {
                    lines: vec![proto::OutputLine {
                        text: "x".repeat(text),
                        ..Default::default()
                    }],
                    ..Default::default()
                }],
            }),
            ..Default::default()
        };
        let a = node_id("a");
        assert!(matches!(
            part(&a, &chunk("a", MAX_CHUNK_BYTES)),
            Ok(Some(Part::Output(_)))
        ));
        assert!(part(&a, &chunk("b", 1)).is_err());
        assert!(part(&a, &chunk("a", MAX_ENCODED_BYTES)).is_err());
        let mut nothing = chunk("a", 0);
        nothing.output.as_mut().unwrap().workers.clear();
        assert_eq!(part(&a, &nothing).unwrap(), None);
    }
}
