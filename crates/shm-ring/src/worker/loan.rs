//! Payloads that a worker uses in place, and for how long: memory that is looked at goes back to nobody.
//!
//! A batch's payloads are lent until it has been answered. Where views of them live on, the agent is told before the last
//! answer (`Hold`), and told again when the last of them has gone (`Release`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::watcher::Shared;
use crate::segment::Segment;

/// Bytes of answered batches that a worker may have in use, beyond which it gets copies: a worker that keeps what it is
/// given uses up its own memory then, and not its neighbours'. One largest request.
const MAX_HELD_BYTES: usize = mosec_types::spec::MAX_LINK_REQUEST_BYTES as usize;

/// All loans of a worker.
#[derive(Debug, Default)]
pub(super) struct Loans {
    /// Bytes of batches that have been answered and are in use.
    held_bytes: AtomicUsize,
    /// Batches of which the agent is to be told that they are not in use any more.
    ended: Mutex<Vec<u64>>,
}

impl Loans {
    /// Begins the loan of a batch of `bytes`; `None` where too much is held already.
    pub(super) fn begin(
        self: &Arc<Self>,
        batch: u64,
        bytes: usize,
        shared: &Arc<Shared>,
    ) -> Option<Arc<Loan>> {
        if self.held_bytes.load(Ordering::Relaxed) >= MAX_HELD_BYTES {
            return None;
        }
        Some(Arc::new(Loan {
            batch,
            bytes,
            state: Mutex::default(),
            loans: Arc::clone(self),
            shared: Arc::clone(shared),
        }))
    }

    /// Takes out one batch that is not in use any more.
    pub(super) fn ended(&self) -> Option<u64> {
        self.ended.lock().pop()
    }

    pub(super) fn put_back(&self, batch: u64) {
        self.ended.lock().push(batch);
    }
}

/// The loan of one batch's payloads.
pub(super) struct Loan {
    batch: u64,
    bytes: usize,
    state: Mutex<State>,
    loans: Arc<Loans>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct State {
    views: usize,
    kept: bool,
}

impl Loan {
    /// Goes on beyond the batch's answer, if there are views. True: the agent has to be told, before it hears anything else.
    pub(super) fn keep(&self) -> bool {
        let mut state = self.state.lock();
        if state.views == 0 {
            return false;
        }
        state.kept = true;
        self.loans.held_bytes.fetch_add(self.bytes, Ordering::Relaxed);
        true
    }

    fn add_view(&self) {
        self.state.lock().views += 1;
    }

    fn remove_view(&self) {
        let mut state = self.state.lock();
        state.views -= 1;
        if state.views > 0 || !std::mem::take(&mut state.kept) {
            return;
        }
        self.loans.held_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.loans.ended.lock().push(self.batch);
        // The thread that takes batches may be asleep; it is the one that tells the agent.
        self.shared.bell.ring();
    }
}

/// A payload in place. Its memory stays as it is while this lives.
pub struct View {
    loan: Arc<Loan>,
    segment: Arc<Segment>,
    offset: usize,
    len: usize,
}

impl View {
    /// The bytes lie in the segment, as has been checked when the batch was read.
    pub(super) fn new(loan: Arc<Loan>, segment: &Arc<Segment>, offset: usize, len: usize) -> Self {
        loan.add_view();
        Self {
            loan,
            segment: Arc::clone(segment),
            offset,
            len,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the bytes are: mapped, at a multiple of 64 bytes, and written by nobody while this value lives.
    ///
    /// A pointer and no slice, as the agent maps the same memory: it is trusted not to write, but not known not to.
    pub fn as_ptr(&self) -> *const u8 {
        match self.segment.at(self.offset, self.len) {
            Ok(start) => start.as_ptr(),
            Err(_) => std::ptr::NonNull::dangling().as_ptr(), // an empty one at the end of nothing
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.loan.remove_view();
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View")
            .field("batch", &self.loan.batch)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
