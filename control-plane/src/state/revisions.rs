//! Revisions: how they come and go.

use std::collections::BTreeMap;

use mosec_types::topology::{Deployment, Phase};
use mosec_types::{PipelineName, PipelineSpec, Revision};

use super::apply::Effect;
use super::command::{Places, Refusal};
use super::format::SECOND;
use super::history::{Outcome, Record};
use super::model::{MAX_FAILED, MAX_RETIRING, Model, Rollout};
use super::rollouts;

/// The revision to go back to.
pub(super) fn earlier(
    model: &Model,
    pipeline: &PipelineName,
    to: Option<Revision>,
) -> Result<Record, Refusal> {
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
        Outcome::Starting | Outcome::Canary | Outcome::Rolling | Outcome::Serving => {
            Err(Refusal::AlreadyThere {
                pipeline: pipeline.clone(),
                revision,
                outcome: record.outcome.name().into(),
            })
        }
        Outcome::Replaced { .. } | Outcome::Superseded { .. } | Outcome::Failed { .. } => Ok(record.clone()),
    }
}

pub(super) fn deploy(
    model: &mut Model,
    healthy_deadline_ms: u64,
    record: Record,
    at_once: bool,
) -> Result<Effect, Refusal> {
    let (revision, spec) = (record.revision, record.spec.clone());
    check_routes(model, &spec)?;
    for older in model.revisions_of(&spec.name) {
        if model.rollouts[&older].deployment.phase.is_rollout() {
            supersede(model, older, revision);
        }
    }
    forget_old_failures(model, &spec.name);
    // Going back is no reason to have fewer replicas than it takes now.
    let scale = match (record.rollback_of, model.serving(&spec.name)) {
        (Some(_), Some(serving)) => rollouts::scale_of(serving, &spec),
        _ => BTreeMap::new(),
    };
    let is_update = model.serving(&spec.name).is_some();
    let pipeline = spec.name.clone();
    model.histories.entry(pipeline).or_default().begin(record);
    let mut deployment = Deployment::new(revision, spec, Phase::Starting, Vec::new());
    deployment.weight = 0;
    let mut rollout = Rollout {
        scale,
        at_once,
        ..Rollout::new(deployment, healthy_deadline_ms)
    };
    rollout.promoted = at_once || !is_update || rollout.deployment.spec.rollout.canary.is_none();
    rollout.deployment.replicas = if is_update {
        rollouts::first_step(&rollout)
    } else {
        rollout.goal()
    };
    model.rollouts.insert(revision, rollout);
    Ok(Effect::Deployed)
}

/// Ends the rollout of a revision that a newer one takes the place of.
fn supersede(model: &mut Model, older: Revision, by: Revision) {
    if model.format < SECOND {
        // As members of earlier builds have it, healthy or not.
        let reason = format!("replaced by revision {by} before it was healthy");
        return rollouts::fail(model, older, &reason);
    }
    rollouts::fail(
        model,
        older,
        &format!("superseded by revision {by} before it served"),
    );
    let pipeline = &model.rollouts[&older].deployment.spec.name;
    if let Some(history) = model.histories.get_mut(pipeline) {
        history.supersede(older, by);
    }
}

/// A path leads to one pipeline.
pub(crate) fn check_routes(model: &Model, spec: &PipelineSpec) -> Result<(), Refusal> {
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

pub(super) fn forget_old_failures(model: &mut Model, pipeline: &PipelineName) {
    let mut failed = model.revisions_of(pipeline);
    let retiring = |revision: &Revision| model.rollouts[revision].deployment.phase == Phase::Retiring;
    let (retiring, mut failed): (Vec<_>, Vec<_>) = failed.drain(..).partition(retiring);
    failed.retain(|revision| !model.rollouts[revision].deployment.phase.runs());
    let old_failures = failed.iter().rev().skip(MAX_FAILED);
    for revision in old_failures.chain(retiring.iter().rev().skip(MAX_RETIRING)) {
        model.rollouts.remove(revision);
    }
}

pub(super) fn set_placement(
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
    let deployment = &mut rollout.deployment;
    // What is over only gets less.
    let is_less = || {
        placements
            .iter()
            .all(|placement| deployment.placements.contains(placement))
    };
    if deployment.placements == placements || !(deployment.phase.runs() || is_less()) {
        return Ok(Effect::Void);
    }
    deployment.placements = placements;
    if deployment.phase == Phase::Retiring && deployment.placements.is_empty() {
        model.rollouts.remove(&revision);
    }
    Ok(Effect::Changed)
}

pub(super) fn set_phase(model: &mut Model, revision: Revision, phase: Phase) -> Result<Effect, Refusal> {
    let rollout = rollouts::on_its_way(model, revision)?;
    let pipeline = rollout.deployment.spec.name.clone();
    match phase {
        Phase::Starting | Phase::Canary | Phase::Rolling | Phase::Retiring => return Ok(Effect::Void),
        Phase::Failed { reason } => rollouts::fail(model, revision, &reason),
        Phase::Serving => {
            rollout.deployment.replicas = rollout.goal();
            rollout.deployment.phase = Phase::Serving;
            rollout.deployment.weight = 100;
            let replaced = |rollout: &Rollout| {
                let Deployment {
                    revision: other,
                    phase,
                    ..
                } = &rollout.deployment;
                *other != revision && *phase == Phase::Serving
            };
            retire(model, &pipeline, replaced);
            note(model, &pipeline, revision, &Phase::Serving);
        }
    }
    forget_old_failures(model, &pipeline);
    Ok(Effect::Changed)
}

pub(super) fn note(model: &mut Model, pipeline: &PipelineName, revision: Revision, phase: &Phase) {
    if let Some(history) = model.histories.get_mut(pipeline) {
        history.note(revision, phase);
    }
}

pub(super) fn delete(model: &mut Model, pipeline: &PipelineName) -> Result<Effect, Refusal> {
    let is_there = |rollout: &Rollout| rollout.deployment.phase != Phase::Retiring;
    if !model.rollouts_of(pipeline).any(is_there) {
        return Err(Refusal::UnknownPipeline(pipeline.clone()));
    }
    model.histories.remove(pipeline);
    retire(model, pipeline, is_there);
    forget_old_failures(model, pipeline);
    Ok(Effect::Changed)
}

/// Lets revisions of a pipeline finish what they have. Those without replicas are gone at once.
fn retire(model: &mut Model, pipeline: &PipelineName, which: impl Fn(&Rollout) -> bool) {
    model.rollouts.retain(|_, rollout| {
        if &rollout.deployment.spec.name != pipeline || !which(rollout) {
            return true;
        }
        rollout.deployment.phase = Phase::Retiring;
        rollout.deployment.weight = 0;
        !rollout.deployment.placements.is_empty()
    });
}
