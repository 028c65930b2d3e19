//! Decides which node runs which replica. Pure.
//!
//! A replica stays where it is while its node may run it, and a suspect node keeps its replicas: moving one costs a
//! cold start. New ones go to nodes that are up, spread evenly for each stage; where that leaves a choice, next to
//! the stage's neighbours on a route, then to the node with the fewest replicas. A replica whose node is down and
//! that fits nowhere else keeps its place, as there is nothing to gain from taking it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use mosec_types::topology::{Node, NodeHealth, Placement};
use mosec_types::{NodeId, PipelineSpec, ReplicaId, StageIndex, StageSpec};

/// Label that every node has: its own name.
pub const NODE_LABEL: &str = "node";

/// What a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    pub spec: &'a PipelineSpec,
    pub nodes: &'a BTreeMap<NodeId, Node>,
    /// Where the revision's replicas are now.
    pub current: &'a [Placement],
    /// Replicas of other revisions on each node.
    pub load: &'a BTreeMap<NodeId, u32>,
}

/// Where the replicas go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// In the order of stage and replica.
    pub placements: Vec<Placement>,
    /// Replicas that no node can start now.
    pub unplaced: Vec<Unplaced>,
}

/// A replica that no node can start, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unplaced {
    pub stage: StageIndex,
    pub name: String,
    pub replica: ReplicaId,
    pub reasons: Vec<(NodeId, Obstacle)>,
}

/// Why a node cannot start a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    NotUp(NodeHealth),
    Label {
        key: String,
        wanted: String,
        found: Option<String>,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUp(health) => write!(f, "is {}", health.name()),
            Self::Label {
                key,
                wanted,
                found: None,
            } => write!(f, "has no label {key}={wanted}"),
            Self::Label {
                key,
                wanted,
                found: Some(found),
            } => write!(f, "has label {key}={found}, not {wanted}"),
        }
    }
}

impl fmt::Display for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Nodes named; with more of them, the rest is likely alike.
        const SHOWN: usize = 8;
        write!(f, "stage {} replica {} fits no node", self.name, self.replica)?;
        if self.reasons.is_empty() {
            return f.write_str(": no node has registered");
        }
        for (index, (node, obstacle)) in self.reasons.iter().take(SHOWN).enumerate() {
            write!(f, "{} {node} {obstacle}", if index == 0 { ":" } else { ";" })?;
        }
        match self.reasons.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// Makes a plan for one revision.
pub fn plan(input: Input<'_>) -> Plan {
    let mut planner = Planner {
        input,
        load: input.load.clone(),
        stages: BTreeMap::new(),
        plan: Plan::default(),
    };
    let stages: Vec<_> = (0u16..).map(StageIndex).zip(&input.spec.stages).collect();
    // All that stays first, so that new replicas find their neighbours.
    let missing: Vec<_> = stages
        .iter()
        .map(|&(stage, spec)| planner.keep(stage, spec))
        .collect();
    for (&(stage, spec), replicas) in stages.iter().zip(missing) {
        planner.place(stage, spec, replicas);
    }
    planner.plan.placements.sort();
    planner.plan
}

/// Whether the node has all labels that the stage asks for.
fn obstacle_of_labels(spec: &StageSpec, node: &Node) -> Option<Obstacle> {
    spec.node_labels.iter().find_map(|(key, wanted)| {
        let found = match key.as_str() {
            NODE_LABEL => Some(node.id.as_str()),
            key => node.labels.get(key).map(String::as_str),
        };
        let differs = found != Some(wanted.as_str());
        differs.then(|| Obstacle::Label {
            key: key.clone(),
            wanted: wanted.clone(),
            found: found.map(str::to_owned),
        })
    })
}

fn obstacle(spec: &StageSpec, node: &Node) -> Option<Obstacle> {
    let not_up = (node.health != NodeHealth::Up).then_some(Obstacle::NotUp(node.health));
    not_up.or_else(|| obstacle_of_labels(spec, node))
}

struct Planner<'a> {
    input: Input<'a>,
    /// Replicas on each node, of all revisions.
    load: BTreeMap<NodeId, u32>,
    /// Replicas of each stage on each node.
    stages: BTreeMap<StageIndex, BTreeMap<NodeId, u32>>,
    plan: Plan,
}

impl Planner<'_> {
    /// Keeps the stage's replicas that may stay, and gives those that need a place, with the one they had.
    fn keep(&mut self, stage: StageIndex, spec: &StageSpec) -> BTreeMap<ReplicaId, Option<NodeId>> {
        let mut missing: BTreeMap<_, _> = (1..=spec.replicas)
            .map(|replica| (ReplicaId(replica), None))
            .collect();
        for placement in self
            .input
            .current
            .iter()
            .filter(|placement| placement.stage == stage)
        {
            let Some(node) = self.input.nodes.get(&placement.node) else {
                continue;
            };
            let stays = node.health != NodeHealth::Down && obstacle_of_labels(spec, node).is_none();
            match missing.get_mut(&placement.replica) {
                Some(_) if stays => {
                    missing.remove(&placement.replica);
                    self.put(placement.clone());
                }
                Some(before) => *before = Some(placement.node.clone()),
                None => {}
            }
        }
        missing
    }

    fn place(&mut self, stage: StageIndex, spec: &StageSpec, replicas: BTreeMap<ReplicaId, Option<NodeId>>) {
        let neighbours = neighbours(self.input.spec, stage);
        for (replica, before) in replicas {
            if let Some(node) = self.pick(stage, spec, &neighbours) {
                self.put(Placement { stage, replica, node });
                continue;
            }
            let reason = |node: &Node| obstacle(spec, node).map(|obstacle| (node.id.clone(), obstacle));
            let reasons = self.input.nodes.values().filter_map(reason).collect();
            self.plan.unplaced.push(Unplaced {
                stage,
                name: spec.name.clone(),
                replica,
                reasons,
            });
            let stranded = before.filter(|node| obstacle_of_labels(spec, &self.input.nodes[node]).is_none());
            if let Some(node) = stranded {
                self.put(Placement { stage, replica, node });
            }
        }
    }

    /// The best node for one more replica of `stage`.
    fn pick(&self, stage: StageIndex, spec: &StageSpec, neighbours: &BTreeSet<StageIndex>) -> Option<NodeId> {
        let fits = self
            .input
            .nodes
            .values()
            .filter(|node| obstacle(spec, node).is_none());
        let rank = |node: &&Node| {
            let own = self.count(stage, &node.id);
            let near: u32 = neighbours
                .iter()
                .map(|&neighbour| self.count(neighbour, &node.id))
                .sum();
            // A node with as many of this stage as of its neighbours has no pull of its own.
            (
                own,
                std::cmp::Reverse(near.saturating_sub(own)),
                self.load.get(&node.id).copied().unwrap_or(0),
            )
        };
        // The first of equals: nodes come in the order of their names.
        fits.min_by_key(rank).map(|node| node.id.clone())
    }

    fn count(&self, stage: StageIndex, node: &NodeId) -> u32 {
        self.stages
            .get(&stage)
            .and_then(|nodes| nodes.get(node))
            .copied()
            .unwrap_or(0)
    }

    fn put(&mut self, placement: Placement) {
        *self.load.entry(placement.node.clone()).or_default() += 1;
        *self
            .stages
            .entry(placement.stage)
            .or_default()
            .entry(placement.node.clone())
            .or_default() += 1;
        self.plan.placements.push(placement);
    }
}

/// The stages just before and after `stage` on any route.
fn neighbours(spec: &PipelineSpec, stage: StageIndex) -> BTreeSet<StageIndex> {
    let pairs = spec.routes.iter().flat_map(|route| route.stages.windows(2));
    pairs
        .filter_map(|pair| match *pair {
            [before, after] if after == stage => Some(before),
            [before, after] if before == stage => Some(after),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
#[path = "planner_tests.rs"]
mod tests;
