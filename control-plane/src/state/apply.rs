//! Applies commands to the state.

use mosec_types::topology::{Deployment, Node, NodeHealth, Phase};
use mosec_types::worker::trim_error;
use mosec_types::{Incarnation, NodeId, PipelineName, PipelineSpec, Revision};

use super::command::{Command, Dedup, Places, Proposal, Refusal, Reply};
use super::history::{Outcome, Record};
use super::model::{LastWrite, MAX_CLIENTS, MAX_FAILED, MAX_NODES, Model, Rollout};

/// Applies the proposal logged at `index`.
pub fn apply(model: &mut Model, index: u64, proposal: Proposal) -> Reply {
    let Some(dedup) = proposal.dedup else {
        return apply_command(model, index, proposal.command);
    };
    match model.clients.get(&dedup.client) {
        Some(last) if last.seq == dedup.seq => last.reply.clone(),
        Some(last) if last.seq > dedup.seq => Reply::Refused(Refusal::StaleWrite {
            seq: dedup.seq,
            last: last.seq,
        }),
        _ => {
            let reply = apply_command(model, index, proposal.command);
            remember(model, index, dedup, reply.clone());
            reply
        }
    }
}

fn remember(model: &mut Model, index: u64, dedup: Dedup, reply: Reply) {
    model.clients.insert(
        dedup.client,
        LastWrite {
            seq: dedup.seq,
            index,
            reply,
        },
    );
    while model.clients.len() > MAX_CLIENTS {
        let oldest = model
            .clients
            .iter()
            .min_by_key(|(_, last)| last.index)
            .map(|(client, _)| client.clone());
        oldest.and_then(|client| model.clients.remove(&client));
    }
}

fn apply_command(model: &mut Model, index: u64, command: Command) -> Reply {
    let outcome = match command {
        Command::RegisterNode {
            id,
            incarnation,
            address,
            labels,
        } => register_node(
            model,
            Node {
                id,
                incarnation,
                address,
                health: NodeHealth::Up,
                labels,
            },
        ),
        Command::MarkNode {
            node,
            incarnation,
            health,
        } => mark_node(model, &node, incarnation, health),
        Command::Deploy {
            spec,
            healthy_deadline_ms,
            origin,
        } => deploy(
            model,
            healthy_deadline_ms,
            Record {
                revision: Revision(index),
                spec,
                origin,
                rollback_of: None,
                outcome: Outcome::Starting,
            },
        ),
        Command::Rollback {
            pipeline,
            to,
            healthy_deadline_ms,
            origin,
        } => earlier(model, &pipeline, to).and_then(|earlier| {
            let record = Record {
                revision: Revision(index),
                spec: earlier.spec,
                origin,
                rollback_of: Some(earlier.revision),
                outcome: Outcome::Starting,
            };
            deploy(model, healthy_deadline_ms, record)
        }),
        Command::SetPlacement {
            revision,
            places,
            based_on,
        } => set_placement(model, revision, &places, based_on),
        Command::SetPhase { revision, phase } => set_phase(model, revision, phase),
        Command::Delete { pipeline } => delete(model, &pipeline),
    };
    match outcome {
        Ok(Effect::Changed) => {
            model.version = index;
            Reply::Done { version: index }
        }
        Ok(Effect::Deployed) => {
            model.version = index;
            Reply::Deployed {
                revision: Revision(index),
            }
        }
        // A node that registers twice has its answer in the version that is there.
        Ok(Effect::Same) => Reply::Done {
            version: model.version,
        },
        Ok(Effect::Void) => Reply::Void,
        Err(refusal) => Reply::Refused(refusal),
    }
}

enum Effect {
    Changed,
    Deployed,
    /// Already so.
    Same,
    /// The condition no longer held.
    Void,
}

fn register_node(model: &mut Model, node: Node) -> Result<Effect, Refusal> {
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

fn mark_node(
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

/// The revision to go back to.
fn earlier(model: &Model, pipeline: &PipelineName, to: Option<Revision>) -> Result<Record, Refusal> {
    let history = model
        .histories
        .get(pipeline)
        .ok_or_else(|| Refusal::UnknownPipeline(pipeline.clone()))?;
    let Some(revision) = to else {
        let previous = history.previous().cloned();
        return previous.ok_or_else(|| Refusal::NothingBefore(pipeline.clone()));
    };
    let record = history.find(revision).ok_or_else(|| {
        let known: Vec<_> = history.records().iter().map(|r| r.revision.to_string()).collect();
        Refusal::ForgottenRevision {
            pipeline: pipeline.clone(),
            revision,
            known: known.join(", "),
        }
    })?;
    match record.outcome {
        Outcome::Starting | Outcome::Serving => Err(Refusal::AlreadyThere {
            pipeline: pipeline.clone(),
            revision,
            outcome: record.outcome.name().into(),
        }),
        Outcome::Replaced { .. } | Outcome::Failed { .. } => Ok(record.clone()),
    }
}

fn deploy(model: &mut Model, healthy_deadline_ms: u64, record: Record) -> Result<Effect, Refusal> {
    let (revision, spec) = (record.revision, record.spec.clone());
    check_routes(model, &spec)?;
    for older in model.revisions_of(&spec.name) {
        if let Some(rollout) = model.rollouts.get_mut(&older)
            && rollout.deployment.phase == Phase::Starting
        {
            fail(
                rollout,
                &format!("replaced by revision {revision} before it was healthy"),
            );
            let phase = rollout.deployment.phase.clone();
            note(model, &spec.name, older, &phase);
        }
    }
    forget_old_failures(model, &spec.name);
    model
        .histories
        .entry(spec.name.clone())
        .or_default()
        .begin(record);
    let deployment = Deployment {
        revision,
        spec,
        phase: Phase::Starting,
        placements: Vec::new(),
    };
    model.rollouts.insert(
        revision,
        Rollout {
            deployment,
            healthy_deadline_ms,
        },
    );
    Ok(Effect::Deployed)
}

/// A path leads to one pipeline.
fn check_routes(model: &Model, spec: &PipelineSpec) -> Result<(), Refusal> {
    let others = model.rollouts.values().map(|rollout| &rollout.deployment);
    for other in others.filter(|other| other.phase.runs() && other.spec.name != spec.name) {
        if let Some(route) = other
            .spec
            .routes
            .iter()
            .find(|taken| spec.routes.iter().any(|r| r.path == taken.path))
        {
            return Err(Refusal::RouteTaken {
                path: route.path.clone(),
                pipeline: other.spec.name.clone(),
            });
        }
    }
    Ok(())
}

fn forget_old_failures(model: &mut Model, pipeline: &PipelineName) {
    let mut failed = model.revisions_of(pipeline);
    failed.retain(|revision| !model.rollouts[revision].deployment.phase.runs());
    for revision in failed.iter().rev().skip(MAX_FAILED) {
        model.rollouts.remove(revision);
    }
}

fn set_placement(
    model: &mut Model,
    revision: Revision,
    places: &Places,
    based_on: u64,
) -> Result<Effect, Refusal> {
    if model.version != based_on {
        return Ok(Effect::Void);
    }
    let rollout = model
        .rollouts
        .get_mut(&revision)
        .ok_or(Refusal::UnknownRevision(revision))?;
    let placements = places.to_placements();
    if !rollout.deployment.phase.runs() || rollout.deployment.placements == placements {
        return Ok(Effect::Void);
    }
    rollout.deployment.placements = placements;
    Ok(Effect::Changed)
}

fn set_phase(model: &mut Model, revision: Revision, phase: Phase) -> Result<Effect, Refusal> {
    let rollout = model
        .rollouts
        .get_mut(&revision)
        .ok_or(Refusal::UnknownRevision(revision))?;
    let deployment = &mut rollout.deployment;
    if deployment.phase != Phase::Starting {
        return Err(Refusal::NotStarting {
            revision,
            phase: deployment.phase.name().into(),
        });
    }
    let pipeline = deployment.spec.name.clone();
    match phase {
        Phase::Starting => return Ok(Effect::Void),
        Phase::Failed { reason } => {
            fail(rollout, &reason);
            let phase = rollout.deployment.phase.clone();
            note(model, &pipeline, revision, &phase);
        }
        Phase::Serving => {
            deployment.phase = Phase::Serving;
            model.rollouts.retain(|&other, rollout| {
                let deployment = &rollout.deployment;
                other == revision || deployment.spec.name != pipeline || deployment.phase != Phase::Serving
            });
            note(model, &pipeline, revision, &Phase::Serving);
        }
    }
    forget_old_failures(model, &pipeline);
    Ok(Effect::Changed)
}

fn note(model: &mut Model, pipeline: &PipelineName, revision: Revision, phase: &Phase) {
    if let Some(history) = model.histories.get_mut(pipeline) {
        history.note(revision, phase);
    }
}

/// Nothing of a failed revision runs, so it has no places.
fn fail(rollout: &mut Rollout, reason: &str) {
    rollout.deployment.phase = Phase::Failed {
        reason: trim_error(reason),
    };
    rollout.deployment.placements.clear();
}

fn delete(model: &mut Model, pipeline: &PipelineName) -> Result<Effect, Refusal> {
    let before = model.rollouts.len();
    model
        .rollouts
        .retain(|_, rollout| &rollout.deployment.spec.name != pipeline);
    if model.rollouts.len() == before {
        return Err(Refusal::UnknownPipeline(pipeline.clone()));
    }
    model.histories.remove(pipeline);
    Ok(Effect::Changed)
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
