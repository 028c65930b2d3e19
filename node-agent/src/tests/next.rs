//! What a stage passes on to the next one of its route.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mosec_dispatch::{Dispatched, StageConfig, Target, TargetId, Window};
use mosec_types::{ErrorCode, StageIndex};
use parking_lot::Mutex;

use super::bench::{BOUND, Bench, TestWorker, answered, key, request, topology};
use super::pool::{DEPTH, OK, one};
use crate::pool::PoolTarget;

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
    assert_eq!(
        bench.gauge("mosec_agent_in_flight_batches", "A"),
        0.0,
        "all are done"
    );
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
