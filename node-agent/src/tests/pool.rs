//! Pools: who gets a batch, and what waits.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mosec_dispatch::custody::Loss;
use mosec_dispatch::{Request, Window};
use mosec_shm_ring::{ITEM_EGRESS, ITEM_INGRESS, now_micros};
use mosec_types::ErrorCode;
use tokio::time::Instant;

use super::bench::{Bench, TestWorker, Upstream, answered, key, request};
use crate::pool::Pool;

pub(super) const OK: ErrorCode = ErrorCode::Ok;

/// Batches one new worker may have: the one that runs, and the next.
pub(super) const DEPTH: usize = 2;

pub(super) fn one(bench: &Bench) -> (Arc<Pool>, TestWorker, Arc<Upstream>) {
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
    let text = mosec_telemetry::render(&[&bench.series]);
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
async fn what_comes_behind_a_slow_batch_goes_to_whoever_is_free_first() {
    let bench = Bench::new();
    let (pool, first, upstream) = one(&bench);
    let second = bench.worker(&pool);
    // Both are known to be fast.
    let mut outcomes = Vec::new();
    for text in ["1", "2"] {
        outcomes.extend(upstream.send(&pool, 0, &[text]));
    }
    for worker in [&first, &second] {
        let batch = worker.take().unwrap();
        worker.answer(&batch, &[(0, OK, "")]);
    }
    for text in ["slow", "slow too"] {
        outcomes.extend(upstream.send(&pool, 0, &[text]));
    }
    let batches = [first.take().unwrap(), second.take().unwrap()];
    while ![&first, &second]
        .iter()
        .all(|worker| worker.worker.is_slow(now_micros()))
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for text in ["3", "4"] {
        outcomes.extend(upstream.send(&pool, 0, &[text]));
    }
    let has = |worker: &TestWorker| worker.worker.outstanding();
    assert_eq!((has(&first), has(&second)), (1, 1), "nothing waits behind them");
    second.answer(&batches[1], &[(0, OK, "")]);
    for (at, text) in [(4, "3"), (5, "4")] {
        let batch = second.take().unwrap();
        assert_eq!(batch.items[0].to_vec(), text.as_bytes());
        second.answer(&batch, &[(0, OK, text)]);
        assert_eq!(answered(&mut outcomes[at]), Some((OK, text.into())));
    }
    assert_eq!((has(&first), has(&second)), (1, 0));
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
    // With nothing left to run, whatever time all of it takes.
    for _ in 0..DEPTH {
        let batch = worker.take().unwrap();
        worker.answer(&batch, &[(0, OK, "")]);
    }
    assert_eq!(upstream.losses().len(), 1000);
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
