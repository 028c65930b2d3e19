//! Hot path. A batch that a worker has taken: what of it has been answered, and where answers are written.

use std::sync::Arc;

use mosec_types::ErrorCode;

use super::loan::Loan;
use super::reply::{Answer, Payload, Reply, RespondError};
use super::table::{Live, Table, Watch};
use crate::descriptor::{ANSWER_BYTES, AnswerEntry, Region, align};
use crate::segment::{OutOfBounds, Segment};

/// What has become of an item.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ItemState {
    Open,
    /// An event of it had to give way, so it has been ended here. Whoever works on it does not know: its own last answer
    /// is still to come, and goes nowhere.
    Cut,
    Answered,
}

/// A batch that has been taken and not been answered in full.
pub(super) struct Running {
    items: Vec<ItemState>,
    /// Items that are open.
    pub(super) left: usize,
    /// Items that have been cut.
    pub(super) cut: usize,
    table: Table,
    /// Made when somebody first asks to follow an item.
    live: Option<Arc<Live>>,
    /// Made when a payload is first seen in place.
    pub(super) loan: Option<Arc<Loan>>,
    /// The agent has been told that payloads stay in use.
    pub(super) holds: bool,
    segment: Arc<Segment>,
    pub(super) reply: Region,
    /// Bytes of `reply` that hold answers sent earlier.
    used: usize,
    /// Another extent has been asked for.
    pub(super) asked: bool,
    /// Bytes that were refused last.
    pub(super) refused: Option<usize>,
}

impl Running {
    /// `reply` must lie in `segment`.
    pub(super) fn new(items: usize, table: Table, segment: Arc<Segment>, reply: Region) -> Self {
        Self {
            items: vec![ItemState::Open; items],
            left: items,
            cut: 0,
            table,
            live: None,
            loan: None,
            holds: false,
            segment,
            reply,
            used: 0,
            asked: false,
            refused: None,
        }
    }

    /// Follows an item that awaits its answer.
    pub(super) fn watch(&mut self, item: usize) -> Option<Watch> {
        if !self.is_open(item) {
            return None;
        }
        let live = self.live.get_or_insert_with(|| Live::new(self.table.clone()));
        Watch::new(Arc::clone(live), item).ok()
    }

    /// The loan of its payloads, which `begin` makes, or refuses to. None once the agent has been told how long it lasts.
    pub(super) fn lend_out(&mut self, begin: impl FnOnce() -> Option<Arc<Loan>>) -> Option<Arc<Loan>> {
        if self.holds {
            return None;
        }
        if self.loan.is_none() {
            self.loan = begin();
        }
        self.loan.clone()
    }

    fn is_open(&self, item: usize) -> bool {
        self.items.get(item) == Some(&ItemState::Open)
    }

    pub(super) fn is_over(&self, item: usize) -> bool {
        !self.is_open(item) || self.table.is_cancelled(item)
    }

    pub(super) fn granted(&mut self, segment: Arc<Segment>, reply: Region) {
        (self.segment, self.reply, self.used, self.asked) = (segment, reply, 0, false);
    }

    pub(super) fn refused(&mut self, bytes: u64) {
        (self.refused, self.asked) = (Some(usize::try_from(bytes).unwrap_or(usize::MAX)), false);
    }

    pub(super) fn check(&self, batch: u64, answers: &[Answer<'_>]) -> Result<(), RespondError> {
        if answers.is_empty() {
            return Err(RespondError::Empty);
        }
        let mut items = self.items.clone();
        for &Answer { item, last, .. } in answers {
            match items.get_mut(item as usize) {
                Some(ItemState::Answered) | None => return Err(RespondError::NotAwaited { batch, item }),
                Some(state) if last => *state = ItemState::Answered,
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Takes note that an item has been ended, by an answer that was its last anyway or by an event that gave way.
    pub(super) fn end(&mut self, item: u32, was_last: bool) {
        self.left -= 1;
        self.items[item as usize] = if was_last {
            ItemState::Answered
        } else {
            self.cut += 1;
            ItemState::Cut
        };
        if self.left == 0
            && let Some(live) = self.live.take()
        {
            // Before the agent hears of it, who gives the memory to others then.
            live.end();
        }
    }

    /// The first answer of a reply to an item that is open.
    pub(super) fn first_of<'a>(&self, reply: &Reply<'a>) -> Option<Answer<'a>> {
        let mut answers = reply.answers.iter();
        answers.find(|answer| self.is_open(answer.item as usize)).copied()
    }

    /// After a reply has been sent: cut items that were to have their last answer by it await nothing more.
    pub(super) fn settle(&mut self, reply: &Reply<'_>) {
        for answer in reply.answers.iter().filter(|answer| answer.last) {
            let state = &mut self.items[answer.item as usize];
            if *state == ItemState::Cut {
                *state = ItemState::Answered;
                self.cut -= 1;
            }
        }
    }

    fn start(&self) -> usize {
        align(self.used)
    }

    pub(super) fn has_room(&self, reply: &Reply<'_>) -> bool {
        reply.bytes() <= (self.reply.len as usize).saturating_sub(self.start())
    }

    /// Writes table and payloads; the rows, and the region they take.
    pub(super) fn write(&mut self, reply: &Reply<'_>) -> Result<(u32, Region), OutOfBounds> {
        let start = self.start();
        let base = self.reply.offset as usize + start;
        let mut table = Vec::with_capacity(reply.table_bytes());
        let mut end = reply.table_bytes();
        for (index, answer) in reply.answers.iter().enumerate() {
            if !self.is_open(answer.item as usize) {
                continue; // an earlier event of the same stream had to give way and ended it
            }
            let mut entry = AnswerEntry {
                item: answer.item,
                code: answer.code,
                last: answer.last,
                offset: 0,
                len: 0,
            };
            let len = reply.len(index);
            if reply.gave_way(index) {
                // It ends here, even where it was to be an event of a stream.
                (entry.code, entry.last) = (ErrorCode::ArenaFull.to_wire(), true);
            } else if len > 0 {
                let at = align(end);
                if self.fill(base + at, &answer.payload)? {
                    (entry.offset, entry.len) = (narrow(at), narrow(len));
                    end = at + len;
                } else {
                    (entry.code, entry.last) = (ErrorCode::Internal.to_wire(), true);
                }
            }
            if entry.last {
                self.end(answer.item, answer.last);
            }
            table.extend_from_slice(&entry.encode());
        }
        // SAFETY: the extent was lent to this half alone, and `&mut self` keeps other threads of it away.
        unsafe { self.segment.write(base, &table)? };
        self.used = start + end;
        let region = Region {
            segment: self.reply.segment,
            offset: narrow(base),
            len: narrow(end),
        };
        Ok((narrow(table.len() / ANSWER_BYTES), region))
    }

    fn fill(&mut self, at: usize, payload: &Payload<'_>) -> Result<bool, OutOfBounds> {
        match payload {
            Payload::Bytes(bytes) => {
                // SAFETY: as in `write`.
                unsafe { self.segment.write(at, bytes)? };
                Ok(true)
            }
            Payload::Fill { len, fill } => {
                let target = self.segment.at(at, *len)?;
                // SAFETY: mapped bytes of an extent that was lent to this half alone until it is answered, so nobody
                // else touches them while the slice lives; any value is valid for a byte.
                Ok(fill(unsafe {
                    std::slice::from_raw_parts_mut(target.as_ptr(), *len)
                }))
            }
        }
    }
}

/// Numbers inside of an extent, whose length is 32 bits wide.
fn narrow(number: usize) -> u32 {
    u32::try_from(number).expect("an extent is at most 2 GiB")
}
