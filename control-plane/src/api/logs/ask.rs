//! A question of a person, and the replies to it.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use mosec_telemetry::Counted;
use mosec_types::topology::NodeHealth;
use mosec_types::{NodeId, PipelineName};
use mosec_wire::control::proto::logs_reply::Part as Reply;
use mosec_wire::control::{MAX_POSITIONS, proto};
use tokio::time::{Instant, sleep, sleep_until};
use tonic::{Request, Response, Status};

use crate::access;
use crate::api::{Api, ReplyStream, forward, invalid, refused};
use crate::raft::handle::ProposeError;
use crate::relay::{Asker, Part, Question};
use crate::state::{Model, Refusal};

/// How long an agent may take to begin its answer: some heartbeats.
const ANSWER: Duration = Duration::from_secs(5);
/// How long one stream may last. Who follows for longer opens another and goes on from there.
const MAX_TIME: Duration = Duration::from_secs(3600);
/// How often a quiet stream asks itself whether this member still leads.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Checks in a row that a stream outlives: a majority that is late once is no reason to begin anew.
const CHECKS: u32 = 2;

/// Relays what the agents send, here or at the leader.
pub(in crate::api) async fn ask(
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
        caught_up: request.caught_up,
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
        _counted: Counted::new(&api.metrics.log_readers),
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
    _counted: Counted,
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
                    // Who reads on may ask anew, and is told then what it has missed.
                    let unread = || Status::unavailable("nobody has read the output for too long");
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
            ..Default::default()
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
}
