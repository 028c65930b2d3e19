//! The series of dispatchers, as a scrape has them.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use mosec_telemetry::{Series, render};
use mosec_types::spec::Batching;
use mosec_types::{ErrorCode, Revision, SpanKind, StageIndex, StageKey};
use tokio::sync::oneshot;

use crate::custody::Loss;
use crate::tests::{Kept, request, spec};
use crate::*;

const LABELS: &str = "{pipeline=\"p\",stage=\"S_0\"}";

struct Bench {
    series: Series,
    metrics: DispatchMetrics,
    target: Arc<Kept>,
}

impl Bench {
    fn new() -> Self {
        let series = Series::default();
        Self {
            metrics: DispatchMetrics::new(&series).unwrap(),
            series,
            target: Arc::default(),
        }
    }

    /// A dispatcher for one revision of one stage, with room for ten requests.
    fn dispatcher(&self, revision: u64, grace: Duration) -> Dispatcher {
        let key = StageKey {
            revision: Revision(revision),
            stage: StageIndex(0),
        };
        let mut config = StageConfig::of(&spec(1, &[], &[&[0]]), key, grace).unwrap();
        config.capacity = 10;
        config.limits.max_requests = revision as usize;
        Dispatcher::new(config, &self.metrics)
    }

    /// One whose batches of up to nine wait for two seconds.
    fn slow_dispatcher(&self, batching: Batching) -> Dispatcher {
        let mut config = self.dispatcher(9, Duration::from_secs(60)).config().clone();
        config.limits.max_wait = Duration::from_secs(2);
        config.limits.batching = batching;
        Dispatcher::new(config, &self.metrics)
    }

    fn window(&self, dispatcher: &Dispatcher, replicas: u32, limit: u32) {
        let target: Arc<dyn Target> = self.target.clone();
        dispatcher.set_target(&TargetId("a".into()), &target, Window { replicas, limit });
    }

    fn page(&self) -> String {
        render(&[&self.series])
    }

    /// How many the stage has refused for this reason.
    fn refused(&self, reason: &str) -> Option<f64> {
        let labels = format!("{{pipeline=\"p\",reason=\"{reason}\",stage=\"S_0\"}} ");
        let start = format!("mosec_dispatch_refused_total{labels}");
        let page = self.page();
        let line = page.lines().find_map(|line| line.strip_prefix(&start));
        line.map(|value| value.parse().unwrap())
    }

    /// The value of a stage's series.
    fn value(&self, name: &str) -> Option<f64> {
        let start = format!("mosec_dispatch_{name}{LABELS} ");
        let page = self.page();
        let line = page.lines().find_map(|line| line.strip_prefix(&start));
        line.map(|value| value.parse().unwrap())
    }
}

fn submit(dispatcher: &Dispatcher, id: u64) -> oneshot::Receiver<Outcome> {
    let (reply, outcome) = oneshot::channel();
    dispatcher.submit(Request {
        traced: true,
        ..request(id, reply)
    });
    outcome
}

#[tokio::test(start_paused = true)]
async fn revisions_share_the_series_of_their_stage() {
    let bench = Bench::new();
    let (old, new) = (
        bench.dispatcher(1, Duration::from_secs(1)),
        bench.dispatcher(2, Duration::from_secs(1)),
    );
    bench.window(&old, 1, 2);
    let _outcomes: Vec<_> = (0..3).map(|id| submit(&old, id)).collect();
    let _waits = submit(&new, 3);
    bench.window(&new, 0, 5);
    let found = |names: [&str; 7]| names.map(|name| bench.value(name).unwrap());
    let names = [
        "queue_requests",
        "queue_taken_requests",
        "queue_limit_requests",
        "batch_limit_requests",
        "in_flight_batches",
        "credits",
        "batches_total",
    ];
    // Two of the first revision are out, the second of them ahead of its time, and one waits, as does that of the second
    // revision, whose replicas are not ready.
    assert_eq!(found(names), [2.0, 3.0, 20.0, 2.0, 2.0, 0.0, 2.0]);
    old.hand_back();
    bench.window(&old, 1, 5);
    assert_eq!(
        found(names),
        [1.0, 1.0, 10.0, 2.0, 3.0, 2.0, 3.0],
        "it takes no more"
    );
}

/// A client who sends elsewhere what is given back.
struct Movable;

impl Respond for Movable {
    fn respond(self: Box<Self>, _: Outcome) {}

    fn is_wanted(&self) -> bool {
        true
    }

    fn takes_back(&self) -> bool {
        true
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_a_replica_was_lost_with_is_sent_again() {
    let bench = Bench::new();
    let dispatcher = bench.dispatcher(2, Duration::from_secs(1));
    bench.window(&dispatcher, 9, 9);
    let found = || ["redispatched_total", "handed_over_total"].map(|name| bench.value(name).unwrap());
    let lose = |loss| {
        for batch in bench.target.take() {
            batch.home.lost(batch.requests, loss);
        }
    };
    let _outcomes = [1, 2].map(|id| submit(&dispatcher, id));
    lose(Loss::Refused);
    assert_eq!(found(), [0.0, 0.0], "none had begun");
    tokio::time::sleep(Duration::from_millis(50)).await;
    lose(Loss::Worker);
    assert_eq!(found(), [2.0, 0.0]);
    let (reply, _) = oneshot::channel();
    dispatcher.submit(Request {
        reply: Reply::new(Movable),
        ..request(3, reply)
    });
    dispatcher.hand_back();
    lose(Loss::Link);
    assert_eq!(found(), [4.0, 1.0], "the third goes to another revision");
    dispatcher.close(ErrorCode::Draining);
    lose(Loss::Link);
    assert_eq!(found(), [4.0, 1.0], "those that are left fail");
}

#[tokio::test(start_paused = true)]
async fn a_queue_refuses_once_all_its_limit_is_taken() {
    let bench = Bench::new();
    let dispatcher = bench.dispatcher(1, Duration::from_secs(1));
    bench.window(&dispatcher, 1, 7);
    let found = || {
        let names = ["queue_requests", "queue_taken_requests", "queue_limit_requests"];
        names.map(|name| bench.value(name).unwrap())
    };
    let mut outcomes = Vec::new();
    // One runs, and six are sent ahead.
    for id in 0..10 {
        outcomes.push(submit(&dispatcher, id));
    }
    assert_eq!((found(), dispatcher.refuse_early()), ([3.0, 9.0, 10.0], None));
    outcomes.push(submit(&dispatcher, 10));
    let full = Some(ErrorCode::QueueFull);
    assert_eq!((found(), dispatcher.refuse_early()), ([4.0, 10.0, 10.0], full));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_while_it_drains_is_refused_once() {
    let bench = Bench::new();
    let dispatcher = bench.dispatcher(1, Duration::from_secs(1));
    dispatcher.hand_back();
    assert_eq!(dispatcher.refuse_early(), Some(ErrorCode::Draining));
    let _outcome = submit(&dispatcher, 1);
    assert_eq!(bench.refused("draining"), Some(1.0));
}

#[tokio::test(start_paused = true)]
async fn a_closed_dispatcher_counts_all_that_it_refuses() {
    let bench = Bench::new();
    let dispatcher = bench.dispatcher(1, Duration::from_secs(1));
    dispatcher.close(ErrorCode::Draining);
    let mut outcomes = vec![submit(&dispatcher, 1)];
    let mut another = |id| {
        let (reply, outcome) = oneshot::channel();
        outcomes.push(outcome);
        request(id, reply)
    };
    dispatcher.submit_held(another(2), Arc::new(()));
    dispatcher.submit_unheld(another(3));
    assert!(dispatcher.offer_again(another(4)).is_some());
    assert_eq!(bench.refused("draining"), Some(4.0));
}

#[tokio::test(start_paused = true)]
async fn the_last_dispatcher_of_a_stage_takes_its_series_along() {
    let bench = Bench::new();
    let before = bench.page();
    for _ in 0..2 {
        let (old, new) = (
            bench.dispatcher(1, Duration::ZERO),
            bench.dispatcher(2, Duration::from_secs(1)),
        );
        bench.window(&new, 1, 1);
        let outcome = submit(&new, 1);
        bench
            .target
            .take()
            .into_iter()
            .flat_map(|batch| batch.requests)
            .for_each(|request| request.fail(ErrorCode::Ok));
        outcome.await.unwrap();
        let refused = || ["queue_full", "no_replica", "draining"].map(|reason| bench.refused(reason));
        assert_eq!(refused(), [Some(0.0); 3], "before the first of them");
        assert_eq!(old.refuse_early(), Some(ErrorCode::NoReplica));
        assert_eq!(refused(), [Some(0.0), Some(1.0), Some(0.0)]);
        drop(old);
        // Its timer lets go of it within a second.
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(bench.value("batches_total"), Some(1.0), "the other one stays");
        assert_eq!(bench.value("queue_limit_requests"), Some(10.0));
        drop(new);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(bench.page(), before, "and all that it counted begins anew");
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_waits_for_as_long_as_its_window_costs() {
    let bench = Bench::new();
    let dispatcher = bench.slow_dispatcher(Batching::Window);
    let _first = submit(&dispatcher, 1);
    tokio::time::sleep(Duration::from_millis(500)).await;
    // A credit is in hand from here on.
    bench.window(&dispatcher, 1, 1);
    let _second = submit(&dispatcher, 2);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let batch = bench.target.take().remove(0);
    // The window is the first's, counted from its arrival. The second was there for what was left of it.
    let expected = [
        vec![(SpanKind::Queue, 5), (SpanKind::Batch, 15)],
        vec![(SpanKind::Queue, 0), (SpanKind::Batch, 15)],
    ];
    assert_eq!(tenths(batch), expected);
    assert_waits(&bench, [3.5, 1.5]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_without_a_free_replica_does_not_collect() {
    let bench = Bench::new();
    let dispatcher = bench.slow_dispatcher(Batching::Window);
    let _outcome = submit(&dispatcher, 1);
    // A replica is free, goes, and is free again for the last half second.
    for replicas in [1, 0, 1] {
        tokio::time::sleep(Duration::from_millis(500)).await;
        bench.window(&dispatcher, replicas, 1);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let expected = [vec![(SpanKind::Queue, 15), (SpanKind::Batch, 5)]];
    assert_eq!(tenths(bench.target.take().remove(0)), expected);
    assert_waits(&bench, [2.0, 0.5]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_may_go_behind_another_waits_for_a_replica() {
    let bench = Bench::new();
    let dispatcher = bench.slow_dispatcher(Batching::Adaptive);
    bench.window(&dispatcher, 1, 2);
    let _outcomes = [1, 2].map(|id| submit(&dispatcher, id));
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let mut batches = bench.target.take();
    // The first found the replica free.
    assert_eq!(tenths(batches.remove(1)), [vec![(SpanKind::Queue, 20)]]);
    assert_waits(&bench, [2.0, 0.0]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_of_those_who_left_does_not_count() {
    let bench = Bench::new();
    let dispatcher = bench.slow_dispatcher(Batching::Adaptive);
    drop(submit(&dispatcher, 1));
    bench.window(&dispatcher, 1, 1);
    assert_eq!(dispatcher.queued(), 0);
    assert_eq!(bench.value("batches_total"), Some(0.0));
    assert_eq!(bench.value("batch_wait_seconds_count"), None);
}

#[tokio::test(start_paused = true)]
async fn a_batch_waits_whoever_left_before_it() {
    let bench = Bench::new();
    let mut config = bench.slow_dispatcher(Batching::Window).config().clone();
    // Each goes alone.
    config.limits.max_bytes = 1;
    let dispatcher = Dispatcher::new(config, &bench.metrics);
    bench.window(&dispatcher, 1, 1);
    let first = submit(&dispatcher, 1);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let _second = submit(&dispatcher, 2);
    pass(Duration::from_secs(2));
    drop(first);
    // Both windows have ended.
    bench.window(&dispatcher, 1, 1);
    let expected = [vec![(SpanKind::Queue, 0), (SpanKind::Batch, 20)]];
    assert_eq!(tenths(bench.target.take().remove(0)), expected);
    assert_waits(&bench, [2.0, 2.0]);
}

/// Lets time pass before any task sees it.
fn pass(time: Duration) {
    let mut context = Context::from_waker(Waker::noop());
    let advance = pin!(tokio::time::advance(time));
    assert!(advance.poll(&mut context).is_pending());
}

/// Where the time of a batch's requests went, in tenths of a second.
fn tenths(batch: Dispatched) -> Vec<Vec<(SpanKind, u32)>> {
    let of_request = |request: &Request| {
        let spans = request.spans.iter();
        spans.map(|span| (span.kind, span.micros / 100_000)).collect()
    };
    batch.requests.iter().map(of_request).collect()
}

/// `expected`: seconds that all requests were queued, and all batches collected.
fn assert_waits(bench: &Bench, expected: [f64; 2]) {
    let sums = ["queue_wait_seconds_sum", "batch_wait_seconds_sum"].map(|name| bench.value(name).unwrap());
    for (found, expected) in sums.into_iter().zip(expected) {
        assert!((found - expected).abs() < 0.01, "{sums:?}");
    }
}
