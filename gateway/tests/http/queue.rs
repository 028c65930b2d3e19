//! What becomes of requests that wait: limits, deadlines, clients that leave.

use std::time::Duration;

use mosec_dispatch::Window;
use mosec_dispatch::custody::Loss;
use mosec_gateway::Config;
use mosec_types::spec::Delivery;
use mosec_types::topology::Phase;
use mosec_types::{ErrorCode, PipelineSpec};
use tokio::io::AsyncWriteExt as _;

use crate::bench::{Bench, ONE, answer, deployment, eventually, key, only, spec, text_of, topology};
use crate::client::{BOTH, Version};
use crate::raw;

async fn eventually_queued(bench: &Bench, requests: usize) {
    let dispatcher = bench.registry.dispatcher(key(1, 0)).unwrap();
    eventually("the queue has this length", async || {
        dispatcher.queued() == requests
    })
    .await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_goes_on() {
    let bench = Bench::start(PipelineSpec {
        capacity: 2,
        ..spec()
    })
    .await;
    let running = bench.post(Version::Http1, "1");
    let (first, credit) = only(bench.batch().await);
    let waiting = [bench.post(Version::Http1, "2"), bench.post(Version::Http2, "2")];
    eventually_queued(&bench, 2).await;
    for version in BOTH {
        let refused = bench.post(version, "3").await.unwrap();
        assert_eq!(
            (refused.status.as_u16(), refused.text()),
            (429, "too many request: task queue is full")
        );
        assert_eq!(
            (refused.header("content-type"), refused.header("retry-after")),
            (None, None)
        );
    }
    // Of a revision that has much to do they say nothing.
    let answered = || (bench.traffic)()[0].1.requests;
    assert_eq!(answered(), 0);
    answer(first, ErrorCode::Ok, "1");
    drop(credit);
    assert_eq!(running.await.unwrap().status, 200);
    assert_eq!(answered(), 1);
    for client in waiting {
        let (request, _credit) = only(bench.batch().await);
        assert_eq!(text_of(&request), "2");
        answer(request, ErrorCode::Ok, "2");
        assert_eq!(client.await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn without_a_replica_there_is_a_503_that_says_when_to_come_back() {
    let config = Config {
        replica_grace: Duration::from_millis(50),
        ..Default::default()
    };
    let bench = Bench::with_config(config, topology(1, vec![deployment(1, spec(), Phase::Serving)])).await;
    for version in BOTH {
        let answer = bench.post(version, "{}").await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.text()), (503, "no ready replica"));
        assert_eq!(
            (answer.header("retry-after"), answer.header("content-type")),
            (Some("1"), None)
        );
    }
}

#[tokio::test]
async fn a_request_waits_for_a_replica_that_was_just_lost() {
    let config = Config {
        replica_grace: Duration::from_secs(15),
        ..Default::default()
    };
    let bench = Bench::with_config(config, topology(1, vec![deployment(1, spec(), Phase::Serving)])).await;
    eventually("the stage is there", async || {
        bench.registry.dispatcher(key(1, 0)).is_some()
    })
    .await;
    bench.grant(key(1, 0), ONE);
    bench.grant(key(1, 0), Window::default());
    let waiting = bench.post(Version::Http1, "{}");
    eventually_queued(&bench, 1).await;
    bench.grant(key(1, 0), ONE);
    let (request, _credit) = only(bench.batch().await);
    answer(request, ErrorCode::Ok, "1");
    assert_eq!(waiting.await.unwrap().text(), "1");
}

#[tokio::test]
async fn a_deadline_ends_requests_that_run_and_those_that_wait() {
    let bench = Bench::start(PipelineSpec {
        timeout: Duration::from_millis(200),
        ..spec()
    })
    .await;
    for version in BOTH {
        let running = bench.post(version, "1");
        let (request, credit) = only(bench.batch().await);
        let waiting = bench.post(version, "2");
        for client in [running, waiting] {
            let answer = client.await.unwrap();
            assert_eq!(
                (answer.status.as_u16(), answer.text()),
                (408, "inference timeout"),
                "{version:?}"
            );
            assert_eq!(answer.header("content-type"), None);
        }
        assert!(!request.is_live(tokio::time::Instant::now()));
        answer(request, ErrorCode::Ok, "too late");
        drop(credit);
        eventually_queued(&bench, 0).await;
        assert!(!bench.has_batch(), "nothing starts after its deadline");
    }
}

#[tokio::test]
async fn what_a_client_that_left_had_queued_is_not_sent() {
    let bench = Bench::start(spec()).await;
    for version in BOTH {
        let running = bench.post(version, "1");
        let (first, credit) = only(bench.batch().await);
        let leaving = bench.post(version, "2");
        eventually_queued(&bench, 1).await;
        let staying = bench.post(version, "3");
        eventually_queued(&bench, 2).await;
        leaving.abort();
        eventually("the gateway has noticed", async || bench.in_flight().await == 2.0).await;

        running.abort();
        eventually("a request that runs is unwanted too", async || {
            !first.reply.is_wanted()
        })
        .await;
        drop(first);
        drop(credit);
        let (next, _credit) = only(bench.batch().await);
        assert_eq!(text_of(&next), "3", "{version:?}");
        answer(next, ErrorCode::Ok, "3");
        assert_eq!(staying.await.unwrap().text(), "3");
        eventually("nobody is in flight", async || bench.in_flight().await == 0.0).await;
    }
}

/// Revision 1, which runs what it has, and revision 2, which takes its requests.
fn replaced(successor: PipelineSpec) -> std::sync::Arc<mosec_types::Topology> {
    let former = deployment(1, spec(), Phase::Retiring);
    topology(2, vec![former, deployment(2, successor, Phase::Serving)])
}

#[tokio::test]
async fn what_waits_for_a_revision_that_is_replaced_is_served_by_its_successor() {
    for version in BOTH {
        let bench = Bench::start(spec()).await;
        let running = bench.post(version, "1");
        let (first, _credit) = only(bench.batch().await);
        let waiting = [(); 4].map(|()| bench.post(version, "2"));
        eventually_queued(&bench, 4).await;

        // It has room for one. What was let in once is not refused for that.
        bench.grant(key(2, 0), ONE);
        let successor = PipelineSpec {
            capacity: 1,
            ..spec()
        };
        bench.topology.send(replaced(successor)).unwrap();
        for client in waiting {
            let batch = bench.batch().await;
            assert_eq!(batch.stage, key(2, 0));
            let (request, _credit) = only(batch);
            assert_eq!(text_of(&request), "2");
            answer(request, ErrorCode::Ok, "by the second");
            assert_eq!(client.await.unwrap().text(), "by the second");
        }
        answer(first, ErrorCode::Ok, "by the first");
        assert_eq!(
            running.await.unwrap().text(),
            "by the first",
            "what ran is finished"
        );
        let handed_over = bench
            .series("mosec_dispatch_handed_over_total{pipeline=\"echo\",stage=\"Echo_1\"}")
            .await;
        assert_eq!(handed_over, 4.0);
        // Each request counts for the revision that answered it.
        let answered = |revision| {
            let counts = (bench.traffic)();
            let found = counts
                .into_iter()
                .find(|(of, _)| *of == mosec_types::Revision(revision));
            found.map(|(_, counts)| counts.requests)
        };
        assert_eq!(answered(2), Some(4));
    }
}

#[tokio::test]
async fn what_no_other_revision_serves_is_finished_where_it_waits() {
    let bench = Bench::start(spec()).await;
    let running = bench.post(Version::Http1, "1");
    let (first, credit) = only(bench.batch().await);
    let waiting = bench.post(Version::Http1, "2");
    eventually_queued(&bench, 1).await;
    let mut without_the_path = spec();
    without_the_path.routes.remove(0);
    bench.topology.send(replaced(without_the_path)).unwrap();
    eventually("the path leads nowhere", async || {
        bench.post(Version::Http1, "3").await.unwrap().status == 404
    })
    .await;
    answer(first, ErrorCode::Ok, "1");
    drop(credit);
    let (second, _credit) = only(bench.batch().await);
    answer(second, ErrorCode::Ok, "2");
    for (client, text) in [(running, "1"), (waiting, "2")] {
        assert_eq!(client.await.unwrap().text(), text);
    }
}

#[tokio::test]
async fn what_is_lost_by_a_revision_that_was_replaced_is_served_by_its_successor() {
    for (delivery, status) in [(Delivery::Retry, 200), (Delivery::AtMostOnce, 503)] {
        let bench = Bench::start(spec()).await;
        let running = bench.post(Version::Http1, "1");
        let lost = bench.batch().await;
        bench.grant(key(2, 0), ONE);
        let mut successor = spec();
        successor.stages[0].delivery = delivery;
        bench.topology.send(replaced(successor)).unwrap();
        let former = bench.registry.dispatcher(key(1, 0)).unwrap();
        eventually("it is replaced", async || {
            former.refuse_early() == Some(ErrorCode::Draining)
        })
        .await;
        bench.grant(key(1, 0), Window::default());
        drop(lost.credit);
        lost.home.lost(lost.requests, Loss::Worker);
        // Whether it ran is not known: only a successor that may run it again gets it.
        if delivery == Delivery::Retry {
            let batch = bench.batch().await;
            assert_eq!(batch.stage, key(2, 0));
            let (request, _credit) = only(batch);
            assert_eq!(request.losses, 1);
            answer(request, ErrorCode::Ok, "1");
        }
        assert_eq!(running.await.unwrap().status, status);
    }
}

#[tokio::test]
async fn a_request_whose_body_comes_after_its_revision_was_replaced_goes_to_the_successor() {
    let bench = Bench::start(spec()).await;
    // The former revision hangs: its batch is out, and it is not let go of before that is back.
    let _running = bench.post(Version::Http1, "1");
    let _hangs = bench.batch().await;
    let head = b"POST /inference HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n2";
    let mut late = raw::open(&bench, head).await;
    eventually("its head is here", async || bench.in_flight().await == 2.0).await;
    bench.grant(key(2, 0), ONE);
    bench.topology.send(replaced(spec())).unwrap();
    let former = bench.registry.dispatcher(key(1, 0)).unwrap();
    eventually("it is replaced", async || {
        former.refuse_early() == Some(ErrorCode::Draining)
    })
    .await;
    late.write_all(b"2").await.unwrap();
    let batch = bench.batch().await;
    assert_eq!(batch.stage, key(2, 0));
    answer(only(batch).0, ErrorCode::Ok, "22");
    raw::until(&mut late, "\r\n\r\n22").await;
}
