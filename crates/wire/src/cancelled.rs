//! What a batch's sink hears of items that its upstream has given up.

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The cancelled items of one batch.
#[derive(Debug)]
pub(crate) struct CancelledItems {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// By position.
    known: Vec<bool>,
    /// Those that the sink has not been told of.
    new: Vec<u32>,
}

impl CancelledItems {
    pub(crate) fn new(items: usize) -> Self {
        let state = State {
            known: vec![false; items],
            new: Vec::new(),
        };
        Self {
            state: Mutex::new(state),
            changed: Notify::new(),
        }
    }

    /// Takes note of items. Those that are known, or not in the batch, are passed over.
    pub(crate) fn add(&self, items: &[u32]) {
        let mut state = self.state.lock();
        for &item in items {
            if let Some(known @ false) = state.known.get_mut(item as usize) {
                *known = true;
                state.new.push(item);
            }
        }
        if !state.new.is_empty() {
            self.changed.notify_one();
        }
    }

    /// Items that have been added since the last call, at least one. One caller at a time; cancel safe.
    pub(crate) async fn next(&self) -> Vec<u32> {
        loop {
            let new = std::mem::take(&mut self.state.lock().new);
            if !new.is_empty() {
                return new;
            }
            self.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn each_item_is_told_once() {
        let cancelled = CancelledItems::new(3);
        assert_eq!(cancelled.next().now_or_never(), None);
        cancelled.add(&[2, 7]);
        cancelled.add(&[2, 0, u32::MAX]);
        assert_eq!(cancelled.next().await, [2, 0]);
        cancelled.add(&[0, 2]);
        assert_eq!(cancelled.next().now_or_never(), None);
    }
}
