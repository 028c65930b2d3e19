//! A batch's item table as the worker sees it: read once for what to run, and looked at again for what changes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::RwLock;

use crate::descriptor::{ITEM_BYTES, ITEM_CANCELLED, ITEM_DEADLINE, ItemEntry, Region};
use crate::segment::{OutOfBounds, Segment};

/// Where a table lies. It is the batch's until the batch has been answered in full.
#[derive(Debug, Clone)]
pub(super) struct Table {
    segment: Arc<Segment>,
    at: usize,
}

impl Table {
    /// The table of `items` rows at `at`.
    pub(super) fn new(segment: Arc<Segment>, at: usize, items: usize) -> Result<Self, OutOfBounds> {
        segment.at(at, items.saturating_mul(ITEM_BYTES))?;
        if at.is_multiple_of(8) {
            return Ok(Self { segment, at });
        }
        let (len, bytes) = (ITEM_BYTES, segment.len());
        Err(OutOfBounds {
            offset: at,
            len,
            bytes,
        })
    }

    pub(super) fn row(&self, item: usize) -> Result<ItemEntry, OutOfBounds> {
        let mut bytes = [0; ITEM_BYTES];
        // SAFETY: the agent writes a table before it names it, and no thread of this process writes into it.
        unsafe { self.segment.read_once(self.at + item * ITEM_BYTES, &mut bytes)? };
        Ok(ItemEntry::decode(&bytes))
    }

    /// Headers lie behind their table, in one extent.
    fn headers(&self, row: &ItemEntry) -> Result<Arc<[u8]>, OutOfBounds> {
        let Region { offset, len, .. } = row.headers;
        if len == 0 {
            return Ok(Arc::default());
        }
        // SAFETY: the agent writes headers before it names their table, and no thread of this process writes them.
        let copy = unsafe { self.segment.to_vec(offset as usize, len as usize)? };
        Ok(copy.into())
    }

    pub(super) fn is_cancelled(&self, item: usize) -> bool {
        let word = self
            .segment
            .atomic_u32(self.at + item * ITEM_BYTES + ITEM_CANCELLED);
        word.is_ok_and(|word| word.load(Ordering::Relaxed) != 0)
    }

    fn deadline_micros(&self, item: usize) -> u64 {
        let word = self
            .segment
            .atomic_u64(self.at + item * ITEM_BYTES + ITEM_DEADLINE);
        word.map_or(0, |word| word.load(Ordering::Relaxed))
    }
}

/// A table that is read while its batch may be answered by another thread.
#[derive(Debug)]
pub(super) struct Live {
    table: Table,
    /// The batch has been answered: the memory may be another's.
    over: RwLock<bool>,
}

impl Live {
    pub(super) fn new(table: Table) -> Arc<Self> {
        let over = RwLock::new(false);
        Arc::new(Self { table, over })
    }

    /// Nobody reads the table when this has returned.
    pub(super) fn end(&self) {
        *self.over.write() = true;
    }
}

/// Follows one item for as long as its batch is not answered. Cheap to look at; any thread may.
#[derive(Debug, Clone)]
pub struct Watch {
    live: Arc<Live>,
    item: usize,
    request: u64,
    headers: Arc<[u8]>,
}

impl Watch {
    /// `item` is in the table, and the batch has not been answered.
    pub(super) fn new(live: Arc<Live>, item: usize) -> Result<Self, OutOfBounds> {
        let row = live.table.row(item)?;
        let headers = live.table.headers(&row)?;
        Ok(Self {
            live,
            item,
            request: row.request,
            headers,
        })
    }

    /// The client's headers that the worker is told of: `name:value` in lines that end with a line feed.
    pub fn headers(&self) -> &[u8] {
        &self.headers
    }

    /// The request's id.
    pub fn request(&self) -> u64 {
        self.request
    }

    /// Whether nobody waits for the item's answer any more. True once its batch has been answered.
    pub fn is_cancelled(&self) -> bool {
        let over = self.live.over.read();
        *over || self.live.table.is_cancelled(self.item)
    }

    /// The item's deadline as it is now, zero for none; `None` once its batch has been answered.
    pub fn deadline_micros(&self) -> Option<u64> {
        let over = self.live.over.read();
        (!*over).then(|| self.live.table.deadline_micros(self.item))
    }
}
