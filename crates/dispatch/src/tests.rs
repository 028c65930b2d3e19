//! The dispatcher against a scripted target, in virtual time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use mosec_types::spec::{Batching, Delivery};
use mosec_types::{
    ErrorCode, PipelineName, PipelineSpec, RequestId, RouteIndex, RouteSpec, StageIndex, StageKey, StageSpec,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::batch::{DEFAULT_MAX_BYTES, Limits};
use crate::custody::{Loss, Rules};
use crate::dispatcher::HOUSEKEEPING;
use crate::*;

pub(crate) const DEADLINE: Duration = Duration::from_secs(3);
const WAIT: Duration = Duration::from_millis(10);
pub(crate) const GRACE: Duration = Duration::from_secs(1);

/// Keeps the batches it is sent.
#[derive(Default)]
pub(crate) struct Kept(Mutex<Vec<Dispatched>>);

impl Target for Kept {
    fn send(&self, batch: Dispatched) {
        self.0.lock().push(batch);
    }
}

impl Kept {
    pub(crate) fn take(&self) -> Vec<Dispatched> {
        std::mem::take(&mut *self.0.lock())
    }

    fn sizes(&self) -> Vec<usize> {
        self.0.lock().iter().map(|batch| batch.requests.len()).collect()
    }
}

pub(crate) struct Bench {
    pub(crate) dispatcher: Dispatcher,
    pub(crate) target: Arc<Kept>,
    next_id: u64,
}

impl Bench {
    pub(crate) fn new(max_requests: usize, capacity: usize, delivery: Delivery) -> Self {
        Self::with(max_requests, capacity, delivery, Batching::Window)
    }

    fn with(max_requests: usize, capacity: usize, delivery: Delivery, batching: Batching) -> Self {
        let config = StageConfig {
            key: StageKey {
                revision: Default::default(),
                stage: Default::default(),
            },
            pipeline: PipelineName::new("echo").unwrap(),
            name: "Echo_1".into(),
            limits: Limits {
                max_requests,
                max_bytes: DEFAULT_MAX_BYTES,
                max_wait: WAIT,
                batching,
            },
            capacity,
            rules: Rules {
                delivery,
                attempts: 3,
                once_later: Vec::new(),
            },
            grace: GRACE,
            longest: DEADLINE,
        };
        let metrics = DispatchMetrics::new(&mosec_telemetry::Series::default()).unwrap();
        Self {
            dispatcher: Dispatcher::new(config, &metrics),
            target: Arc::default(),
            next_id: 0,
        }
    }

    pub(crate) fn window(&self, replicas: u32, limit: u32) {
        let target: Arc<dyn Target> = self.target.clone();
        self.dispatcher
            .set_target(&TargetId("a".into()), &target, Window { replicas, limit });
    }

    pub(crate) fn request(&mut self) -> (Request, oneshot::Receiver<Outcome>) {
        let (reply, outcome) = oneshot::channel();
        self.next_id += 1;
        (request(self.next_id, reply), outcome)
    }

    pub(crate) fn submit(&mut self) -> oneshot::Receiver<Outcome> {
        let (request, outcome) = self.request();
        self.dispatcher.submit(request);
        outcome
    }

    pub(crate) async fn refusal(&mut self) -> ErrorCode {
        let outcome = self.submit();
        let answered = tokio::time::timeout(Duration::ZERO, outcome).await;
        answered.expect("refused at once").expect("answered").code
    }
}

pub(crate) fn request(id: u64, reply: oneshot::Sender<Outcome>) -> Request {
    Request {
        id: RequestId(id),
        route: RouteIndex(0),
        deadline: Instant::now() + DEADLINE,
        arrived: Instant::now(),
        headers: Bytes::new(),
        payload: Payload::Bytes(Bytes::from(id.to_string())),
        losses: 0,
        traced: false,
        spans: Vec::new(),
        stream: Stream::new(DEADLINE),
        reply: Reply::new(reply),
    }
}

/// Stages by index, those in `once` with `at_most_once`, and routes through them.
pub(crate) fn spec(stages: u16, once: &[u16], routes: &[&[u16]]) -> PipelineSpec {
    let stage = |index| StageSpec {
        max_wait: Duration::ZERO,
        timeout: DEADLINE,
        delivery: match once.contains(&index) {
            true => Delivery::AtMostOnce,
            false => Delivery::Retry,
        },
        mime: "x".into(),
        ..StageSpec::new(format!("S_{index}"), "m", "S")
    };
    let route = |(index, stages): (usize, &&[u16])| RouteSpec {
        path: format!("/{index}"),
        stages: stages.iter().copied().map(StageIndex).collect(),
    };
    PipelineSpec {
        routes: routes.iter().enumerate().map(route).collect(),
        timeout: DEADLINE,
        capacity: 16,
        max_request_bytes: 1024,
        ..PipelineSpec::new(
            PipelineName::new("p").unwrap(),
            Default::default(),
            (0..stages).map(stage).collect(),
        )
    }
}

pub(crate) fn echo(batch: Dispatched) {
    for request in batch.requests {
        let payload = request.payload.clone();
        request.respond(ErrorCode::Ok, payload);
    }
}

pub(crate) async fn code(outcome: oneshot::Receiver<Outcome>) -> ErrorCode {
    outcome.await.expect("answered").code
}

#[tokio::test(start_paused = true)]
async fn each_request_gets_its_own_answer() {
    let mut bench = Bench::new(4, 16, Delivery::Retry);
    bench.window(1, 2);
    let outcomes: Vec<_> = (0..4).map(|_| bench.submit()).collect();
    bench.target.take().into_iter().for_each(echo);
    for (index, outcome) in outcomes.into_iter().enumerate() {
        let outcome = outcome.await.unwrap();
        assert_eq!(outcome.payload.to_bytes(), (index + 1).to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lone_request_waits_its_window_from_its_arrival() {
    let mut bench = Bench::new(4, 16, Delivery::Retry);
    bench.window(1, 2);
    let start = Instant::now();
    let _outcome = bench.submit();
    while bench.target.sizes().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let waited = start.elapsed();
    assert!(
        waited >= WAIT && waited <= WAIT + Duration::from_millis(3),
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_batch_says_how_long_it_was_collected() {
    let mut bench = Bench::new(2, 8, Delivery::Retry);
    bench.window(1, 1);
    let _lone = bench.submit();
    tokio::time::sleep(WAIT * 2).await;
    let [lone] = bench.target.take().try_into().ok().unwrap();
    assert_eq!(lone.collected, Some(WAIT));
    // What waits for a credit, and not for company, is not being collected.
    let _pair = [bench.submit(), bench.submit()];
    tokio::time::sleep(WAIT * 2).await;
    echo(lone);
    let [pair] = bench.target.take().try_into().ok().unwrap();
    assert_eq!(pair.requests.len(), 2);
    assert_eq!(pair.collected, Some(Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn batches_grow_while_the_replica_is_busy() {
    let mut bench = Bench::new(4, 16, Delivery::Retry);
    bench.window(1, 2);
    let first = bench.submit();
    tokio::time::sleep(WAIT * 2).await;
    assert_eq!(bench.target.sizes(), [1]);
    // A second, partial batch would only wait at the replica: it stays and grows, past its window.
    let rest: Vec<_> = (0..3).map(|_| bench.submit()).collect();
    tokio::time::sleep(WAIT * 5).await;
    assert_eq!(bench.target.sizes(), [1]);
    // Full, it takes the prefetch credit.
    let last = bench.submit();
    assert_eq!(bench.target.sizes(), [1, 4]);
    bench.target.take().into_iter().for_each(echo);
    for outcome in rest.into_iter().chain([first, last]) {
        assert_eq!(code(outcome).await, ErrorCode::Ok);
    }
    assert_eq!(bench.dispatcher.outstanding(), 0, "every credit is back");
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_batch_has_no_window_and_waits_a_while_for_a_busy_replica() {
    let mut bench = Bench::with(4, 16, Delivery::Retry, Batching::Adaptive);
    bench.window(1, 3);
    let mut outcomes = vec![bench.submit()];
    assert_eq!(bench.target.sizes(), [1], "at once");
    // How long batches take is not known yet.
    outcomes.extend([bench.submit(), bench.submit()]);
    assert_eq!(bench.target.sizes(), [1]);
    let waited = until_sent(&bench, 2).await;
    assert!((WAIT..WAIT * 4 / 3).contains(&waited), "{waited:?}");
    assert_eq!(bench.target.sizes(), [1, 2]);
    bench.target.take().into_iter().for_each(echo);

    // The replica needs a few milliseconds each time, and less than the batch of two took behind the other.
    for _ in 0..30 {
        outcomes.push(bench.submit());
        tokio::time::sleep(WAIT / 5).await;
        bench.target.take().into_iter().for_each(echo);
    }
    outcomes.extend([bench.submit(), bench.submit()]);
    assert_eq!(bench.target.sizes(), [1]);
    let waited = until_sent(&bench, 2).await;
    assert!((WAIT / 5..WAIT / 2).contains(&waited), "{waited:?}");
    bench.target.take().into_iter().for_each(echo);
    for outcome in outcomes {
        assert_eq!(code(outcome).await, ErrorCode::Ok);
    }
}

/// Time until the target has so many batches.
async fn until_sent(bench: &Bench, batches: usize) -> Duration {
    let start = Instant::now();
    while bench.target.sizes().len() < batches {
        assert!(start.elapsed() < DEADLINE, "{:?}", bench.target.sizes());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_and_those_who_left_make_room() {
    let mut bench = Bench::new(1, 2, Delivery::Retry);
    bench.window(1, 1);
    let _running = bench.submit();
    let queued = [bench.submit(), bench.submit()];
    assert_eq!(bench.refusal().await, ErrorCode::QueueFull);
    drop(queued);
    tokio::time::sleep(HOUSEKEEPING * 3 / 2).await;
    let _admitted = bench.submit();
    assert_eq!(bench.dispatcher.queued(), 1);
}

/// A client that counts how often it is asked whether it still waits.
struct Counting(Arc<AtomicUsize>);

impl Respond for Counting {
    fn respond(self: Box<Self>, _: Outcome) {}

    fn is_wanted(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed);
        true
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_is_not_searched_for_each_request_it_refuses() {
    let mut bench = Bench::new(1, 50, Delivery::Retry);
    bench.window(1, 0);
    let asked = Arc::<AtomicUsize>::default();
    for _ in 0..50 {
        let (request, _) = bench.request();
        bench.dispatcher.submit(Request {
            reply: Reply::new(Counting(asked.clone())),
            ..request
        });
    }
    asked.store(0, Ordering::Relaxed);
    for _ in 0..1000 {
        assert_eq!(bench.refusal().await, ErrorCode::QueueFull);
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_comes_back_and_is_known_before_it_is_there() {
    let mut bench = Bench::new(1, 1, Delivery::Retry);
    bench.window(1, 0);
    assert_eq!(bench.dispatcher.refuse_early(), None);
    let first = bench.submit();
    assert_eq!(bench.dispatcher.refuse_early(), Some(ErrorCode::QueueFull));
    let (request, mut outcome) = bench.request();
    let (request, code) = bench.dispatcher.offer(request).expect("the queue is full");
    assert_eq!(code, ErrorCode::QueueFull);
    assert!(outcome.try_recv().is_err(), "nobody has answered it");
    drop(first);
    tokio::time::sleep(HOUSEKEEPING * 3 / 2).await;
    assert!(
        bench.dispatcher.offer(request).is_none(),
        "who left has made room"
    );
    bench.dispatcher.close(ErrorCode::Draining);
    assert_eq!(bench.dispatcher.refuse_early(), Some(ErrorCode::Draining));
}

#[tokio::test(start_paused = true)]
async fn without_replicas_requests_wait_for_the_grace_and_are_refused_after_it() {
    let mut bench = Bench::new(1, 8, Delivery::Retry);
    bench.window(1, 1);
    bench.window(0, 0);
    let waiting = bench.submit();
    tokio::time::sleep(GRACE / 2).await;
    let start = Instant::now();
    assert_eq!(code(waiting).await, ErrorCode::NoReplica);
    assert!(
        start.elapsed() < GRACE,
        "answered when the grace ends, not at the deadline"
    );
    assert_eq!(bench.refusal().await, ErrorCode::NoReplica);
}

#[tokio::test(start_paused = true)]
async fn the_grace_begins_when_the_last_target_goes() {
    let mut bench = Bench::new(1, 8, Delivery::Retry);
    bench.window(1, 1);
    tokio::time::sleep(GRACE * 3).await;
    bench.dispatcher.remove_target(&TargetId("a".into()));
    let waiting = bench.submit();
    tokio::time::sleep(GRACE / 2).await;
    bench.window(1, 1);
    bench.target.take().into_iter().for_each(echo);
    assert_eq!(code(waiting).await, ErrorCode::Ok);
}

#[tokio::test(start_paused = true)]
async fn what_is_past_its_deadline_never_starts() {
    let mut bench = Bench::new(1, 8, Delivery::Retry);
    bench.window(1, 1);
    let running = bench.submit();
    let queued = bench.submit();
    assert_eq!(code(queued).await, ErrorCode::DeadlineExceeded);
    let batches = bench.target.take();
    assert_eq!(batches.len(), 1);
    batches.into_iter().for_each(echo);
    assert_eq!(code(running).await, ErrorCode::Ok);
    assert!(bench.target.sizes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_lost_batch_goes_first_and_to_another_credit() {
    let mut bench = Bench::new(2, 8, Delivery::Retry);
    bench.window(1, 1);
    let lost = [bench.submit(), bench.submit()];
    let _behind = [bench.submit(), bench.submit()];
    let batch = bench.target.take().pop().unwrap();
    let Dispatched {
        requests,
        home,
        credit,
        ..
    } = batch;
    home.lost(requests, Loss::Link);
    assert!(bench.target.sizes().is_empty(), "the credit is still out");
    drop(credit);
    let again = bench.target.take().pop().unwrap();
    assert_eq!(
        again
            .requests
            .iter()
            .map(|r| (r.id.0, r.losses))
            .collect::<Vec<_>>(),
        [(1, 1), (2, 1)]
    );
    echo(again);
    for outcome in lost {
        assert_eq!(code(outcome).await, ErrorCode::Ok);
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_refuses_rests() {
    let mut bench = Bench::new(1, 8, Delivery::Retry);
    bench.window(1, 1);
    let outcome = bench.submit();
    let Dispatched {
        requests,
        home,
        credit,
        ..
    } = bench.target.take().pop().unwrap();
    home.lost(requests, Loss::Refused);
    drop(credit);
    assert!(bench.target.sizes().is_empty(), "not sent again at once");
    tokio::time::sleep(Duration::from_millis(50)).await;
    bench.target.take().into_iter().for_each(echo);
    assert_eq!(code(outcome).await, ErrorCode::Ok);
}

#[tokio::test(start_paused = true)]
async fn closing_fails_what_is_queued() {
    let mut bench = Bench::new(1, 8, Delivery::Retry);
    bench.window(1, 1);
    let running = bench.submit();
    let queued = bench.submit();
    bench.dispatcher.close(ErrorCode::Draining);
    assert_eq!(code(queued).await, ErrorCode::Draining);
    assert_eq!(bench.refusal().await, ErrorCode::Draining);
    bench.target.take().into_iter().for_each(echo);
    assert_eq!(code(running).await, ErrorCode::Ok);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_request_is_answered_all_the_same() {
    let mut bench = Bench::new(1, 8, Delivery::Retry);
    bench.window(1, 1);
    let outcome = bench.submit();
    drop(bench.target.take());
    assert_eq!(code(outcome).await, ErrorCode::Internal);
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_ahead_counts_as_waiting() {
    // Capacity 3: beside the two that run, one that was sent ahead and two in the queue.
    let mut bench = Bench::new(1, 3, Delivery::Retry);
    bench.window(2, 3);
    let mut outcomes: Vec<_> = (0..5).map(|_| bench.submit()).collect();
    assert_eq!((bench.target.sizes().len(), bench.dispatcher.queued()), (3, 2));
    assert_eq!(bench.dispatcher.refuse_early(), Some(ErrorCode::QueueFull));
    assert_eq!(bench.refusal().await, ErrorCode::QueueFull);
    // One that runs is done: the one ahead runs, and there is room for one more.
    let mut out = bench.target.take();
    echo(out.remove(0));
    assert_eq!(bench.dispatcher.queued(), 1);
    outcomes.push(bench.submit());
    assert_eq!(bench.refusal().await, ErrorCode::QueueFull);
    out.into_iter().for_each(echo);
    while bench.dispatcher.outstanding() > 0 {
        bench.target.take().into_iter().for_each(echo);
    }
    for outcome in outcomes {
        assert_eq!(code(outcome).await, ErrorCode::Ok);
    }
}
