//! What becomes of lost requests, by table.

use mosec_types::spec::Delivery;
use mosec_types::{ErrorCode, RouteIndex, StageIndex};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::Request;
use crate::custody::{self, Loss, Rules};
use crate::tests::{request, spec};

fn rules(delivery: Delivery, once_later: &[bool]) -> Rules {
    Rules {
        delivery,
        attempts: 3,
        once_later: once_later.to_vec(),
    }
}

/// Losses so far, what was lost, delivery, and what becomes of it: `None` is another try.
#[tokio::test(start_paused = true)]
async fn custody_table() {
    for (losses, loss, delivery, expected) in [
        (0, Loss::Worker, Delivery::Retry, None),
        (1, Loss::Link, Delivery::Retry, None),
        (2, Loss::Worker, Delivery::Retry, Some(ErrorCode::WorkerCrashed)),
        (2, Loss::Link, Delivery::Retry, Some(ErrorCode::ReplicaLost)),
        (2, Loss::Refused, Delivery::Retry, None),
        (
            0,
            Loss::Worker,
            Delivery::AtMostOnce,
            Some(ErrorCode::WorkerCrashed),
        ),
        (0, Loss::Link, Delivery::AtMostOnce, Some(ErrorCode::ReplicaLost)),
        (0, Loss::Refused, Delivery::AtMostOnce, None),
    ] {
        let (reply, _outcome) = oneshot::channel();
        let mut lost = request(1, reply);
        lost.losses = losses;
        let verdict = custody::after_loss(vec![lost], loss, &rules(delivery, &[]), Instant::now());
        let failed = verdict.fail.first().map(|(_, code)| *code);
        assert_eq!(failed, expected, "{losses} {loss:?} {delivery:?}");
        assert_eq!(verdict.retry.len(), usize::from(expected.is_none()));
        verdict
            .fail
            .into_iter()
            .for_each(|(request, code)| request.fail(code));
        echo_all(verdict.retry);
    }
}

/// What was lost, and which of two requests, one on a route that leads to a stage that must not run twice, goes on.
#[tokio::test(start_paused = true)]
async fn a_lost_way_is_final_where_a_later_stage_must_not_run_twice() {
    for (loss, expected) in [
        (Loss::Refused, vec![0, 1]),
        (Loss::Worker, vec![0, 1]),
        (Loss::Link, vec![0]),
    ] {
        let mut outcomes = Vec::new();
        let requests = (0..2).map(|route| {
            let (reply, outcome) = oneshot::channel();
            outcomes.push(outcome);
            Request {
                route: RouteIndex(route),
                ..request(0, reply)
            }
        });
        let requests = requests.collect();
        let rules = rules(Delivery::Retry, &[false, true]);
        let verdict = custody::after_loss(requests, loss, &rules, Instant::now());
        let again: Vec<_> = verdict
            .retry
            .iter()
            .flatten()
            .map(|request| request.route.0)
            .collect();
        assert_eq!(again, expected, "{loss:?}");
        echo_all(verdict.retry);
        for (request, code) in verdict.fail {
            assert_eq!((request.route, code), (RouteIndex(1), ErrorCode::ReplicaLost));
            request.fail(code);
        }
    }
}

/// Stage, route, and whether a stage after it on that route must not run twice.
#[test]
fn rules_know_what_comes_later() {
    // Stage 1 is `at_most_once`.
    let spec = spec(3, &[1], &[&[0, 1], &[0, 2], &[1, 0], &[2, 0, 1]]);
    for (stage, expected) in [
        (0, [true, false, false, true]),
        (1, [false, false, false, false]),
        (2, [false, false, false, true]),
    ] {
        let rules = Rules::of(&spec, StageIndex(stage)).unwrap();
        assert_eq!(rules.once_later, expected, "stage {stage}");
    }
    assert_eq!(Rules::of(&spec, StageIndex(3)), None);
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_each_goes_alone_and_after_a_broken_link_together() {
    for (loss, expected) in [
        (Loss::Worker, vec![1, 1, 1]),
        (Loss::Link, vec![3]),
        (Loss::Refused, vec![3]),
    ] {
        let mut outcomes = Vec::new();
        let requests = (0..3)
            .map(|id| {
                let (reply, outcome) = oneshot::channel();
                outcomes.push(outcome);
                request(id, reply)
            })
            .collect();
        let rules = rules(Delivery::Retry, &[]);
        let verdict = custody::after_loss(requests, loss, &rules, Instant::now());
        assert_eq!(
            verdict.retry.iter().map(Vec::len).collect::<Vec<_>>(),
            expected,
            "{loss:?}"
        );
        echo_all(verdict.retry);
    }
}

fn echo_all(batches: Vec<Vec<Request>>) {
    for request in batches.into_iter().flatten() {
        let payload = request.payload.clone();
        request.respond(ErrorCode::Ok, payload);
    }
}
