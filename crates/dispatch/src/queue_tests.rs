//! What stands beyond a queue's capacity, and what it holds of the stage before.

use std::sync::Arc;

use mosec_types::ErrorCode;
use mosec_types::spec::Delivery;

use crate::Dispatcher;
use crate::dispatcher::HOUSEKEEPING;
use crate::tests::{Bench, code, echo};

/// A hold whose release comes back to the dispatcher that held it, as a stage's does on routes that cross.
struct Crossing(Dispatcher);

impl Drop for Crossing {
    fn drop(&mut self) {
        self.0.queued();
    }
}

#[tokio::test(start_paused = true)]
async fn a_released_hold_may_come_back() {
    let mut bench = Bench::new(1, 1, Delivery::Retry);
    bench.window(1, 1);
    for _ in 0..4 {
        let hold = Arc::new(Crossing(bench.dispatcher.clone()));
        let (request, _outcome) = bench.request();
        bench.dispatcher.submit_held(request, hold);
    }
    bench.target.take().into_iter().for_each(echo);
    bench.dispatcher.close(ErrorCode::Draining);
    assert_eq!(bench.dispatcher.queued(), 0);
}

#[tokio::test(start_paused = true)]
async fn beyond_the_capacity_a_request_holds_its_earlier_credit() {
    let mut bench = Bench::new(1, 1, Delivery::Retry);
    bench.window(1, 1);
    let holds: Vec<Arc<()>> = (0..4).map(|_| Arc::default()).collect();
    let mut outcomes = Vec::new();
    for hold in &holds {
        let (request, outcome) = bench.request();
        bench.dispatcher.submit_held(request, hold.clone());
        outcomes.push(outcome);
    }
    let held = || holds.iter().filter(|hold| Arc::strong_count(hold) > 1).count();
    // One runs, one is queued within the capacity, two are beyond it.
    assert_eq!(held(), 2);
    bench.target.take().into_iter().for_each(echo);
    assert_eq!(held(), 1);
    bench.target.take().into_iter().for_each(echo);
    assert_eq!(held(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_hold_goes_with_its_request_at_the_latest() {
    let mut bench = Bench::new(1, 2, Delivery::Retry);
    bench.window(1, 0);
    let mut outcomes = vec![bench.submit(), bench.submit()];
    let hold = Arc::<()>::default();
    let (held, outcome) = bench.request();
    bench.dispatcher.submit_held(held, hold.clone());
    outcomes.push(outcome);
    // The others behind it come and go, and the queue stays as long as it is.
    let (unheld, outcome) = bench.request();
    bench.dispatcher.submit_unheld(unheld);
    outcomes.push(outcome);
    assert_eq!(Arc::strong_count(&hold), 2);
    bench.window(1, 1);
    assert_eq!(Arc::strong_count(&hold), 1, "it stands within the capacity");
    assert_eq!(bench.dispatcher.queued(), 3);
}

#[tokio::test(start_paused = true)]
async fn who_left_releases_what_it_held() {
    let mut bench = Bench::new(1, 1, Delivery::Retry);
    bench.window(1, 0);
    let first = bench.submit();
    let holds: Vec<Arc<()>> = (0..3).map(|_| Arc::default()).collect();
    let mut outcomes = Vec::new();
    for hold in &holds {
        let (request, outcome) = bench.request();
        bench.dispatcher.submit_held(request, hold.clone());
        outcomes.push(outcome);
    }
    let held = || -> Vec<_> { holds.iter().map(|hold| Arc::strong_count(hold) > 1).collect() };
    assert_eq!(held(), [true, true, true]);
    drop(outcomes.remove(1));
    tokio::time::sleep(HOUSEKEEPING * 3 / 2).await;
    assert_eq!(held(), [true, false, true]);
    drop(first);
    tokio::time::sleep(HOUSEKEEPING * 3 / 2).await;
    assert_eq!(held(), [false, false, true], "the others have moved up");
}

#[tokio::test(start_paused = true)]
async fn what_may_not_hold_has_room_beyond_the_capacity_and_then_is_refused() {
    let mut bench = Bench::new(1, 2, Delivery::Retry);
    bench.window(1, 0);
    let _clients = [bench.submit(), bench.submit()];
    assert_eq!(bench.refusal().await, ErrorCode::QueueFull);
    let mut outcomes = Vec::new();
    for _ in 0..3 {
        let (request, outcome) = bench.request();
        bench.dispatcher.submit_unheld(request);
        outcomes.push(outcome);
    }
    assert_eq!(bench.dispatcher.queued(), 4);
    assert_eq!(code(outcomes.remove(2)).await, ErrorCode::QueueFull);
    assert!(outcomes.iter_mut().all(|outcome| outcome.try_recv().is_err()));
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_ahead_takes_room_within_the_capacity() {
    let mut bench = Bench::new(1, 2, Delivery::Retry);
    bench.window(1, 2);
    let holds: Vec<Arc<()>> = (0..4).map(|_| Arc::default()).collect();
    let mut outcomes = Vec::new();
    for hold in &holds {
        let (request, outcome) = bench.request();
        bench.dispatcher.submit_held(request, hold.clone());
        outcomes.push(outcome);
    }
    let held = || -> Vec<_> { holds.iter().map(|hold| Arc::strong_count(hold) > 1).collect() };
    // One runs, one was sent ahead, one is queued within what is left of the capacity, one beyond it.
    assert_eq!(held(), [false, false, false, true]);
    // The replica has nothing more to do than to run what it has: the one beyond moves up.
    let mut out = bench.target.take();
    echo(out.remove(0));
    assert_eq!(held(), [false; 4]);
    drop(out);
}
