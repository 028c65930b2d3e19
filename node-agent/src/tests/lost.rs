//! What becomes of a dead worker's batches, and of those that nobody looks after.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mosec_dispatch::custody::Loss;
use mosec_dispatch::{Outcome, Respond};
use mosec_types::{ErrorCode, SpanKind};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::bench::{Bench, Upstream, answered, request, request_of, within};
use super::pool::{OK, one};
use crate::workers::read_ring;

#[tokio::test]
async fn a_dead_workers_requests_go_to_another_each_alone() {
    let bench = Bench::new();
    let (pool, dying, upstream) = one(&bench);
    let mut outcomes = upstream.send(&pool, 0, &["a", "b", "c"]);
    let batch = dying.take().unwrap();
    dying.answer(&batch, &[(1, OK, "B")]);
    let heir = bench.worker(&pool);
    dying.die();
    assert_eq!(
        answered(&mut outcomes[1]),
        Some((OK, "B".into())),
        "what was answered stays answered"
    );
    let in_flight = || bench.gauge("mosec_agent_in_flight_batches", "A");
    assert_eq!(in_flight(), 2.0, "not the dead worker's");
    for (index, text) in [(0, "a"), (2, "c")] {
        assert_eq!(
            upstream.credits(),
            1,
            "one credit for the batch, whatever became of it"
        );
        let batch = heir.take().unwrap();
        assert_eq!(
            (batch.items.len(), batch.items[0].to_vec()),
            (1, text.as_bytes().to_vec())
        );
        heir.answer(&batch, &[(0, OK, text)]);
        assert_eq!(answered(&mut outcomes[index]), Some((OK, text.into())));
    }
    assert_eq!((upstream.credits(), upstream.losses()), (0, vec![]));
    assert_eq!((dying.worker.outstanding(), in_flight()), (0, 0.0));
    assert_eq!(pool.metrics.redispatched.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_times_of_a_request_whose_worker_died_add_up() {
    let bench = Bench::new();
    let (pool, dying, upstream) = one(&bench);
    let (mut request, mut outcome) = request(0, Bytes::from_static(b"a"));
    request.traced = true;
    tokio::time::advance(Duration::from_secs(1)).await;
    upstream.send_requests(&pool, vec![request]);
    let heir = bench.worker(&pool);
    tokio::time::advance(Duration::from_secs(2)).await;
    dying.die();
    let batch = heir.take().unwrap();
    heir.answer(&batch, &[(0, OK, "A")]);
    let spans = outcome.try_recv().unwrap().spans.into_iter();
    let of_agent: Vec<_> = spans
        .filter(|span| span.kind == SpanKind::Agent)
        .map(|span| span.micros)
        .collect();
    assert_eq!(of_agent, [1_000_000, 2_000_000]);
}

#[tokio::test]
async fn what_waited_behind_a_dead_workers_batch_goes_on_for_the_first_time() {
    let bench = Bench::new();
    let (pool, dying, upstream) = one(&bench);
    let _outcomes = [["a", "b"], ["c", "d"]].map(|texts| upstream.send(&pool, 0, &texts));
    let heir = bench.worker(&pool);
    dying.die();
    let first = heir.take_texts();
    assert_eq!(first, Some(vec!["a".into()]), "the worker was at this one");
    assert_eq!(pool.metrics.redispatched.get(), 2);
}

#[tokio::test]
async fn a_request_that_kills_workers_is_found() {
    let bench = Bench::new();
    let (pool, mut dying, upstream) = one(&bench);
    let mut outcomes = upstream.send(&pool, 0, &["poison"]);
    // As often as its stage's `attempts` say.
    for _ in 0..2 {
        assert_eq!(dying.take_texts(), Some(vec!["poison".into()]));
        assert_eq!(answered(&mut outcomes[0]), None);
        let heir = bench.worker(&pool);
        dying.die();
        dying = heir;
    }
    assert_eq!(answered(&mut outcomes[0]).unwrap().0, ErrorCode::WorkerCrashed);
    assert!(dying.take().is_none());
    assert_eq!((upstream.credits(), upstream.losses()), (0, vec![]));
}

#[tokio::test]
async fn the_last_workers_batches_go_home_when_it_dies() {
    let bench = Bench::new();
    let (pool, worker, upstream) = one(&bench);
    let _outcomes: Vec<_> = [["1", "2"], ["3", "4"], ["5", "6"]]
        .map(|texts| upstream.send(&pool, 0, &texts))
        .into();
    worker.die();
    // What waited never ran, here or in the ring: only the oldest may have.
    assert_eq!(
        upstream.losses(),
        [(Loss::Refused, 2), (Loss::Worker, 2), (Loss::Refused, 2)]
    );
    assert_eq!((upstream.credits(), worker.worker.outstanding()), (0, 0));
}

#[tokio::test]
async fn a_request_that_nobody_waits_for_is_not_tried_again() {
    let bench = Bench::new();
    let (pool, dying, upstream) = one(&bench);
    let outcomes = upstream.send(&pool, 0, &["a"]);
    assert!(dying.take().is_some());
    let heir = bench.worker(&pool);
    drop(outcomes);
    dying.die();
    assert!(heir.take().is_none());
    assert_eq!(upstream.credits(), 0);
}

#[tokio::test]
async fn a_worker_whose_supervisor_fails_gets_nothing_more() {
    let bench = Bench::new();
    let (pool, worker, upstream) = one(&bench);
    let _outcomes: Vec<_> = [["1", "2"], ["3", "4"]]
        .map(|texts| upstream.send(&pool, 0, &texts))
        .into();
    let supervised = worker.supervised();
    let supervisor = tokio::spawn(async move {
        let _supervised = supervised;
        std::future::pending::<()>().await;
    });
    supervisor.abort();
    assert!(supervisor.await.is_err());
    // Its process is not known to be dead: either batch may run.
    assert_eq!(upstream.losses(), [(Loss::Worker, 2), (Loss::Worker, 2)]);
    assert_eq!(upstream.credits(), 0);
    let _outcome = upstream.send(&pool, 0, &["5"]);
    assert_eq!(
        upstream.losses().last(),
        Some(&(Loss::Refused, 1)),
        "there is no worker"
    );
    worker.worker.channel.reclaim();
}

/// A client whose answer cannot be taken: a bug, somewhere up the line.
struct Failing;

impl Respond for Failing {
    fn respond(self: Box<Self>, _: Outcome) {
        panic!("no answer can be taken");
    }

    fn is_wanted(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_worker_whose_ring_is_no_longer_read_is_ended() {
    let bench = Bench::new();
    let (pool, worker, upstream) = one(&bench);
    upstream.send_requests(&pool, vec![request_of(0, Bytes::new(), Failing)]);
    let batch = worker.take().unwrap();
    worker.write(&batch, &[(0, OK, "")], true);
    let reader = tokio::spawn(read_ring(worker.worker.clone(), pool.clone()));
    within("end", worker.worker.broken.cancelled()).await;
    assert!(reader.await.unwrap_err().is_panic());
}

/// Passes on what the agent has said to its worker. Both ends stay open; of the first message, which greets, the rings.
fn listen_in(agent: &OwnedFd, worker: &OwnedFd) -> File {
    let mut rings = None;
    let mut bytes = vec![0; 64 << 10];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        let Ok(message) = rustix::net::recvmsg(agent, &mut buffers, &mut control, RecvFlags::DONTWAIT) else {
            return File::from(rings.expect("a hello"));
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
        let bytes = [IoSlice::new(&bytes[..message.bytes])];
        rustix::net::sendmsg(worker, &bytes, &mut control, SendFlags::empty()).unwrap();
        rings.get_or_insert(fds.swap_remove(0));
    }
}

#[tokio::test]
async fn what_a_worker_answered_before_it_broke_its_ring_stays_answered() {
    let bench = Bench::new();
    let pool = bench.pool(1, 0);
    let mut ends = None;
    let worker = bench.worker_through(&pool, |end| {
        let (near, far) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let rings = listen_in(&end, &near);
        ends = Some((rings, end, near));
        far
    });
    let (rings, ..) = ends.as_ref().unwrap();
    let upstream = Arc::<Upstream>::default();
    let mut outcomes = upstream.send(&pool, 0, &["a", "b"]);
    let batch = worker.take().unwrap();
    worker.write(&batch, &[(0, OK, "A")], true);
    worker.write(&batch, &[(1, OK, "B")], true);
    // Its answers' ring is the second half: 256 bytes of positions, then slots of 64. The second answer is overwritten.
    let half = rings.metadata().unwrap().len() / 2;
    rings.write_all_at(&[0xff; 64], half + 256 + 64).unwrap();
    let reader = tokio::spawn(read_ring(worker.worker.clone(), pool.clone()));
    within("end", worker.worker.broken.cancelled()).await;
    reader.await.unwrap();
    assert_eq!(answered(&mut outcomes[0]), Some((OK, "A".into())));
    assert_eq!(answered(&mut outcomes[1]), None);
    worker.die();
    assert_eq!(upstream.losses(), [(Loss::Worker, 1)]);
}
