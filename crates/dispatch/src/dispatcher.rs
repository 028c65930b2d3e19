//! Hot path. One stage's queue and the targets its batches go to.
//!
//! There is no task on a request's way: whoever changes something (a request comes, a credit returns, a window opens)
//! takes the lock, asks the policy, and sends what it says after releasing the lock. One timer task for each dispatcher
//! covers what only time changes: a batch's window, deadlines, a target's rest.

mod state;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use mosec_types::{ErrorCode, Span, SpanKind};
use mosec_wire::Window;
use parking_lot::Mutex;
use rand::Rng as _;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::state::{Outbox, Slot, State, is_movable};
use crate::batch::{self, Decision, Supply};
use crate::credit;
use crate::custody::{self, Loss};
use crate::metrics::{StageMetrics, Standing, Watched};
use crate::pick;
use crate::queue::Hold;
use crate::{Credit, DispatchMetrics, Dispatched, Home, Request, StageConfig, Target, TargetId};

/// How long a target that refused a batch is left alone: a few round trips, for its new window to arrive.
const REST: Duration = Duration::from_millis(20);

/// How often a queue is searched for requests that are over: room that they take is free this late. A refusal does not
/// search, as a full queue refuses the more often the longer it is.
pub(crate) const HOUSEKEEPING: Duration = Duration::from_millis(100);

/// A stage's dispatcher. Clones share it.
#[derive(Clone)]
pub struct Dispatcher(Arc<Inner>);

struct Inner {
    config: StageConfig,
    metrics: StageMetrics,
    state: Mutex<State>,
    timer: Notify,
    /// Batches out of which something may still come back.
    in_custody: AtomicUsize,
    this: Weak<Inner>,
}

impl Dispatcher {
    /// Makes a dispatcher without targets and starts its timer, which ends with it.
    pub fn new(config: StageConfig, metrics: &DispatchMetrics) -> Self {
        let inner = Arc::new_cyclic(|this: &Weak<Inner>| Inner {
            metrics: metrics.stage(&config, this.clone()),
            state: Mutex::new(State::new(config.capacity)),
            timer: Notify::new(),
            in_custody: AtomicUsize::new(0),
            this: this.clone(),
            config,
        });
        tokio::spawn(run_timer(Arc::downgrade(&inner)));
        Self(inner)
    }

    pub fn config(&self) -> &StageConfig {
        &self.0.config
    }

    /// Queues a request, or answers it at once: queue full, no replica, closed. The one admission point of a stage.
    pub fn submit(&self, request: Request) {
        if let Some((request, code)) = self.offer(request) {
            request.fail(code);
        }
    }

    /// Queues a request as [`submit`](Self::submit) does, but gives it back, with the reason, where it is refused.
    pub fn offer(&self, request: Request) -> Option<(Request, ErrorCode)> {
        self.0.admit(request)
    }

    /// Refuses a request whose payload is not there yet, where it is certain that [`submit`](Self::submit) would.
    pub fn refuse_early(&self) -> Option<ErrorCode> {
        let code = self.0.state.lock().refusal(self.0.config.grace, Instant::now())?;
        // One that drains refuses nobody yet: by the time the payload is there it may have a successor.
        if code != ErrorCode::Draining {
            self.0.metrics.refused(code);
        }
        Some(code)
    }

    /// Queues a request that an earlier stage has finished with.
    ///
    /// It is never refused for lack of room: beyond the capacity it keeps `hold`, the earlier stage's credit, until the
    /// queue has moved. So back-pressure reaches the first queue, where clients are refused.
    pub fn submit_held(&self, request: Request, hold: Hold) {
        self.0.admit_held(request, hold);
    }

    /// Queues a request that an earlier stage has finished with, which may in turn wait for this one: if it held that
    /// stage's credit, both could stand still. Far beyond the capacity it is refused instead.
    pub fn submit_unheld(&self, request: Request) {
        self.0.admit_unheld(request);
    }

    /// Queues a request that another dispatcher had let in and given back; gives it back, with the reason, where this one
    /// is closed or replaced, too.
    ///
    /// Never refused for lack of room: it had a place in the other queue, whose capacity bounds how many come.
    pub fn offer_again(&self, request: Request) -> Option<(Request, ErrorCode)> {
        self.0.admit_again(request)
    }

    /// Another revision has taken this one's place: gives back what is queued and can be sent elsewhere, and what is
    /// lost from now on, and refuses new requests as draining. What is at its replicas, or cannot be sent elsewhere, is
    /// finished here.
    pub(crate) fn hand_back(&self) {
        self.0.update(|state, outbox, now| {
            state.is_replaced = true;
            state.hand_back(now, outbox);
        });
    }

    /// Takes requests again where it was replaced.
    pub(crate) fn reinstate(&self) {
        self.0.state.lock().is_replaced = false;
    }

    /// Adds a target or changes its window. A window of zero replicas keeps what is outstanding there.
    pub fn set_target(&self, id: &TargetId, target: &Arc<dyn Target>, window: Window) {
        self.0.set_target(id, target, window);
    }

    /// Sends nothing more to a target, if it is one.
    pub(crate) fn close_window(&self, id: &TargetId) {
        self.0.update(|state, _, now| {
            state.note_ready(id, now);
            if let Some(slot) = state.targets.iter_mut().find(|slot| &slot.id == id) {
                slot.window = Window::default();
            }
        });
    }

    /// Whether batches are at this target, or requests are queued that only it may be open to.
    pub(crate) fn is_busy_with(&self, id: &TargetId) -> bool {
        let state = self.0.state.lock();
        let slot = state.targets.iter().find(|slot| &slot.id == id);
        slot.is_some_and(|slot| slot.outstanding() > 0 || (slot.window.replicas > 0 && !state.is_idle()))
    }

    /// Forgets a target. What is outstanding there is its own to give back.
    pub fn remove_target(&self, id: &TargetId) {
        self.0.update(|state, _, now| {
            state.note_ready(id, now);
            state.targets.retain(|slot| &slot.id != id);
        });
    }

    /// Whether a replica is ready now, or was a moment ago.
    pub fn has_replica(&self) -> bool {
        self.0
            .state
            .lock()
            .has_replica(self.0.config.grace, Instant::now())
    }

    /// Requests queued here.
    pub fn queued(&self) -> usize {
        self.0.state.lock().queued()
    }

    /// Batches sent and not yet done.
    pub fn outstanding(&self) -> u32 {
        self.0.state.lock().targets.iter().map(Slot::outstanding).sum()
    }

    /// Whether anything that was sent may still come back: batches that are not done, and those whose requests are with
    /// later stages of another process.
    pub(crate) fn has_custody(&self) -> bool {
        self.0.in_custody.load(Ordering::Relaxed) > 0
    }

    /// Fails everything queued with `code`; every later request is refused with `Draining`. What merely drains and can be
    /// sent elsewhere is given back instead.
    pub fn close(&self, code: ErrorCode) {
        self.0.update(|state, outbox, now| {
            state.closed = true;
            if code == ErrorCode::Draining {
                state.hand_back(now, outbox);
            }
            state.take_all(code, outbox);
        });
    }
}

impl Watched for Inner {
    fn standing(&self) -> Standing {
        let (now, state) = (Instant::now(), self.state.lock());
        let is_open = !state.is_draining();
        Standing {
            queued: state.queued(),
            taken: if is_open { state.taken() } else { 0 },
            queue_limit: if is_open { self.config.capacity } else { 0 },
            batch_limit: self.config.limits.max_requests,
            in_flight: state.targets.iter().map(Slot::outstanding).sum(),
            credits: state.targets.iter().map(|slot| slot.load(now).free()).sum(),
        }
    }
}

impl Inner {
    fn admit(&self, request: Request) -> Option<(Request, ErrorCode)> {
        let mut refused = None;
        self.update(|state, _, now| match state.refusal(self.config.grace, now) {
            Some(code) => {
                self.metrics.refused(code);
                refused = Some((request, code));
            }
            None => state.queue.push(request),
        });
        refused
    }

    fn admit_held(&self, request: Request, hold: Hold) {
        self.update(|state, outbox, _| {
            if state.closed {
                self.metrics.refused(ErrorCode::Draining);
                outbox.answers.push((request, ErrorCode::Draining));
                return outbox.released.push(hold);
            }
            state.queue.push_held(request, hold);
        });
    }

    fn admit_again(&self, request: Request) -> Option<(Request, ErrorCode)> {
        let mut refused = None;
        self.update(|state, _, _| {
            if state.is_draining() {
                self.metrics.refused(ErrorCode::Draining);
                refused = Some((request, ErrorCode::Draining));
            } else {
                state.queue.push(request);
            }
        });
        refused
    }

    fn admit_unheld(&self, request: Request) {
        self.update(|state, outbox, _| {
            let refused = if state.closed {
                Some((request, ErrorCode::Draining))
            } else {
                let refused = state.queue.push_unheld(request);
                refused.map(|request| (request, ErrorCode::QueueFull))
            };
            if let Some((request, code)) = refused {
                self.metrics.refused(code);
                outbox.answers.push((request, code));
            }
        });
    }

    fn set_target(&self, id: &TargetId, target: &Arc<dyn Target>, window: Window) {
        self.update(|state, _, now| {
            state.note_ready(id, now);
            if window.replicas > 0 {
                state.last_ready = Some(now);
            }
            match state.targets.iter_mut().find(|slot| &slot.id == id) {
                Some(slot) => {
                    slot.window = window;
                    slot.target = target.clone();
                }
                None => state.targets.push(Slot {
                    id: id.clone(),
                    target: target.clone(),
                    window,
                    out: VecDeque::new(),
                    rest_until: None,
                }),
            }
        });
    }

    /// Changes the state and carries out what the change makes possible.
    fn update(&self, change: impl FnOnce(&mut State, &mut Outbox, Instant)) {
        let now = Instant::now();
        let mut outbox = Outbox::default();
        {
            let mut state = self.state.lock();
            change(&mut state, &mut outbox, now);
            self.poll(&mut state, &mut outbox, now);
            state.release_within(&mut outbox);
            self.metrics.handed_over.inc_by(outbox.given_back.len() as u64);
        }
        outbox.carry_out();
    }

    /// Takes every batch that may leave now, and sets the timer for the rest.
    fn poll(&self, state: &mut State, outbox: &mut Outbox, now: Instant) {
        if state.queue.is_empty() {
            // Those that collected are over: the next batch begins anew.
            state.collecting_since = None;
        }
        if state.is_idle() {
            return;
        }
        let mut loads = std::mem::take(&mut state.loads);
        loads.clear();
        loads.extend(state.targets.iter().map(|slot| slot.load(now)));
        let mut due = None;
        while !state.is_idle() {
            let supply = pick::best_supply(&loads);
            if supply != Supply::Idle {
                // It waits for a replica from here on, and for more requests only meanwhile.
                state.collecting_since = None;
            }
            let mut closed = false;
            let batch = if state.retry.is_empty() {
                let limits = self.config.limits;
                let view = state.queue.view(limits, state.batch_time.mean());
                match batch::decide(view, limits, supply, now) {
                    Decision::Close(_) => {
                        closed = true;
                        state.queue.take_batch(limits, &mut outbox.released)
                    }
                    Decision::WaitUntil(at) => {
                        if supply == Supply::Idle {
                            state.collecting_since.get_or_insert(now);
                        }
                        due = Some(at);
                        break;
                    }
                    Decision::Idle => break,
                }
            } else if supply != Supply::None {
                state.retry.pop_front().unwrap_or_default()
            } else {
                break;
            };
            let mut requests = keep_live(batch, outbox, now);
            let Some(oldest) = requests.first() else {
                continue;
            };
            let collected = closed.then(|| {
                // Those who came before it are over, or left with another batch.
                let since = state
                    .collecting_since
                    .take()
                    .map(|since| since.max(oldest.arrived));
                since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
            });
            self.note_waits(&mut requests, now, collected);
            let mut rng = rand::rng();
            let Some(index) = pick::pick(&loads, [rng.random(), rng.random()]) else {
                state.retry.push_front(requests);
                break;
            };
            let slot = &mut state.targets[index];
            let home = Arc::new(Custody {
                dispatcher: self.this.clone(),
                target: slot.id.clone(),
                sent: now,
                lost: AtomicBool::new(false),
                ahead: slot.outstanding(),
                replicas: slot.window.replicas,
                requests: requests.len(),
            });
            self.in_custody.fetch_add(1, Ordering::Relaxed);
            slot.out.push_back(requests.len());
            loads[index] = slot.load(now);
            let credit = home.credit();
            self.metrics.batches.inc();
            self.metrics.batch_size.observe(requests.len() as f64);
            outbox.batches.push((
                slot.target.clone(),
                Dispatched {
                    stage: self.config.key,
                    requests,
                    home,
                    credit,
                    collected,
                },
            ));
        }
        state.loads = loads;
        if !state.is_idle() {
            let rest = state
                .targets
                .iter()
                .filter_map(|slot| slot.rest_until)
                .filter(|&until| until > now)
                .min();
            let look = now + HOUSEKEEPING;
            self.set_timer(state, [due, rest].into_iter().flatten().fold(look, Instant::min));
        }
    }

    /// Notes how long the requests of a batch waited, and the batch, which was `collected` for so long.
    fn note_waits(&self, batch: &mut [Request], now: Instant, collected: Option<Duration>) {
        if let Some(collected) = collected {
            self.metrics.batch_wait.observe(collected.as_secs_f64());
        }
        for request in batch {
            let waited = now.saturating_duration_since(request.arrived);
            self.metrics.queue_wait.observe(waited.as_secs_f64());
            if request.traced {
                // Who came last was there for a part of it only.
                let for_batch = collected.unwrap_or_default().min(waited);
                self.note(request, SpanKind::Queue, waited - for_batch);
                if !for_batch.is_zero() {
                    self.note(request, SpanKind::Batch, for_batch);
                }
                request.arrived = now;
            }
        }
    }

    fn note(&self, request: &mut Request, kind: SpanKind, time: Duration) {
        request.spans.push(Span {
            kind,
            stage: self.config.key.stage,
            micros: u32::try_from(time.as_micros()).unwrap_or(u32::MAX),
        });
    }

    fn set_timer(&self, state: &mut State, due: Instant) {
        if state.timer_due.is_none_or(|at| due < at) {
            state.timer_due = Some(due);
            self.timer.notify_one();
        }
    }

    fn on_timer(&self) {
        self.update(|state, outbox, now| {
            state.timer_due = None;
            if state.has_replica(self.config.grace, now) {
                state.take_over(now, outbox);
            } else {
                state.take_all(ErrorCode::NoReplica, outbox);
            }
        });
    }

    /// Counts one batch less at a target. One that was removed meanwhile has nothing to count.
    fn take_credit(&self, batch: &Custody) {
        self.update(|state, _, now| {
            if !batch.lost.load(Ordering::Relaxed) {
                let elapsed = now.saturating_duration_since(batch.sent);
                state
                    .batch_time
                    .observe(credit::time_of_one(elapsed, batch.ahead, batch.replicas));
            }
            if let Some(slot) = state.targets.iter_mut().find(|slot| slot.id == batch.target) {
                let returned = slot.take_out(batch.requests);
                debug_assert!(returned, "a credit was returned twice");
            }
        });
    }

    fn take_back(&self, requests: Vec<Request>, target: &TargetId, loss: Loss) {
        let now = Instant::now();
        let mut verdict = custody::after_loss(requests, loss, &self.config.rules, now);
        // They wait in the queue anew. A traced one's way so far is the queue's span, so that its times add up.
        for request in verdict.retry.iter_mut().flatten() {
            if request.traced {
                let so_far = now.saturating_duration_since(request.arrived);
                self.note(request, SpanKind::Queue, so_far);
            }
            request.arrived = now;
        }
        self.update(|state, outbox, now| {
            outbox.answers.extend(verdict.fail);
            if state.is_draining() {
                state.hand_back(now, outbox);
                let movable = verdict.retry.iter_mut();
                let movable =
                    movable.flat_map(|batch| batch.extract_if(.., |request| is_movable(request, now)));
                outbox.given_back.extend(movable);
                verdict.retry.retain(|batch| !batch.is_empty());
            }
            if state.closed {
                let rest = verdict.retry.into_iter().flatten();
                outbox
                    .answers
                    .extend(rest.map(|request| (request, ErrorCode::Draining)));
                return;
            }
            if loss != Loss::Refused {
                let again = verdict.retry.iter().map(|batch| batch.len() as u64);
                self.metrics.losses.inc_by(again.sum());
            }
            let slot = state.targets.iter_mut().find(|slot| &slot.id == target);
            if let Some(slot) = slot.filter(|_| loss == Loss::Refused) {
                slot.rest_until = Some(now + REST);
            }
            state.retry.extend(verdict.retry);
        });
    }
}

/// Ends what is over of a batch, and gives back the rest.
fn keep_live(mut batch: Vec<Request>, outbox: &mut Outbox, now: Instant) -> Vec<Request> {
    let over = batch.extract_if(.., |request| !request.is_live(now));
    let over = over.map(|request| (request, ErrorCode::DeadlineExceeded));
    outbox.answers.extend(over);
    batch
}

async fn run_timer(dispatcher: Weak<Inner>) {
    loop {
        let Some(inner) = dispatcher.upgrade() else { return };
        let due = inner.state.lock().timer_due;
        match due {
            Some(due) => {
                tokio::select! {
                    () = tokio::time::sleep_until(due) => inner.on_timer(),
                    () = inner.timer.notified() => {}
                }
            }
            None => {
                // An idle dispatcher may have been dropped by its owner: let go of it now and then to notice.
                let notified = tokio::time::timeout(Duration::from_secs(1), inner.timer.notified());
                let _ = notified.await;
            }
        }
    }
}

/// The way back of one batch.
struct Custody {
    dispatcher: Weak<Inner>,
    target: TargetId,
    sent: Instant,
    /// Some of it came back: its time says nothing of how long batches take.
    lost: AtomicBool,
    /// Batches that were at the target before, and its ready replicas then.
    ahead: u32,
    replicas: u32,
    /// Its size.
    requests: usize,
}

impl Custody {
    fn credit(self: &Arc<Self>) -> Credit {
        let custody = self.clone();
        Credit::new(move || {
            if let Some(inner) = custody.dispatcher.upgrade() {
                inner.take_credit(&custody);
            }
        })
    }
}

impl Drop for Custody {
    fn drop(&mut self) {
        if let Some(inner) = self.dispatcher.upgrade() {
            inner.in_custody.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Home for Custody {
    fn lost(&self, requests: Vec<Request>, loss: Loss) {
        self.lost.store(true, Ordering::Relaxed);
        match self.dispatcher.upgrade() {
            Some(inner) => inner.take_back(requests, &self.target, loss),
            None => requests
                .into_iter()
                .for_each(|request| request.fail(ErrorCode::Draining)),
        }
    }
}
