//! Where the replicas of a revision are, and which nodes its stages' `spread` and `anti_affinity` leave. Pure.

use std::collections::{BTreeMap, BTreeSet};

use mosec_types::spec::Spread;
use mosec_types::topology::{Node, Placement};
use mosec_types::{NodeId, PipelineSpec, ReplicaId, StageIndex, StageSpec};

use super::Obstacle;

/// Label that every node has: its own name.
const NODE_LABEL: &str = "node";

/// The value of a node's label.
pub(super) fn label<'n>(node: &'n Node, key: &str) -> Option<&'n str> {
    match key {
        NODE_LABEL => Some(node.id.as_str()),
        key => node.labels.get(key).map(String::as_str),
    }
}

/// The places of one revision's replicas, as far as they are planned.
pub(super) struct Layout<'a> {
    spec: &'a PipelineSpec,
    /// How many replicas each stage is to have in the end.
    goal: &'a [u32],
    /// The stages that each stage is kept apart from, whichever of the two says so.
    apart: Vec<BTreeSet<StageIndex>>,
    /// Replicas of each stage on each node.
    nodes: BTreeMap<StageIndex, BTreeMap<NodeId, u32>>,
    /// For each stage that is spread, and each label it is spread by: the replicas on nodes with one value of it.
    domains: BTreeMap<(StageIndex, usize), BTreeMap<String, BTreeSet<ReplicaId>>>,
}

/// How well a node suits one more replica, by what spreads its stage: the smallest is best.
///
/// Whether the node is beyond the stage's share of them, and for each label whether the node lacks it and how many
/// replicas the nodes with its value have.
pub(super) type Evenness = (bool, Vec<(bool, usize)>);

impl<'a> Layout<'a> {
    pub(super) fn new(spec: &'a PipelineSpec, goal: &'a [u32]) -> Self {
        let mut apart = vec![BTreeSet::new(); spec.stages.len()];
        for (index, stage) in (0u16..).map(StageIndex).zip(&spec.stages) {
            for &other in &stage.anti_affinity {
                apart[usize::from(index.0)].insert(other);
                if let Some(others) = apart.get_mut(usize::from(other.0)) {
                    others.insert(index);
                }
            }
        }
        Self {
            spec,
            goal,
            apart,
            nodes: BTreeMap::new(),
            domains: BTreeMap::new(),
        }
    }

    /// Counts a replica at its place on `node`.
    pub(super) fn add(&mut self, placement: &Placement, spec: &StageSpec, node: &Node) {
        let Placement { stage, replica, .. } = *placement;
        let on_nodes = self.nodes.entry(stage).or_default();
        *on_nodes.entry(node.id.clone()).or_default() += 1;
        for (index, spread) in spec.spread.iter().enumerate() {
            if let Some(value) = label(node, &spread.by) {
                let values = self.domains.entry((stage, index)).or_default();
                values.entry(value.to_owned()).or_default().insert(replica);
            }
        }
    }

    /// Replicas of a stage on a node.
    pub(super) fn count(&self, stage: StageIndex, node: &NodeId) -> u32 {
        let nodes = self.nodes.get(&stage);
        nodes.and_then(|nodes| nodes.get(node)).copied().unwrap_or(0)
    }

    /// Why the node must not have a replica, by the places of the others.
    pub(super) fn obstacle(
        &self,
        stage: StageIndex,
        spec: &StageSpec,
        replica: ReplicaId,
        node: &Node,
    ) -> Option<Obstacle> {
        for (index, spread) in spec.spread.iter().enumerate() {
            let Some(most) = spread.max else { continue };
            let key = || spread.by.clone();
            let Some(value) = label(node, &spread.by) else {
                return Some(Obstacle::Unlabelled { key: key() });
            };
            // A replica that moves is still one of them: its other place does not count.
            let others = self.domain(stage, index, value).map_or(0, |replicas| {
                replicas.len() - usize::from(replicas.contains(&replica))
            });
            if others >= most as usize {
                let value = value.to_owned();
                return Some(Obstacle::Spread {
                    key: key(),
                    value,
                    most,
                });
            }
        }
        let apart = self.apart.get(usize::from(stage.0))?;
        let near = apart.iter().find(|&&other| self.count(other, &node.id) > 0)?;
        let name = self.spec.stage(*near).map(|other| other.name.clone());
        name.map(|stage| Obstacle::Apart { stage })
    }

    fn domain(&self, stage: StageIndex, index: usize, value: &str) -> Option<&BTreeSet<ReplicaId>> {
        self.domains.get(&(stage, index))?.get(value)
    }

    /// How many nodes a stage had better keep to, of so many that could run it: where others must not be beside it as
    /// many as its replicas are among theirs, so that some are left. It takes more only where these have no room.
    pub(super) fn share(&self, stage: StageIndex, nodes: usize) -> Option<usize> {
        let apart = self.apart.get(usize::from(stage.0));
        let apart = apart.filter(|apart| !apart.is_empty())?;
        let replicas = |stage: &StageIndex| {
            let count = self.goal.get(usize::from(stage.0));
            count.map_or(0, |&count| count as usize)
        };
        let (own, others) = (replicas(&stage), apart.iter().map(replicas).sum::<usize>());
        let part = (nodes * own).div_ceil((own + others).max(1));
        Some(part.min(nodes.saturating_sub(apart.len())).max(1))
    }

    /// How well a node suits one more replica of a stage that had better keep to `share` nodes.
    pub(super) fn evenness(
        &self,
        stage: StageIndex,
        spec: &StageSpec,
        node: &Node,
        share: Option<usize>,
    ) -> Evenness {
        let used = self.nodes.get(&stage).map_or(0, BTreeMap::len);
        let beyond = share.is_some_and(|share| used >= share) && self.count(stage, &node.id) == 0;
        let by_label = |(index, spread): (usize, &Spread)| match label(node, &spread.by) {
            None => (true, 0),
            Some(value) => {
                let replicas = self.domain(stage, index, value);
                (false, replicas.map_or(0, BTreeSet::len))
            }
        };
        (beyond, spec.spread.iter().enumerate().map(by_label).collect())
    }
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
