//! Hot path. The requests that wait for one stage, oldest first, and what they hold of the stage before.
//!
//! Clients are refused beyond the capacity. A request that comes from an earlier stage holds that stage's credit for as long
//! as it stands beyond the capacity; one that must not, as its stage would wait for itself, is refused beyond twice that.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use mosec_types::spec::Batching;

use crate::Request;
use crate::batch::{self, Limits, QueueView};

/// A credit of the stage before. Dropping the last clone returns it.
pub(crate) type Hold = Arc<dyn Any + Send + Sync>;

pub(crate) struct Queue {
    waiting: VecDeque<Waiting>,
    capacity: usize,
    /// How many hold a credit.
    holding: usize,
}

struct Waiting {
    request: Request,
    /// None for one that stands within the capacity.
    hold: Option<Hold>,
}

impl Queue {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            capacity,
            holding: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether clients are refused. `sent_ahead`: requests that wait elsewhere.
    pub(crate) fn is_full_with(&self, sent_ahead: usize) -> bool {
        self.len().saturating_add(sent_ahead) >= self.capacity
    }

    /// What the policy sees. `batch_time`: how long the stage's batches take.
    pub(crate) fn view(&self, limits: Limits, batch_time: Option<Duration>) -> QueueView {
        // A full batch leaves anyway, so no more than a batch is searched.
        let looks = limits.batching == Batching::Adaptive && self.len() < limits.max_requests;
        let nearest = || self.waiting.iter().map(|waiting| waiting.request.deadline).min();
        QueueView {
            requests: self.len(),
            oldest_arrival: self.waiting.front().map(|waiting| waiting.request.arrived),
            nearest_deadline: looks.then(nearest).flatten(),
            batch_time,
        }
    }

    pub(crate) fn push(&mut self, request: Request) {
        self.waiting.push_back(Waiting { request, hold: None });
    }

    /// Adds a request that holds a credit until [`Queue::release_within`] finds that it need not.
    pub(crate) fn push_held(&mut self, request: Request, hold: Hold) {
        let hold = Some(hold);
        self.waiting.push_back(Waiting { request, hold });
        self.holding += 1;
    }

    /// Gives the request back where there is no room even beyond the capacity: as much again, so that new requests do not
    /// crowd out those that have come far.
    pub(crate) fn push_unheld(&mut self, request: Request) -> Option<Request> {
        if self.len() >= self.capacity.saturating_mul(2) {
            return Some(request);
        }
        self.push(request);
        None
    }

    /// Takes the next batch.
    pub(crate) fn take_batch(&mut self, limits: Limits, released: &mut Vec<Hold>) -> Vec<Request> {
        let sizes = self.waiting.iter().map(|waiting| waiting.request.bytes());
        let count = batch::fitting(sizes, limits);
        let mut requests = Vec::with_capacity(count);
        let before = released.len();
        for Waiting { request, hold } in self.waiting.drain(..count) {
            requests.push(request);
            released.extend(hold);
        }
        self.holding -= released.len() - before;
        requests
    }

    /// Takes out the requests of which `is_taken` says so.
    pub(crate) fn extract(
        &mut self,
        is_taken: impl Fn(&Request) -> bool,
        released: &mut Vec<Hold>,
    ) -> Vec<Request> {
        let waiting = std::mem::take(&mut self.waiting);
        let (mut taken, before) = (Vec::new(), released.len());
        for Waiting { request, hold } in waiting {
            if is_taken(&request) {
                taken.push(request);
                released.extend(hold);
            } else {
                self.waiting.push_back(Waiting { request, hold });
            }
        }
        self.holding -= released.len() - before;
        taken
    }

    /// Takes out everything.
    pub(crate) fn take_all(&mut self, released: &mut Vec<Hold>) -> Vec<Request> {
        self.holding = 0;
        let all = self.waiting.drain(..).map(|Waiting { request, hold }| {
            released.extend(hold);
            request
        });
        all.collect()
    }

    /// Releases what is held by those that stand within the capacity, of which `sent_ahead` take a part.
    pub(crate) fn release_within(&mut self, sent_ahead: usize, released: &mut Vec<Hold>) {
        if self.holding == 0 {
            return;
        }
        let before = released.len();
        let within = self
            .waiting
            .iter_mut()
            .take(self.capacity.saturating_sub(sent_ahead));
        released.extend(within.filter_map(|waiting| waiting.hold.take()));
        self.holding -= released.len() - before;
    }
}
