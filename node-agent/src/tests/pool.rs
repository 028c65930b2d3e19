//! Pools: who gets a batch, what waits, and what becomes of a dead worker's batches.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mosec_dispatch::custody::Loss;
use mosec_dispatch::{Dispatched, Outcome, Request, Respond, StageConfig, Target, TargetId, Window};
use mosec_shm_ring::{ITEM_EGRESS, ITEM_INGRESS};
use mosec_types::{ErrorCode, StageIndex};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::bench::{
    BOUND, Bench, TestWorker, Upstream, answered, key, request, request_of, topology, within,
};
use crate::pool::{Pool, PoolTarget};
use crate::workers::read_ring;

const OK: ErrorCode = ErrorCode::Ok;

/// Batches one new worker may have: the one that runs, and the next.
const DEPTH: usize = 2;

fn one(bench: &Bench) -> (Arc<Pool>, TestWorker, Arc<Upstream>) {
    let pool = bench.pool(1, 0);
    let worker = bench.worker(&pool);
    (pool, worker, Arc::default())
}

#[tokio::test]
async fn answers_find_their_requests_and_the_last_returns_the_credit() {
    let bench = Bench::new();
    let (pool, worker, upstream) = one(&bench);
    let mut outcomes = upstream.send(&pool, 0, &["a", "b", "c"]);
    let batch = worker.take().unwrap();
    worker.answer(&batch, &[(2, OK, "C"), (0, ErrorCode::Validation, "no a")]);
    assert_eq!(answered(&mut outcomes[2]), Some((OK, "C".into())));
    assert_eq!(
        answered(&mut outcomes[0]),
        Some((ErrorCode::Validation, "no a".into()))
    );
    assert_eq!((answered(&mut outcomes[1]), upstream.credits()), (None, 1));
    worker.answer(&batch, &[(1, OK, "B")]);
    assert_eq!(
        (answered(&mut outcomes[1]), upstream.credits()),
        (Some((OK, "B".into())), 0)
    );
    assert_eq!((worker.worker.outstanding(), upstream.losses()), (0, vec![]));
}

#[tokio::test]
async fn batches_are_counted_by_stage_and_worker() {
    let bench = Bench::new();
    let (pool, worker, upstream) = one(&bench);
    for answers in [
        [(0, OK, "a"), (1, ErrorCode::Validation, "no b")],
        // A batch of which nothing came is not timed.
        [(0, ErrorCode::Inference, "no"), (1, ErrorCode::Inference, "no")],
    ] {
        let _outcomes = upstream.send(&pool, 0, &["a", "b"]);
        let batch = worker.take().unwrap();
        worker.answer(&batch, &answers);
    }
    let text = mosec_telemetry::render(&bench.series);
    for (series, expected) in [
        ("process_duration_second_count", "1"),
        ("batch_size_count", "2"),
        ("batch_size_sum", "4.0"),
    ] {
        let line = format!("mosec_service_{series}{{connection=\"1\",stage=\"A\"}} {expected}\n");
        assert!(text.contains(&line), "{line}{text}");
    }
    // Over a link nobody says how long a batch was collected.
    assert!(!text.contains("mosec_service_batch_duration_second"), "{text}");
}

#[tokio::test]
async fn codecs_apply_where_a_route_begins_and_ends() {
    let bench = Bench::new();
    let upstream = Arc::<Upstream>::default();
    for (stage, route, flags) in [
        (0, 0, ITEM_INGRESS | ITEM_EGRESS),
        (0, 1, ITEM_INGRESS),
        (1, 1, ITEM_EGRESS),
        (1, 2, ITEM_INGRESS | ITEM_EGRESS),
    ] {
        let pool = bench.pool(1, stage);
        let worker = bench.worker(&pool);
        let _outcomes = upstream.send(&pool, route, &["x"]);
        assert_eq!(
            worker.take().unwrap().items[0].flags,
            flags,
            "stage {stage}, route {route}"
        );
        worker.die();
    }
}

#[tokio::test]
async fn the_worker_with_the_least_to_do_is_next() {
    let bench = Bench::new();
    let (pool, first, upstream) = one(&bench);
    let second = bench.worker(&pool);
    let _outcomes: Vec<_> = ["1", "2", "3"]
        .iter()
        .map(|text| upstream.send(&pool, 0, &[text]))
        .collect();
    assert_eq!((first.worker.outstanding(), second.worker.outstanding()), (2, 1));
    let batch = first.take().unwrap();
    let other = first.take().unwrap();
    for batch in [batch, other] {
        first.answer(&batch, &[(0, OK, "")]);
    }
    let _outcome = upstream.send(&pool, 0, &["4"]);
    assert_eq!((first.worker.outstanding(), second.worker.outstanding()), (1, 1));
}

#[tokio::test]
async fn what_no_worker_has_room_for_waits_its_turn() {
    let bench = Bench::new();
    let (pool, worker, upstream) = one(&bench);
    let mut outcomes: Vec<_> = ["1", "2", "3", "4"]
        .iter()
        .flat_map(|text| upstream.send(&pool, 0, &[text]))
        .collect();
    let backlog = || bench.gauge("mosec_agent_backlog_batches", "A");
    assert_eq!((worker.worker.outstanding() as usize, backlog()), (DEPTH, 2.0));
    assert_eq!(pool.idle_since(), None);
    for (index, text) in ["1", "2", "3", "4"].into_iter().enumerate() {
        let batch = worker.take().unwrap();
        assert_eq!(batch.items[0].to_vec(), text.as_bytes());
        worker.answer(&batch, &[(0, OK, text)]);
        assert_eq!(answered(&mut outcomes[index]), Some((OK, text.into())));
    }
    assert_eq!((upstream.credits(), backlog()), (0, 0.0));
    assert!(matches!(pool.idle_since(), Some(Some(_))));
}

#[tokio::test]
async fn without_a_worker_a_batch_goes_home() {
    let bench = Bench::new();
    let pool = bench.pool(1, 0);
    let upstream = Arc::<Upstream>::default();
    let _outcomes = upstream.send(&pool, 0, &["a", "b"]);
    assert_eq!(
        (upstream.losses(), upstream.credits()),
        (vec![(Loss::Refused, 2)], 0)
    );
}

#[tokio::test]
async fn what_waits_goes_home_with_the_last_worker() {
    let bench = Bench::new();
    let (pool, first, upstream) = one(&bench);
    let second = bench.worker(&pool);
    let _outcomes: Vec<_> = (0..2 * DEPTH + 2)
        .map(|_| upstream.send(&pool, 0, &["x"]))
        .collect();
    pool.retire(&first.worker);
    assert_eq!(upstream.losses(), [], "another worker is there");
    pool.retire(&second.worker);
    assert_eq!(upstream.losses(), [(Loss::Refused, 1), (Loss::Refused, 1)]);
    assert_eq!(
        upstream.credits() as usize,
        2 * DEPTH,
        "the workers keep what they have"
    );
    assert_eq!(bench.gauge("mosec_agent_backlog_batches", "A"), 0.0);
    let batch = first.take().unwrap();
    first.answer(&batch, &[(0, OK, "")]);
    assert_eq!(upstream.credits() as usize, 2 * DEPTH - 1);
}

#[tokio::test]
async fn a_dead_workers_requests_go_to_another_each_alone() {
    let bench = Bench::new();
    let (pool, dying, upstream) = one(&bench);
    let mut outcomes = upstream.send(&pool, 0, &["a", "b", "c"]);
    let batch = dying.take().unwrap();
    dying.answer(&batch, &[(1, OK, "B")]);
    let heir = bench.worker(&pool);
    dying.die();
    assert_eq!(
        answered(&mut outcomes[1]),
        Some((OK, "B".into())),
        "what was answered stays answered"
    );
    for (index, text) in [(0, "a"), (2, "c")] {
        assert_eq!(
            upstream.credits(),
            1,
            "one credit for the batch, whatever became of it"
        );
        let batch = heir.take().unwrap();
        assert_eq!(
            (batch.items.len(), batch.items[0].to_vec()),
            (1, text.as_bytes().to_vec())
        );
        heir.answer(&batch, &[(0, OK, text)]);
        assert_eq!(answered(&mut outcomes[index]), Some((OK, text.into())));
    }
    assert_eq!((upstream.credits(), upstream.losses()), (0, vec![]));
    assert_eq!(dying.worker.outstanding(), 0);
}

#[tokio::test]
async fn a_request_that_kills_workers_is_found() {
    let bench = Bench::new();
    let (pool, mut dying, upstream) = one(&bench);
    let mut outcomes = upstream.send(&pool, 0, &["poison"]);
    // As often as its stage's `attempts` say.
    for _ in 0..2 {
        assert_eq!(dying.take_texts(), Some(vec!["poison".into()]));
        assert_eq!(answered(&mut outcomes[0]), None);
        let heir = bench.worker(&pool);
        dying.die();
        dying = heir;
    }
    assert_eq!(answered(&mut outcomes[0]).unwrap().0, ErrorCode::WorkerCrashed);
    assert!(dying.take().is_none());
    assert_eq!((upstream.credits(), upstream.losses()), (0, vec![]));
}

#[tokio::test]
async fn the_last_workers_batches_go_home_when_it_dies() {
    let bench = Bench::new();
    let (pool, worker, upstream) = one(&bench);
    let _outcomes: Vec<_> = [["1", "2"], ["3", "4"], ["5", "6"]]
        .map(|texts| upstream.send(&pool, 0, &texts))
        .into();
    worker.die();
    // What waited never ran, here or in the ring: only the oldest may have.
    assert_eq!(
        upstream.losses(),
        [(Loss::Refused, 2), (Loss::Worker, 2), (Loss::Refused, 2)]
    );
    assert_eq!((upstream.credits(), worker.worker.outstanding()), (0, 0));
}

#[tokio::test]
async fn a_worker_whose_supervisor_fails_gets_nothing_more() {
    let bench = Bench::new();
    let (pool, worker, upstream) = one(&bench);
    let _outcomes: Vec<_> = [["1", "2"], ["3", "4"]]
        .map(|texts| upstream.send(&pool, 0, &texts))
        .into();
    let supervised = worker.supervised();
    let supervisor = tokio::spawn(async move {
        let _supervised = supervised;
        std::future::pending::<()>().await;
    });
    supervisor.abort();
    assert!(supervisor.await.is_err());
    // Its process is not known to be dead: either batch may run.
    assert_eq!(upstream.losses(), [(Loss::Worker, 2), (Loss::Worker, 2)]);
    assert_eq!(upstream.credits(), 0);
    let _outcome = upstream.send(&pool, 0, &["5"]);
    assert_eq!(
        upstream.losses().last(),
        Some(&(Loss::Refused, 1)),
        "there is no worker"
    );
    worker.worker.channel.reclaim();
}

/// A client whose answer cannot be taken: a bug, somewhere up the line.
struct Failing;

impl Respond for Failing {
    fn respond(self: Box<Self>, _: Outcome) {
        panic!("no answer can be taken");
    }

    fn is_wanted(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_worker_whose_ring_is_no_longer_read_is_ended() {
    let bench = Bench::new();
    let (pool, worker, upstream) = one(&bench);
    upstream.send_requests(&pool, vec![request_of(0, Bytes::new(), Failing)]);
    let batch = worker.take().unwrap();
    worker.write(&batch, &[(0, OK, "")], true);
    let reader = tokio::spawn(read_ring(worker.worker.clone(), pool.clone()));
    within("end", worker.worker.broken.cancelled()).await;
    assert!(reader.await.unwrap_err().is_panic());
}

#[tokio::test]
async fn what_is_over_when_its_turn_comes_never_starts() {
    let bench = Bench::new();
    let (pool, worker, upstream) = one(&bench);
    let (late, mut late_outcome) = request(0, Bytes::from_static(b"late"));
    let (left, left_outcome) = request(0, Bytes::from_static(b"left"));
    let (live, _outcome) = request(0, Bytes::from_static(b"live"));
    drop(left_outcome);
    let late = Request {
        deadline: Instant::now(),
        ..late
    };
    upstream.send_requests(&pool, vec![late, left, live]);
    assert_eq!(worker.take_texts(), Some(vec!["live".into()]));
    assert_eq!(
        answered(&mut late_outcome).map(|(code, _)| code),
        Some(ErrorCode::DeadlineExceeded)
    );
    assert_eq!(upstream.credits(), 1);
}

#[tokio::test]
async fn what_is_over_by_the_end_of_its_wait_takes_no_place() {
    let bench = Bench::new();
    let (pool, worker, upstream) = one(&bench);
    let running: Vec<_> = (0..DEPTH).map(|_| upstream.send(&pool, 0, &["x"])).collect();
    drop(upstream.send(&pool, 0, &["gone"]));
    let _waiting = upstream.send(&pool, 0, &["waits"]);
    assert_eq!(upstream.credits() as usize, DEPTH + 2);
    let batch = worker.take().unwrap();
    worker.answer(&batch, &[(0, OK, "")]);
    assert_eq!(worker.take_texts(), Some(vec!["x".into()]));
    assert_eq!(
        worker.take_texts(),
        Some(vec!["waits".into()]),
        "in the same turn"
    );
    assert_eq!(upstream.credits() as usize, DEPTH);
    drop(running);
}

#[tokio::test]
async fn a_request_that_nobody_waits_for_is_not_tried_again() {
    let bench = Bench::new();
    let (pool, dying, upstream) = one(&bench);
    let outcomes = upstream.send(&pool, 0, &["a"]);
    assert!(dying.take().is_some());
    let heir = bench.worker(&pool);
    drop(outcomes);
    dying.die();
    assert!(heir.take().is_none());
    assert_eq!(upstream.credits(), 0);
}

#[tokio::test]
async fn a_batch_that_does_not_fit_goes_home_and_the_next_is_tried() {
    let bench = Bench::new();
    let (pool, worker, upstream) = one(&bench);
    let huge = Bytes::from(vec![0; 1 << 20]);
    let _outcomes = upstream.send_bytes(&pool, 0, vec![huge]);
    assert_eq!(
        (upstream.losses(), upstream.credits()),
        (vec![(Loss::Refused, 1)], 0)
    );
    assert_eq!(worker.worker.outstanding(), 0);
    let _outcome = upstream.send(&pool, 0, &["small"]);
    assert_eq!(worker.take_texts(), Some(vec!["small".into()]));
}

#[tokio::test]
async fn a_long_backlog_that_does_not_fit_goes_home_too() {
    let bench = Bench::new();
    let (pool, worker, upstream) = one(&bench);
    let _running: Vec<_> = (0..DEPTH).map(|_| upstream.send(&pool, 0, &["x"])).collect();
    let huge = Bytes::from(vec![0; 1 << 20]);
    let _waiting: Vec<_> = (0..1000)
        .map(|_| upstream.send_bytes(&pool, 0, vec![huge.clone()]))
        .collect();
    let _last = upstream.send(&pool, 0, &["last"]);
    assert_eq!(upstream.losses(), []);
    let batch = worker.take().unwrap();
    worker.answer(&batch, &[(0, OK, "")]);
    assert_eq!(upstream.losses().len(), 1000);
    assert_eq!(worker.take_texts(), Some(vec!["x".into()]));
    assert_eq!(worker.take_texts(), Some(vec!["last".into()]));
}

#[tokio::test]
async fn ready_workers_are_counted_across_revisions() {
    let bench = Bench::new();
    let ready = || bench.gauge("mosec_agent_ready_workers", "A");
    let (old, new) = (bench.pool(1, 0), bench.pool(2, 0));
    let leaving = bench.worker(&old);
    let _staying = [bench.worker(&new), bench.worker(&new)];
    assert_eq!(ready(), 3.0);
    old.retire(&leaving.worker);
    leaving.die();
    assert_eq!(
        ready(),
        2.0,
        "a stage of one name may have workers of two revisions"
    );
}

#[tokio::test]
async fn a_worker_that_says_ready_twice_is_one_worker() {
    let bench = Bench::new();
    let (pool, worker, _) = one(&bench);
    pool.add(worker.worker.clone());
    let shares = bench
        .agent
        .windows()
        .subscribe()
        .borrow()
        .shares(crate::Upstream::Local);
    assert_eq!(
        shares[&key(1, 0)],
        Window {
            replicas: 1,
            limit: DEPTH as u32
        }
    );
    assert_eq!(bench.gauge("mosec_agent_ready_workers", "A"), 1.0);
    worker.die();
    assert_eq!(bench.gauge("mosec_agent_ready_workers", "A"), 0.0);
}

/// A later stage, somewhere.
#[derive(Default)]
struct Kept(Mutex<Vec<Dispatched>>);

impl Target for Kept {
    fn send(&self, batch: Dispatched) {
        self.0.lock().push(batch);
    }
}

fn next_stage(bench: &Bench, capacity: u32, window: Window) -> Arc<Kept> {
    let topology = topology(1, capacity);
    let stage = StageConfig::of(&topology.deployments[0].spec, key(1, 1), Duration::from_secs(60)).unwrap();
    bench.registry.ensure(stage);
    let kept = Arc::<Kept>::default();
    let target: Arc<dyn Target> = kept.clone();
    bench
        .registry
        .set_window(key(1, 1), &TargetId("next".into()), &target, window);
    kept
}

#[tokio::test]
async fn a_result_goes_to_the_next_stage_and_an_error_back() {
    let bench = Bench::new();
    let (pool, worker, upstream) = one(&bench);
    let next = next_stage(
        &bench,
        16,
        Window {
            replicas: 4,
            limit: 4,
        },
    );
    let mut outcomes = upstream.send(&pool, 1, &["a", "b"]);
    let batch = worker.take().unwrap();
    worker.answer(
        &batch,
        &[(0, OK, "A"), (1, ErrorCode::BadRequest, "bad request: b")],
    );
    assert_eq!(
        answered(&mut outcomes[1]),
        Some((ErrorCode::BadRequest, "bad request: b".into()))
    );
    assert_eq!((answered(&mut outcomes[0]), upstream.credits()), (None, 0));
    let mut sent = next.0.lock().pop().unwrap();
    let request = sent.requests.remove(0);
    assert_eq!(
        (request.payload.to_bytes(), request.losses),
        (Bytes::from_static(b"A"), 0)
    );
    request.respond(OK, mosec_dispatch::Payload::Bytes(Bytes::from_static(b"done")));
    assert_eq!(answered(&mut outcomes[0]), Some((OK, "done".into())));
}

#[tokio::test]
async fn a_full_next_stage_holds_the_credit_of_the_one_before() {
    let bench = Bench::new();
    let (pool, worker, upstream) = one(&bench);
    let next = next_stage(
        &bench,
        1,
        Window {
            replicas: 1,
            limit: 1,
        },
    );
    let mut outcomes = Vec::new();
    // One runs there, one waits within the capacity, one beyond it.
    for (text, held) in [("1", 0), ("2", 0), ("3", 1)] {
        outcomes.extend(upstream.send(&pool, 1, &[text]));
        let batch = worker.take().unwrap();
        worker.answer(&batch, &[(0, OK, text)]);
        assert_eq!(upstream.credits(), held, "after {text}");
    }
    assert_eq!(worker.worker.outstanding(), 1);
    let first = next.0.lock().pop().unwrap();
    drop(first.credit);
    assert_eq!(
        (upstream.credits(), worker.worker.outstanding()),
        (0, 0),
        "the queue has moved"
    );
}

/// Answers all that is in the rings; false where nothing is.
fn work(workers: &[TestWorker]) -> bool {
    let mut worked = false;
    for worker in workers {
        while let Some(batch) = worker.take() {
            let items: Vec<_> = (0..batch.items.len() as u32)
                .map(|item| (item, OK, "x"))
                .collect();
            worker.answer(&batch, &items);
            worked = true;
        }
    }
    worked
}

#[tokio::test]
async fn routes_that_cross_do_not_stand_still() {
    let bench = Bench::new();
    let mut topology = topology(1, 4);
    let spec = Arc::make_mut(&mut topology.deployments[0].spec);
    // Route 0 is `A` and `B`, route 1 `B` and `A`.
    spec.routes.truncate(2);
    for (route, stages) in [[0, 1], [1, 0]].into_iter().enumerate() {
        spec.routes[route].stages = stages.map(StageIndex).into();
    }
    let mut workers = Vec::new();
    for stage in [0, 1] {
        let pool = bench.pool_of(&topology, key(1, stage));
        workers.push(bench.worker(&pool));
        let config = StageConfig::of(&topology.deployments[0].spec, key(1, stage), BOUND).unwrap();
        bench.registry.ensure(config);
        let target: Arc<dyn Target> = Arc::new(PoolTarget(pool));
        let window = Window {
            replicas: 1,
            limit: DEPTH as u32,
        };
        let id = TargetId(stage.to_string());
        bench.registry.set_window(key(1, stage), &id, &target, window);
    }
    let mut outcomes = Vec::new();
    for _ in 0..20 {
        // More than there is room for, at both ends.
        for (route, dispatcher) in [0, 1].map(|stage| (stage, bench.registry.dispatcher(key(1, stage)))) {
            for _ in 0..8 {
                let (request, outcome) = request(route, Bytes::from_static(b"x"));
                dispatcher.as_ref().unwrap().submit(request);
                outcomes.push(outcome);
            }
        }
        work(&workers);
    }
    while work(&workers) {}
    let codes: Vec<_> = outcomes
        .iter_mut()
        .filter_map(answered)
        .map(|(code, _)| code)
        .collect();
    assert_eq!(
        codes.len(),
        outcomes.len(),
        "each is answered while the workers work"
    );
    assert!(codes.iter().all(|code| [OK, ErrorCode::QueueFull].contains(code)));
    assert!(codes.contains(&OK));
}

#[tokio::test]
async fn a_next_stage_that_is_not_known_is_said_so() {
    let bench = Bench::new();
    let (pool, worker, upstream) = one(&bench);
    let mut outcomes = upstream.send(&pool, 1, &["a"]);
    let batch = worker.take().unwrap();
    worker.answer(&batch, &[(0, OK, "A")]);
    assert_eq!(answered(&mut outcomes[0]).unwrap().0, ErrorCode::UnknownStage);
    assert_eq!(upstream.credits(), 0);
}
