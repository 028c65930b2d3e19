//! Leases of nodes, in the leader's memory. Pure: `now` is passed in.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mosec_types::topology::{Node, NodeHealth};
use mosec_types::{Incarnation, NodeId, WorkerStatus};

use crate::state::Command;

/// When a silent node is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTiming {
    /// Silence after which a node is suspect: three heartbeats of a second.
    pub suspect_after: Duration,
    /// Further silence after which its replicas are placed elsewhere.
    pub down_after: Duration,
    /// What a new leader grants on top to every node it knows: until then, nodes look for it.
    pub takeover_grace: Duration,
}

impl Default for LeaseTiming {
    fn default() -> Self {
        Self {
            suspect_after: Duration::from_secs(3),
            down_after: Duration::from_secs(30),
            takeover_grace: Duration::from_secs(3),
        }
    }
}

/// A node's lease.
#[derive(Debug, Clone)]
pub struct Lease {
    pub incarnation: Incarnation,
    /// When this leader last heard of the node.
    pub heard: Option<Instant>,
    /// Where silence is counted from while nothing was heard.
    granted: Instant,
    pub workers: Vec<WorkerStatus>,
}

/// Why a heartbeat is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unleased {
    NotRegistered,
    Stale,
}

/// The leases that one leader keeps.
#[derive(Debug)]
pub struct Leases {
    timing: LeaseTiming,
    leases: BTreeMap<NodeId, Lease>,
}

impl Leases {
    /// Grants every known node a full lease and the grace.
    pub fn take_over(timing: LeaseTiming, nodes: &BTreeMap<NodeId, Node>, now: Instant) -> Self {
        let mut this = Self {
            timing,
            leases: BTreeMap::new(),
        };
        this.observe(nodes, now + timing.takeover_grace);
        this
    }

    pub fn len(&self) -> usize {
        self.leases.len()
    }

    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// The lease of a node's current incarnation.
    pub fn of(&self, node: &Node) -> Option<&Lease> {
        self.leases
            .get(&node.id)
            .filter(|lease| lease.incarnation == node.incarnation)
    }

    /// The workers that a node reported, unless it has fallen silent since.
    pub fn fresh_workers(&self, node: &Node, now: Instant) -> Option<&[WorkerStatus]> {
        self.of(node)
            .filter(|lease| self.is_fresh(lease, now))
            .map(|lease| lease.workers.as_slice())
    }

    /// Notes a heartbeat. True where it tells something new.
    ///
    /// `node`: what is known of the sender.
    pub fn renew(
        &mut self,
        node: Option<&Node>,
        incarnation: Incarnation,
        workers: Vec<WorkerStatus>,
        now: Instant,
    ) -> Result<bool, Unleased> {
        let Some(node) = node else {
            return Err(Unleased::NotRegistered);
        };
        match incarnation.cmp(&node.incarnation) {
            std::cmp::Ordering::Less => return Err(Unleased::Stale),
            std::cmp::Ordering::Greater => return Err(Unleased::NotRegistered),
            std::cmp::Ordering::Equal => {}
        }
        let news =
            node.health != NodeHealth::Up || self.of(node).is_none_or(|lease| lease.workers != workers);
        let lease = Lease {
            incarnation,
            heard: Some(now),
            granted: now,
            workers,
        };
        self.leases.insert(node.id.clone(), lease);
        Ok(news)
    }

    /// Starts leases of nodes that have registered, and forgets those of nodes that are gone.
    pub fn observe(&mut self, nodes: &BTreeMap<NodeId, Node>, now: Instant) {
        self.leases.retain(|id, _| nodes.contains_key(id));
        for node in nodes.values() {
            if self.of(node).is_none() {
                let lease = Lease {
                    incarnation: node.incarnation,
                    heard: None,
                    granted: now,
                    workers: Vec::new(),
                };
                self.leases.insert(node.id.clone(), lease);
            }
        }
    }

    /// Nodes whose health is no longer what the state says.
    pub fn transitions(&self, nodes: &BTreeMap<NodeId, Node>, now: Instant) -> Vec<Command> {
        let mark = |node: &Node| {
            let health = self.health(self.of(node)?, node.health, now);
            (health != node.health).then(|| Command::MarkNode {
                node: node.id.clone(),
                incarnation: node.incarnation,
                health,
            })
        };
        nodes.values().filter_map(mark).collect()
    }

    fn health(&self, lease: &Lease, health: NodeHealth, now: Instant) -> NodeHealth {
        let silence = now.saturating_duration_since(lease.heard.unwrap_or(lease.granted));
        match health {
            _ if self.is_fresh(lease, now) => NodeHealth::Up,
            NodeHealth::Down => NodeHealth::Down,
            _ if silence >= self.timing.suspect_after + self.timing.down_after => NodeHealth::Down,
            NodeHealth::Up if silence >= self.timing.suspect_after => NodeHealth::Suspect,
            unchanged => unchanged,
        }
    }

    fn is_fresh(&self, lease: &Lease, now: Instant) -> bool {
        lease
            .heard
            .is_some_and(|heard| now.saturating_duration_since(heard) < self.timing.suspect_after)
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
