//! Output of workers on its way from agents to whoever asks.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use mosec_types::Topology;
use mosec_types::topology::NodeHealth::Up;
use mosec_wire::control::proto::logs_reply::Part;
use mosec_wire::control::{Asked, ControlClient, ControlError, proto};
use tokio::time::timeout;
use tonic::{Code, Streaming};

use crate::agents::Agent;
use crate::harness::{Cluster, PATIENCE, Watch, pipeline};

fn request(pipeline: &str, follow: bool) -> proto::LogsRequest {
    proto::LogsRequest {
        query: Some(proto::LogsQuery {
            pipeline: pipeline.into(),
            tail: 10,
            follow,
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The next question that is not this one.
async fn asked(agent: &mut Agent, answered: Option<u64>) -> Asked {
    let next = async {
        loop {
            let asked = agent.questions.recv().await.unwrap();
            if Some(asked.wanted.id) != answered {
                return asked;
            }
        }
    };
    timeout(PATIENCE, next).await.unwrap()
}

fn chunk(id: u64, text: &str, caught_up: bool) -> proto::LogsChunk {
    let line = proto::OutputLine {
        text: text.into(),
        ..Default::default()
    };
    proto::LogsChunk {
        id,
        output: Some(proto::NodeOutput {
            node: "a".into(),
            incarnation: 1,
            workers: vec![proto::WorkerOutput {
                lines: vec![line],
                next: 1,
                ..Default::default()
            }],
        }),
        caught_up,
        refusal: String::new(),
    }
}

/// The start of an answer, which has no lines.
fn opening(id: u64) -> proto::LogsChunk {
    let mut opening = chunk(id, "", false);
    opening.output.as_mut().unwrap().workers.clear();
    opening
}

async fn next(replies: &mut Streaming<proto::LogsReply>) -> Option<Part> {
    let reply = timeout(PATIENCE, replies.message()).await.unwrap().unwrap();
    reply.map(|reply| reply.part.unwrap())
}

fn text(part: Option<Part>) -> String {
    match part {
        Some(Part::Output(output)) => output.workers[0].lines[0].text.clone(),
        other => panic!("{other:?}"),
    }
}

async fn with_one_agent(cluster: &Cluster) -> (ControlClient, Agent) {
    let client = cluster.client(&[1, 2, 3]);
    let mut watch = Watch::start(&client, Topology::default());
    let agent = Agent::start(&client, "a", 1);
    watch.until_node("a", |node| node.health == Up).await;
    client.deploy(&pipeline("p", 1), None).await.unwrap();
    (client, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_gives_what_the_agents_send() {
    let cluster = Cluster::start(3).await;
    let (client, mut agent) = with_one_agent(&cluster).await;
    let mut answered = None;
    for member in 1..=3 {
        let asking = cluster.client(&[member]);
        let mut replies = asking.logs(request("p", false)).await.unwrap();
        let Asked { member, wanted } = asked(&mut agent, answered).await;
        answered = Some(wanted.id);
        assert_eq!(wanted.query, request("p", false).query);
        let chunks = [opening(wanted.id), chunk(0, "one", false), chunk(0, "two", true)];
        client.send_logs(&member, stream::iter(chunks)).await.unwrap();
        assert_eq!(text(next(&mut replies).await), "one");
        assert_eq!(text(next(&mut replies).await), "two");
        assert!(matches!(next(&mut replies).await, Some(Part::CaughtUp(_))));
        assert_eq!(next(&mut replies).await, None);
        let again = client
            .send_logs(&member, stream::iter([opening(wanted.id)]))
            .await;
        assert_eq!(again.unwrap_err().code(), Code::NotFound, "nobody waits any more");
    }
    let unknown = client.logs(request("q", false)).await.unwrap_err();
    assert!(
        matches!(
            &unknown,
            ControlError::Refused {
                code: Code::NotFound,
                ..
            }
        ),
        "{unknown}"
    );
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_ends_with_the_one_who_asked_and_is_asked_for_again_when_it_breaks_off() {
    let cluster = Cluster::start(3).await;
    let (client, mut agent) = with_one_agent(&cluster).await;
    let mut replies = client.logs(request("p", true)).await.unwrap();
    let Asked { member, wanted } = asked(&mut agent, None).await;
    let broken = [opening(wanted.id), chunk(0, "one", true)];
    client.send_logs(&member, stream::iter(broken)).await.unwrap();
    assert_eq!(text(next(&mut replies).await), "one");
    let mut parts = [next(&mut replies).await, next(&mut replies).await];
    parts.sort_by_key(|part| matches!(part, Some(Part::Problem(_))));
    assert!(matches!(&parts[0], Some(Part::CaughtUp(_))), "{parts:?}");
    assert!(
        matches!(&parts[1], Some(Part::Problem(problem)) if problem.node == "a"),
        "{parts:?}"
    );

    let Asked { member, wanted } = asked(&mut agent, None).await;
    let going_on = stream::iter([opening(wanted.id), chunk(0, "two", true)]).chain(stream::pending());
    let sending = tokio::spawn({
        let client = client.clone();
        async move { client.send_logs(&member, going_on).await }
    });
    assert_eq!(text(next(&mut replies).await), "two");
    drop(replies);
    timeout(PATIENCE, sending).await.unwrap().unwrap().unwrap();
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_agent_is_named_in_time() {
    let cluster = Cluster::start(3).await;
    let (client, agent) = with_one_agent(&cluster).await;
    let mut replies = client.logs(request("p", false)).await.unwrap();
    let answer = timeout(Duration::from_secs(20), replies.message()).await;
    let part = answer.unwrap().unwrap().and_then(|reply| reply.part);
    let Some(Part::Problem(problem)) = part else {
        panic!("{part:?}");
    };
    assert_eq!(
        (problem.node.as_str(), problem.problem.as_str()),
        ("a", "has not answered within 5s")
    );
    assert!(matches!(next(&mut replies).await, Some(Part::CaughtUp(_))));
    agent.stop().await;
}
