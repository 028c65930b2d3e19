//! Hot path. What a worker holds of one batch, and the checks of what it says about it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::request::Prepared;
use crate::arena::{Extent, Slice};
use crate::descriptor::{ANSWER_BYTES, AnswerEntry, ITEM_BYTES, ITEM_CANCELLED, ITEM_DEADLINE, Region};

/// How a worker broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Misbehaviour {
    #[error("descriptor is of no kind that a worker sends")]
    UnknownKind,
    #[error("descriptor is of generation {0}, which is not this channel's")]
    Stale(u32),
    #[error("batch {0} is not in flight")]
    UnknownBatch(u64),
    #[error("answers lie outside of the memory that was lent for them")]
    Outside,
    #[error("answer table of {count} rows does not fit into {bytes} bytes")]
    Table { count: u32, bytes: u32 },
    #[error("item {0} is not in the batch or has had its last answer")]
    NotAwaited(u32),
    #[error("batch {0} is held by nobody")]
    NotHeld(u64),
    #[error("asked for memory again without waiting for the answer")]
    AskedOn,
}

/// Answers that came together.
#[derive(Debug, Clone)]
pub struct Response {
    pub batch: u64,
    pub items: Vec<ResponseItem>,
    /// Time the worker spent on the batch, as it says.
    pub worker_nanos: u64,
    /// Whether every item of the batch has had its last answer.
    pub done: bool,
}

/// One item's answer, checked to be one that is still awaited.
#[derive(Debug, Clone)]
pub struct ResponseItem {
    /// Position in the batch.
    pub item: u32,
    /// As the worker says; see `mosec_types::ErrorCode::from_wire`.
    pub code: u16,
    /// False for an event of a stream that goes on.
    pub last: bool,
    pub payload: Slice,
}

/// One batch at a worker. Dropping it returns the memory.
pub(super) struct InFlight {
    answered: Vec<bool>,
    left: usize,
    /// Where the worker writes answers. Payloads that were answered share it.
    reply: Arc<Extent>,
    /// The item table is at its start.
    request: Extent,
    inputs: Vec<Slice>,
    /// The worker goes on using the payloads when it has answered.
    held: bool,
}

/// The payloads of a batch that has been answered, which its worker still uses. Dropping it returns the memory.
pub(super) struct Held {
    _request: Extent,
    _inputs: Vec<Slice>,
}

impl InFlight {
    pub(super) fn new(prepared: Prepared) -> Self {
        Self {
            answered: vec![false; prepared.items],
            left: prepared.items,
            reply: Arc::new(prepared.reply),
            request: prepared.request,
            inputs: prepared.inputs,
            held: false,
        }
    }

    pub(super) fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// What stays with the worker of a batch that is done.
    pub(super) fn into_held(self) -> Option<Held> {
        self.held.then_some(Held {
            _request: self.request,
            _inputs: self.inputs,
        })
    }

    pub(super) fn is_done(&self) -> bool {
        self.left == 0
    }

    /// Tells the worker that nobody waits for an item any more.
    pub(super) fn cancel(&self, item: u32) {
        if let Some(row) = self.row(item)
            && let Ok(word) = self.request.atomic_u32(row + ITEM_CANCELLED)
        {
            word.store(1, Ordering::Relaxed); // publishes nothing but itself
        }
    }

    /// Tells the worker that an item has more time.
    pub(super) fn move_deadline(&self, item: u32, deadline_micros: u64) {
        if let Some(row) = self.row(item)
            && let Ok(word) = self.request.atomic_u64(row + ITEM_DEADLINE)
        {
            word.store(deadline_micros, Ordering::Relaxed); // as above
        }
    }

    fn row(&self, item: u32) -> Option<usize> {
        let item = item as usize;
        (item < self.answered.len()).then_some(item * ITEM_BYTES)
    }

    /// Replaces the reply extent. The one before stays with the payloads in it, if any.
    pub(super) fn lend(&mut self, reply: Extent) {
        self.reply = Arc::new(reply);
    }

    /// The answers in `region`.
    pub(super) fn answers(&mut self, count: u32, region: Region) -> Result<Vec<ResponseItem>, Misbehaviour> {
        let at = self.reply.locate(region).ok_or(Misbehaviour::Outside)?;
        let table_bytes = u64::from(count) * ANSWER_BYTES as u64;
        if count == 0 || table_bytes > u64::from(region.len) {
            return Err(Misbehaviour::Table {
                count,
                bytes: region.len,
            });
        }
        (0..count as usize)
            .map(|row| self.answer(at, region.len, row))
            .collect()
    }

    /// Row `row` of the table at `at`, which has `len` bytes with its payloads.
    fn answer(&mut self, at: usize, len: u32, row: usize) -> Result<ResponseItem, Misbehaviour> {
        let mut bytes = [0; ANSWER_BYTES];
        self.reply
            .read_once(at + row * ANSWER_BYTES, &mut bytes)
            .map_err(|_| Misbehaviour::Outside)?;
        let entry = AnswerEntry::decode(&bytes);
        match entry.offset.checked_add(entry.len) {
            Some(end) if end <= len => {}
            _ => return Err(Misbehaviour::Outside),
        }
        self.note(entry.item, entry.last)?;
        let payload = self.payload(at + entry.offset as usize, entry.len as usize)?;
        Ok(ResponseItem {
            item: entry.item,
            code: entry.code,
            last: entry.last,
            payload,
        })
    }

    /// The answer of an item that comes without any memory.
    pub(super) fn failure(&mut self, item: u32, code: u16) -> Result<ResponseItem, Misbehaviour> {
        self.note(item, true)?;
        Ok(ResponseItem {
            item,
            code,
            last: true,
            payload: self.payload(0, 0)?,
        })
    }

    fn payload(&self, at: usize, len: usize) -> Result<Slice, Misbehaviour> {
        Slice::new(Arc::clone(&self.reply), at, len).map_err(|_| Misbehaviour::Outside)
    }

    /// Sees to it that no item is answered after its last answer.
    fn note(&mut self, item: u32, last: bool) -> Result<(), Misbehaviour> {
        match self.answered.get_mut(item as usize) {
            Some(answered @ false) => {
                *answered = last;
                self.left -= usize::from(last);
                Ok(())
            }
            _ => Err(Misbehaviour::NotAwaited(item)),
        }
    }
}
