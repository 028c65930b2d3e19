//! Streams of events on their way through an agent.

use std::sync::Arc;

use bytes::Bytes;
use mosec_dispatch::{Outcome, Payload, Respond};
use mosec_types::ErrorCode;
use mosec_wire::Returned;
use parking_lot::Mutex;

use super::bench::{Bench, Upstream, key, request_of, take};
use super::server::{Connected, next};

/// Everything one request's client is told, in order; the answer as its code.
#[derive(Clone, Default)]
struct Client(Arc<Mutex<Vec<Result<String, ErrorCode>>>>);

impl Respond for Client {
    fn respond(self: Box<Self>, outcome: Outcome) {
        self.0.lock().push(Err(outcome.code));
    }

    fn event(&self, payload: Payload) {
        self.0
            .lock()
            .push(Ok(String::from_utf8(payload.to_bytes().to_vec()).unwrap()));
    }

    fn is_wanted(&self) -> bool {
        true
    }
}

fn event(text: &str) -> Result<String, ErrorCode> {
    Ok(text.to_owned())
}

#[tokio::test]
async fn events_reach_their_client_in_order_and_come_before_its_answer() {
    let bench = Bench::new();
    let pool = bench.pool(1, 0);
    let worker = bench.worker(&pool);
    let upstream = Arc::<Upstream>::default();
    let clients = [Client::default(), Client::default()];
    let requests = clients
        .iter()
        .map(|client| request_of(0, Bytes::new(), client.clone()));
    upstream.send_requests(&pool, requests.collect());
    let batch = worker.take().unwrap();
    for text in ["1", "", "3"] {
        worker.event(&batch, 1, text);
        worker.event(&batch, 0, "other");
    }
    worker.answer(
        &batch,
        &[(1, ErrorCode::Ok, ""), (0, ErrorCode::Validation, "no")],
    );
    assert_eq!(
        *clients[1].0.lock(),
        [event("1"), event(""), event("3"), Err(ErrorCode::Ok)]
    );
    assert_eq!(clients[0].0.lock().last(), Some(&Err(ErrorCode::Validation)));
    assert_eq!((upstream.credits(), worker.worker.outstanding()), (0, 0));
}

#[tokio::test]
async fn events_of_a_stage_in_the_middle_go_nowhere() {
    let bench = Bench::new();
    let pool = bench.pool(1, 0);
    let worker = bench.worker(&pool);
    let upstream = Arc::<Upstream>::default();
    let client = Client::default();
    upstream.send_requests(&pool, vec![request_of(1, Bytes::new(), client.clone())]);
    let batch = worker.take().unwrap();
    worker.event(&batch, 0, "early");
    let heir = bench.worker(&pool);
    worker.die();
    assert!(
        heir.take().is_some(),
        "its client has seen nothing, so it may run again"
    );
    assert_eq!(*client.0.lock(), []);
    heir.die();
}

#[tokio::test]
async fn a_worker_that_dies_after_an_event_fails_that_stream_alone() {
    let bench = Bench::new();
    let pool = bench.pool(1, 0);
    let worker = bench.worker(&pool);
    let upstream = Arc::<Upstream>::default();
    let clients = [Client::default(), Client::default()];
    let requests = clients
        .iter()
        .map(|client| request_of(0, Bytes::new(), client.clone()));
    upstream.send_requests(&pool, requests.collect());
    let batch = worker.take().unwrap();
    worker.event(&batch, 0, "1");
    let heir = bench.worker(&pool);
    worker.die();
    assert_eq!(*clients[0].0.lock(), [event("1"), Err(ErrorCode::WorkerCrashed)]);
    let batch = heir.take().unwrap();
    heir.answer(&batch, &[(0, ErrorCode::Ok, "")]);
    assert_eq!(*clients[1].0.lock(), [Err(ErrorCode::Ok)]);
    assert!(heir.take().is_none());
}

#[tokio::test]
async fn events_are_sent_over_a_link_as_they_come() {
    let bench = Bench::new();
    let worker = bench.worker(&bench.pool(1, 0));
    let connected = Connected::new(&bench, crate::Upstream::Gateway).await;
    let mut answers = connected.send(key(1, 0), 0, &["a", "b"]).await;
    let batch = take(&worker).await;
    for text in ["1", "2"] {
        worker.event(&batch, 1, text);
        let Some(Returned::Answers(group)) = next(&mut answers).await else {
            panic!("no event")
        };
        assert_eq!((group.len(), group[0].item, group[0].last), (1, 1, false));
        assert_eq!(group[0].payload, text);
    }
    worker.answer(&batch, &[(0, ErrorCode::Ok, "A"), (1, ErrorCode::Ok, "")]);
    let Some(Returned::Answers(group)) = next(&mut answers).await else {
        panic!("no answers")
    };
    assert!(group.len() == 2 && group.iter().all(|answer| answer.last));
    assert_eq!(next(&mut answers).await, None);
}
