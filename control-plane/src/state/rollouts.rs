//! Rollouts: how a revision takes over from the one that serves, and what people may change meanwhile.

use std::collections::BTreeMap;

use mosec_types::spec::MAX_REPLICAS;
use mosec_types::topology::Phase;
use mosec_types::worker::trim_error;
use mosec_types::{PipelineName, PipelineSpec, Revision, StageIndex};

use super::apply::Effect;
use super::command::{Origin, Refusal, Step};
use super::model::{MAX_PIPELINE_REPLICAS, Model, Rollout};
use super::revisions::{forget_old_failures, note};

/// The replicas with which a revision begins to replace another one: those of its canary, or as many as may be
/// replaced at a time.
pub(super) fn first_step(rollout: &Rollout) -> Vec<u32> {
    let spec = &rollout.deployment.spec.rollout;
    let at_first = match &spec.canary {
        Some(canary) if !rollout.promoted => canary.replicas,
        _ => spec.max_parallel,
    };
    up_to(&rollout.goal(), at_first)
}

/// At most `most` of each, or all where that is zero.
fn up_to(goal: &[u32], most: u32) -> Vec<u32> {
    let few = |&wanted: &u32| if most == 0 { wanted } else { wanted.min(most) };
    goal.iter().map(few).collect()
}

/// The scale of `serving` for the stages of another specification, by their names.
pub(super) fn scale_of(serving: &Rollout, spec: &PipelineSpec) -> BTreeMap<StageIndex, u32> {
    let scaled = |(index, stage): (StageIndex, &mosec_types::StageSpec)| {
        let mut stages = serving.deployment.stages();
        let (theirs, _) = stages.find(|(_, other)| other.name == stage.name)?;
        let count = *serving.scale.get(&theirs)?;
        (check_environments(stage, count).is_ok() && count != stage.replicas).then_some((index, count))
    };
    let stages = (0u16..).map(StageIndex).zip(&spec.stages);
    stages.filter_map(scaled).collect()
}

/// The revision, which has to be on its way to serve.
pub(super) fn on_its_way(model: &mut Model, revision: Revision) -> Result<&mut Rollout, Refusal> {
    let rollout = model.rollouts.get_mut(&revision);
    let rollout = rollout.ok_or(Refusal::UnknownRevision(revision))?;
    if rollout.deployment.phase.is_rollout() {
        return Ok(rollout);
    }
    Err(Refusal::NotStarting {
        revision,
        phase: rollout.deployment.phase.name().into(),
    })
}

/// Ends a rollout. The revision takes no more requests and finishes those it has, and the one that serves has all its replicas and requests.
pub(super) fn fail(model: &mut Model, revision: Revision, reason: &str) {
    let Some(rollout) = model.rollouts.get_mut(&revision) else {
        return;
    };
    let deployment = &mut rollout.deployment;
    if !deployment.phase.takes_requests() {
        // It has nothing to finish.
        deployment.placements.clear();
    }
    deployment.phase = Phase::Failed {
        reason: trim_error(reason),
    };
    deployment.weight = 0;
    let (pipeline, phase) = (deployment.spec.name.clone(), deployment.phase.clone());
    note(model, &pipeline, revision, &phase);
    if let Some(serving) = serving_mut(model, &pipeline) {
        serving.deployment.replicas = serving.goal();
        serving.deployment.weight = 100;
    }
}

fn serving_mut<'a>(model: &'a mut Model, pipeline: &PipelineName) -> Option<&'a mut Rollout> {
    model.rollouts.values_mut().find(|rollout| {
        &rollout.deployment.spec.name == pipeline && rollout.deployment.phase == Phase::Serving
    })
}

pub(super) fn advance(
    model: &mut Model,
    revision: Revision,
    step: Step,
    based_on: u64,
) -> Result<Effect, Refusal> {
    if model.version != based_on || !step.phase.is_rollout() {
        return Ok(Effect::Void);
    }
    let rollout = on_its_way(model, revision)?;
    // A way back is never a canary, whoever leads.
    if rollout.at_once && step.phase == Phase::Canary {
        return Ok(Effect::Void);
    }
    let deployment = &mut rollout.deployment;
    deployment.phase = step.phase;
    deployment.weight = step.weight.min(100);
    deployment.replicas = step.replicas;
    let (pipeline, phase) = (deployment.spec.name.clone(), deployment.phase.clone());
    let rest = 100 - deployment.weight;
    if let Some(serving) = serving_mut(model, &pipeline) {
        serving.deployment.replicas = step.predecessor;
        serving.deployment.weight = rest;
    }
    note(model, &pipeline, revision, &phase);
    Ok(Effect::Changed)
}

/// The canary of a pipeline, to be told `what`.
fn canary<'a>(
    model: &'a mut Model,
    pipeline: &PipelineName,
    what: &str,
    phases: &[Phase],
) -> Result<&'a mut Rollout, Refusal> {
    let rollout = model.rolling_out(pipeline);
    let revision = rollout.map(|rollout| rollout.deployment.revision);
    let rollout = revision.and_then(|revision| model.rollouts.get_mut(&revision));
    let rollout = rollout.ok_or_else(|| Refusal::NoRollout(pipeline.clone()))?;
    if phases.contains(&rollout.deployment.phase) && !rollout.promoted {
        return Ok(rollout);
    }
    Err(Refusal::NoCanary {
        pipeline: pipeline.clone(),
        revision: rollout.deployment.revision,
        phase: rollout.deployment.phase.name().into(),
        what: what.into(),
    })
}

/// A canary that only starts can be promoted, too: it goes on once it is ready.
pub(super) fn promote(model: &mut Model, pipeline: &PipelineName) -> Result<Effect, Refusal> {
    canary(model, pipeline, "promote", &[Phase::Starting, Phase::Canary])?.promoted = true;
    Ok(Effect::Changed)
}

pub(super) fn abort(model: &mut Model, pipeline: &PipelineName, origin: &Origin) -> Result<Effect, Refusal> {
    let rollout = model.rolling_out(pipeline);
    let rollout = rollout.ok_or_else(|| Refusal::NoRollout(pipeline.clone()))?;
    let reason = match origin.by.as_str() {
        "" => "aborted".to_owned(),
        by => format!("aborted by {by}"),
    };
    let revision = rollout.deployment.revision;
    fail(model, revision, &reason);
    forget_old_failures(model, pipeline);
    Ok(Effect::Changed)
}

pub(super) fn set_traffic(
    model: &mut Model,
    pipeline: &PipelineName,
    weight: u32,
) -> Result<Effect, Refusal> {
    let weight = weight.min(100);
    let deployment = &mut canary(model, pipeline, "send requests to", &[Phase::Canary])?.deployment;
    if deployment.weight == weight {
        return Ok(Effect::Same);
    }
    deployment.weight = weight;
    if let Some(serving) = serving_mut(model, pipeline) {
        serving.deployment.weight = 100 - weight;
    }
    Ok(Effect::Changed)
}

pub(super) fn scale(
    model: &mut Model,
    pipeline: &PipelineName,
    replicas: &BTreeMap<String, u32>,
) -> Result<Effect, Refusal> {
    let running = |rollout: &&Rollout| rollout.deployment.phase.runs();
    let revisions: Vec<_> = model
        .rollouts_of(pipeline)
        .filter(running)
        .map(|rollout| rollout.deployment.revision)
        .collect();
    if revisions.is_empty() {
        return Err(Refusal::UnknownPipeline(pipeline.clone()));
    }
    // All or nothing: what one of them refuses is changed in none.
    let mut scaled = Vec::new();
    for revision in &revisions {
        scaled.push(scaled_by(&model.rollouts[revision], replicas)?);
    }
    let is_alone = revisions.len() == 1;
    let mut effect = Effect::Same;
    for mut rollout in scaled {
        // While one takes over from another, the next step counts with it.
        if is_alone {
            rollout.deployment.replicas = rollout.goal();
        }
        let revision = rollout.deployment.revision;
        if model.rollouts.get(&revision) != Some(&rollout) {
            model.rollouts.insert(revision, rollout);
            effect = Effect::Changed;
        }
    }
    Ok(effect)
}

/// A rollout with these replicas wanted.
fn scaled_by(rollout: &Rollout, replicas: &BTreeMap<String, u32>) -> Result<Rollout, Refusal> {
    let mut scaled = rollout.clone();
    for (name, &wanted) in replicas {
        let wanted = wanted.clamp(1, MAX_REPLICAS);
        let mut stages = rollout.deployment.stages();
        let Some((index, stage)) = stages.find(|(_, stage)| &stage.name == name) else {
            let known: Vec<_> = rollout
                .deployment
                .stages()
                .map(|(_, stage)| stage.name.as_str())
                .collect();
            return Err(Refusal::UnknownStage {
                pipeline: rollout.deployment.spec.name.clone(),
                stage: name.clone(),
                known: known.join(", "),
            });
        };
        check_environments(stage, wanted)?;
        if wanted == stage.replicas {
            scaled.scale.remove(&index);
        } else {
            scaled.scale.insert(index, wanted);
        }
    }
    let found: u64 = scaled.goal().iter().map(|&count| u64::from(count)).sum();
    if found > MAX_PIPELINE_REPLICAS {
        return Err(Refusal::TooManyReplicas {
            found,
            most: MAX_PIPELINE_REPLICAS,
        });
    }
    Ok(scaled)
}

/// Replicas that differ in their variables cannot be more than there are variables for.
fn check_environments(stage: &mosec_types::StageSpec, wanted: u32) -> Result<(), Refusal> {
    let most = stage.env.len();
    if stage.has_one_env() || wanted as usize <= most {
        return Ok(());
    }
    Err(Refusal::TooFewEnvironments {
        stage: stage.name.clone(),
        most,
        wanted,
    })
}

#[cfg(test)]
#[path = "rollouts_tests.rs"]
mod tests;
