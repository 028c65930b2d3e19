//! Decides which node runs which replica. Pure.
//!
//! A replica stays where it is while its node may run it, and a suspect node keeps its replicas: moving one costs a
//! cold start. New ones go to nodes that are up, have what they need and are not drained, spread evenly for each stage;
//! where that leaves a choice, next to the stage's neighbours on a route, then to the node with the fewest replicas. A
//! replica on a node that is drained gets a second place, and loses the first when it is ready at the other. One whose
//! node is down and that fits nowhere else keeps its place, as there is nothing to gain from taking it.
//!
//! What a stage's `spread` bounds and its `anti_affinity` forbids holds for all places of a revision at any time, those
//! that are kept and those that are left included; the places of another revision do not count.

mod layout;
pub mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use mosec_types::topology::{Deployment, Node, NodeHealth, Placement};
use mosec_types::{NodeId, PipelineSpec, ReplicaId, StageIndex, StageSpec};

use self::layout::{Layout, label};
pub use self::usage::{Shortage, Usage};

/// What a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The revision, with where its replicas are now.
    pub deployment: &'a Deployment,
    /// How many replicas each stage is to have in the end, in the order of the stages: what scaling has made of the
    /// specification, and in an update more than there are now.
    pub goal: &'a [u32],
    pub nodes: &'a BTreeMap<NodeId, Node>,
    /// What other revisions take.
    pub usage: &'a Usage,
    /// Placements of the revision whose workers are ready.
    pub ready: &'a BTreeSet<Placement>,
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
    Draining,
    /// It has the labels, and no room.
    Full(Shortage),
    Label {
        key: String,
        wanted: String,
        found: Option<String>,
    },
    /// It lacks a label by which the stage is spread within bounds.
    Unlabelled {
        key: String,
    },
    /// The nodes with its value of a label have as many replicas of the stage as may be.
    Spread {
        key: String,
        value: String,
        most: u32,
    },
    /// It runs a stage that must not be beside this one.
    Apart {
        stage: String,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUp(health) => write!(f, "is {}", health.name()),
            Self::Draining => f.write_str("is drained"),
            Self::Full(shortage) => shortage.fmt(f),
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
            Self::Unlabelled { key } => write!(f, "has no label {key} to spread by"),
            Self::Spread { key, value, most } => {
                write!(
                    f,
                    "has {key}={value}, where spread allows {most} of the stage and no more"
                )
            }
            Self::Apart { stage } => write!(f, "runs stage {stage}, which anti_affinity keeps apart"),
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

impl Unplaced {
    /// Whether it would fit somewhere if other replicas were not there.
    pub fn lacks_room(&self) -> bool {
        let full = |(_, obstacle): &(NodeId, Obstacle)| matches!(obstacle, Obstacle::Full(_));
        self.reasons.iter().any(full)
    }
}

/// Makes a plan for one revision.
pub fn plan(input: Input<'_>) -> Plan {
    let mut planner = Planner {
        input,
        usage: input.usage.clone(),
        layout: Layout::new(&input.deployment.spec, input.goal),
        plan: Plan::default(),
    };
    // All that stays first, so that new replicas find their neighbours, and no room that is taken.
    let stages = input.deployment.stages();
    let missing: Vec<_> = stages
        .map(|(stage, spec)| (stage, spec, planner.keep(stage, spec)))
        .collect();
    for (stage, spec, replicas) in missing {
        planner.place(stage, spec, replicas);
    }
    planner.plan.placements.sort();
    planner.plan
}

/// Whether the node has all labels that the stage asks for.
fn obstacle_of_labels(spec: &StageSpec, node: &Node) -> Option<Obstacle> {
    spec.node_labels.iter().find_map(|(key, wanted)| {
        let found = label(node, key);
        let differs = found != Some(wanted.as_str());
        differs.then(|| Obstacle::Label {
            key: key.clone(),
            wanted: wanted.clone(),
            found: found.map(str::to_owned),
        })
    })
}

/// Why the node takes no more replicas of a stage, its room and other replicas aside.
fn obstacle(spec: &StageSpec, node: &Node) -> Option<Obstacle> {
    let not_up = (node.health != NodeHealth::Up).then_some(Obstacle::NotUp(node.health));
    let draining = || node.draining.then_some(Obstacle::Draining);
    not_up
        .or_else(draining)
        .or_else(|| obstacle_of_labels(spec, node))
}

/// Whether the node still has the GPUs of a replica: it may have come back with fewer.
fn has_gpus(node: &Node, placement: &Placement) -> bool {
    let count = node.capacity.gpus.len();
    placement.gpus.iter().all(|&number| (number as usize) < count)
}

struct Planner<'a> {
    input: Input<'a>,
    /// What replicas take, of all revisions.
    usage: Usage,
    layout: Layout<'a>,
    plan: Plan,
}

/// A replica that needs a place.
#[derive(Debug)]
struct Missing<'a> {
    replica: ReplicaId,
    /// Where it was, on a node that is down.
    before: Option<&'a Placement>,
}

impl<'a> Planner<'a> {
    /// Keeps the stage's replicas that may stay, and gives those that need a place.
    fn keep(&mut self, stage: StageIndex, spec: &StageSpec) -> Vec<Missing<'a>> {
        let mut places: BTreeMap<ReplicaId, Vec<&'a Placement>> = BTreeMap::new();
        for placement in self
            .input
            .deployment
            .placements
            .iter()
            .filter(|p| p.stage == stage)
        {
            places.entry(placement.replica).or_default().push(placement);
        }
        let mut missing = Vec::new();
        for replica in (1..=self.input.deployment.count(stage)).map(ReplicaId) {
            let known = places.remove(&replica).unwrap_or_default();
            missing.extend(self.keep_one(stage, spec, replica, &known));
        }
        missing
    }

    /// Keeps one replica where it is, if it may stay there.
    fn keep_one(
        &mut self,
        stage: StageIndex,
        spec: &StageSpec,
        replica: ReplicaId,
        known: &[&'a Placement],
    ) -> Option<Missing<'a>> {
        let (nodes, ready) = (self.input.nodes, self.input.ready);
        let fits = |placement: &&&Placement| {
            let node = nodes.get(&placement.node);
            node.is_some_and(|node| {
                obstacle_of_labels(spec, node).is_none()
                    && has_gpus(node, placement)
                    && self.layout.obstacle(stage, spec, replica, node).is_none()
            })
        };
        let fitting: Vec<_> = known.iter().filter(fits).copied().collect();
        let node = |placement: &&Placement| &nodes[&placement.node];
        let is_there = |placement: &&&Placement| node(placement).health != NodeHealth::Down;
        let (leaving, staying): (Vec<_>, Vec<_>) = fitting
            .iter()
            .filter(is_there)
            .copied()
            .partition(|placement| node(placement).draining);
        let is_ready = |placement: &&&Placement| ready.contains(**placement);
        let Some(&stays) = staying.iter().find(is_ready).or(staying.first()) else {
            // It serves on where it is left until it is ready elsewhere.
            let left = leaving.iter().find(is_ready).or(leaving.first());
            if let Some(&left) = left {
                self.put(left.clone(), spec);
            }
            let before = fitting.first().filter(|_| left.is_none());
            return Some(Missing {
                replica,
                before: before.copied(),
            });
        };
        self.put(stays.clone(), spec);
        // The one that is left serves until this one does.
        if !ready.contains(stays)
            && let Some(&left) = leaving.iter().find(is_ready)
        {
            self.put(left.clone(), spec);
        }
        None
    }

    fn place(&mut self, stage: StageIndex, spec: &StageSpec, replicas: Vec<Missing<'a>>) {
        if replicas.is_empty() {
            return;
        }
        let able = |node: &&Node| obstacle(spec, node).is_none();
        let able = self.input.nodes.values().filter(able).count();
        let wanted = Wanted {
            stage,
            spec,
            neighbours: neighbours(&self.input.deployment.spec, stage),
            share: self.layout.share(stage, able),
        };
        for Missing { replica, before } in replicas {
            let found = self.pick(&wanted, replica);
            // Others may have taken meanwhile what its spread leaves.
            let may_stay = |at: &&Placement| {
                let node = &self.input.nodes[&at.node];
                self.layout.obstacle(stage, spec, replica, node).is_none()
            };
            if let Some(before) = before.filter(|at| found.is_none() && may_stay(at)) {
                self.put(before.clone(), spec);
            }
            match found {
                Some((node, gpus)) => {
                    let placement = Placement {
                        stage,
                        replica,
                        node,
                        gpus,
                    };
                    self.put(placement, spec);
                }
                None => self.note(stage, spec, replica),
            }
        }
    }

    fn note(&mut self, stage: StageIndex, spec: &StageSpec, replica: ReplicaId) {
        let reason = |node: &Node| {
            let full = || self.usage.fit(node, &spec.needs).err().map(Obstacle::Full);
            obstacle(spec, node)
                .or_else(|| self.layout.obstacle(stage, spec, replica, node))
                .or_else(full)
                .map(|obstacle| (node.id.clone(), obstacle))
        };
        let reasons = self.input.nodes.values().filter_map(reason).collect();
        self.plan.unplaced.push(Unplaced {
            stage,
            name: spec.name.clone(),
            replica,
            reasons,
        });
    }

    /// The best node for a replica, and its GPUs there.
    fn pick(&self, wanted: &Wanted<'_>, replica: ReplicaId) -> Option<(NodeId, Vec<u32>)> {
        let &Wanted {
            stage, spec, share, ..
        } = wanted;
        let fits = |node: &'a Node| {
            let gpus = self.usage.fit(node, &spec.needs).ok()?;
            let obstacle = obstacle(spec, node).or_else(|| self.layout.obstacle(stage, spec, replica, node));
            obstacle.is_none().then_some((node, gpus))
        };
        let rank = |(node, _): &(&Node, Vec<u32>)| {
            let own = self.layout.count(stage, &node.id);
            let near = wanted.neighbours.iter();
            let near: u32 = near.map(|&near| self.layout.count(near, &node.id)).sum();
            // A node with as many of this stage as of its neighbours has no pull of its own.
            let pull = near.saturating_sub(own);
            (
                self.layout.evenness(stage, spec, node, share),
                own,
                std::cmp::Reverse(pull),
                self.usage.replicas(&node.id),
            )
        };
        // The first of equals: nodes come in the order of their names.
        let best = self.input.nodes.values().filter_map(fits).min_by_key(rank);
        best.map(|(node, gpus)| (node.id.clone(), gpus))
    }

    fn put(&mut self, placement: Placement, spec: &StageSpec) {
        self.usage.add(&placement, &spec.needs);
        // Only nodes that are known are picked or kept.
        if let Some(node) = self.input.nodes.get(&placement.node) {
            self.layout.add(&placement, spec, node);
        }
        self.plan.placements.push(placement);
    }
}

/// What a stage's replicas look for.
struct Wanted<'a> {
    stage: StageIndex,
    spec: &'a StageSpec,
    neighbours: BTreeSet<StageIndex>,
    /// How many nodes the stage had better keep to.
    share: Option<usize>,
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
mod tests;
