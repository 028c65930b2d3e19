//! What every kind of link does, as the traits promise it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use mosec_wire::{Cancelled, LinkError, LinkEvent, LinkStats, Returned, Window};
use tokio::time::timeout;

use crate::support::*;

macro_rules! suite {
    ($($test:ident),* $(,)?) => {
        mod over_memory {
            $(#[tokio::test]
            async fn $test() {
                crate::support::bounded(super::$test(crate::support::memory_pair().await)).await;
            })*
        }
        mod over_quic {
            $(#[tokio::test]
            async fn $test() {
                crate::support::bounded(super::$test(crate::support::quic_pair().await)).await;
            })*
        }
    };
}

suite![
    a_batch_arrives_as_it_was_sent,
    answers_come_back_as_they_are_sent,
    streams_of_many_events_keep_their_order,
    concurrent_batches_do_not_mix,
    large_payloads_pass,
    empty_payloads_pass,
    dropping_answers_cancels,
    single_items_are_cancelled_once_each,
    many_items_are_cancelled_at_once,
    items_of_other_batches_are_not_cancelled,
    dropping_the_sink_is_a_loss_of_the_rest,
    closing_the_link_loses_what_is_outstanding,
    closing_the_server_loses_what_is_outstanding,
    dropping_an_end_closes_the_link,
    what_was_finished_survives_the_servers_close,
    hello_comes_first,
    the_newest_window_wins,
    a_peer_that_does_not_accept_holds_the_sender,
    an_upstream_that_does_not_read_holds_the_sink,
    waiting_may_be_given_up_at_any_time,
    what_goes_over_a_link_is_counted_if_anything_is,
];

async fn a_batch_arrives_as_it_was_sent(pair: Pair) {
    let batch = batch_of([pattern(1, 10), pattern(2, 5000), pattern(3, 0)]);
    let mut answers = pair.link.send(batch.clone()).await.unwrap();
    let mut incoming = pair.server.accept().await.unwrap();
    assert_eq!(incoming.batch, batch);
    incoming.answers.send(echoes(&batch)).await.unwrap();
    incoming.answers.finish().await.unwrap();
    assert_eq!(all_answers(&mut *answers).await.unwrap(), echoes(&batch));
    assert_eq!(answers.next().await, Ok(None), "the end stays the end");
}

async fn answers_come_back_as_they_are_sent(pair: Pair) {
    let batch = batch_of((0..4).map(|seed| pattern(seed, 100)));
    let mut answers = pair.link.send(batch.clone()).await.unwrap();
    let mut sink = pair.server.accept().await.unwrap().answers;
    // Item by item, and the credit somewhere between.
    for (count, echo) in echoes(&batch).into_iter().enumerate() {
        if count == 2 {
            sink.return_credit().await.unwrap();
            sink.return_credit().await.unwrap();
            assert_eq!(answers.next().await, Ok(Some(Returned::Credit)));
        }
        sink.send(vec![echo.clone()]).await.unwrap();
        assert_eq!(next_answers(&mut *answers).await.unwrap(), [echo]);
    }
    sink.send(Vec::new()).await.unwrap();
    sink.finish().await.unwrap();
    assert_eq!(answers.next().await, Ok(None));
}

async fn streams_of_many_events_keep_their_order(pair: Pair) {
    let mut answers = pair.link.send(batch_of([Bytes::new()])).await.unwrap();
    let mut sink = pair.server.accept().await.unwrap().answers;
    let count = 2000;
    let sender = tokio::spawn(async move {
        for number in 0..count {
            let mut event = answer(0, Bytes::from(format!("{number}")));
            event.last = number + 1 == count;
            sink.send(vec![event]).await.unwrap();
        }
        sink.finish().await.unwrap();
    });
    let events = all_answers(&mut *answers).await.unwrap();
    sender.await.unwrap();
    assert_eq!(events.len(), count);
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event.payload, number.to_string());
        assert_eq!(event.last, number + 1 == count);
    }
}

async fn concurrent_batches_do_not_mix(pair: Pair) {
    tokio::spawn(echo(Arc::clone(&pair.server)));
    let exchange = |number: usize| {
        let link = Arc::clone(&pair.link);
        async move {
            let batch = batch_of((0..=number % 5).map(|item| pattern(number * 8 + item, number * 37 % 9000)));
            let mut answers = link.send(batch.clone()).await.unwrap();
            assert_eq!(
                all_answers(&mut *answers).await.unwrap(),
                echoes(&batch),
                "batch {number}"
            );
        }
    };
    join_all((0..500).map(exchange)).await;
}

async fn large_payloads_pass(pair: Pair) {
    tokio::spawn(echo(Arc::clone(&pair.server)));
    let batch = batch_of([pattern(1, 8 * 1024 * 1024), pattern(2, 3)]);
    let mut answers = pair.link.send(batch.clone()).await.unwrap();
    assert!(
        all_answers(&mut *answers).await.unwrap() == echoes(&batch),
        "the payloads differ"
    );
}

async fn empty_payloads_pass(pair: Pair) {
    tokio::spawn(echo(Arc::clone(&pair.server)));
    let batch = batch_of(vec![Bytes::new(); 300]);
    let mut answers = pair.link.send(batch.clone()).await.unwrap();
    assert_eq!(all_answers(&mut *answers).await.unwrap(), echoes(&batch));
}

async fn dropping_answers_cancels(pair: Pair) {
    let batch = batch_of([pattern(1, 10), pattern(2, 10)]);
    let mut answers = pair.link.send(batch.clone()).await.unwrap();
    let mut sink = pair.server.accept().await.unwrap().answers;
    sink.send(vec![answer(0, Bytes::new())]).await.unwrap();
    next_answers(&mut *answers).await.unwrap();
    let still_wanted = timeout(Duration::from_millis(20), sink.cancelled()).await;
    assert!(still_wanted.is_err(), "nobody has cancelled");
    drop(answers);
    assert_eq!(sink.cancelled().await, Cancelled::Batch);
    assert_eq!(
        sink.send(vec![answer(1, Bytes::new())]).await,
        Err(LinkError::Cancelled)
    );
    assert_eq!(sink.return_credit().await, Err(LinkError::Cancelled));
    assert_eq!(sink.finish().await, Err(LinkError::Cancelled));
    // The link is none the worse for it.
    tokio::spawn(echo(Arc::clone(&pair.server)));
    let mut answers = pair.link.send(batch.clone()).await.unwrap();
    assert_eq!(all_answers(&mut *answers).await.unwrap(), echoes(&batch));
}

async fn single_items_are_cancelled_once_each(pair: Pair) {
    let batch = batch_of((0..4).map(|seed| pattern(seed, 10)));
    let mut answers = pair.link.send(batch.clone()).await.unwrap();
    let mut sink = pair.server.accept().await.unwrap().answers;
    answers.cancel(&[2, 0, 99]);
    assert_eq!(sink.cancelled().await, Cancelled::Items(vec![2, 0]));
    // What is said again is not told again.
    answers.cancel(&[0, 2]);
    answers.cancel(&[0, 3]);
    assert_eq!(sink.cancelled().await, Cancelled::Items(vec![3]));
    // They are answered like the others.
    sink.send(echoes(&batch)).await.unwrap();
    sink.finish().await.unwrap();
    assert_eq!(all_answers(&mut *answers).await.unwrap(), echoes(&batch));
    answers.cancel(&[1]);
    drop(answers);
    tokio::spawn(echo(Arc::clone(&pair.server)));
    let mut answers = pair.link.send(batch.clone()).await.unwrap();
    assert_eq!(all_answers(&mut *answers).await.unwrap(), echoes(&batch));
}

async fn many_items_are_cancelled_at_once(pair: Pair) {
    let count = 3000;
    let mut answers = pair.link.send(batch_of(vec![Bytes::new(); count])).await.unwrap();
    let mut sink = pair.server.accept().await.unwrap().answers;
    let all: Vec<_> = (0..u32::try_from(count).unwrap()).collect();
    let mut told = std::collections::BTreeSet::new();
    while told.len() < count {
        answers.cancel(&all);
        let Cancelled::Items(items) = sink.cancelled().await else {
            panic!("the batch is wanted")
        };
        assert!(items.into_iter().all(|item| told.insert(item)), "told twice");
    }
}

async fn items_of_other_batches_are_not_cancelled(pair: Pair) {
    let mut sinks = Vec::new();
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(pair.link.send(batch_of([Bytes::new()])).await.unwrap());
        sinks.push(pair.server.accept().await.unwrap().answers);
    }
    all[1].cancel(&[0]);
    assert_eq!(sinks[1].cancelled().await, Cancelled::Items(vec![0]));
    for sink in [0, 2] {
        let told = timeout(Duration::from_millis(20), sinks[sink].cancelled()).await;
        assert!(told.is_err(), "{told:?}");
    }
}

async fn dropping_the_sink_is_a_loss_of_the_rest(pair: Pair) {
    let batch = batch_of((0..3).map(|seed| pattern(seed, 200_000)));
    let mut answers = pair.link.send(batch.clone()).await.unwrap();
    let mut sink = pair.server.accept().await.unwrap().answers;
    sink.send(echoes(&batch)[..2].to_vec()).await.unwrap();
    drop(sink);
    assert_eq!(next_answers(&mut *answers).await.unwrap(), echoes(&batch)[..2]);
    assert_eq!(answers.next().await, Err(LinkError::Reset));
    assert_eq!(answers.next().await, Err(LinkError::Reset));
}

async fn closing_the_link_loses_what_is_outstanding(pair: Pair) {
    let mut answers = pair.link.send(batch_of([pattern(1, 10)])).await.unwrap();
    let mut sink = pair.server.accept().await.unwrap().answers;
    pair.link.close();
    assert_eq!(sink.cancelled().await, Cancelled::Batch);
    sink.send(vec![answer(0, Bytes::new())]).await.unwrap_err();
    assert!(matches!(pair.server.accept().await, Err(LinkError::Lost(_))));
    assert_eq!(answers.next().await, Err(LinkError::Closed));
    assert_eq!(
        pair.link.send(batch_of([Bytes::new()])).await.err(),
        Some(LinkError::Closed)
    );
    assert_eq!(end_of(&pair).await, LinkError::Closed);
}

async fn closing_the_server_loses_what_is_outstanding(pair: Pair) {
    let mut answers = pair.link.send(batch_of([pattern(1, 10)])).await.unwrap();
    let mut sink = pair.server.accept().await.unwrap().answers;
    pair.server.close();
    assert_eq!(sink.cancelled().await, Cancelled::Batch);
    assert_eq!(
        sink.send(vec![answer(0, Bytes::new())]).await,
        Err(LinkError::Closed)
    );
    assert!(matches!(pair.server.accept().await, Err(LinkError::Closed)));
    assert!(matches!(answers.next().await, Err(LinkError::Lost(_))));
    assert!(matches!(end_of(&pair).await, LinkError::Lost(_)));
    assert!(matches!(
        pair.link.send(batch_of([Bytes::new()])).await.err(),
        Some(LinkError::Lost(_))
    ));
}

async fn dropping_an_end_closes_the_link(pair: Pair) {
    let mut answers = pair.link.send(batch_of([pattern(1, 10)])).await.unwrap();
    drop(pair.server.accept().await.unwrap());
    assert_eq!(answers.next().await, Err(LinkError::Reset));
    let Pair { link, server, .. } = pair;
    drop(server);
    let end = loop {
        if let Err(error) = link.event().await {
            break error;
        }
    };
    assert!(matches!(end, LinkError::Lost(_)), "{end:?}");
}

async fn what_was_finished_survives_the_servers_close(pair: Pair) {
    let batch = batch_of((0..40).map(|seed| pattern(seed, 50_000)));
    let mut answers = pair.link.send(batch.clone()).await.unwrap();
    let mut sink = pair.server.accept().await.unwrap().answers;
    let server = Arc::clone(&pair.server);
    let agent = tokio::spawn(async move {
        let all = echoes(&batch);
        sink.send(all.clone()).await.unwrap();
        sink.finish().await.unwrap();
        server.tell(LinkEvent::Drain);
        server.close();
        all
    });
    let got = all_answers(&mut *answers).await;
    assert!(got.unwrap() == agent.await.unwrap(), "the answers differ");
    assert!(matches!(end_of(&pair).await, LinkError::Lost(_)));
}

/// Why the link ends, past the events before.
async fn end_of(pair: &Pair) -> LinkError {
    loop {
        if let Err(error) = pair.link.event().await {
            return error;
        }
    }
}

async fn hello_comes_first(pair: Pair) {
    pair.server.tell(LinkEvent::Drain);
    let hello = LinkEvent::Hello {
        node: node(),
        incarnation: INCARNATION,
    };
    assert_eq!(pair.link.event().await, Ok(hello));
    assert_eq!(pair.link.event().await, Ok(LinkEvent::Drain));
}

async fn the_newest_window_wins(pair: Pair) {
    pair.link.event().await.unwrap();
    let window = |limit| Window {
        replicas: limit / 2,
        limit,
    };
    for limit in 1..=500 {
        for index in 0..3 {
            pair.server.tell(LinkEvent::Window {
                stage: stage(index),
                window: window(limit),
            });
        }
    }
    pair.server.tell(LinkEvent::Drain);
    // Windows may be skipped, but not come late.
    let mut seen = [0; 3];
    loop {
        match pair.link.event().await.unwrap() {
            LinkEvent::Window { stage, window } => {
                let last = &mut seen[usize::from(stage.stage.0)];
                assert!(window.limit > *last, "{} after {last}", window.limit);
                *last = window.limit;
            }
            LinkEvent::Drain => break,
            hello => panic!("{hello:?} comes once"),
        }
    }
    assert_eq!(seen, [500; 3]);
}

async fn a_peer_that_does_not_accept_holds_the_sender(pair: Pair) {
    let (count, sent) = (3000, AtomicUsize::new(0));
    let exchange = |number: usize| {
        let (link, sent) = (&pair.link, &sent);
        async move {
            let batch = batch_of([pattern(number, 20_000)]);
            let mut answers = link.send(batch.clone()).await.unwrap();
            sent.fetch_add(1, Ordering::Relaxed);
            assert_eq!(all_answers(&mut *answers).await.unwrap(), echoes(&batch));
        }
    };
    let mut all = Box::pin(join_all((0..count).map(exchange)));
    assert!(timeout(Duration::from_millis(500), &mut all).await.is_err());
    let held = sent.load(Ordering::Relaxed);
    assert!((64..=1024).contains(&held), "{held} batches went out");
    // Whoever was held gets through once the peer accepts.
    tokio::spawn(echo(Arc::clone(&pair.server)));
    all.await;
}

async fn an_upstream_that_does_not_read_holds_the_sink(pair: Pair) {
    let mut answers = pair.link.send(batch_of([Bytes::new()])).await.unwrap();
    let mut sink = pair.server.accept().await.unwrap().answers;
    let (count, sent) = (80, Arc::new(AtomicUsize::new(0)));
    let progress = Arc::clone(&sent);
    let mut sender = tokio::spawn(async move {
        for number in 0..count {
            sink.send(vec![answer(0, pattern(number, 1024 * 1024))])
                .await
                .unwrap();
            progress.fetch_add(1, Ordering::Relaxed);
        }
        sink.finish().await.unwrap();
    });
    assert!(timeout(Duration::from_millis(300), &mut sender).await.is_err());
    let held = sent.load(Ordering::Relaxed);
    assert!(held <= 40, "{held} MiB wait for an upstream that does not read");
    assert_eq!(all_answers(&mut *answers).await.unwrap().len(), count);
    sender.await.unwrap();
}

async fn waiting_may_be_given_up_at_any_time(pair: Pair) {
    let batch = batch_of((0..30).map(|seed| pattern(seed, 100_000)));
    let link = Arc::clone(&pair.link);
    let sent = batch.clone();
    let sender = tokio::spawn(async move { link.send(sent).await.unwrap() });
    let mut incoming = loop {
        tokio::select! {
            biased;
            incoming = pair.server.accept() => break incoming.unwrap(),
            () = tokio::task::yield_now() => {}
        }
    };
    assert!(incoming.batch == batch, "the batch differs");
    let mut answers = sender.await.unwrap();
    let expected = echoes(&batch);
    let all = expected.clone();
    tokio::spawn(async move {
        for echo in all {
            incoming.answers.send(vec![echo]).await.unwrap();
        }
        incoming.answers.finish().await.unwrap();
    });
    let mut got = Vec::new();
    loop {
        tokio::select! {
            biased;
            returned = answers.next() => match returned.unwrap() {
                Some(Returned::Answers(group)) => got.extend(group),
                Some(Returned::Credit) => panic!("nobody has returned it"),
                None => break,
            },
            () = tokio::task::yield_now() => {}
        }
    }
    assert!(got == expected, "the answers differ");
}

async fn what_goes_over_a_link_is_counted_if_anything_is(pair: Pair) {
    const BYTES: usize = 200_000;
    let before = pair.link.stats();
    let batch = batch_of([pattern(1, BYTES)]);
    let mut answers = pair.link.send(batch.clone()).await.unwrap();
    let mut incoming = pair.server.accept().await.unwrap();
    incoming.answers.send(echoes(&batch)).await.unwrap();
    incoming.answers.finish().await.unwrap();
    all_answers(&mut *answers).await.unwrap();
    let (before, after) = match (before, pair.link.stats()) {
        (Some(before), Some(after)) => (before, after),
        (before, after) => return assert_eq!(before, after, "some counts, some not"),
    };
    let grown = |of: fn(&LinkStats) -> u64| of(&after) - of(&before);
    assert!(grown(|stats| stats.sent_bytes) >= BYTES as u64, "{after:?}");
    assert!(grown(|stats| stats.received_bytes) >= BYTES as u64, "{after:?}");
    let (calls, datagrams) = (
        grown(|stats| stats.send_calls),
        grown(|stats| stats.sent_datagrams),
    );
    assert!(calls > 0 && datagrams >= calls, "{after:?}");
    assert!(grown(|stats| stats.sent_packets) >= datagrams, "{after:?}");
    assert!(after.lost_packets < after.sent_packets, "{after:?}");
    assert!(after.round_trip > Duration::ZERO, "{after:?}");
    assert!(after.congestion_window_bytes > 0, "{after:?}");
}
