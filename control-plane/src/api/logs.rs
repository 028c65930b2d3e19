//! Calls for the output of workers: of people who ask, and of agents that answer.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use mosec_types::topology::NodeHealth;
use mosec_types::{NodeId, PipelineName};
use mosec_wire::control::proto::logs_reply::Part as Reply;
use mosec_wire::control::{MAX_CHUNK_BYTES, MAX_POSITIONS, proto};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::{Request, Response, Status, Streaming};

use super::{Api, ReplyStream, forward, invalid, refused};
use crate::access;
use crate::raft::handle::ProposeError;
use crate::relay::{Answering, Asker, Part, Question};
use crate::state::{Model, Refusal};

/// How long an agent may take to begin its answer: some heartbeats.
const ANSWER: Duration = Duration::from_secs(5);
/// How long an agent that answers may take for its next chunk of what it has.
const NEXT_CHUNK: Duration = Duration::from_secs(15);
/// How long somebody may read nothing: a pager that is left open for a while.
const UNREAD: Duration = Duration::from_secs(300);
/// How long one stream may last. Who follows for longer opens another and goes on from there.
const MAX_TIME: Duration = Duration::from_secs(3600);
/// How often a quiet stream asks itself whether this member still leads.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Checks in a row that a stream outlives: a majority that is late once is no reason to begin anew.
const CHECKS: u32 = 2;
/// Most bytes of a chunk, with what surrounds its lines: names, and workers without any.
const MAX_ENCODED_BYTES: usize = 8 * MAX_CHUNK_BYTES;

/// Relays what the agents send, here or at the leader.
pub(super) async fn ask(
    api: &Api,
    request: Request<proto::LogsRequest>,
) -> Result<Response<ReplyStream<proto::LogsReply>>, Status> {
    let caller = access::caller(&request);
    let over = over(api.clone(), caller);
    match api.handle.read_barrier().await {
        Err(ProposeError::NotLeader { leader }) => {
            let send = |mut client: forward::Client, request| async move { client.logs(request).await };
            let there = api.forward(leader, request, send).await?.into_inner();
            Ok(Response::new(Box::pin(there.take_until(over))))
        }
        Err(error) => Err(forward::failure(error)),
        Ok(()) => {
            let model = api.model.borrow().clone();
            let question = question(&model, request.into_inner())?;
            let replies = follow(api.clone(), &model, question)?;
            Ok(Response::new(Box::pin(replies.take_until(over))))
        }
    }
}

/// Completes when a stream has lasted long enough. It ends without an error, and without having been told to be complete.
async fn over(api: Api, caller: access::Caller) {
    tokio::select! {
        () = access::expiry(caller) => {}
        () = sleep(MAX_TIME) => {}
        () = api.closing.cancelled() => {}
    }
}

/// What is asked, checked against what there is.
fn question(model: &Model, request: proto::LogsRequest) -> Result<Question, Status> {
    let query = request.query.unwrap_or_default();
    let pipeline = PipelineName::new(&query.pipeline).map_err(|error| invalid("query.pipeline", error))?;
    let known = stages(model, &pipeline);
    if known.is_empty() {
        return Err(refused(&Refusal::UnknownPipeline(pipeline)));
    }
    if !query.stage.is_empty() && !known.contains(query.stage.as_str()) {
        let known: Vec<_> = known.into_iter().collect();
        return Err(refused(&Refusal::UnknownStage {
            pipeline,
            stage: query.stage.clone(),
            known: known.join(", "),
        }));
    }
    let found = request.seen.len();
    if found > MAX_POSITIONS {
        return Err(invalid(
            "seen",
            format!("expected at most {MAX_POSITIONS}, found {found}"),
        ));
    }
    let every_node = request.node.is_empty();
    let nodes = if every_node {
        model.nodes.keys().cloned().collect()
    } else {
        let node = NodeId::new(&request.node).map_err(|error| invalid("node", error))?;
        if !model.nodes.contains_key(&node) {
            return Err(refused(&Refusal::UnknownNode(node)));
        }
        BTreeSet::from([node])
    };
    Ok(Question {
        query,
        nodes,
        every_node,
        seen: request.seen,
    })
}

/// The stages of all revisions that are known of a pipeline.
fn stages<'a>(model: &'a Model, pipeline: &PipelineName) -> BTreeSet<&'a str> {
    let running = model.rollouts.values().map(|rollout| &rollout.deployment.spec);
    let running = running.filter(|spec| spec.name == *pipeline);
    let history = model.histories.get(pipeline).into_iter();
    let remembered = history.flat_map(|history| history.records().iter().map(|record| &record.spec));
    let specs = running.chain(remembered);
    specs
        .flat_map(|spec| spec.stages.iter().map(|stage| stage.name.as_str()))
        .collect()
}

fn follow(
    api: Api,
    model: &Model,
    question: Question,
) -> Result<impl Stream<Item = Result<proto::LogsReply, Status>> + use<>, Status> {
    let term = api.handle.leading_term();
    let follows = question.query.follow;
    let mut awaited = question.nodes.clone();
    let mut due = VecDeque::new();
    for node in &question.nodes {
        if model.nodes.get(node).map(|node| node.health) == Some(NodeHealth::Down) {
            awaited.remove(node);
            due.push_back(problem(node, "is down"));
        }
    }
    let asker = api.relay.ask(question);
    let asker = asker.ok_or_else(|| {
        Status::resource_exhausted("too many people read the output of workers now: one of them has to end")
    })?;
    let answering = Answers {
        api,
        asker,
        awaited,
        due,
        follows,
        caught_up: false,
        term,
        poor: 0,
        late: Instant::now() + ANSWER,
        check_at: Instant::now() + CHECK_EVERY,
    };
    Ok(stream::unfold(Some(answering), |answers| async {
        let mut answers = answers?;
        match answers.next().await {
            Ok(Some(part)) => Some((Ok(proto::LogsReply { part: Some(part) }), Some(answers))),
            Ok(None) => None,
            Err(status) => Some((Err(status), None)),
        }
    }))
}

fn problem(node: &NodeId, problem: impl Into<String>) -> Reply {
    Reply::Problem(proto::NodeProblem {
        node: node.to_string(),
        problem: problem.into(),
    })
}

/// The answers to one question, as they come.
struct Answers {
    api: Api,
    asker: Asker,
    /// The nodes that have not sent yet what they had at the beginning.
    awaited: BTreeSet<NodeId>,
    due: VecDeque<Reply>,
    follows: bool,
    caught_up: bool,
    /// In which this member was asked.
    term: Option<u64>,
    /// Checks in a row by which this member did not lead in that term.
    poor: u32,
    /// When agents that have not begun are given up.
    late: Instant,
    check_at: Instant,
}

impl Answers {
    async fn next(&mut self) -> Result<Option<Reply>, Status> {
        loop {
            if let Some(reply) = self.due.pop_front() {
                return Ok(Some(reply));
            }
            if self.awaited.is_empty() && !self.caught_up {
                self.caught_up = true;
                return Ok(Some(Reply::CaughtUp(proto::LogsCaughtUp {})));
            }
            if self.caught_up && !self.follows {
                return Ok(None);
            }
            tokio::select! {
                part = self.asker.parts.recv() => {
                    let unread = || Status::aborted("nobody has read the output for too long");
                    self.take(part.ok_or_else(unread)?);
                }
                () = sleep_until(self.late), if !self.caught_up => self.give_up(),
                () = sleep_until(self.check_at) => self.check()?,
            }
        }
    }

    fn take(&mut self, part: Part) {
        match part {
            Part::Output(output) => self.due.push_back(Reply::Output(output)),
            Part::CaughtUp(node) => drop(self.awaited.remove(&node)),
            Part::Problem(node, text) => {
                self.awaited.remove(&node);
                self.due.push_back(problem(&node, text));
            }
        }
    }

    /// Goes on without the agents that have not begun to answer.
    fn give_up(&mut self) {
        let (asker, due) = (&self.asker, &mut self.due);
        self.awaited.retain(|node| {
            let answers = asker.is_answered_by(node);
            if !answers {
                due.push_back(problem(node, format!("has not answered within {ANSWER:?}")));
            }
            answers
        });
        // Those that have begun are looked after where their chunks come in.
        self.late += MAX_TIME;
    }

    /// Ends the stream where another member is the one to ask.
    fn check(&mut self) -> Result<(), Status> {
        self.check_at = Instant::now() + CHECK_EVERY;
        let leads = self.term.is_some() && self.api.handle.leading_term() == self.term;
        self.poor = if leads { 0 } else { self.poor + 1 };
        if self.poor < CHECKS {
            return Ok(());
        }
        Err(forward::not_leader(self.api.handle.leader().as_ref()))
    }
}

/// Takes a node's answer and passes it on.
pub(super) async fn answer(
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
    use mosec_types::topology::Phase;

    use super::*;
    use crate::fixtures::{model, node_id, pipeline, rollout, stage, up};

    fn request(pipeline: &str, stage: &str, node: &str) -> proto::LogsRequest {
        proto::LogsRequest {
            query: Some(proto::LogsQuery {
                pipeline: pipeline.into(),
                stage: stage.into(),
                ..Default::default()
            }),
            node: node.into(),
            seen: Vec::new(),
        }
    }

    #[test]
    fn what_is_asked_for_must_be_there() {
        let spec = pipeline("ocr", vec![stage("read", 1), stage("find", 1)]);
        let failed = Phase::Failed { reason: "no".into() };
        let model = model(1, [up("a"), up("b")], vec![rollout(1, &spec, failed, vec![])]);
        let all = question(&model, request("ocr", "", "")).unwrap();
        assert_eq!((all.nodes.len(), all.every_node), (2, true));
        let one = question(&model, request("ocr", "find", "b")).unwrap();
        assert_eq!(
            (one.nodes, one.every_node),
            (BTreeSet::from([node_id("b")]), false)
        );
        for (request, text) in [
            (request("ocr ", "", ""), "query.pipeline: "),
            (request("other", "", ""), "there is no pipeline other"),
            (
                request("ocr", "red", ""),
                "pipeline ocr has no stage red, its stages are find, read",
            ),
            (request("ocr", "", "c"), "there is no node c"),
        ] {
            let status = question(&model, request).unwrap_err();
            assert!(status.message().starts_with(text), "{status:?}");
        }
        let mut many = request("ocr", "", "");
        many.seen = vec![proto::LogsPosition::default(); MAX_POSITIONS + 1];
        assert!(
            question(&model, many)
                .unwrap_err()
                .message()
                .starts_with("seen: ")
        );
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
