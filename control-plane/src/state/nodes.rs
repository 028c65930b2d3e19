//! Nodes: who they are, how they are, and whether they are to have replicas.

use mosec_types::topology::{Node, NodeHealth};
use mosec_types::{Incarnation, NodeId};

use super::apply::Effect;
use super::command::Refusal;
use super::model::{MAX_NODES, Model};

pub(super) fn register(model: &mut Model, mut node: Node) -> Result<Effect, Refusal> {
    // What people have decided about a node outlives its restarts.
    node.draining = model.nodes.get(&node.id).is_some_and(|known| known.draining);
    match model.nodes.get(&node.id) {
        Some(known) if known.incarnation > node.incarnation => {
            let (offered, current) = (node.incarnation, known.incarnation);
            return Err(Refusal::StaleIncarnation {
                node: node.id,
                offered,
                current,
            });
        }
        Some(known) if *known == node => return Ok(Effect::Same),
        None if model.nodes.len() >= MAX_NODES => return Err(Refusal::TooManyNodes(MAX_NODES)),
        _ => {}
    }
    model.nodes.insert(node.id.clone(), node);
    Ok(Effect::Changed)
}

pub(super) fn mark(
    model: &mut Model,
    id: &NodeId,
    incarnation: Incarnation,
    health: NodeHealth,
) -> Result<Effect, Refusal> {
    match model.nodes.get_mut(id) {
        Some(node) if node.incarnation == incarnation && node.health != health => {
            node.health = health;
            Ok(Effect::Changed)
        }
        _ => Ok(Effect::Void),
    }
}

pub(super) fn drain(model: &mut Model, id: &NodeId, draining: bool) -> Result<Effect, Refusal> {
    let node = model.nodes.get_mut(id);
    let node = node.ok_or_else(|| Refusal::UnknownNode(id.clone()))?;
    if node.draining == draining {
        return Ok(Effect::Same);
    }
    node.draining = draining;
    Ok(Effect::Changed)
}

/// Forgets a node. One that still speaks would be back at once, and one that may come back keeps its replicas.
pub(super) fn remove(model: &mut Model, id: &NodeId) -> Result<Effect, Refusal> {
    let node = model.nodes.get(id);
    let health = node.ok_or_else(|| Refusal::UnknownNode(id.clone()))?.health;
    let placements = model
        .rollouts
        .values()
        .flat_map(|rollout| &rollout.deployment.placements);
    let replicas = placements.filter(|placement| &placement.node == id).count();
    let in_use = match health {
        NodeHealth::Up => true,
        NodeHealth::Suspect => replicas > 0,
        NodeHealth::Down => false,
    };
    if in_use {
        return Err(Refusal::NodeInUse {
            node: id.clone(),
            health: health.name().into(),
            replicas,
        });
    }
    model.nodes.remove(id);
    Ok(Effect::Changed)
}
