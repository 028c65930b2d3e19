//! Hot path. One worker process as the agent sees it: its ring, and the batches it has.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use mosec_dispatch::credit::{self, BatchTime};
use mosec_dispatch::{Home, Payload, Request};
use mosec_shm_ring::{
    AgentChannel, ItemPayload, Prepared, RequestError, RequestItem, Response, ResponseItem, now_micros,
};
use mosec_telemetry::Counted;
use mosec_types::{ErrorCode, ReplicaId};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::timing::{Clock, Timing, note_agent};
use crate::deliver::Deliver;
use crate::metrics::WorkerMetrics;
use crate::pool::{Pool, Slot};

/// Room for an answer that is lent with a batch, where the sizes of earlier ones say nothing else.
const FIRST_REPLY_HINT: usize = 4096;
/// Most bytes lent ahead. A larger answer asks for its memory when it is there; to keep so much ready for others, which need
/// less as a rule, would leave them without any where memory is short.
const MAX_REPLY_HINT: usize = 64 << 20;

/// How often requests that a worker has are looked at, to tell it of those that nobody waits for any more: soon enough to
/// save most of a long `forward`, and twenty looks a second cost nothing.
const LOOK: Duration = Duration::from_millis(50);

const ENDED: &str = "the worker has ended";

/// A worker process that has attached to its ring.
pub(crate) struct Worker {
    pub(crate) replica: ReplicaId,
    pub(crate) channel: AgentChannel,
    pub(crate) metrics: WorkerMetrics,
    /// Cancelled when its ring is unusable.
    pub(crate) broken: CancellationToken,
    outstanding: AtomicU32,
    depth: AtomicU32,
    /// Since when its batch runs, as [`now_micros`] counts; zero while it has none.
    running_since: AtomicU64,
    /// How long that may take before nothing is prefetched behind it, in microseconds.
    patience: AtomicU64,
    flights: Mutex<Flights>,
    /// Told when it gets a batch and nobody attends to it.
    busy: Notify,
}

#[derive(Default)]
struct Flights {
    next: u64,
    open: HashMap<u64, Flight>,
    /// Set when the process has ended: whatever comes later is not taken.
    dead: bool,
    /// [`Worker::attend`] looks at them now and then.
    attended: bool,
    time: BatchTime,
    /// Bytes of the largest recent answer.
    reply_bytes: usize,
}

/// A batch that the worker has.
struct Flight {
    requests: Vec<Option<Request>>,
    home: Arc<dyn Home>,
    slot: Arc<Slot>,
    sent: Instant,
    /// Not the slot's, which lives on while an answer waits for room at the next stage.
    _counted: Counted,
}

/// A batch that the worker had when it died, less what it had answered.
pub(crate) struct LostFlight {
    pub(crate) requests: Vec<Request>,
    pub(crate) home: Arc<dyn Home>,
    pub(crate) slot: Arc<Slot>,
}

/// A batch that the worker could not be given.
pub(crate) struct Unsent {
    pub(crate) requests: Vec<Request>,
    pub(crate) home: Arc<dyn Home>,
    pub(crate) cause: &'static str,
}

impl Worker {
    pub(crate) fn new(replica: ReplicaId, channel: AgentChannel, metrics: WorkerMetrics) -> Self {
        Self {
            replica,
            channel,
            metrics,
            broken: CancellationToken::new(),
            outstanding: AtomicU32::new(0),
            depth: AtomicU32::new(credit::depth(None)),
            running_since: AtomicU64::new(0),
            patience: AtomicU64::new(micros(credit::patience(None))),
            flights: Mutex::new(Flights {
                reply_bytes: FIRST_REPLY_HINT,
                ..Default::default()
            }),
            busy: Notify::new(),
        }
    }

    /// Batches it has or is about to get. Counts only; what they guard has locks of its own.
    pub(crate) fn outstanding(&self) -> u32 {
        self.outstanding.load(Ordering::Relaxed)
    }

    pub(crate) fn reserve(&self) {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn release(&self) {
        self.outstanding.fetch_sub(1, Ordering::Relaxed);
    }

    /// Batches it may have.
    pub(crate) fn depth(&self) -> u32 {
        self.depth.load(Ordering::Relaxed)
    }

    /// Whether the batch that it runs takes so long that another one had better not wait behind it.
    pub(crate) fn is_slow(&self, now_micros: u64) -> bool {
        let since = self.running_since.load(Ordering::Relaxed);
        since > 0 && now_micros.saturating_sub(since) > self.patience.load(Ordering::Relaxed)
    }

    /// Puts a batch into the ring. The one copy into shared memory is made here, of payloads that are not there yet.
    pub(crate) fn send(
        &self,
        requests: Vec<Request>,
        home: Arc<dyn Home>,
        slot: Arc<Slot>,
    ) -> Result<(), Unsent> {
        let prepared = self.prepare(&requests, slot.deliver());
        self.enter(prepared, requests, home, slot)
    }

    /// Copies payloads into shared memory, which may take long: no lock is held meanwhile.
    pub(crate) fn prepare(&self, requests: &[Request], deliver: &Deliver) -> Result<Prepared, &'static str> {
        let reply_hint = {
            let flights = self.flights.lock();
            if flights.dead {
                return Err(ENDED);
            }
            flights.reply_bytes
        };
        let clock = Clock::now();
        let items: Vec<_> = requests
            .iter()
            .map(|request| RequestItem {
                flags: deliver.item_flags(request.route),
                deadline_micros: clock.micros(request.deadline),
                request: request.id.0,
                headers: &request.headers,
                payload: match &request.payload {
                    Payload::Bytes(bytes) => ItemPayload::Bytes(bytes),
                    Payload::Slice(slice) => ItemPayload::Slice(slice),
                },
            })
            .collect();
        self.channel
            .prepare(&items, reply_hint)
            .map_err(|error| self.refused(&error))
    }

    /// Hands a prepared batch over. A worker that has died meanwhile takes none: what it had has been given back by then.
    pub(crate) fn enter(
        &self,
        prepared: Result<Prepared, &'static str>,
        requests: Vec<Request>,
        home: Arc<dyn Home>,
        slot: Arc<Slot>,
    ) -> Result<(), Unsent> {
        let unsent = |requests, home, cause| {
            Err(Unsent {
                requests,
                home,
                cause,
            })
        };
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(cause) => return unsent(requests, home, cause),
        };
        let mut flights = self.flights.lock();
        if flights.dead {
            return unsent(requests, home, ENDED);
        }
        // In the ring and in the table under one lock: its answer finds it, and the numbers are in the ring's order.
        let batch = flights.next;
        if let Err(error) = self.channel.submit(batch, prepared) {
            return unsent(requests, home, self.refused(&error));
        }
        flights.next += 1;
        let stage = slot.deliver().stage.stage;
        let sent = Instant::now();
        let requests = requests
            .into_iter()
            .map(|request| Some(note_agent(request, stage, sent)))
            .collect();
        if flights.open.is_empty() {
            self.running_since.store(now_micros(), Ordering::Relaxed);
        }
        flights.open.insert(
            batch,
            Flight {
                requests,
                home,
                _counted: slot.in_flight(),
                slot,
                sent,
            },
        );
        if !std::mem::replace(&mut flights.attended, true) {
            self.busy.notify_one();
        }
        Ok(())
    }

    fn refused(&self, error: &RequestError) -> &'static str {
        tracing::debug!(replica = %self.replica, %error, "ring refused a batch");
        "the ring or the arena is full"
    }

    /// Tells the process which of its requests nobody waits for any more, while it has any. Ends never.
    pub(crate) async fn attend(&self) {
        loop {
            self.busy.notified().await;
            loop {
                tokio::time::sleep(LOOK).await;
                if !self.tell_over(Instant::now()) {
                    break;
                }
            }
        }
    }

    /// One look at all requests; false where there is none.
    pub(crate) fn tell_over(&self, now: Instant) -> bool {
        let mut over = Vec::new();
        {
            let mut flights = self.flights.lock();
            if flights.open.is_empty() {
                flights.attended = false;
                return false;
            }
            for (batch, flight) in &flights.open {
                let items = (0..).zip(&flight.requests);
                let over_items =
                    items.filter(|(_, request)| request.as_ref().is_some_and(|r| !r.is_live(now)));
                over.extend(over_items.map(|(item, _)| (*batch, item)));
            }
        }
        if !over.is_empty() {
            self.channel.cancel(over);
        }
        true
    }

    /// Takes one response from the ring and passes its items on.
    pub(crate) fn on_response(&self, pool: &Pool, response: Response) {
        // Copied out before anything is locked: an event may be large, and batches are sent under the same lock.
        let events: Vec<_> = response
            .items
            .iter()
            .filter(|item| !item.last)
            .map(|item| item.payload.to_bytes())
            .collect();
        let mut events = events.into_iter();
        let mut delivered = Vec::with_capacity(response.items.len());
        let mut finished = None;
        let slot = {
            let mut flights = self.flights.lock();
            let Some(flight) = flights.open.get_mut(&response.batch) else {
                tracing::warn!(replica = %self.replica, batch = response.batch, "answer to no open batch");
                return;
            };
            let spans = Timing {
                round_trip: flight.sent.elapsed(),
                worker: Duration::from_nanos(response.worker_nanos),
            };
            for item in response.items {
                let event = if item.last { None } else { events.next() };
                let Some(open) = flight.requests.get_mut(item.item as usize) else {
                    tracing::warn!(replica = %self.replica, item = item.item, "answer to no open item");
                    continue;
                };
                let Some(event) = event else {
                    delivered.extend(open.take().map(|request| (spans.note(request, pool), item)));
                    continue;
                };
                if let Some(request) = open
                    // Under the lock, as whatever takes events never waits, and this item's answer may follow at once.
                    && pool.deliver.event(request, event)
                {
                    let deadline = Clock::now().micros(request.deadline);
                    self.channel.move_deadline(response.batch, item.item, deadline);
                }
            }
            let slot = flight.slot.clone();
            if response.done {
                finished = flights.open.remove(&response.batch);
                let next = if flights.open.is_empty() { 0 } else { now_micros() };
                self.running_since.store(next, Ordering::Relaxed);
                flights.time.observe(spans.worker);
                let patience = credit::patience(flights.time.mean());
                self.patience.store(micros(patience), Ordering::Relaxed);
                flights.reply_bytes = reply_hint(flights.reply_bytes, &delivered);
                let depth = credit::depth(flights.time.mean());
                if self.depth.swap(depth, Ordering::Relaxed) != depth {
                    drop(flights);
                    pool.publish();
                }
                pool.metrics.worker_time.observe(spans.worker.as_secs_f64());
                if delivered
                    .iter()
                    .any(|(_, item)| item.code == ErrorCode::Ok.to_wire())
                {
                    self.metrics.done(spans.worker);
                }
            }
            slot
        };
        for (request, item) in delivered {
            pool.deliver.deliver(request, item, &slot);
        }
        // What a finished batch leaves unanswered is the worker's mistake.
        for request in finished.into_iter().flat_map(|flight| flight.requests).flatten() {
            request.fail(ErrorCode::Internal);
        }
    }

    /// Marks the worker dead and takes what it had, oldest first.
    pub(crate) fn take_flights(&self) -> Vec<LostFlight> {
        let mut flights = self.flights.lock();
        flights.dead = true;
        let mut open: Vec<_> = flights.open.drain().collect();
        open.sort_by_key(|(batch, _)| *batch);
        open.into_iter()
            .map(|(_, flight)| LostFlight {
                requests: flight.requests.into_iter().flatten().collect(),
                home: flight.home,
                slot: flight.slot,
            })
            .collect()
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Room to lend with the next batch: a little more than the last took, falling slowly.
fn reply_hint(last: usize, delivered: &[(Request, ResponseItem)]) -> usize {
    let bytes: usize = delivered.iter().map(|(_, item)| item.payload.len() + 64).sum();
    bytes.max(last - last / 8).clamp(FIRST_REPLY_HINT, MAX_REPLY_HINT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_for_answers_follows_them_within_bounds() {
        assert_eq!(reply_hint(FIRST_REPLY_HINT, &[]), FIRST_REPLY_HINT);
        assert_eq!(reply_hint(8 << 20, &[]), 7 << 20);
        assert_eq!(
            reply_hint(600 << 20, &[]),
            MAX_REPLY_HINT,
            "one huge answer is not to stop what follows"
        );
    }
}
