//! Links: what an upstream is told, and what becomes of the batches it sends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mosec_dispatch::{Dispatched, StageConfig, Target, TargetId, Window};
use mosec_types::{ErrorCode, Incarnation, NodeId, RequestId, RouteIndex, SpanKind, StageKey};
use mosec_wire::memory::{MemoryLink, pair};
use mosec_wire::{Answers, Batch, Custody, Item, Link as _, LinkError, LinkEvent, Returned};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::bench::{Bench, key, take, topology, within};
use crate::{Upstream, serve_link};

/// One upstream's link to the agent.
pub(super) struct Connected {
    link: MemoryLink,
    stop: CancellationToken,
    serving: JoinHandle<LinkError>,
}

impl Connected {
    pub(super) async fn new(bench: &Bench, upstream: Upstream) -> Self {
        let (link, server) = pair(NodeId::new("here").unwrap(), Incarnation(1));
        let stop = CancellationToken::new();
        let serving = serve_link(bench.agent.clone(), Arc::new(server), upstream, stop.clone());
        let connected = Self {
            link,
            stop,
            serving: tokio::spawn(serving),
        };
        assert!(matches!(connected.event().await, Ok(LinkEvent::Hello { .. })));
        connected
    }

    async fn event(&self) -> Result<LinkEvent, LinkError> {
        within("event", self.link.event()).await
    }

    async fn window(&self) -> (StageKey, u32, u32) {
        match self.event().await {
            Ok(LinkEvent::Window { stage, window }) => (stage, window.replicas, window.limit),
            other => panic!("expected a window, found {other:?}"),
        }
    }

    pub(super) async fn send(&self, stage: StageKey, route: u16, texts: &[&str]) -> Box<dyn Answers> {
        let items = texts.iter().map(|text| Item {
            id: RequestId(1),
            route: RouteIndex(route),
            remaining: Duration::from_secs(20),
            losses: 0,
            traced: true,
            headers: Bytes::new(),
            payload: Bytes::copy_from_slice(text.as_bytes()),
        });
        self.link
            .send(Batch {
                stage,
                items: items.collect(),
            })
            .await
            .unwrap()
    }
}

pub(super) async fn next(answers: &mut Box<dyn Answers>) -> Option<Returned> {
    within("answers", answers.next()).await.unwrap()
}

/// Item, code and text of all that comes until the batch is finished.
async fn collect(mut answers: Box<dyn Answers>) -> Vec<(u32, ErrorCode, String)> {
    let mut all = Vec::new();
    while let Some(returned) = next(&mut answers).await {
        if let Returned::Answers(group) = returned {
            let texts = group.into_iter().map(|answer| {
                assert!(answer.last);
                (
                    answer.item,
                    answer.code,
                    String::from_utf8(answer.payload.to_vec()).unwrap(),
                )
            });
            all.extend(texts);
        }
    }
    all.sort_by_key(|(item, ..)| *item);
    all
}

#[tokio::test]
async fn each_item_is_answered_and_the_batch_finished() {
    let bench = Bench::new();
    let worker = bench.worker(&bench.pool(1, 0));
    let connected = Connected::new(&bench, Upstream::Gateway).await;
    let answers = connected.send(key(1, 0), 0, &["a", "b"]).await;
    let batch = take(&worker).await;
    worker.answer(
        &batch,
        &[(1, ErrorCode::Validation, "no"), (0, ErrorCode::Ok, "A")],
    );
    let expected = [
        (0, ErrorCode::Ok, "A".into()),
        (1, ErrorCode::Validation, "no".into()),
    ];
    assert_eq!(collect(answers).await, expected);
}

#[tokio::test]
async fn an_answer_comes_before_its_slower_neighbours_and_says_where_the_time_went() {
    let bench = Bench::new();
    let worker = bench.worker(&bench.pool(1, 0));
    let connected = Connected::new(&bench, Upstream::Gateway).await;
    let mut answers = connected.send(key(1, 0), 0, &["a", "b"]).await;
    let batch = take(&worker).await;
    worker.answer(&batch, &[(1, ErrorCode::Ok, "B")]);
    let Some(Returned::Answers(first)) = next(&mut answers).await else {
        panic!("no answers")
    };
    assert_eq!((first.len(), first[0].item), (1, 1));
    let mut kinds: Vec<_> = first[0].spans.iter().map(|span| span.kind.name()).collect();
    kinds.dedup();
    assert_eq!(
        kinds,
        [SpanKind::Agent, SpanKind::Shm, SpanKind::Worker, SpanKind::Agent].map(SpanKind::name)
    );
    worker.answer(&batch, &[(0, ErrorCode::Ok, "A")]);
    assert_eq!(collect(answers).await, [(0, ErrorCode::Ok, "A".into())]);
}

#[tokio::test]
async fn a_stage_without_workers_and_one_that_is_not_known_are_told_apart() {
    let bench = Bench::new();
    let _pool = bench.pool(1, 0);
    let connected = Connected::new(&bench, Upstream::Gateway).await;
    for (stage, code) in [
        (key(1, 0), ErrorCode::NoReplica),
        (key(9, 0), ErrorCode::UnknownStage),
    ] {
        let answers = connected.send(stage, 0, &["a", "b"]).await;
        let found: Vec<_> = collect(answers)
            .await
            .into_iter()
            .map(|(item, code, _)| (item, code))
            .collect();
        assert_eq!(found, [(0, code), (1, code)]);
    }
    assert!(
        !connected.serving.is_finished(),
        "one batch is refused, not the link"
    );
}

#[tokio::test]
async fn a_worker_that_dies_is_a_loss_its_upstream_hears_of() {
    let bench = Bench::new();
    let worker = bench.worker(&bench.pool(1, 0));
    let connected = Connected::new(&bench, Upstream::Gateway).await;
    let answers = connected.send(key(1, 0), 0, &["a"]).await;
    take(&worker).await;
    worker.die();
    assert_eq!(collect(answers).await[0].1, ErrorCode::ReplicaLost);
}

#[tokio::test]
async fn losses_that_an_agent_counted_go_back_with_custody() {
    let bench = Bench::new();
    let pool = bench.pool(1, 0);
    let dying = bench.worker(&pool);
    let connected = Connected::new(&bench, Upstream::Gateway).await;
    let mut answers = connected.send(key(1, 0), 0, &["a"]).await;
    take(&dying).await;
    let heir = bench.worker(&pool);
    dying.die();
    take(&heir).await;
    heir.die();
    let Some(Returned::Answers(given_back)) = next(&mut answers).await else {
        panic!("no answers")
    };
    assert_eq!(given_back[0].custody, Custody::Lost { losses: 1 });
}

#[tokio::test]
async fn windows_are_told_as_they_change() {
    let bench = Bench::new();
    let pool = bench.pool(1, 0);
    let connected = Connected::new(&bench, Upstream::Gateway).await;
    let worker = bench.worker(&pool);
    assert_eq!(connected.window().await, (key(1, 0), 1, 2));
    let other = Connected::new(&bench, Upstream::Gateway).await;
    assert_eq!(connected.window().await, (key(1, 0), 1, 1), "two share it");
    assert_eq!(other.window().await, (key(1, 0), 1, 1));
    other.link.close();
    assert_eq!(connected.window().await, (key(1, 0), 1, 2));
    pool.retire(&worker.worker);
    assert_eq!(connected.window().await, (key(1, 0), 0, 0));
}

#[tokio::test]
async fn an_idle_link_is_drained_at_once() {
    let bench = Bench::new();
    let connected = Connected::new(&bench, Upstream::Agent).await;
    connected.stop.cancel();
    assert_eq!(connected.event().await, Ok(LinkEvent::Drain));
    assert!(connected.event().await.is_err());
    assert_eq!(within("end", connected.serving).await.unwrap(), LinkError::Closed);
}

#[tokio::test]
async fn a_drain_finishes_what_was_sent_even_after_it_was_told() {
    let bench = Bench::new();
    let worker = bench.worker(&bench.pool(1, 0));
    let connected = Connected::new(&bench, Upstream::Gateway).await;
    assert_eq!(connected.window().await, (key(1, 0), 1, 2));
    let before = connected.send(key(1, 0), 0, &["before"]).await;
    let first = take(&worker).await;
    connected.stop.cancel();
    assert_eq!(connected.event().await, Ok(LinkEvent::Drain));
    // It was on its way when its sender was told.
    let after = connected.send(key(1, 0), 0, &["after"]).await;
    let second = take(&worker).await;
    for (batch, answers, text) in [(first, before, "1"), (second, after, "2")] {
        assert!(!connected.serving.is_finished());
        worker.answer(&batch, &[(0, ErrorCode::Ok, text)]);
        assert_eq!(collect(answers).await, [(0, ErrorCode::Ok, text.into())]);
    }
    assert_eq!(within("end", connected.serving).await.unwrap(), LinkError::Closed);
}

#[tokio::test]
async fn a_batch_that_its_upstream_gave_up_is_nobodys() {
    let bench = Bench::new();
    let pool = bench.pool(1, 0);
    let worker = bench.worker(&pool);
    let connected = Connected::new(&bench, Upstream::Gateway).await;
    let answers = connected.send(key(1, 0), 0, &["a"]).await;
    take(&worker).await;
    drop(answers);
    connected.stop.cancel();
    within("end of the drain", connected.serving).await.unwrap();
    // The worker still has it. If it dies now, there is nothing to be done again.
    let heir = bench.worker(&pool);
    worker.die();
    assert!(heir.take().is_none());
    assert!(matches!(pool.idle_since(), Some(Some(_))));
}

#[tokio::test]
async fn a_link_that_ends_takes_its_upstream_away() {
    let bench = Bench::new();
    let worker = bench.worker(&bench.pool(1, 0));
    let connected = Connected::new(&bench, Upstream::Gateway).await;
    let _answers = connected.send(key(1, 0), 0, &["a"]).await;
    let batch = take(&worker).await;
    drop(connected.link);
    assert!(matches!(
        within("end", connected.serving).await.unwrap(),
        LinkError::Lost(_)
    ));
    let share = || {
        bench
            .agent
            .windows()
            .subscribe()
            .borrow()
            .shares(Upstream::Gateway)[&key(1, 0)]
    };
    assert_eq!(
        share(),
        Window {
            replicas: 1,
            limit: 2
        }
    );
    worker.answer(&batch, &[(0, ErrorCode::Ok, "to nobody")]);
    assert_eq!(worker.worker.outstanding(), 0);
}

/// A later stage, somewhere.
#[derive(Default)]
struct Kept(Mutex<Vec<Dispatched>>);

impl Target for Kept {
    fn send(&self, batch: Dispatched) {
        self.0.lock().push(batch);
    }
}

#[tokio::test]
async fn a_credit_returns_before_the_answers_of_later_stages() {
    let bench = Bench::new();
    let worker = bench.worker(&bench.pool(1, 0));
    let kept = Arc::<Kept>::default();
    let target: Arc<dyn Target> = kept.clone();
    let later = StageConfig::of(
        &topology(1, 16).deployments[0].spec,
        key(1, 1),
        Duration::from_secs(60),
    )
    .unwrap();
    bench.registry.ensure(later);
    bench.registry.set_window(
        key(1, 1),
        &TargetId("next".into()),
        &target,
        Window {
            replicas: 1,
            limit: 1,
        },
    );

    let connected = Connected::new(&bench, Upstream::Gateway).await;
    let mut answers = connected.send(key(1, 0), 1, &["a"]).await;
    let batch = take(&worker).await;
    worker.answer(&batch, &[(0, ErrorCode::Ok, "A")]);
    assert_eq!(next(&mut answers).await, Some(Returned::Credit));
    let mut sent = kept.0.lock().pop().unwrap();
    let payload = mosec_dispatch::Payload::Bytes(Bytes::from_static(b"done"));
    sent.requests.remove(0).respond(ErrorCode::Ok, payload);
    assert_eq!(collect(answers).await, [(0, ErrorCode::Ok, "done".into())]);
}
