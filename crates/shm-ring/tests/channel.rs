//! Both halves of a channel in one process, on two threads.
#![cfg(not(loom))]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use mosec_shm_ring::{
    AgentChannel, Answer, Arena, ArenaConfig, ChannelConfig, ItemPayload, Next, OnAgentLoss, Payload,
    Request, RequestError, RequestItem, Response, ResponseItem, ShmBackend, ShmConfig, WorkerChannel,
    WorkerEvent,
};
use mosec_types::{ErrorCode, Generation};
use rustix::event::{PollFd, PollFlags};

const BOUND: Duration = Duration::from_secs(20);

fn arena(initial_bytes: usize, max_bytes: usize) -> Arena {
    let shm = ShmConfig {
        backend: ShmBackend::Posix,
        prefix: "mosec-channel-test".to_owned(),
    };
    Arena::new(ArenaConfig {
        initial_bytes,
        max_bytes,
        shm,
    })
    .expect("memory")
}

/// Both halves, the hello exchanged.
fn pair(arena: &Arena, ring_slots: u32) -> (AgentChannel, WorkerChannel) {
    let config = ChannelConfig { ring_slots };
    let (agent, fd) = AgentChannel::create(arena, Generation(7), &config).expect("a channel");
    agent.hello(r#"{"stage":"a"}"#).expect("hello");
    let (worker, spec) = WorkerChannel::attach(fd, OnAgentLoss::Tell).expect("attach");
    assert_eq!(spec, r#"{"stage":"a"}"#);
    assert_eq!(worker.generation(), Generation(7));
    (agent, worker)
}

fn wait_readable(fd: BorrowedFd<'_>) {
    let timeout = rustix::event::Timespec {
        tv_sec: BOUND.as_secs() as i64,
        tv_nsec: 0,
    };
    let ready = rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).expect("poll");
    assert_eq!(ready, 1, "nothing within {BOUND:?}");
}

/// The next responses, slept for as an agent does.
fn responses(agent: &AgentChannel) -> Vec<Response> {
    let mut out = Vec::new();
    loop {
        agent
            .poll_responses(&mut out)
            .expect("a worker that follows the protocol");
        if !out.is_empty() {
            return out;
        }
        if agent.arm() {
            wait_readable(agent.bell_fd());
        }
    }
}

/// Everything that is answered to one batch.
fn finish(agent: &AgentChannel, batch: u64) -> Vec<ResponseItem> {
    let mut items = Vec::new();
    loop {
        for response in responses(agent) {
            assert_eq!(response.batch, batch);
            items.extend(response.items);
            if response.done {
                return items;
            }
        }
    }
}

fn send(agent: &AgentChannel, batch: u64, payloads: &[Bytes], reply_hint: usize) -> Result<(), RequestError> {
    let items: Vec<_> = payloads
        .iter()
        .map(|bytes| RequestItem {
            flags: 3,
            deadline_micros: 99,
            request: 5,
            headers: b"",
            payload: ItemPayload::Bytes(bytes),
        })
        .collect();
    agent.request(&Request {
        batch,
        items: &items,
        reply_hint,
    })
}

fn answer(item: u32, payload: &[u8]) -> Answer<'_> {
    Answer {
        item,
        code: 0,
        last: true,
        payload: Payload::Bytes(payload),
    }
}

/// Answers every batch by `reply` until the agent says stop.
fn work(worker: &WorkerChannel, reply: impl Fn(&[u8]) -> Vec<u8>) {
    loop {
        match worker
            .next(Some(BOUND))
            .expect("an agent that follows the protocol")
        {
            Next::Stop => return,
            Next::Interrupted => {}
            Next::Timeout => panic!("neither batch nor stop within {BOUND:?}"),
            Next::Batch(batch) => {
                let replies: Vec<_> = batch.items.iter().map(|item| reply(&item.to_vec())).collect();
                let answers: Vec<_> = (0..)
                    .zip(&replies)
                    .map(|(item, bytes)| answer(item, bytes))
                    .collect();
                worker.respond(batch.id, &answers, 5).expect("answers");
            }
        }
    }
}

fn with_worker(arena: &Arena, reply: impl Fn(&[u8]) -> Vec<u8> + Send, test: impl FnOnce(&AgentChannel)) {
    let (agent, worker) = pair(arena, 64);
    thread::scope(|scope| {
        let working = scope.spawn(move || work(&worker, reply));
        test(&agent);
        agent.stop().expect("stop");
        working.join().expect("the worker ends in order");
    });
    assert_eq!(agent.in_flight(), 0);
}

fn payload(batch: u64, item: usize) -> Bytes {
    let text = format!("batch {batch} item {item} ");
    Bytes::from(text.repeat(1 + (batch as usize * 7 + item * 13) % 40))
}

#[test]
fn ten_thousand_batches_come_back_as_they_went() {
    let arena = arena(1 << 20, 1 << 20);
    with_worker(
        &arena,
        |bytes| bytes.to_vec(),
        |agent| {
            let (mut sent, mut done) = (0_u64, 0_u64);
            while done < 10_000 {
                // Several outstanding, as prefetch has it, and batches of every size from one.
                while sent < 10_000 && sent - done < 8 {
                    let items: Vec<_> = (0..1 + sent as usize % 9)
                        .map(|item| payload(sent, item))
                        .collect();
                    send(agent, sent, &items, 64 * (sent as usize % 5)).expect("room");
                    sent += 1;
                }
                for response in responses(agent) {
                    assert!(response.done && response.worker_nanos == 5);
                    assert_eq!(response.batch, done, "one worker answers in order");
                    assert_eq!(response.items.len(), 1 + done as usize % 9);
                    for (index, item) in response.items.iter().enumerate() {
                        assert_eq!((item.item as usize, item.code, item.last), (index, 0, true));
                        assert_eq!(item.payload.to_bytes(), payload(done, index));
                    }
                    done += 1;
                }
            }
        },
    );
    assert_eq!(arena.stats().used_bytes, 0);
    assert_eq!(arena.stats().segments, 1);
}

#[test]
fn flags_and_deadlines_arrive() {
    let arena = arena(1 << 20, 1 << 20);
    let (agent, worker) = pair(&arena, 64);
    let empty = Bytes::new();
    let items = [
        RequestItem {
            flags: 1,
            deadline_micros: 0,
            request: 7,
            headers: b"",
            payload: ItemPayload::Bytes(&empty),
        },
        RequestItem {
            flags: 2,
            deadline_micros: u64::MAX,
            request: u64::MAX,
            headers: b"",
            payload: ItemPayload::Bytes(&Bytes::from_static(b"x")),
        },
    ];
    agent
        .request(&Request {
            batch: 1,
            items: &items,
            reply_hint: 0,
        })
        .expect("room");
    let batch = worker.try_next().expect("in order").expect("a batch");
    let seen: Vec<_> = batch
        .items
        .iter()
        .map(|i| (i.flags, i.deadline_micros, i.request, i.to_vec()))
        .collect();
    assert_eq!(seen, [(1, 0, 7, vec![]), (2, u64::MAX, u64::MAX, b"x".to_vec())]);
    assert!(
        batch.items[1].copy_to(&mut [0; 2]).is_err(),
        "a buffer of another length"
    );
    agent.reclaim();
}

#[test]
fn large_payloads_grow_the_arena_under_a_living_worker() {
    let arena = arena(64 << 10, 64 << 20);
    let reverse = |bytes: &[u8]| bytes.iter().rev().copied().collect();
    with_worker(&arena, reverse, |agent| {
        for (batch, bytes) in [(0, 1000), (1, 200_000), (2, 3_000_000), (3, 9_000_000)] {
            let sent: Bytes = (0..bytes).map(|i| (i * 31 % 251) as u8).collect();
            send(agent, batch, std::slice::from_ref(&sent), 0).expect("room");
            let back = finish(agent, batch);
            let expected: Vec<u8> = sent.iter().rev().copied().collect();
            assert!(back[0].payload.to_bytes() == expected, "{bytes} bytes");
        }
    });
    assert!(arena.stats().segments > 2);
    assert_eq!(arena.stats().used_bytes, 0);
}

#[test]
fn a_reply_larger_than_its_extent_gets_a_larger_one() {
    let arena = arena(8 << 20, 8 << 20);
    with_worker(
        &arena,
        |bytes| bytes.repeat(1000),
        |agent| {
            for batch in 0..50 {
                let items: Vec<_> = (0..3).map(|item| payload(batch, item)).collect();
                send(agent, batch, &items, 10).expect("room");
                let back = finish(agent, batch);
                for (item, sent) in back.iter().zip(&items) {
                    assert!(item.payload.to_bytes() == sent.repeat(1000));
                }
            }
        },
    );
    assert_eq!(arena.stats().used_bytes, 0);
}

#[test]
fn answers_that_do_not_fit_fail_alone() {
    let arena = arena(256 << 10, 256 << 10);
    // One byte: how many KiB to answer.
    with_worker(
        &arena,
        |bytes| vec![bytes[0]; usize::from(bytes[0]) << 10],
        |agent| {
            let items: Vec<_> = [1_u8, 250, 3, 2]
                .iter()
                .map(|&kib| Bytes::copy_from_slice(&[kib]))
                .collect();
            send(agent, 1, &items, 0).expect("room");
            let seen: Vec<_> = finish(agent, 1)
                .iter()
                .map(|i| (i.code, i.payload.len()))
                .collect();
            let full = ErrorCode::ArenaFull.to_wire();
            assert_eq!(seen, [(0, 1 << 10), (full, 0), (0, 3 << 10), (0, 2 << 10)]);
        },
    );
    assert!(arena.stats().refusals >= 1);
    assert_eq!(arena.stats().used_bytes, 0);
}

#[test]
fn items_fail_one_by_one_where_not_even_a_table_fits() {
    let arena = arena(8 << 10, 8 << 10);
    let (agent, worker) = pair(&arena, 4);
    send(&agent, 1, &[Bytes::from_static(b"a")], 0).expect("room");
    let batch = worker.try_next().expect("in order").expect("a batch");
    let _hold: Vec<_> = std::iter::from_fn(|| arena.alloc(1024).ok()).collect();
    thread::scope(|scope| {
        let working = scope.spawn(|| {
            // A stream: 100 events of one item need a table of 1600 bytes, and only 1 KiB was lent.
            let event = |number| Answer {
                item: 0,
                code: 0,
                last: number == 99,
                payload: Payload::Bytes(b""),
            };
            worker.respond(batch.id, &(0..100).map(event).collect::<Vec<_>>(), 0)
        });
        let items = finish(&agent, 1);
        assert_eq!(items.len(), 1);
        assert_eq!(
            (items[0].code, items[0].last),
            (ErrorCode::ArenaFull.to_wire(), true)
        );
        working.join().expect("no panic").expect("answered");
    });
}

/// A stage that streams answers its batch at the end whatever has become of the events, and must not fail by it.
#[test]
fn a_batch_is_answered_after_an_event_of_it_had_to_give_way() {
    let arena = arena(64 << 10, 64 << 10);
    let (agent, worker) = pair(&arena, 64);
    let full = ErrorCode::ArenaFull.to_wire();
    for neighbours in [0_u32, 1] {
        let id = u64::from(neighbours);
        send(
            &agent,
            id,
            &vec![Bytes::from_static(b"a"); 1 + neighbours as usize],
            0,
        )
        .expect("room");
        worker.try_next().expect("in order").expect("a batch");
        thread::scope(|scope| {
            let working = scope.spawn(|| {
                let huge = vec![7; 1 << 20];
                let event = Answer {
                    last: false,
                    ..answer(0, &huge)
                };
                worker.respond(id, &[event], 0).expect("an event");
                assert!(worker.is_over(id, 0), "its stream has been ended");
                worker.respond(id, &[event], 0).expect("nowhere to go");
                let answers: Vec<_> = (0..=neighbours).map(|item| answer(item, b"end")).collect();
                worker.respond(id, &answers, 0).expect("the batch's answers");
                assert!(worker.respond(id, &answers, 0).is_err(), "twice");
            });
            let seen: Vec<_> = finish(&agent, id)
                .iter()
                .map(|i| (i.item, i.code, i.last, i.payload.len()))
                .collect();
            let expected = [(0, full, true, 0), (1, 0, true, 3)];
            assert_eq!(seen, expected[..=neighbours as usize]);
            working.join().expect("no panic");
        });
    }
    assert_eq!((agent.in_flight(), arena.stats().used_bytes), (0, 0));
}

#[test]
fn a_request_beyond_the_arena_is_refused_and_leaves_nothing() {
    let arena = arena(64 << 10, 64 << 10);
    with_worker(
        &arena,
        |bytes| bytes.to_vec(),
        |agent| {
            let error = send(agent, 1, &[Bytes::from(vec![0; 100_000])], 0).expect_err("too large");
            assert!(matches!(error, RequestError::ArenaFull(_)), "{error}");
            let error =
                send(agent, 1, &[Bytes::from_static(b"x")], usize::MAX).expect_err("too large an answer");
            assert!(matches!(error, RequestError::ArenaFull(_)), "{error}");
            assert_eq!(arena.stats().used_bytes, 0);
            send(agent, 1, &[Bytes::from_static(b"fits")], 0).expect("room");
            assert_eq!(finish(agent, 1)[0].payload.to_bytes(), "fits");
        },
    );
}

#[test]
fn an_answer_becomes_a_request_without_a_copy() {
    let arena = arena(1 << 20, 1 << 20);
    let (first, first_worker) = pair(&arena, 64);
    let (second, second_worker) = pair(&arena, 64);
    thread::scope(|scope| {
        scope.spawn(move || work(&first_worker, |bytes| bytes.to_ascii_uppercase()));
        scope.spawn(move || work(&second_worker, |bytes| bytes.iter().rev().copied().collect()));
        send(&first, 1, &[Bytes::from(vec![b'a'; 5000])], 5000).expect("room");
        let between = finish(&first, 1).remove(0).payload;
        let held = arena.stats().used_bytes;
        let item = RequestItem {
            flags: 0,
            deadline_micros: 0,
            request: 5,
            headers: b"",
            payload: ItemPayload::Slice(&between),
        };
        second
            .request(&Request {
                batch: 9,
                items: &[item],
                reply_hint: 5000,
            })
            .expect("room");
        drop(between);
        assert_eq!(
            arena.stats().used_bytes,
            held + 1024 + 8192,
            "a table and a reply extent, no payload"
        );
        assert!(finish(&second, 9)[0].payload.to_bytes() == vec![b'A'; 5000]);
        assert_eq!(
            arena.stats().used_bytes,
            0,
            "the payload went with the batch that used it"
        );
        first.stop().expect("stop");
        second.stop().expect("stop");
    });
}

#[test]
fn a_slice_of_another_arena_is_copied() {
    let (ours, other) = (arena(64 << 10, 64 << 10), arena(64 << 10, 64 << 10));
    let mut extent = other.alloc(10).expect("room");
    extent.write(0, b"elsewhere!").expect("inside");
    let slice = extent.into_shared(0, 10).expect("inside");
    with_worker(
        &ours,
        |bytes| bytes.to_vec(),
        |agent| {
            let item = RequestItem {
                flags: 0,
                deadline_micros: 0,
                request: 5,
                headers: b"",
                payload: ItemPayload::Slice(&slice),
            };
            agent
                .request(&Request {
                    batch: 1,
                    items: &[item],
                    reply_hint: 10,
                })
                .expect("room");
            assert_eq!(finish(agent, 1)[0].payload.to_bytes(), "elsewhere!");
        },
    );
}

#[test]
fn a_stream_runs_ahead_of_a_slow_agent_and_waits() {
    let arena = arena(4 << 20, 4 << 20);
    let (agent, worker) = pair(&arena, 4);
    send(&agent, 1, &[Bytes::from_static(b"go")], 0).expect("room");
    send(&agent, 2, &[Bytes::from_static(b"prefetched")], 0).expect("room");
    thread::scope(|scope| {
        scope.spawn(|| {
            let batch = worker.try_next().expect("in order").expect("a batch");
            for event in 0..500_u32 {
                let bytes = event.to_le_bytes().repeat(50);
                let answers = [Answer {
                    last: event == 499,
                    ..answer(0, &bytes)
                }];
                worker.respond(batch.id, &answers, 0).expect("room in time");
            }
            let batch = worker
                .try_next()
                .expect("in order")
                .expect("the one taken meanwhile");
            assert_eq!(batch.items[0].to_vec(), b"prefetched");
            worker.respond(batch.id, &[answer(0, b"end")], 0).expect("room");
        });
        let mut events = 0_u32;
        loop {
            let response = responses(&agent);
            for response in response {
                for item in &response.items {
                    if response.batch == 2 {
                        assert_eq!(
                            (events, item.payload.to_bytes()),
                            (500, Bytes::from_static(b"end"))
                        );
                        return;
                    }
                    assert!(
                        item.payload.to_bytes() == events.to_le_bytes().repeat(50),
                        "in order"
                    );
                    events += 1;
                    assert_eq!((item.last, response.done), (events == 500, events == 500));
                }
            }
            assert!(
                arena.stats().used_bytes <= 64 << 10,
                "a long stream does not pile up"
            );
        }
    });
    assert_eq!(arena.stats().used_bytes, 0);
}

#[test]
fn a_full_ring_is_an_error_and_keeps_room_for_a_grant() {
    let arena = arena(1 << 20, 1 << 20);
    let (agent, worker) = pair(&arena, 4);
    let item = [Bytes::from_static(b"x")];
    for batch in [0, 1] {
        send(&agent, batch, &item, 0).expect("room");
    }
    assert!(matches!(
        send(&agent, 1, &item, 0),
        Err(RequestError::Duplicate(1))
    ));
    send(&agent, 2, &item, 0).expect("room");
    assert!(matches!(send(&agent, 3, &item, 0), Err(RequestError::RingFull)));
    assert!(matches!(send(&agent, 4, &[], 0), Err(RequestError::Empty)));
    let batch = worker.try_next().expect("in order").expect("a batch");
    assert_eq!(batch.id, 0);
    send(&agent, 3, &item, 0).expect("room again");
    thread::scope(|scope| {
        scope.spawn(|| {
            worker
                .respond(0, &[answer(0, &[1; 100_000])], 0)
                .expect("granted")
        });
        assert_eq!(finish(&agent, 0)[0].payload.len(), 100_000);
    });
    assert_eq!(agent.reclaim(), [1, 2, 3]);
    assert!(matches!(send(&agent, 5, &item, 0), Err(RequestError::Reclaimed)));
    assert_eq!(arena.stats().used_bytes, 0);
}

#[test]
fn a_worker_cannot_answer_twice_or_what_it_was_not_asked() {
    let arena = arena(1 << 20, 1 << 20);
    let (agent, worker) = pair(&arena, 64);
    send(&agent, 1, &[Bytes::new(), Bytes::new()], 0).expect("room");
    worker.try_next().expect("in order").expect("a batch");
    assert!(worker.respond(2, &[answer(0, b"")], 0).is_err(), "no such batch");
    assert!(worker.respond(1, &[answer(2, b"")], 0).is_err(), "no such item");
    assert!(worker.respond(1, &[], 0).is_err(), "nothing");
    worker.respond(1, &[answer(1, b"b")], 0).expect("one");
    assert!(worker.respond(1, &[answer(1, b"b")], 0).is_err(), "twice");
    assert!(
        worker.respond(1, &[answer(0, b"a"), answer(0, b"a")], 0).is_err(),
        "twice at once"
    );
    worker.respond(1, &[answer(0, b"a")], 0).expect("the other");
    assert!(worker.respond(1, &[answer(0, b"a")], 0).is_err(), "done");
    let items = finish(&agent, 1);
    assert_eq!(items.iter().map(|i| i.item).collect::<Vec<_>>(), [1, 0]);
}

#[test]
fn a_buffer_that_cannot_be_copied_fails_its_item() {
    let arena = arena(1 << 20, 1 << 20);
    let (agent, worker) = pair(&arena, 64);
    send(&agent, 1, &[Bytes::new(), Bytes::new()], 0).expect("room");
    worker.try_next().expect("in order").expect("a batch");
    let good = |target: &mut [u8]| {
        target.fill(7);
        true
    };
    let bad = |_: &mut [u8]| false;
    let fill = |item, fill| Answer {
        item,
        code: 0,
        last: true,
        payload: Payload::Fill { len: 100, fill },
    };
    worker
        .respond(1, &[fill(0, &bad), fill(1, &good)], 0)
        .expect("answers");
    let items = finish(&agent, 1);
    assert_eq!(
        (items[0].code, items[0].payload.len()),
        (ErrorCode::Internal.to_wire(), 0)
    );
    assert_eq!(items[1].payload.to_bytes(), vec![7; 100]);
}

#[test]
fn words_on_the_control_socket() {
    let arena = arena(1 << 20, 1 << 20);
    let (agent, worker) = pair(&arena, 64);
    assert_eq!(agent.control_recv().expect("open"), None);
    worker.ready().expect("open");
    worker
        .failed(&format!("{}the end", "\u{1}ü".repeat(100_000)))
        .expect("open");
    wait_readable(agent.control_fd());
    assert_eq!(agent.control_recv().expect("open"), Some(WorkerEvent::Ready));
    let Some(WorkerEvent::Failed { traceback }) = agent.control_recv().expect("open") else {
        panic!()
    };
    assert!(traceback.ends_with("üthe end"));
    drop(worker);
    wait_readable(agent.control_fd());
    for _ in 0..2 {
        assert_eq!(agent.control_recv().expect("open"), Some(WorkerEvent::Eof));
    }
}

#[test]
fn a_stop_comes_after_all_that_was_sent_before() {
    let arena = arena(1 << 20, 1 << 20);
    let (agent, worker) = pair(&arena, 64);
    for batch in 0..3 {
        send(&agent, batch, &[Bytes::new()], 0).expect("room");
    }
    agent.stop().expect("open");
    for batch in 0..3 {
        let next = worker.next(Some(BOUND)).expect("in order");
        assert!(matches!(next, Next::Batch(b) if b.id == batch));
    }
    assert!(matches!(worker.next(Some(BOUND)), Ok(Next::Stop)));
    agent.reclaim();
}

#[test]
fn an_idle_worker_times_out_and_wakes() {
    let arena = arena(1 << 20, 1 << 20);
    let (agent, worker) = pair(&arena, 64);
    assert!(matches!(
        worker.next(Some(Duration::from_millis(1))),
        Ok(Next::Timeout)
    ));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| worker.next(None));
        send(&agent, 1, &[Bytes::new()], 0).expect("room");
        assert!(matches!(waiting.join().expect("no panic"), Ok(Next::Batch(_))));
    });
    agent.reclaim();
}

#[test]
fn a_worker_learns_of_its_agents_death() {
    let arena = arena(1 << 20, 1 << 20);
    let (agent, worker) = pair(&arena, 64);
    send(&agent, 1, &[Bytes::new()], 0).expect("room");
    worker.try_next().expect("in order").expect("a batch");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| worker.next(None));
        agent.reclaim();
        drop(agent);
        assert!(matches!(waiting.join().expect("no panic"), Ok(Next::Stop)));
    });
    assert!(worker.respond(1, &[answer(0, b"")], 0).is_err());
}

#[test]
fn memory_of_a_worker_that_may_live_is_not_given_to_others() {
    let arena = arena(1 << 20, 1 << 20);
    let (agent, worker) = pair(&arena, 64);
    send(&agent, 1, &[Bytes::new()], 0).expect("room");
    drop(agent); // without having been told that the worker is dead
    assert_ne!(arena.stats().used_bytes, 0);
    drop(worker);
}

#[test]
fn a_long_specification_arrives_and_another_version_is_refused() {
    let arena = arena(1 << 20, 1 << 20);
    let (agent, fd) =
        AgentChannel::create(&arena, Generation(1), &ChannelConfig::default()).expect("a channel");
    assert!(
        matches!(send(&agent, 1, &[Bytes::new()], 0), Err(RequestError::Control(_))),
        "no hello yet"
    );
    let long = "ä".repeat(300_000);
    agent.hello(&long).expect("hello");
    let (_worker, spec) = WorkerChannel::attach(fd, OnAgentLoss::Tell).expect("attach");
    assert!(spec == long);

    let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().expect("a pair");
    assert!(
        WorkerChannel::attach(theirs.into(), OnAgentLoss::Tell).is_err(),
        "not a SEQPACKET socket"
    );
    drop(ours);
    let (ours, theirs) = seqpacket();
    rustix::io::write(&ours, br#"{"type":"hello","version":999,"news":[]}"#).expect("written");
    let error = WorkerChannel::attach(theirs, OnAgentLoss::Tell)
        .expect_err("another version")
        .to_string();
    assert!(error.contains("version 999"), "{error}");
    let mut text = [0; 1000];
    let read = rustix::io::read(&ours, &mut text).expect("told");
    assert!(String::from_utf8_lossy(&text[..read]).contains("version 999"));
}

fn seqpacket() -> (std::os::fd::OwnedFd, std::os::fd::OwnedFd) {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("a pair")
}

#[test]
fn nothing_is_left_open_or_named() {
    let fds = || std::fs::read_dir("/proc/self/fd").expect("proc").count();
    let before = fds();
    {
        let arena = arena(64 << 10, 4 << 20);
        with_worker(
            &arena,
            |bytes| bytes.repeat(9),
            |agent| {
                send(agent, 1, &[Bytes::from(vec![1; 100_000])], 0).expect("room");
                finish(agent, 1);
                let stdin = agent.control_fd().as_raw_fd();
                assert!(stdin > 2);
                let names = std::fs::read_dir("/dev/shm").expect("shm").filter_map(|entry| {
                    let name = entry.expect("entry").file_name().into_string().expect("text");
                    name.starts_with("mosec-channel-test").then_some(name)
                });
                // Other tests of this file may be between making a name and removing it.
                let own = format!("-{}-", std::process::id());
                assert_eq!(
                    names.filter(|name| name.contains(&own)).collect::<Vec<_>>(),
                    Vec::<String>::new()
                );
            },
        );
    }
    assert_eq!(fds(), before);
}
