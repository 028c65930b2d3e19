//! What a worker is told of the items it has, and how long it may look.
#![cfg(not(loom))]

mod support;

use std::thread;

use bytes::Bytes;
use mosec_shm_ring::{
    AgentChannel, Answer, ItemPayload, Over, Payload, Progress, Reply, RequestItem, now_micros,
};
use mosec_types::ErrorCode;

use crate::support::pair;

fn send(agent: &AgentChannel, batch: u64, items: usize) {
    let payload = Bytes::from_static(b"payload");
    let item = RequestItem {
        flags: 3,
        deadline_micros: 1000,
        request: 5,
        headers: b"",
        payload: ItemPayload::Bytes(&payload),
    };
    let prepared = agent.prepare(&vec![item; items], 0).expect("a channel with room");
    agent.submit(batch, prepared).expect("a channel with room");
}

fn answer(item: u32, last: bool, payload: &[u8]) -> Answer<'_> {
    Answer {
        item,
        code: 0,
        last,
        payload: Payload::Bytes(payload),
    }
}

#[test]
fn a_worker_sees_what_the_agent_says_of_each_item() {
    let (_arena, agent, worker) = pair(1 << 18);
    send(&agent, 1, 3);
    agent.cancel([(1, 2)]);
    let batch = worker.try_next().unwrap().unwrap();
    let cancelled = || [0, 1, 2, 3].map(|item| batch.is_cancelled(item));
    assert_eq!(cancelled(), [false, false, true, false]);
    let watches = [0, 1, 2].map(|item| worker.watch(1, item).unwrap());
    assert_eq!(watches[0].request(), 5);
    // None of these is there.
    agent.cancel([(1, 3), (1, u32::MAX), (9, 0)]);
    agent.move_deadline(1, 7, 1);
    assert!(worker.watch(1, 3).is_none() && worker.watch(2, 0).is_none());
    agent.cancel([(1, 0)]);
    agent.move_deadline(1, 1, u64::MAX);
    assert_eq!(cancelled(), [true, false, true, false]);
    assert_eq!(
        watches.each_ref().map(|watch| watch.is_cancelled()),
        [true, false, true]
    );
    let deadlines = watches.each_ref().map(|watch| watch.deadline_micros());
    assert_eq!(deadlines, [Some(1000), Some(u64::MAX), Some(1000)]);
    assert_eq!(
        [0, 1, 2, 3].map(|item| worker.is_over(1, item)),
        [true, false, true, true]
    );
    agent.reclaim();
}

#[test]
fn nothing_is_seen_of_memory_that_is_anothers() {
    // Room for one batch only, so that the next has the same memory.
    let (arena, agent, worker) = pair(4 << 10);
    send(&agent, 1, 2);
    worker.try_next().unwrap().unwrap();
    let watch = worker.watch(1, 1).unwrap();
    worker.respond(1, &[answer(1, true, b"")], 0).unwrap();
    assert_eq!(
        (watch.is_cancelled(), watch.deadline_micros()),
        (false, Some(1000))
    );
    assert!(
        worker.watch(1, 1).is_none() && worker.is_over(1, 1),
        "it has been answered"
    );
    worker.respond(1, &[answer(0, true, b"")], 0).unwrap();
    assert_eq!((watch.is_cancelled(), watch.deadline_micros()), (true, None));
    let mut responses = Vec::new();
    agent.poll_responses(&mut responses).unwrap();
    drop(responses);
    assert_eq!(arena.stats().used_bytes, 0);
    agent.cancel([(1, 0)]);
    send(&agent, 2, 2);
    assert_eq!((watch.is_cancelled(), watch.deadline_micros()), (true, None));
    assert!(!worker.try_next().unwrap().unwrap().is_cancelled(0));
    agent.reclaim();
}

#[test]
fn threads_may_look_while_the_batch_is_answered() {
    let (_arena, agent, worker) = pair(1 << 18);
    for batch in 0..200 {
        send(&agent, batch, 1);
        worker.try_next().unwrap().unwrap();
        let watch = worker.watch(batch, 0).unwrap();
        thread::scope(|scope| {
            let looking = scope.spawn(move || while !watch.is_cancelled() {});
            worker.respond(batch, &[answer(0, true, b"")], 0).unwrap();
            looking.join().unwrap();
        });
        agent.poll_responses(&mut Vec::new()).unwrap();
    }
}

#[test]
fn a_batch_that_is_not_handed_over_leaves_nothing() {
    let (arena, agent, _worker) = pair(1 << 18);
    let payload = Bytes::from_static(b"payload");
    let item = RequestItem {
        flags: 0,
        deadline_micros: 0,
        request: 0,
        headers: b"",
        payload: ItemPayload::Bytes(&payload),
    };
    let prepared = agent.prepare(&[item], 0).unwrap();
    agent.reclaim();
    assert!(agent.submit(1, prepared).is_err());
    assert_eq!(arena.stats().used_bytes, 0);
}

#[test]
fn a_stream_asks_for_memory_by_the_extent_and_for_less_where_there_is_less() {
    let (arena, agent, worker) = pair(16 << 10);
    send(&agent, 1, 1);
    worker.try_next().unwrap().unwrap();
    let taken = arena.alloc(8 << 10).unwrap();
    let mut asked = 0;
    for event in 0..40 {
        let bytes = [b'e'; 200];
        let events = [answer(0, false, &bytes)];
        let mut reply = Reply::new(1, &events, 0);
        while worker.step(&mut reply).unwrap() == Progress::Wait {
            asked += 1;
            // The agent's turn: it grants, or says that there is no room.
            agent.poll_responses(&mut Vec::new()).unwrap();
        }
        let mut responses = Vec::new();
        agent.poll_responses(&mut responses).unwrap();
        assert_eq!(
            (responses.len(), responses[0].items[0].last),
            (1, false),
            "event {event}"
        );
    }
    assert!(asked < 20, "not each event waits for memory, but {asked} did");
    drop(taken);
    agent.reclaim();
}

#[test]
fn what_is_over_is_not_run_and_the_others_keep_their_places() {
    let (_arena, agent, worker) = pair(1 << 18);
    let payload = Bytes::from_static(b"payload");
    // Without a deadline, one that has passed, one to come; item 4 is cancelled.
    let items = [0, 50, 101, 100, 0, 101].map(|deadline_micros| RequestItem {
        flags: 0,
        deadline_micros,
        request: 0,
        headers: b"",
        payload: ItemPayload::Bytes(&payload),
    });
    agent.submit(7, agent.prepare(&items, 0).unwrap()).unwrap();
    agent.cancel([(7, 4)]);
    let batch = worker.try_next().unwrap().unwrap();
    let over = Over::of(&batch, 100);
    assert!(!over.is_empty() && !over.is_all_of(&batch));
    assert_eq!(
        [0, 1, 2, 3, 4, 5].map(|item| over.has(item)),
        [false, true, false, true, true, false]
    );
    assert_eq!([0, 1, 2].map(|index| over.item(7, index)), [0, 2, 5]);
    assert_eq!(over.item(8, 1), 1, "another batch is whole");
    let answers: Vec<_> = over
        .answers()
        .iter()
        .map(|answer| (answer.item, answer.code))
        .collect();
    let (late, left) = (
        ErrorCode::DeadlineExceeded.to_wire(),
        ErrorCode::Cancelled.to_wire(),
    );
    assert_eq!(answers, [(1, late), (3, late), (4, left)]);
    assert!(over.of_batch(8).is_empty() && !over.of_batch(7).is_empty());
    assert!(Over::of(&batch, 0).has(4) && Over::of(&batch, u64::MAX).answers().len() == 5);
    agent.reclaim();
}

#[test]
fn each_item_has_the_headers_of_its_own_request() {
    let (_arena, agent, worker) = pair(1 << 18);
    let payload = Bytes::from_static(b"payload");
    let headers: [&[u8]; 3] = [b"x-user:a\n", b"", b"x-user:bc\nx-user:d\n"];
    let items = headers.map(|headers| RequestItem {
        flags: 0,
        deadline_micros: 0,
        request: 0,
        headers,
        payload: ItemPayload::Bytes(&payload),
    });
    agent.submit(1, agent.prepare(&items, 0).unwrap()).unwrap();
    let batch = worker.try_next().unwrap().unwrap();
    let watches = [0, 1, 2].map(|item| worker.watch(1, item).unwrap());
    assert!(batch.items.iter().all(|item| item.to_vec() == b"payload"));
    let answers = [0, 1, 2].map(|item| answer(item, true, b""));
    worker.respond(1, &answers, 0).unwrap();
    // They are the watch's own, whatever becomes of the batch.
    assert_eq!(watches.each_ref().map(|watch| watch.headers()), headers);
    agent.reclaim();
}

#[test]
fn the_clock_is_the_one_that_python_reads() {
    let before = now_micros();
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let uptime: f64 = uptime.split_whitespace().next().unwrap().parse().unwrap();
    let after = now_micros();
    assert!(before <= after);
    // It does not count the time asleep, which the uptime does.
    assert!((before as f64) < (uptime + 1.0) * 1e6);
}
