//! Hot path. The items of a batch that are over before they begin, and where that leaves the others.

use mosec_types::ErrorCode;

use super::{Answer, Batch, Payload};

/// The items of one batch that are not to be run: their deadlines have passed, or nobody waits for them.
#[derive(Debug, Default)]
pub struct Over {
    batch: u64,
    /// Position and reason, in order.
    items: Vec<(u32, ErrorCode)>,
}

impl Over {
    /// Looks at every item. `now`: as [`crate::now_micros`].
    pub fn of(batch: &Batch, now: u64) -> Self {
        let reason = |index: usize, deadline: u64| {
            if deadline != 0 && deadline <= now {
                Some(ErrorCode::DeadlineExceeded)
            } else if batch.is_cancelled(index) {
                Some(ErrorCode::Cancelled)
            } else {
                None
            }
        };
        let items = (0..).zip(&batch.items).enumerate();
        let over = items
            .filter_map(|(index, (position, item))| Some((position, reason(index, item.deadline_micros)?)));
        Self {
            batch: batch.id,
            items: over.collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Those of this batch; none where they are another's.
    pub fn of_batch(&self, batch: u64) -> Self {
        let items = if self.batch == batch {
            self.items.clone()
        } else {
            Vec::new()
        };
        Self { batch, items }
    }

    pub fn is_all_of(&self, batch: &Batch) -> bool {
        self.items.len() == batch.items.len()
    }

    pub fn has(&self, index: usize) -> bool {
        self.items
            .binary_search_by_key(&index, |(position, _)| *position as usize)
            .is_ok()
    }

    /// Where in its batch the item is that is number `index` of those to run.
    pub fn item(&self, batch: u64, index: u32) -> u32 {
        if self.batch != batch {
            return index;
        }
        let mut item = index;
        for (position, _) in &self.items {
            if *position > item {
                break;
            }
            item = item.saturating_add(1);
        }
        item
    }

    /// What is answered to them.
    pub fn answers(&self) -> Vec<Answer<'_>> {
        let answer = |&(item, code): &(u32, ErrorCode)| Answer {
            item,
            code: code.to_wire(),
            last: true,
            payload: Payload::Bytes(code.text().as_bytes()),
        };
        self.items.iter().map(answer).collect()
    }
}
