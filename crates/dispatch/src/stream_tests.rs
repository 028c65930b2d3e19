//! Streams of events: what they do to a request's deadline and custody, and their way over a link.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mosec_types::{ErrorCode, Incarnation, NodeId, RequestId, RouteIndex, StageKey, spec::Delivery};
use mosec_wire::memory::pair;
use mosec_wire::{Answer, Custody, LinkServer as _};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::custody::{self, Loss, Rules};
use crate::*;

const IDLE: Duration = Duration::from_secs(3);

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

fn request() -> (Request, Client) {
    let client = Client::default();
    let request = Request {
        id: RequestId(1),
        route: RouteIndex(0),
        deadline: Instant::now() + IDLE,
        arrived: Instant::now(),
        headers: Bytes::new(),
        payload: text("in"),
        losses: 0,
        traced: false,
        spans: Vec::new(),
        stream: Stream::new(IDLE),
        reply: Reply::new(client.clone()),
    };
    (request, client)
}

fn text(text: &'static str) -> Payload {
    Payload::Bytes(Bytes::from_static(text.as_bytes()))
}

#[tokio::test(start_paused = true)]
async fn each_event_moves_the_deadline_and_none_brings_it_back() {
    let (mut request, client) = request();
    for _ in 0..10 {
        tokio::time::advance(IDLE - Duration::from_millis(1)).await;
        assert!(request.event(text("e"), Instant::now()));
    }
    tokio::time::advance(IDLE).await;
    assert!(!request.event(text("late"), Instant::now()));
    assert!(!request.is_live(Instant::now()));
    assert_eq!(client.0.lock().len(), 10);
    request.fail(ErrorCode::DeadlineExceeded);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_has_begun_is_never_begun_again() {
    let rules = Rules {
        delivery: Delivery::Retry,
        attempts: 3,
        once_later: Vec::new(),
    };
    for (loss, expected) in [
        (Loss::Worker, ErrorCode::WorkerCrashed),
        (Loss::Refused, ErrorCode::WorkerCrashed),
        (Loss::Link, ErrorCode::ReplicaLost),
    ] {
        let (mut begun, _client) = request();
        let (silent, _other) = request();
        begun.event(text("e"), Instant::now());
        let verdict = custody::after_loss(vec![begun, silent], loss, &rules, Instant::now());
        let codes: Vec<_> = verdict.fail.iter().map(|(_, code)| *code).collect();
        assert_eq!((codes, verdict.retry.len()), (vec![expected], 1), "{loss:?}");
        let retry = verdict.retry.into_iter().flatten();
        verdict
            .fail
            .into_iter()
            .for_each(|(request, code)| request.fail(code));
        retry.for_each(|request| request.fail(ErrorCode::Internal));
    }
}

/// Keeps what is lost.
#[derive(Default)]
struct Lost(Mutex<Vec<(Loss, Vec<Request>)>>);

impl Home for Lost {
    fn lost(&self, requests: Vec<Request>, loss: Loss) {
        self.0.lock().push((loss, requests));
    }
}

fn wire(item: u32, last: bool, payload: &'static str) -> Answer {
    Answer {
        item,
        code: ErrorCode::Ok,
        custody: Custody::Done,
        last,
        payload: Bytes::from_static(payload.as_bytes()),
        spans: Vec::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn events_come_over_a_link_and_keep_their_batch_alive() {
    let (link, server) = pair(NodeId::new("there").unwrap(), Incarnation(1));
    let home = Arc::<Lost>::default();
    let (requests, clients): (Vec<_>, Vec<_>) = (0..2).map(|_| request()).unzip();
    LinkTarget::new(Arc::new(link)).send(Dispatched {
        stage: StageKey {
            revision: Default::default(),
            stage: Default::default(),
        },
        requests,
        home: home.clone(),
        credit: Credit::new(|| ()),
        collected: None,
    });
    let mut incoming = server.accept().await.unwrap();
    for _ in 0..3 {
        // Longer together than the deadline the requests came with.
        tokio::time::sleep(IDLE / 2).await;
        incoming.answers.send(vec![wire(1, false, "e")]).await.unwrap();
    }
    incoming.answers.send(vec![wire(1, true, "")]).await.unwrap();
    drop(incoming); // the link breaks under item 0, which was silent
    while home.0.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let event = || Ok("e".to_owned());
    assert_eq!(
        *clients[1].0.lock(),
        [event(), event(), event(), Err(ErrorCode::Ok)]
    );
    let lost = std::mem::take(&mut *home.0.lock());
    assert_eq!((lost.len(), lost[0].0, lost[0].1.len()), (1, Loss::Link, 1));
    assert!(!lost[0].1[0].stream.has_started());
    lost.into_iter()
        .flat_map(|(_, requests)| requests)
        .for_each(|request| request.fail(ErrorCode::Internal));
}
