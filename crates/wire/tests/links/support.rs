//! Pairs of connected ends, and values to send over them.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mosec_types::spec::RouteIndex;
use mosec_types::{
    ErrorCode, Incarnation, NodeId, RequestId, Revision, Span, SpanKind, StageIndex, StageKey,
};
use mosec_wire::quic::{ListenerConfig, QuicConnector, QuicListener, Settings};
use mosec_wire::tls::{ClusterCa, Role};
use mosec_wire::{Answer, Answers, Batch, Item, Link, LinkError, LinkServer, Returned, memory};

pub(crate) const INCARNATION: Incarnation = Incarnation(7);

pub(crate) fn node() -> NodeId {
    NodeId::new("node-1").unwrap()
}

/// Both ends of a link, and what it needs to live.
pub(crate) struct Pair {
    pub(crate) link: Arc<dyn Link>,
    pub(crate) server: Arc<dyn LinkServer>,
    _listener: Option<QuicListener>,
}

pub(crate) async fn memory_pair() -> Pair {
    let (link, server) = memory::pair(node(), INCARNATION);
    Pair {
        link: Arc::new(link),
        server: Arc::new(server),
        _listener: None,
    }
}

pub(crate) async fn quic_pair() -> Pair {
    quic_pair_with(Settings::default()).await
}

pub(crate) async fn quic_pair_with(settings: Settings) -> Pair {
    let ca = ClusterCa::create().unwrap();
    let mut config = ListenerConfig::new(ca.issue(Role::Agent, "node-1").unwrap(), INCARNATION);
    config.settings = settings.clone();
    let listener = QuicListener::bind("127.0.0.1:0".parse().unwrap(), config).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connector = QuicConnector::new(ca.issue(Role::Gateway, "edge").unwrap(), settings).unwrap();
    let expected = node();
    let (link, server) = tokio::join!(connector.connect(&address, Some(&expected)), listener.accept());
    Pair {
        link: Arc::new(link.unwrap()),
        server: Arc::new(server.unwrap()),
        _listener: Some(listener),
    }
}

/// Ends a test that waits for something that does not come.
pub(crate) async fn bounded<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), test)
        .await
        .expect("the test hangs")
}

pub(crate) fn stage(index: u16) -> StageKey {
    StageKey {
        revision: Revision(42),
        stage: StageIndex(index),
    }
}

pub(crate) fn batch_of(payloads: impl IntoIterator<Item = Bytes>) -> Batch {
    let item = |(index, payload)| Item {
        id: RequestId(1000 + index as u64),
        route: RouteIndex(3),
        remaining: Duration::from_millis(1500),
        losses: 2,
        traced: true,
        headers: Bytes::from_static(b"x-user:someone\n"),
        payload,
    };
    Batch {
        stage: stage(1),
        items: payloads.into_iter().enumerate().map(item).collect(),
    }
}

pub(crate) fn answer(item: u32, payload: Bytes) -> Answer {
    let span = Span {
        kind: SpanKind::Worker,
        stage: StageIndex(1),
        micros: 250,
    };
    Answer {
        item,
        code: ErrorCode::Ok,
        custody: mosec_wire::Custody::Done,
        last: true,
        payload,
        spans: vec![span],
    }
}

/// The answers that give a batch's payloads back.
pub(crate) fn echoes(batch: &Batch) -> Vec<Answer> {
    (0..)
        .zip(&batch.items)
        .map(|(index, item)| answer(index, item.payload.clone()))
        .collect()
}

/// Accepts batches and echoes them, until the link ends.
pub(crate) async fn echo(server: Arc<dyn LinkServer>) {
    while let Ok(mut incoming) = server.accept().await {
        tokio::spawn(async move {
            let answers = echoes(&incoming.batch);
            incoming.answers.send(answers).await?;
            incoming.answers.finish().await
        });
    }
}

/// The next answers, where nothing else may come.
pub(crate) async fn next_answers(answers: &mut dyn Answers) -> Result<Vec<Answer>, LinkError> {
    match answers.next().await? {
        Some(Returned::Answers(group)) => Ok(group),
        other => panic!("expected answers, got {other:?}"),
    }
}

/// All answers up to the proper end.
pub(crate) async fn all_answers(answers: &mut dyn Answers) -> Result<Vec<Answer>, LinkError> {
    let mut all = Vec::new();
    while let Some(returned) = answers.next().await? {
        match returned {
            Returned::Answers(group) => {
                assert!(!group.is_empty());
                all.extend(group);
            }
            Returned::Credit => {}
        }
    }
    Ok(all)
}

/// Bytes that differ from one `seed` to the next. Cheap, as a test that computes for long keeps its links waiting.
pub(crate) fn pattern(seed: usize, len: usize) -> Bytes {
    // A prime length, so that parts that have moved by a round number are noticed.
    let block: Vec<u8> = (0..251)
        .map(|at| (seed.wrapping_mul(31) ^ (at * 7)) as u8)
        .collect();
    let mut bytes = block.repeat(len / block.len() + 1);
    bytes.truncate(len);
    Bytes::from(bytes)
}
