//! Hot path. One worker process as the agent sees it: its ring, and the batches it has.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mosec_dispatch::credit::{self, BatchTime};
use mosec_dispatch::{Home, Payload, Request};
use mosec_shm_ring::{
    AgentChannel, ItemPayload, Request as RingRequest, RequestItem, Response, ResponseItem,
};
use mosec_types::{ErrorCode, ReplicaId, Span, SpanKind, StageIndex};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::pool::{Pool, Slot};

/// Room for an answer that is lent with a batch, where the sizes of earlier ones say nothing else.
const FIRST_REPLY_HINT: usize = 4096;

/// A worker process that has attached to its ring.
pub(crate) struct Worker {
    pub(crate) replica: ReplicaId,
    pub(crate) channel: AgentChannel,
    /// Cancelled when its ring is unusable.
    pub(crate) broken: CancellationToken,
    outstanding: AtomicU32,
    depth: AtomicU32,
    flights: Mutex<Flights>,
}

#[derive(Default)]
struct Flights {
    next: u64,
    open: HashMap<u64, Flight>,
    /// Set when the process has ended: whatever comes later is not taken.
    dead: bool,
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
    pub(crate) fn new(replica: ReplicaId, channel: AgentChannel) -> Self {
        Self {
            replica,
            channel,
            broken: CancellationToken::new(),
            outstanding: AtomicU32::new(0),
            depth: AtomicU32::new(credit::depth(None)),
            flights: Mutex::new(Flights {
                reply_bytes: FIRST_REPLY_HINT,
                ..Default::default()
            }),
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

    /// Puts a batch into the ring. The one copy into shared memory is made here, of payloads that are not there yet.
    pub(crate) fn send(
        &self,
        requests: Vec<Request>,
        home: Arc<dyn Home>,
        slot: Arc<Slot>,
    ) -> Result<(), Unsent> {
        let now = Instant::now();
        let mut flights = self.flights.lock();
        if flights.dead {
            return Err(Unsent {
                requests,
                home,
                cause: "the worker has ended",
            });
        }
        let batch = flights.next;
        let deliver = slot.deliver();
        let items: Vec<_> = requests
            .iter()
            .map(|request| RequestItem {
                flags: deliver.item_flags(request.route),
                deadline_micros: micros(request.deadline.saturating_duration_since(now)),
                payload: match &request.payload {
                    Payload::Bytes(bytes) => ItemPayload::Bytes(bytes),
                    Payload::Slice(slice) => ItemPayload::Slice(slice),
                },
            })
            .collect();
        let request = RingRequest {
            batch,
            items: &items,
            reply_hint: flights.reply_bytes,
        };
        if let Err(error) = self.channel.request(&request) {
            tracing::debug!(replica = %self.replica, %error, "ring refused a batch");
            return Err(Unsent {
                requests,
                home,
                cause: "the ring or the arena is full",
            });
        }
        flights.next += 1;
        let stage = deliver.stage.stage;
        let requests = requests
            .into_iter()
            .map(|request| Some(note_agent(request, stage, now)))
            .collect();
        flights.open.insert(
            batch,
            Flight {
                requests,
                home,
                slot,
                sent: now,
            },
        );
        Ok(())
    }

    /// Takes one response from the ring and passes its items on.
    pub(crate) fn on_response(&self, pool: &Pool, response: Response) {
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
                let Some(open) = flight.requests.get_mut(item.item as usize) else {
                    tracing::warn!(replica = %self.replica, item = item.item, "answer to no open item");
                    continue;
                };
                if item.last {
                    delivered.extend(open.take().map(|request| (spans.note(request, pool), item)));
                } else if let Some(request) = open {
                    // Under the lock, as whatever takes events never waits, and this item's answer may follow at once.
                    pool.deliver.event(request, &item);
                }
            }
            let slot = flight.slot.clone();
            if response.done {
                finished = flights.open.remove(&response.batch);
                flights.time.observe(spans.worker);
                flights.reply_bytes = reply_hint(flights.reply_bytes, &delivered);
                let depth = credit::depth(flights.time.mean());
                if self.depth.swap(depth, Ordering::Relaxed) != depth {
                    drop(flights);
                    pool.publish();
                }
                pool.metrics.worker_time.observe(spans.worker.as_secs_f64());
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

/// The times of one batch.
struct Timing {
    round_trip: Duration,
    worker: Duration,
}

impl Timing {
    /// Notes them on a traced request.
    fn note(&self, mut request: Request, pool: &Pool) -> Request {
        if request.traced {
            let stage = pool.stage.stage;
            let worker = self.worker.min(self.round_trip);
            request.spans.push(Span {
                kind: SpanKind::Shm,
                stage,
                micros: span_micros(self.round_trip - worker),
            });
            request.spans.push(Span {
                kind: SpanKind::Worker,
                stage,
                micros: span_micros(worker),
            });
        }
        request
    }
}

/// Notes the time between a batch's arrival in this process and its place in the ring.
fn note_agent(mut request: Request, stage: StageIndex, now: Instant) -> Request {
    if request.traced {
        let waited = now.saturating_duration_since(request.arrived);
        request.spans.push(Span {
            kind: SpanKind::Agent,
            stage,
            micros: span_micros(waited),
        });
    }
    request
}

/// Room to lend with the next batch: a little more than the last took, falling slowly.
fn reply_hint(last: usize, delivered: &[(Request, ResponseItem)]) -> usize {
    let bytes: usize = delivered.iter().map(|(_, item)| item.payload.len() + 64).sum();
    bytes.max(last - last / 8).max(FIRST_REPLY_HINT)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn span_micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}
