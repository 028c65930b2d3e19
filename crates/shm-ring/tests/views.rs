//! Payloads that a worker looks at in place, and how long their memory is theirs.
#![cfg(not(loom))]

mod support;

use bytes::Bytes;
use mosec_shm_ring::{
    AgentChannel, Answer, Batch, ItemPayload, Next, Payload, RequestItem, View, WorkerChannel,
};

use crate::support::pair;

const BYTES: usize = 1 << 20;

/// Hands over a batch of items that are `fill` all over, and takes it.
fn take(agent: &AgentChannel, worker: &WorkerChannel, batch: u64, fills: &[u8]) -> Batch {
    let payloads: Vec<_> = fills.iter().map(|&fill| Bytes::from(vec![fill; BYTES])).collect();
    let items: Vec<_> = payloads
        .iter()
        .map(|payload| RequestItem {
            flags: 3,
            deadline_micros: 0,
            request: 5,
            headers: b"",
            payload: ItemPayload::Bytes(payload),
        })
        .collect();
    let prepared = agent.prepare(&items, 0).expect("memory");
    agent.submit(batch, prepared).expect("room in the ring");
    worker.try_next().expect("an agent").expect("a batch")
}

fn answer(agent: &AgentChannel, worker: &WorkerChannel, batch: u64, items: u32) {
    let answers: Vec<_> = (0..items)
        .map(|item| Answer {
            item,
            code: 0,
            last: true,
            payload: Payload::Bytes(b"done"),
        })
        .collect();
    worker.respond(batch, &answers, 0).expect("an agent");
    let mut responses = Vec::new();
    agent.poll_responses(&mut responses).expect("a worker");
    assert!(
        responses
            .iter()
            .any(|response| response.batch == batch && response.done)
    );
}

/// Lets the worker tell what it does not use any more, and the agent hear it.
fn settle(agent: &AgentChannel, worker: &WorkerChannel) {
    assert!(worker.try_next().expect("an agent").is_none());
    let mut responses = Vec::new();
    agent.poll_responses(&mut responses).expect("a worker");
    assert!(responses.is_empty());
}

#[expect(
    unsafe_code,
    reason = "a view is a pointer, whose reader vouches for its lifetime"
)]
fn bytes(view: &View) -> Vec<u8> {
    // SAFETY: the view lives, and the agent of this test writes no payload twice.
    unsafe { std::slice::from_raw_parts(view.as_ptr(), view.len()) }.to_vec()
}

#[test]
fn what_is_not_used_any_more_goes_back_with_the_answer() {
    let (arena, agent, worker) = pair(8 << 20);
    let batch = take(&agent, &worker, 1, b"ab");
    let views = [0, 1].map(|item| worker.view(&batch, item).unwrap());
    assert_eq!(
        views.each_ref().map(bytes),
        [vec![b'a'; BYTES], vec![b'b'; BYTES]]
    );
    drop(views);
    answer(&agent, &worker, 1, 2);
    assert_eq!(arena.stats().used_bytes, 0);
    assert!(
        worker.view(&batch, 0).is_none(),
        "it is not the worker's any more"
    );
    settle(&agent, &worker);
}

#[test]
fn a_view_keeps_its_memory_beyond_the_answer() {
    let (arena, agent, worker) = pair(8 << 20);
    let batch = take(&agent, &worker, 1, b"ab");
    let [kept, dropped] = [0, 1].map(|item| worker.view(&batch, item).unwrap());
    drop(dropped);
    answer(&agent, &worker, 1, 2);
    assert_eq!(agent.in_flight(), 0);
    assert!(
        arena.stats().used_bytes >= 2 * BYTES,
        "the batch's memory is one loan"
    );
    // Others come and go meanwhile, and cannot have that memory.
    for number in 2..6 {
        take(&agent, &worker, number, b"x");
        answer(&agent, &worker, number, 1);
    }
    assert_eq!(bytes(&kept), vec![b'a'; BYTES]);
    drop(kept);
    settle(&agent, &worker);
    assert_eq!(arena.stats().used_bytes, 0);
}

#[test]
fn the_end_of_a_view_wakes_a_worker_that_waits() {
    let (arena, agent, worker) = pair(8 << 20);
    let batch = take(&agent, &worker, 1, b"a");
    let view = worker.view(&batch, 0).unwrap();
    answer(&agent, &worker, 1, 1);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| worker.next(None).unwrap());
        drop(view);
        // Nothing but the worker's own word gives the memory back.
        let mut responses = Vec::new();
        while arena.stats().used_bytes > 0 {
            agent.poll_responses(&mut responses).unwrap();
            std::thread::yield_now();
        }
        agent.stop().unwrap();
        assert!(matches!(waiting.join().unwrap(), Next::Stop));
    });
}

#[test]
fn a_worker_that_keeps_everything_gets_copies_in_the_end() {
    let (arena, agent, worker) = pair(256 << 20);
    let mut views = Vec::new();
    let mut batch = 0;
    loop {
        batch += 1;
        let taken = take(&agent, &worker, batch, b"a");
        let view = worker.view(&taken, 0);
        answer(&agent, &worker, batch, 1);
        let Some(view) = view else { break };
        views.push(view);
    }
    assert_eq!(views.len(), 64, "64 MiB");
    views.pop();
    settle(&agent, &worker);
    let taken = take(&agent, &worker, batch + 1, b"a");
    assert!(worker.view(&taken, 0).is_some(), "there is room again");
    answer(&agent, &worker, batch + 1, 1);
    drop(views);
    settle(&agent, &worker);
    assert_eq!(arena.stats().used_bytes, 0);
}

#[test]
fn what_a_dead_worker_held_goes_back() {
    let (arena, agent, worker) = pair(8 << 20);
    let batch = take(&agent, &worker, 1, b"a");
    let view = worker.view(&batch, 0).unwrap();
    answer(&agent, &worker, 1, 1);
    std::mem::forget(view);
    drop(worker);
    assert!(agent.reclaim().is_empty(), "it had answered");
    assert_eq!(arena.stats().used_bytes, 0);
}
