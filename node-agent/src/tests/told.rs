//! What a worker is told of the requests it has, and requests that come while it dies.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mosec_dispatch::{Credit, Home};
use mosec_shm_ring::{Watch, now_micros};
use mosec_types::ErrorCode;
use tokio::sync::oneshot;

use super::bench::{Bench, TestWorker, Upstream, answered, request_of};

fn watches<const N: usize>(worker: &TestWorker) -> [Watch; N] {
    let batch = worker.take().unwrap();
    std::array::from_fn(|item| worker.far.watch(batch.id, item as u32).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_worker_hears_of_clients_that_left_and_of_deadlines_that_passed() {
    let bench = Bench::new();
    let pool = bench.pool(1, 0);
    let worker = bench.worker(&pool);
    let upstream = Arc::<Upstream>::default();
    let attending = tokio::spawn({
        let worker = worker.worker.clone();
        async move { worker.attend().await }
    });
    let (mut requests, mut outcomes): (Vec<_>, Vec<_>) = (0..3)
        .map(|_| {
            let (reply, outcome) = oneshot::channel();
            (request_of(0, Bytes::new(), reply), outcome)
        })
        .unzip();
    requests[2].deadline = tokio::time::Instant::now() + Duration::from_secs(1);
    upstream.send_requests(&pool, requests);
    let watches: [_; 3] = watches(&worker);
    let told = || watches.each_ref().map(Watch::is_cancelled);
    let look = Duration::from_millis(60);
    tokio::time::sleep(look).await;
    assert_eq!(told(), [false; 3]);
    drop(outcomes.remove(0));
    tokio::time::sleep(look).await;
    assert_eq!(told(), [true, false, false]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(told(), [true, false, true]);
    attending.abort();
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_is_left_alone_and_attended_again_when_it_has_work() {
    let bench = Bench::new();
    let pool = bench.pool(1, 0);
    let worker = bench.worker(&pool);
    let upstream = Arc::<Upstream>::default();
    let attending = tokio::spawn({
        let worker = worker.worker.clone();
        async move { worker.attend().await }
    });
    for _ in 0..3 {
        let outcomes = upstream.send(&pool, 0, &["a"]);
        let batch = worker.take().unwrap();
        let watch = worker.far.watch(batch.id, 0).unwrap();
        drop(outcomes);
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert!(watch.is_cancelled());
        worker.answer(&batch, &[(0, ErrorCode::Ok, "")]);
        // Long enough for whoever attends to see that there is nothing.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!worker.worker.tell_over(tokio::time::Instant::now()));
    }
    attending.abort();
}

#[tokio::test]
async fn deadlines_are_moments_on_the_machines_clock_and_move_with_each_event() {
    let bench = Bench::new();
    let pool = bench.pool(1, 0);
    let worker = bench.worker(&pool);
    let upstream = Arc::<Upstream>::default();
    let before = now_micros();
    let _outcomes = upstream.send(&pool, 0, &["a"]);
    let batch = worker.take().unwrap();
    let watch = worker.far.watch(batch.id, 0).unwrap();
    let first = watch.deadline_micros().unwrap();
    // The bench's requests have twenty seconds.
    assert!(first >= before + 19_000_000 && first <= now_micros() + 20_000_000);
    tokio::time::sleep(Duration::from_millis(2)).await;
    worker.event(&batch, 0, "1");
    assert!(watch.deadline_micros().unwrap() > first);
}

#[tokio::test]
async fn a_batch_whose_worker_dies_while_it_is_copied_goes_back() {
    let bench = Bench::new();
    let pool = bench.pool(1, 0);
    let worker = bench.worker(&pool);
    let upstream = Arc::<Upstream>::default();
    let home: Arc<dyn Home> = upstream.clone();
    let (reply, mut outcome) = oneshot::channel();
    let requests = vec![request_of(0, Bytes::from_static(b"a"), reply)];
    worker.worker.reserve();
    let slot = pool.slot(&worker.worker, Credit::new(|| ()));
    let prepared = worker.worker.prepare(&requests, &pool.deliver);
    worker.die();
    let unsent = worker.worker.enter(prepared, requests, home, slot).unwrap_err();
    assert_eq!(unsent.requests.len(), 1);
    assert_eq!(answered(&mut outcome), None, "it is somebody else's to run");
    assert_eq!((worker.worker.outstanding(), upstream.losses()), (0, vec![]));
    unsent
        .requests
        .into_iter()
        .for_each(|request| request.fail(ErrorCode::NoReplica));
}
