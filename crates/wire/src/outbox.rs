//! Events on their way from an agent to its upstream.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::link::LinkEvent;

/// A queue of events that never refuses one and stays small: a newer event replaces an older one that it makes
/// obsolete. So it holds at most one window for each stage, one drain and one hello. One consumer.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pending: Mutex<VecDeque<LinkEvent>>,
    changed: Notify,
}

impl Outbox {
    /// Adds an event behind all that are waiting.
    pub(crate) fn push(&self, event: LinkEvent) {
        let mut pending = self.pending.lock();
        if let Some(at) = pending.iter().position(|older| replaces(&event, older)) {
            // The newer one keeps its own place, so the order of calls holds among what is left.
            pending.remove(at);
        }
        pending.push_back(event);
        drop(pending);
        self.changed.notify_one();
    }

    pub(crate) fn pop(&self) -> Option<LinkEvent> {
        self.pending.lock().pop_front()
    }

    /// Waits for an event. Cancel safe.
    pub(crate) async fn next(&self) -> LinkEvent {
        loop {
            if let Some(event) = self.pop() {
                return event;
            }
            self.changed.notified().await;
        }
    }
}

fn replaces(newer: &LinkEvent, older: &LinkEvent) -> bool {
    match (newer, older) {
        (LinkEvent::Window { stage, .. }, LinkEvent::Window { stage: other, .. }) => stage == other,
        (LinkEvent::Drain, LinkEvent::Drain) | (LinkEvent::Hello { .. }, LinkEvent::Hello { .. }) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use mosec_types::{Revision, StageIndex, StageKey};

    use super::*;
    use crate::link::Window;

    fn window(stage: u16, limit: u32) -> LinkEvent {
        let stage = StageKey {
            revision: Revision(1),
            stage: StageIndex(stage),
        };
        LinkEvent::Window {
            stage,
            window: Window { replicas: 1, limit },
        }
    }

    #[test]
    fn newer_windows_replace_older_ones_in_order() {
        let outbox = Outbox::default();
        for event in [
            window(0, 1),
            window(1, 1),
            LinkEvent::Drain,
            window(0, 2),
            LinkEvent::Drain,
        ] {
            outbox.push(event);
        }
        let left: Vec<_> = std::iter::from_fn(|| outbox.pop()).collect();
        assert_eq!(left, [window(1, 1), window(0, 2), LinkEvent::Drain]);
    }
}
