//! What changes from one topology to the next.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::topology::{Deployment, Node, Phase, Placement};
use crate::{NodeId, PipelineSpec, Revision, Topology};

/// The way from one version of the topology to a later one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Delta {
    /// The version it starts from.
    pub from: u64,
    /// The version it leads to.
    pub version: u64,
    /// Nodes that are new or have changed.
    pub nodes: Vec<Node>,
    pub gone_nodes: Vec<NodeId>,
    /// Deployments that are new or have changed.
    pub deployments: Vec<DeploymentChange>,
    pub gone_deployments: Vec<Revision>,
}

/// A deployment as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeploymentChange {
    pub revision: Revision,
    /// Absent where the deployment was there before: a revision's specification never changes, and may be large.
    pub spec: Option<Arc<PipelineSpec>>,
    pub phase: Phase,
    pub replicas: Vec<u32>,
    pub weight: u32,
    pub placements: Vec<Placement>,
}

/// A delta does not start from the topology that it is applied to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Gap {
    #[error("it starts from version {from}, not from {have}")]
    Version { from: u64, have: u64 },
    #[error("it changes revision {0}, which is not known here")]
    UnknownRevision(Revision),
}

impl Topology {
    /// What has changed since `older`.
    pub fn since(&self, older: &Self) -> Delta {
        let known: BTreeMap<_, _> = older.nodes.iter().map(|node| (&node.id, node)).collect();
        let changed = |node: &&Node| known.get(&node.id) != Some(node);
        let nodes = self.nodes.iter().filter(changed).cloned().collect();
        let is_gone = |node: &&Node| self.node(&node.id).is_none();
        let gone_nodes = older
            .nodes
            .iter()
            .filter(is_gone)
            .map(|node| node.id.clone())
            .collect();
        let change = |deployment: &Deployment| match older.deployment(deployment.revision) {
            Some(before) if before == deployment => None,
            before => Some(DeploymentChange::of(deployment, before.is_some())),
        };
        let is_gone = |deployment: &&Deployment| self.deployment(deployment.revision).is_none();
        let gone = older.deployments.iter().filter(is_gone);
        Delta {
            from: older.version,
            version: self.version,
            nodes,
            gone_nodes,
            deployments: self.deployments.iter().filter_map(change).collect(),
            gone_deployments: gone.map(|deployment| deployment.revision).collect(),
        }
    }

    /// Goes on to the version that the delta leads to. After an error nothing has changed.
    pub fn apply(&mut self, delta: Delta) -> Result<(), Gap> {
        if delta.from != self.version {
            let (from, have) = (delta.from, self.version);
            return Err(Gap::Version { from, have });
        }
        let mut changed = Vec::new();
        for change in delta.deployments {
            let known = self
                .deployment(change.revision)
                .map(|deployment| deployment.spec.clone());
            let spec = change.spec.clone().or(known);
            let spec = spec.ok_or(Gap::UnknownRevision(change.revision))?;
            changed.push(change.into_deployment(spec));
        }
        // Both are in order, as whoever compares topologies expects.
        let mut nodes: BTreeMap<_, _> = self.nodes.drain(..).map(|node| (node.id.clone(), node)).collect();
        for id in &delta.gone_nodes {
            nodes.remove(id);
        }
        nodes.extend(delta.nodes.into_iter().map(|node| (node.id.clone(), node)));
        self.nodes = nodes.into_values().collect();
        let keyed = |deployment: Deployment| (deployment.revision, deployment);
        let mut deployments: BTreeMap<_, _> = self.deployments.drain(..).map(keyed).collect();
        for revision in &delta.gone_deployments {
            deployments.remove(revision);
        }
        deployments.extend(changed.into_iter().map(keyed));
        self.deployments = deployments.into_values().collect();
        self.version = delta.version;
        Ok(())
    }
}

impl DeploymentChange {
    fn of(deployment: &Deployment, is_known: bool) -> Self {
        let Deployment {
            revision,
            spec,
            phase,
            replicas,
            weight,
            placements,
        } = deployment.clone();
        Self {
            revision,
            spec: (!is_known).then_some(spec),
            phase,
            replicas,
            weight,
            placements,
        }
    }

    fn into_deployment(self, spec: Arc<PipelineSpec>) -> Deployment {
        Deployment {
            revision: self.revision,
            spec,
            phase: self.phase,
            replicas: self.replicas,
            weight: self.weight,
            placements: self.placements,
        }
    }
}
