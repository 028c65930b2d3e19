//! Links that cannot be opened: when that is said, and which nodes they are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mosec_types::topology::Node;
use mosec_types::{NodeId, Unreachable};
use mosec_wire::LinkError;
use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::time::Instant;

/// How long a link may be down before anybody is told: an agent that is started anew is back by then. Shorter than an
/// attempt that nobody answers takes, so that the first of those counts.
const PATIENCE: Duration = Duration::from_secs(2);

/// First and longest pause until an outage that lasts is said again: often while somebody looks, and then as often as a log
/// that is read once a day can bear.
const AGAIN_FIRST: Duration = Duration::from_secs(30);
const AGAIN_LONGEST: Duration = Duration::from_secs(3600);

/// The nodes that cannot be reached. Clones share it.
#[derive(Debug, Clone)]
pub struct Outages(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    nodes: Mutex<BTreeMap<NodeId, (u64, Unreachable)>>,
    count: IntGauge,
}

impl Outages {
    pub(crate) fn new(count: IntGauge) -> Self {
        Self(Arc::new(Inner {
            nodes: Mutex::default(),
            count,
        }))
    }

    /// Those that cannot be reached now, by name, each with the cause of the last attempt; the first `most` of them.
    pub fn list(&self, most: usize) -> Vec<Unreachable> {
        let nodes = self.0.nodes.lock();
        nodes
            .values()
            .take(most)
            .map(|(_, found)| found.clone())
            .collect()
    }

    fn set(&self, number: u64, found: Unreachable) {
        let mut nodes = self.0.nodes.lock();
        nodes.insert(found.node.clone(), (number, found));
        self.0.count.set(nodes.len() as i64);
    }

    fn clear(&self, number: u64, node: &NodeId) {
        let mut nodes = self.0.nodes.lock();
        if nodes.get(node).is_some_and(|(by, _)| *by == number) {
            nodes.remove(node);
            self.0.count.set(nodes.len() as i64);
        }
    }
}

/// The time from when a link is wanted, or is lost, until it is up or is not wanted any more. Ends with its drop.
pub(crate) struct Outage<'a> {
    outages: &'a Outages,
    node: &'a Node,
    /// Tells it from an earlier one of the same node, which may end after this has begun.
    number: u64,
    talk: Talk,
}

impl<'a> Outage<'a> {
    pub(crate) fn begin(outages: &'a Outages, node: &'a Node, now: Instant) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Self {
            outages,
            node,
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            talk: Talk::new(now),
        }
    }

    /// Takes note of an attempt that failed.
    pub(crate) fn note(&mut self, error: &LinkError, now: Instant) {
        let Node { id, address, .. } = self.node;
        let cause = match error {
            // The address is named beside it.
            LinkError::Connect { reason, .. } => reason.clone(),
            other => other.to_string(),
        };
        // The other end is of another build, or is not the node: that does not pass by itself.
        let stays = matches!(error, LinkError::Protocol(_));
        if self.talk.says(stays, now) {
            tracing::warn!(node = %id, address, cause, "node cannot be reached");
        } else {
            tracing::debug!(node = %id, address, cause, "could not connect");
        }
        if self.talk.has_spoken() {
            let found = Unreachable::new(id.clone(), address, &cause);
            self.outages.set(self.number, found);
        }
    }

    /// Takes note that the link is up.
    pub(crate) fn end(&self, now: Instant) {
        if self.talk.has_spoken() {
            let Node { id, address, .. } = self.node;
            let down_s = now.saturating_duration_since(self.talk.since).as_secs();
            tracing::info!(node = %id, address, down_s, "node can be reached again");
        }
        self.outages.clear(self.number, &self.node.id);
    }
}

impl Drop for Outage<'_> {
    fn drop(&mut self) {
        self.outages.clear(self.number, &self.node.id);
    }
}

/// When an outage is said. Pure: `now` is passed in.
struct Talk {
    since: Instant,
    /// When it is said again, and the pause before that. `None` before it was said at all.
    again: Option<(Instant, Duration)>,
    /// Whether a cause that stays was said: at once, but once.
    said_stays: bool,
}

impl Talk {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            again: None,
            said_stays: false,
        }
    }

    /// Whether an attempt that has failed now is to be said. `stays`: by a cause that does not pass by itself.
    fn says(&mut self, stays: bool, now: Instant) -> bool {
        let is_news = stays && !self.said_stays;
        let is_due = match self.again {
            None => now >= self.since + PATIENCE,
            Some((at, _)) => now >= at,
        };
        if !is_news && !is_due {
            return false;
        }
        self.said_stays |= stays;
        let pause = self
            .again
            .map_or(AGAIN_FIRST, |(_, pause)| (pause * 2).min(AGAIN_LONGEST));
        self.again = Some((now + pause, pause));
        true
    }

    fn has_spoken(&self) -> bool {
        self.again.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds after the start at which attempts, one each half second, are said.
    fn said(stays_from: Option<u64>, seconds: u64) -> Vec<f64> {
        let start = Instant::now();
        let mut talk = Talk::new(start);
        let attempts = (0..seconds * 2).map(|half| half as f64 / 2.0);
        attempts
            .filter(|&at| {
                let stays = stays_from.is_some_and(|from| at >= from as f64);
                talk.says(stays, start + Duration::from_secs_f64(at))
            })
            .collect()
    }

    #[test]
    fn an_outage_is_said_after_a_while_and_then_more_and_more_seldom() {
        assert_eq!(said(None, 300), [2.0, 32.0, 92.0, 212.0]);
        let day = said(None, 24 * 3600);
        let last = day.last_chunk::<2>().unwrap();
        assert_eq!(last[1] - last[0], AGAIN_LONGEST.as_secs_f64());
    }

    #[test]
    fn what_stays_is_said_at_once_and_once() {
        assert_eq!(said(Some(0), 60), [0.0, 30.0]);
        // Nobody answers, and then somebody else does.
        assert_eq!(said(Some(10), 60), [2.0, 10.0]);
    }

    #[test]
    fn an_outage_that_is_over_does_not_end_the_next_one() {
        let outages = Outages::new(IntGauge::new("down", "down").unwrap());
        let found = Unreachable::new(NodeId::new("a").unwrap(), "a:1", "no answer");
        outages.set(1, found.clone());
        outages.set(2, found.clone());
        assert_eq!(outages.0.count.get(), 1);
        outages.clear(1, &found.node);
        assert_eq!(outages.list(9), std::slice::from_ref(&found));
        outages.clear(2, &found.node);
        assert_eq!((outages.list(9).len(), outages.0.count.get()), (0, 0));
    }
}
