//! Hot path. What a dispatcher's lock guards, and what is to be done after it is released.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use mosec_types::ErrorCode;
use mosec_wire::Window;
use tokio::time::Instant;

use crate::credit::BatchTime;
use crate::custody::Loss;
use crate::pick::Load;
use crate::queue::{Hold, Queue};
use crate::{Dispatched, Request, Target, TargetId};

pub(super) struct State {
    pub(super) queue: Queue,
    /// Batches to be sent again, before the queue.
    pub(super) retry: VecDeque<Vec<Request>>,
    pub(super) targets: Vec<Slot>,
    /// Room for what the pick sees of them, kept between rounds.
    pub(super) loads: Vec<Load>,
    /// Since when a replica has been free for a batch that waits for more requests.
    pub(super) collecting_since: Option<Instant>,
    /// How long batches take, as seen from here.
    pub(super) batch_time: BatchTime,
    /// Last time a replica was ready.
    pub(super) last_ready: Option<Instant>,
    /// When the timer will look next.
    pub(super) timer_due: Option<Instant>,
    pub(super) closed: bool,
    /// Another revision has taken this one's place.
    pub(super) is_replaced: bool,
}

pub(super) struct Slot {
    pub(super) id: TargetId,
    pub(super) target: Arc<dyn Target>,
    pub(super) window: Window,
    /// The sizes of the batches that are out, the oldest first.
    pub(super) out: VecDeque<usize>,
    pub(super) rest_until: Option<Instant>,
}

impl Slot {
    pub(super) fn load(&self, now: Instant) -> Load {
        let resting = self.rest_until.is_some_and(|until| now < until);
        let limit = if resting { 0 } else { self.window.limit };
        Load {
            replicas: self.window.replicas,
            limit,
            outstanding: self.outstanding(),
        }
    }

    /// Batches that are out.
    pub(super) fn outstanding(&self) -> u32 {
        u32::try_from(self.out.len()).unwrap_or(u32::MAX)
    }

    /// One batch of this size less. False: there was none.
    pub(super) fn take_out(&mut self, requests: usize) -> bool {
        let oldest = self.out.iter().position(|&size| size == requests);
        oldest.and_then(|at| self.out.remove(at)).is_some()
    }

    /// Requests whose batches were sent ahead: behind those that every replica is running.
    fn sent_ahead(&self) -> usize {
        self.out.iter().skip(self.window.replicas as usize).sum()
    }
}

/// What a change of the state leads to, carried out after the lock is released: targets may answer before they return,
/// and a hold's release reaches into the stage before, which may be another's stage after.
#[derive(Default)]
pub(super) struct Outbox {
    pub(super) batches: Vec<(Arc<dyn Target>, Dispatched)>,
    pub(super) answers: Vec<(Request, ErrorCode)>,
    /// Requests that go back to whoever sent them here, to be sent elsewhere.
    pub(super) given_back: Vec<Request>,
    pub(super) released: Vec<Hold>,
}

impl Outbox {
    pub(super) fn carry_out(self) {
        for (target, batch) in self.batches {
            target.send(batch);
        }
        for (request, code) in self.answers {
            request.fail(code);
        }
        for request in self.given_back {
            request.give_back(Loss::Refused, ErrorCode::Draining);
        }
        drop(self.released);
    }
}

impl State {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            queue: Queue::new(capacity),
            retry: VecDeque::new(),
            targets: Vec::new(),
            loads: Vec::new(),
            collecting_since: None,
            batch_time: BatchTime::default(),
            // Who asks for a stage has heard that it serves; its targets are about to announce themselves.
            last_ready: Some(Instant::now()),
            timer_due: None,
            closed: false,
            is_replaced: false,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.retry.is_empty()
    }

    pub(super) fn queued(&self) -> usize {
        self.queue.len() + self.retry.iter().map(Vec::len).sum::<usize>()
    }

    /// Requests that count against the capacity. Those to be sent again were let in before and do not.
    pub(super) fn taken(&self) -> usize {
        self.queue.len() + self.sent_ahead()
    }

    /// Whether requests are to go elsewhere.
    pub(super) fn is_draining(&self) -> bool {
        self.closed || self.is_replaced
    }

    pub(super) fn refusal(&self, grace: Duration, now: Instant) -> Option<ErrorCode> {
        if self.is_draining() {
            Some(ErrorCode::Draining)
        } else if !self.has_replica(grace, now) {
            Some(ErrorCode::NoReplica)
        } else if self.queue.is_full_with(self.sent_ahead()) {
            Some(ErrorCode::QueueFull)
        } else {
            None
        }
    }

    /// Requests that wait at their replicas: as much a part of the queue as what has not been sent.
    fn sent_ahead(&self) -> usize {
        self.targets.iter().map(Slot::sent_ahead).sum()
    }

    /// Releases the earlier stage's credits of requests that stand within the capacity by now.
    pub(super) fn release_within(&mut self, outbox: &mut Outbox) {
        let sent_ahead = self.sent_ahead();
        self.queue.release_within(sent_ahead, &mut outbox.released);
    }

    pub(super) fn has_replica(&self, grace: Duration, now: Instant) -> bool {
        self.targets.iter().any(|slot| slot.window.replicas > 0)
            || self.last_ready.is_some_and(|at| now < at + grace)
    }

    /// Notes that a target has a ready replica, if it has one: before its window changes or it goes.
    pub(super) fn note_ready(&mut self, id: &TargetId, now: Instant) {
        let is_ready = |slot: &Slot| &slot.id == id && slot.window.replicas > 0;
        if self.targets.iter().any(is_ready) {
            self.last_ready = Some(now);
        }
    }

    /// Takes out the requests that nobody waits for any more.
    pub(super) fn take_over(&mut self, now: Instant, outbox: &mut Outbox) {
        let over = self.extract(|request| !request.is_live(now), &mut outbox.released);
        outbox.answers.extend(
            over.into_iter()
                .map(|request| (request, ErrorCode::DeadlineExceeded)),
        );
    }

    /// Takes out the requests that can be sent elsewhere: with those that are lost, they keep the count of their losses.
    pub(super) fn hand_back(&mut self, now: Instant, outbox: &mut Outbox) {
        let movable = self.extract(|request| is_movable(request, now), &mut outbox.released);
        outbox.given_back.extend(movable);
    }

    fn extract(&mut self, is_taken: impl Fn(&Request) -> bool, released: &mut Vec<Hold>) -> Vec<Request> {
        let mut taken = Vec::new();
        for batch in &mut self.retry {
            taken.extend(batch.extract_if(.., |request| is_taken(request)));
        }
        self.retry.retain(|batch| !batch.is_empty());
        taken.extend(self.queue.extract(is_taken, released));
        taken
    }

    /// Takes out everything.
    pub(super) fn take_all(&mut self, code: ErrorCode, outbox: &mut Outbox) {
        let queued = self.queue.take_all(&mut outbox.released);
        let all = self.retry.drain(..).flatten().chain(queued);
        outbox.answers.extend(all.map(|request| (request, code)));
    }
}

/// Whether a request can be sent elsewhere.
pub(super) fn is_movable(request: &Request, now: Instant) -> bool {
    request.reply.takes_back() && request.is_live(now)
}
