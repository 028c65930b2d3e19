//! Changes of the topology.

use std::sync::Arc;

use mosec_types::delta::DeploymentChange;
use mosec_types::{Delta, PipelineSpec, Revision};

use super::topology::{phase_from, phase_to};
use super::{ConvertError, each, name};
use crate::control::proto;

impl From<&Delta> for proto::TopologyDelta {
    fn from(delta: &Delta) -> Self {
        Self {
            from_version: delta.from,
            nodes: delta.nodes.iter().map(Into::into).collect(),
            gone_nodes: delta.gone_nodes.iter().map(ToString::to_string).collect(),
            deployments: delta.deployments.iter().map(Into::into).collect(),
            gone_deployments: delta.gone_deployments.iter().map(|revision| revision.0).collect(),
        }
    }
}

/// Reads a delta that leads to `version`.
pub(crate) fn delta(version: u64, message: proto::TopologyDelta) -> Result<Delta, ConvertError> {
    let gone = message.gone_nodes.into_iter().enumerate();
    let gone = gone.map(|(index, id)| name(&format!("gone_nodes[{index}]"), id));
    Ok(Delta {
        from: message.from_version,
        version,
        nodes: each("nodes", message.nodes)?,
        gone_nodes: gone.collect::<Result<_, _>>()?,
        deployments: each("deployments", message.deployments)?,
        gone_deployments: message.gone_deployments.into_iter().map(Revision).collect(),
    })
}

impl From<&DeploymentChange> for proto::Deployment {
    fn from(change: &DeploymentChange) -> Self {
        let (phase, reason) = phase_to(&change.phase);
        Self {
            revision: change.revision.0,
            spec: change.spec.as_deref().map(Into::into),
            phase: phase.into(),
            reason,
            placements: change.placements.iter().map(Into::into).collect(),
            replicas: change.replicas.clone(),
            weight: change.weight,
        }
    }
}

impl TryFrom<proto::Deployment> for DeploymentChange {
    type Error = ConvertError;

    fn try_from(message: proto::Deployment) -> Result<Self, ConvertError> {
        let spec = message.spec.map(PipelineSpec::try_from).transpose();
        Ok(Self {
            revision: Revision(message.revision),
            spec: spec.map_err(|error| error.within("spec"))?.map(Arc::new),
            phase: phase_from(message.phase, message.reason)?,
            placements: each("placements", message.placements)?,
            replicas: message.replicas,
            weight: message.weight,
        })
    }
}
