//! Hot path. The workers of one stage on this node, as one target of batches.

use std::cell::LazyCell;
use std::collections::VecDeque;
use std::sync::Arc;

use mosec_dispatch::custody::{self, Loss, Rules};
use mosec_dispatch::{Credit, Dispatched, Target, Window};
use mosec_shm_ring::now_micros;
use mosec_telemetry::Counted;
use mosec_types::{ErrorCode, PipelineSpec, StageKey};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::deliver::Deliver;
use crate::metrics::PoolMetrics;
use crate::windows::{Place, Windows};
use crate::workers::{Unsent, Worker};

/// Batches that may wait for a worker's ring. Credits keep it near zero; what exceeds them comes from upstreams that
/// have not yet heard of a smaller window.
const MAX_BACKLOG: usize = 1024;

/// The workers of one stage on this node.
pub(crate) struct Pool {
    pub(crate) stage: StageKey,
    pub(crate) spec: Arc<PipelineSpec>,
    pub(crate) deliver: Deliver,
    pub(crate) metrics: PoolMetrics,
    rules: Rules,
    place: Place,
    windows: Windows,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ready: Vec<Arc<Worker>>,
    backlog: VecDeque<Dispatched>,
    /// Somebody is giving waiting batches to workers.
    sending: bool,
    /// Last time a batch came.
    used: Option<Instant>,
}

/// One batch's place in a worker's ring, and its credit. Dropping it frees both.
pub(crate) struct Slot {
    worker: Arc<Worker>,
    pool: Arc<Pool>,
    _credit: Credit,
}

impl Slot {
    pub(crate) fn deliver(&self) -> &Deliver {
        &self.pool.deliver
    }

    /// Counts its batch among those that workers have, for as long as what it gives lives.
    pub(crate) fn in_flight(&self) -> Counted {
        self.pool.metrics.in_flight()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.worker.release();
        // The credit, a field, goes after this: what waits here comes before what it lets in.
        self.pool.send_backlog();
    }
}

/// A worker that a supervisor looks after. Dropping it buries the worker: nothing is sent to a ring that nobody reads.
pub(crate) struct Supervised {
    pool: Arc<Pool>,
    worker: Arc<Worker>,
    ended: bool,
}

impl Supervised {
    pub(crate) fn new(pool: Arc<Pool>, worker: Arc<Worker>) -> Self {
        Self {
            pool,
            worker,
            ended: false,
        }
    }

    /// Takes care of what the worker had. Its process has ended, and all that it answered has been read.
    pub(crate) fn bury(mut self) {
        self.ended = true;
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        // A worker runs one batch at a time, in order: only the oldest can have been the end of it. Where its supervisor
        // has failed, that is not known to be the end.
        let may_have_run = if self.ended { 1 } else { usize::MAX };
        self.pool.bury(&self.worker, may_have_run);
    }
}

impl Pool {
    pub(crate) fn new(
        stage: StageKey,
        rules: Rules,
        place: Place,
        deliver: Deliver,
        metrics: PoolMetrics,
        windows: Windows,
    ) -> Self {
        Self {
            stage,
            spec: deliver.spec.clone(),
            deliver,
            metrics,
            rules,
            place,
            windows,
            state: Mutex::default(),
        }
    }

    /// Takes a worker that has become ready.
    pub(crate) fn add(self: &Arc<Self>, worker: Arc<Worker>) {
        {
            let mut state = self.state.lock();
            // It says so once; what it says is not to be trusted.
            if state.ready.iter().any(|other| Arc::ptr_eq(other, &worker)) {
                return;
            }
            state.ready.push(worker);
        }
        self.publish();
        self.send_backlog();
    }

    /// Gives a worker no more batches. Those it has, it keeps.
    pub(crate) fn retire(&self, worker: &Arc<Worker>) {
        let stranded = {
            let mut state = self.state.lock();
            state.ready.retain(|other| !Arc::ptr_eq(other, worker));
            if state.ready.is_empty() {
                std::mem::take(&mut state.backlog)
            } else {
                VecDeque::new()
            }
        };
        self.publish();
        self.metrics.backlog.sub(stranded.len() as i64);
        for batch in stranded {
            batch.home.lost(batch.requests, Loss::Refused);
        }
    }

    /// Takes care of what a dead worker had: other workers get it, or else its upstreams get it back.
    ///
    /// `may_have_run`: how many of its batches, the oldest first, it may have begun.
    fn bury(self: &Arc<Self>, worker: &Arc<Worker>, may_have_run: usize) {
        self.retire(worker);
        for (index, lost) in worker.take_flights().into_iter().enumerate() {
            let loss = if index < may_have_run {
                Loss::Worker
            } else {
                Loss::Refused
            };
            if self.state.lock().ready.is_empty() {
                lost.home.lost(lost.requests, loss);
                continue;
            }
            let verdict = custody::after_loss(lost.requests, loss, &self.rules, Instant::now());
            for (request, code) in verdict.fail {
                request.fail(code);
            }
            if loss != Loss::Refused {
                let again = verdict.retry.iter().map(|requests| requests.len() as u64);
                self.metrics.redispatched.inc_by(again.sum());
            }
            for requests in verdict.retry {
                // The parts share the lost batch's slot, and with it its credit.
                let slot = lost.slot.clone();
                let credit = Credit::new(move || drop(slot));
                self.send(Dispatched {
                    stage: self.stage,
                    requests,
                    home: lost.home.clone(),
                    credit,
                    collected: None,
                });
            }
        }
    }

    /// Since when no batch has come and none is here; `None` while there is one.
    pub(crate) fn idle_since(&self) -> Option<Option<Instant>> {
        let state = self.state.lock();
        let busy = !state.backlog.is_empty() || state.ready.iter().any(|worker| worker.outstanding() > 0);
        (!busy).then_some(state.used)
    }

    /// Tells everybody what this stage grants.
    pub(crate) fn publish(&self) {
        // Told under the lock: of two that publish at once, the later state is told last.
        let state = self.state.lock();
        let window = Window {
            replicas: u32::try_from(state.ready.len()).unwrap_or(u32::MAX),
            limit: state.ready.iter().map(|worker| worker.depth()).sum(),
        };
        self.metrics.ready.set(window.replicas.into());
        self.metrics.credits.set(window.limit.into());
        self.windows.set(self.stage, self.place, window);
    }

    /// The ready worker with the fewest batches that has room for one, reserved. None behind a batch that takes long: what
    /// waits here goes to whichever worker is free first.
    fn reserve(state: &State) -> Option<Arc<Worker>> {
        let now = LazyCell::new(now_micros);
        let free = state
            .ready
            .iter()
            .filter(|worker| worker.outstanding() < worker.depth())
            .filter(|worker| worker.outstanding() == 0 || !worker.is_slow(*now));
        let worker = free.min_by_key(|worker| worker.outstanding())?;
        worker.reserve();
        Some(worker.clone())
    }

    fn send(self: &Arc<Self>, batch: Dispatched) {
        let worker = {
            let mut state = self.state.lock();
            state.used = Some(Instant::now());
            match Self::reserve(&state) {
                Some(worker) => worker,
                None if !state.ready.is_empty() && state.backlog.len() < MAX_BACKLOG => {
                    state.backlog.push_back(batch);
                    self.metrics.backlog.inc();
                    return;
                }
                None => {
                    drop(state);
                    return batch.home.lost(batch.requests, Loss::Refused);
                }
            }
        };
        self.hand(worker, batch);
    }

    /// Gives waiting batches to workers that have room.
    ///
    /// A batch that cannot be handed over frees its place at once, and so comes here again; only the outermost call
    /// goes on, or the stack would grow with the backlog.
    fn send_backlog(self: &Arc<Self>) {
        if std::mem::replace(&mut self.state.lock().sending, true) {
            return;
        }
        while let Some((worker, batch)) = self.next_waiting() {
            self.metrics.backlog.dec();
            self.hand(worker, batch);
        }
    }

    /// The next batch that waits, and the worker it is for. Where there is none the sending ends, under the same lock,
    /// so that whatever comes free from then on begins it anew.
    fn next_waiting(&self) -> Option<(Arc<Worker>, Dispatched)> {
        let mut state = self.state.lock();
        let worker = if state.backlog.is_empty() {
            None
        } else {
            Self::reserve(&state)
        };
        let next = worker.and_then(|worker| Some((worker, state.backlog.pop_front()?)));
        state.sending = next.is_some();
        next
    }

    /// The place that is reserved on a worker.
    pub(crate) fn slot(self: &Arc<Self>, worker: &Arc<Worker>, credit: Credit) -> Arc<Slot> {
        Arc::new(Slot {
            worker: worker.clone(),
            pool: self.clone(),
            _credit: credit,
        })
    }

    /// Gives a batch to a worker on which a place is reserved.
    fn hand(self: &Arc<Self>, worker: Arc<Worker>, batch: Dispatched) {
        let Dispatched {
            mut requests,
            home,
            credit,
            collected,
            ..
        } = batch;
        let slot = self.slot(&worker, credit);
        // What is over by now never starts.
        let now = Instant::now();
        for over in requests.extract_if(.., |request| !request.is_live(now)) {
            over.fail(ErrorCode::DeadlineExceeded);
        }
        if requests.is_empty() {
            return;
        }
        // The credit is held until the requests are back: their dispatcher then knows that this target rests, and does
        // not send the next batch from within this call.
        let held = slot.clone();
        let count = requests.len();
        if let Err(Unsent {
            requests,
            home,
            cause,
        }) = worker.send(requests, home, slot)
        {
            tracing::debug!(stage = %self.stage, replica = %worker.replica, cause, "batch was not taken");
            home.lost(requests, Loss::Refused);
        } else {
            worker.metrics.given(count, collected);
        }
        drop(held);
    }
}

/// A pool as a target of dispatchers.
pub(crate) struct PoolTarget(pub(crate) Arc<Pool>);

impl Target for PoolTarget {
    fn send(&self, batch: Dispatched) {
        self.0.send(batch);
    }
}
