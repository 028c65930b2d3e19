//! An agent's answer.

use std::time::Duration;

use mosec_types::NodeId;
use mosec_wire::control::{MAX_CHUNK_BYTES, proto};
use tokio::time::timeout;
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
    let passing = pass_on(&answering, first, chunks);
    tokio::select! {
        passed = passing => passed?,
        // Whoever asked has left.
        () = answering.parts.closed() => {}
        () = api.closing.cancelled() => {}
    }
    Ok(Response::new(proto::SendLogsResponse {}))
}

/// Passes chunks on until they end, and says how they did.
async fn pass_on(
    answering: &Answering,
    first: proto::LogsChunk,
    mut chunks: Streaming<proto::LogsChunk>,
) -> Result<(), Status> {
    let node = &answering.node;
    if !first.refusal.is_empty() {
        return send(answering, Part::Problem(node.clone(), first.refusal)).await;
    }
    let mut caught_up = false;
    loop {
        let next = async {
            if caught_up {
                return chunks.message().await;
            }
            let late = |_| Status::deadline_exceeded(format!("sent nothing for {NEXT_CHUNK:?}"));
            timeout(NEXT_CHUNK, chunks.message()).await.map_err(late)?
        };
        let problem = match next.await {
            Ok(Some(chunk)) => match part(node, &chunk) {
                Ok(part) => {
                    if let Some(part) = part {
                        send(answering, part).await?;
                    }
                    if chunk.caught_up && !caught_up {
                        caught_up = true;
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
    use super::*;
    use crate::fixtures::node_id;

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
