//! Topology: nodes, deployments and placements.

use std::sync::Arc;

use mosec_types::topology::{Deployment, Node, NodeHealth, Phase, Placement};
use mosec_types::{Incarnation, PipelineSpec, ReplicaId, Revision, Topology};

use super::{ConvertError, each, name, stage_index};
use crate::control::proto;

impl From<&Topology> for proto::Topology {
    fn from(topology: &Topology) -> Self {
        Self {
            version: topology.version,
            nodes: topology.nodes.iter().map(Into::into).collect(),
            deployments: topology.deployments.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<proto::Topology> for Topology {
    type Error = ConvertError;

    fn try_from(message: proto::Topology) -> Result<Self, ConvertError> {
        Ok(Self {
            version: message.version,
            nodes: each("nodes", message.nodes)?,
            deployments: each("deployments", message.deployments)?,
        })
    }
}

impl From<&Node> for proto::Node {
    fn from(node: &Node) -> Self {
        let health = match node.health {
            NodeHealth::Up => proto::NodeHealth::Up,
            NodeHealth::Suspect => proto::NodeHealth::Suspect,
            NodeHealth::Down => proto::NodeHealth::Down,
        };
        Self {
            id: node.id.to_string(),
            incarnation: node.incarnation.0,
            address: node.address.clone(),
            health: health.into(),
            labels: node.labels.clone(),
            draining: node.draining,
            capacity: Some((&node.capacity).into()),
            build: node.build.clone(),
        }
    }
}

impl TryFrom<proto::Node> for Node {
    type Error = ConvertError;

    fn try_from(message: proto::Node) -> Result<Self, ConvertError> {
        let health = match proto::NodeHealth::try_from(message.health) {
            Ok(proto::NodeHealth::Up) => NodeHealth::Up,
            Ok(proto::NodeHealth::Suspect) => NodeHealth::Suspect,
            Ok(proto::NodeHealth::Down) => NodeHealth::Down,
            Ok(proto::NodeHealth::Unspecified) => return Err(ConvertError::missing("health")),
            Err(_) => return Err(ConvertError::unknown("health", message.health)),
        };
        Ok(Self {
            id: name("id", message.id)?,
            incarnation: Incarnation(message.incarnation),
            address: message.address,
            health,
            labels: message.labels,
            draining: message.draining,
            capacity: message.capacity.map(Into::into).unwrap_or_default(),
            build: message.build,
        })
    }
}

pub(super) fn phase_to(phase: &Phase) -> (proto::Phase, String) {
    match phase {
        Phase::Starting => (proto::Phase::Starting, String::new()),
        Phase::Canary => (proto::Phase::Canary, String::new()),
        Phase::Rolling => (proto::Phase::Rolling, String::new()),
        Phase::Retiring => (proto::Phase::Retiring, String::new()),
        Phase::Serving => (proto::Phase::Serving, String::new()),
        Phase::Failed { reason } => (proto::Phase::Failed, reason.clone()),
    }
}

pub(super) fn phase_from(phase: i32, reason: String) -> Result<Phase, ConvertError> {
    match proto::Phase::try_from(phase) {
        Ok(proto::Phase::Starting) => Ok(Phase::Starting),
        Ok(proto::Phase::Canary) => Ok(Phase::Canary),
        Ok(proto::Phase::Rolling) => Ok(Phase::Rolling),
        Ok(proto::Phase::Retiring) => Ok(Phase::Retiring),
        Ok(proto::Phase::Serving) => Ok(Phase::Serving),
        Ok(proto::Phase::Failed) => Ok(Phase::Failed { reason }),
        Ok(proto::Phase::Unspecified) => Err(ConvertError::missing("phase")),
        Err(_) => Err(ConvertError::unknown("phase", phase)),
    }
}

impl From<&Deployment> for proto::Deployment {
    fn from(deployment: &Deployment) -> Self {
        let (phase, reason) = phase_to(&deployment.phase);
        Self {
            revision: deployment.revision.0,
            spec: Some(deployment.spec.as_ref().into()),
            phase: phase.into(),
            reason,
            placements: deployment.placements.iter().map(Into::into).collect(),
            replicas: deployment.replicas.clone(),
            weight: deployment.weight,
        }
    }
}

impl TryFrom<proto::Deployment> for Deployment {
    type Error = ConvertError;

    fn try_from(message: proto::Deployment) -> Result<Self, ConvertError> {
        let spec = message.spec.ok_or_else(|| ConvertError::missing("spec"))?;
        let spec = PipelineSpec::try_from(spec).map_err(|e| e.within("spec"))?;
        Ok(Self {
            revision: Revision(message.revision),
            spec: Arc::new(spec),
            phase: phase_from(message.phase, message.reason)?,
            placements: each("placements", message.placements)?,
            replicas: message.replicas,
            weight: message.weight,
        })
    }
}

impl From<&Placement> for proto::Placement {
    fn from(placement: &Placement) -> Self {
        Self {
            stage: placement.stage.0.into(),
            replica: placement.replica.0,
            node: placement.node.to_string(),
            gpus: placement.gpus.clone(),
        }
    }
}

impl TryFrom<proto::Placement> for Placement {
    type Error = ConvertError;

    fn try_from(message: proto::Placement) -> Result<Self, ConvertError> {
        Ok(Self {
            stage: stage_index("stage", message.stage)?,
            replica: ReplicaId(message.replica),
            node: name("node", message.node)?,
            gpus: message.gpus,
        })
    }
}
