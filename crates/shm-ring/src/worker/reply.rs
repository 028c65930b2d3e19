//! Hot path. A batch's answers on their way back.
//!
//! Answers go into the extent that came with the batch. What does not fit needs a larger one, asked for through the
//! ring; where the arena refuses it, the largest answers give way one by one, so that a huge one fails alone.

use mosec_types::ErrorCode;

use super::running::Running;
use super::{State, WorkerChannel, WorkerError};
use crate::descriptor::{ANSWER_BYTES, Body, Descriptor, PAYLOAD_ALIGN};
use crate::ring::CorruptRing;

/// Why a batch could not be answered as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RespondError {
    #[error("batch {0} is not this worker's or has been answered")]
    UnknownBatch(u64),
    #[error("item {item} is not in batch {batch} or has had its last answer")]
    NotAwaited { batch: u64, item: u32 },
    #[error("nothing to answer")]
    Empty,
    #[error(transparent)]
    Channel(#[from] WorkerError),
}

/// One item's answer.
#[derive(Clone, Copy)]
pub struct Answer<'a> {
    /// Position in the batch.
    pub item: u32,
    /// `ErrorCode`, by number.
    pub code: u16,
    /// False for an event of a stream that goes on. A batch is done when each item has had its last answer.
    pub last: bool,
    pub payload: Payload<'a>,
}

/// The bytes of an answer.
#[derive(Clone, Copy)]
pub enum Payload<'a> {
    Bytes(&'a [u8]),
    /// Bytes that only their owner can copy, as those of a Python buffer. `fill` gets a slice of `len` bytes with
    /// arbitrary contents; where it returns false the item fails with `Internal`.
    Fill {
        len: usize,
        fill: &'a dyn Fn(&mut [u8]) -> bool,
    },
}

impl Payload<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Fill { len, .. } => *len,
        }
    }
}

/// Answers to be sent by [`WorkerChannel::step`].
pub struct Reply<'a> {
    batch: u64,
    pub(super) answers: &'a [Answer<'a>],
    nanos: u64,
    checked: bool,
    /// A step has returned `Wait`.
    waited: bool,
    /// For each answer, whether it gave way for lack of room; empty while none has.
    given_way: Vec<bool>,
    /// Not even a table fits: every item fails, one by one and without memory.
    bare: bool,
}

/// Whether a reply is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    Sent,
    /// Call [`WorkerChannel::wait`], then step again.
    Wait,
}

impl<'a> Reply<'a> {
    /// `answers` to some items of `batch`, at least one; `nanos` is the time spent on them.
    pub fn new(batch: u64, answers: &'a [Answer<'a>], nanos: u64) -> Self {
        Self {
            batch,
            answers,
            nanos,
            checked: false,
            waited: false,
            given_way: Vec::new(),
            bare: false,
        }
    }

    pub(super) fn gave_way(&self, index: usize) -> bool {
        self.given_way.get(index).copied().unwrap_or(false)
    }

    pub(super) fn len(&self, index: usize) -> usize {
        if self.gave_way(index) {
            0
        } else {
            self.answers[index].payload.len()
        }
    }

    pub(super) fn table_bytes(&self) -> usize {
        self.answers.len() * ANSWER_BYTES
    }

    /// Bytes of the table and its payloads. Saturating: a length may be anything up to `usize::MAX`.
    pub(super) fn bytes(&self) -> usize {
        (0..self.answers.len())
            .map(|index| self.len(index))
            .filter(|&len| len > 0)
            .fold(self.table_bytes(), |end, len| {
                end.saturating_add(len).saturating_add(PAYLOAD_ALIGN - 1)
            })
    }

    /// Lets the largest answers go until at most half of `bytes` is needed. False: none is left to go.
    fn give_way(&mut self, bytes: usize) -> bool {
        self.given_way.resize(self.answers.len(), false);
        loop {
            let largest = (0..self.answers.len()).max_by_key(|&index| self.len(index));
            let Some(largest) = largest.filter(|&index| self.len(index) > 0) else {
                return false;
            };
            self.given_way[largest] = true;
            if self.bytes() <= bytes / 2 {
                return true;
            }
        }
    }
}

impl WorkerChannel {
    /// Answers items of a batch, waiting for room where there is none.
    pub fn respond(&self, batch: u64, answers: &[Answer<'_>], nanos: u64) -> Result<(), RespondError> {
        let mut reply = Reply::new(batch, answers, nanos);
        while self.step(&mut reply)? == Progress::Wait {
            self.wait(None)?;
        }
        Ok(())
    }

    /// Sends a reply as far as that goes without waiting.
    pub fn step(&self, reply: &mut Reply<'_>) -> Result<Progress, RespondError> {
        if self.shared.is_lost() {
            return Err(WorkerError::AgentLost.into());
        }
        let state = &mut *self.state.lock();
        if reply.waited {
            // What woke it may be a grant, or a batch that would end every further wait at once.
            self.take_all(state)?;
        }
        let Some(mut running) = state.running.remove(&reply.batch) else {
            return Err(RespondError::UnknownBatch(reply.batch));
        };
        let progress = self.step_running(state, &mut running, reply);
        reply.waited = matches!(progress, Ok(Progress::Wait));
        if matches!(progress, Ok(Progress::Sent)) {
            running.settle(reply);
        }
        if running.left > 0 || running.cut > 0 {
            state.running.insert(reply.batch, running);
        }
        progress
    }

    fn step_running(
        &self,
        state: &mut State,
        running: &mut Running,
        reply: &mut Reply<'_>,
    ) -> Result<Progress, RespondError> {
        if !reply.checked {
            running.check(reply.batch, reply.answers)?;
            reply.checked = true;
        }
        loop {
            let Some(first) = running.first_of(reply) else {
                return Ok(Progress::Sent);
            };
            if running.asked || !self.has_slot(state)? {
                return Ok(Progress::Wait);
            }
            if self.hold(state, running, reply)? && !self.has_slot(state)? {
                return Ok(Progress::Wait);
            }
            if reply.bare {
                let item = first.item;
                running.end(item, first.last);
                let code = ErrorCode::ArenaFull.to_wire();
                self.push(
                    state,
                    reply.batch,
                    Body::Fail {
                        item,
                        code,
                        nanos: reply.nanos,
                    },
                )?;
            } else if running.has_room(reply) {
                let (count, region) = running.write(reply).map_err(WorkerError::from)?;
                self.push(
                    state,
                    reply.batch,
                    Body::Answers {
                        count,
                        region,
                        nanos: reply.nanos,
                    },
                )?;
                return Ok(Progress::Sent);
            } else {
                let refused = running.refused.take();
                match refused {
                    Some(bytes) if bytes <= reply.bytes() => {
                        reply.bare = !reply.give_way(bytes) && !running.has_room(reply);
                    }
                    // More than this reply needs was refused, so it asks for no more than it does.
                    _ => self.ask(state, running, reply, refused.is_some())?,
                }
            }
        }
    }

    /// Before a last answer, after which the agent may take the batch's memory back: says that it is in use, where it is.
    /// True: a slot has been used.
    fn hold(&self, state: &mut State, running: &mut Running, reply: &Reply<'_>) -> Result<bool, CorruptRing> {
        let may_end =
            reply.answers.iter().any(|answer| answer.last) || reply.bare || !reply.given_way.is_empty();
        let in_use = running.loan.as_ref().filter(|_| may_end && !running.holds);
        if !in_use.is_some_and(|loan| loan.keep()) {
            return Ok(false);
        }
        running.holds = true;
        self.push(state, reply.batch, Body::Hold)?;
        Ok(true)
    }

    /// Asks for an extent that holds the reply. For an event, one as large as that which is used up, unless `exact`: more
    /// events follow, and not each of them is to wait for memory.
    fn ask(
        &self,
        state: &mut State,
        running: &mut Running,
        reply: &Reply<'_>,
        exact: bool,
    ) -> Result<(), CorruptRing> {
        let goes_on = !exact && reply.answers.iter().any(|answer| !answer.last);
        let at_least = if goes_on { running.reply.len as usize } else { 0 };
        let bytes = reply.bytes().max(at_least) as u64;
        running.asked = true;
        self.push(state, reply.batch, Body::Alloc { bytes })
    }

    /// Takes everything out of the ring: grants take effect, batches are kept for later.
    fn take_all(&self, state: &mut State) -> Result<(), WorkerError> {
        while let Some(descriptor) = self.pop(state)? {
            if let Some(batch) = self.take(state, &descriptor)? {
                state.queue.push_back(batch);
            }
        }
        Ok(())
    }

    /// Whether the response ring has a free slot. Where it has none the agent will ring when there is one.
    fn has_slot(&self, state: &mut State) -> Result<bool, CorruptRing> {
        Ok(state.responses.free(1)? > 0 || !state.responses.sleep_for_room()?)
    }

    pub(super) fn push(&self, state: &mut State, batch: u64, body: Body) -> Result<(), CorruptRing> {
        let words = Descriptor {
            generation: self.generation,
            batch,
            body,
        }
        .encode();
        if let Some(bell) = state.responses.push(&words)? {
            self.ring(bell);
        }
        Ok(())
    }
}

impl From<CorruptRing> for RespondError {
    fn from(error: CorruptRing) -> Self {
        Self::Channel(error.into())
    }
}
