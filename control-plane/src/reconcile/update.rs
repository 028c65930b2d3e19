//! Decides the next step of one rollout. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use mosec_types::topology::{Deployment, Phase};
use mosec_types::traffic::Verdict;
use mosec_types::{PipelineName, PipelineSpec, StageIndex, StageSpec};

use super::rollout::{Progress, Seen, placed_counts, plan_of};
use super::traffic::Traffic;
use super::view::View;
use crate::state::{Command, Origin, Rollout, Step};

/// Who promotes canaries that go on by themselves.
const AUTO_PROMOTE: &str = "auto_promote";

/// What a rollout waits for, which people read as its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Awaited {
    /// Stages with how many replicas are ready of how many, as `decode 1/2`.
    Replicas(Vec<String>),
    /// To be healthy for long enough.
    Health { healthy_for: Duration, of: Duration },
    /// Somebody who promotes the canary of this pipeline.
    Promotion(PipelineName),
    /// Enough requests to judge a canary by that promotes itself.
    Requests { found: u64, wanted: u32 },
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replicas(missing) => write!(f, "ready replicas: {}", missing.join(", ")),
            Self::Health { healthy_for, of } => {
                write!(f, "min_healthy_time: {}s of {of:?}", healthy_for.as_secs())
            }
            Self::Promotion(pipeline) => write!(f, "promotion: mosectl rollout promote {pipeline}"),
            Self::Requests { found, wanted } => write!(f, "requests to judge it by: {found} of {wanted}"),
        }
    }
}

/// One rollout, and all that its next step depends on.
pub(super) struct Update<'a> {
    pub(super) view: View<'a>,
    pub(super) rollout: &'a Rollout,
    /// The revision to take over from.
    pub(super) serving: Option<&'a Rollout>,
    pub(super) progress: &'a Progress,
    pub(super) traffic: &'a Traffic,
}

impl Update<'_> {
    fn deployment(&self) -> &Deployment {
        &self.rollout.deployment
    }

    fn spec(&self) -> &PipelineSpec {
        &self.rollout.deployment.spec
    }

    pub(super) fn next(&self) -> Option<Command> {
        if let Some(reason) = self.view.failure().or_else(|| self.broken_bound()) {
            return Some(self.end(Phase::Failed { reason }));
        }
        match self.progress.state {
            Seen::Healthy(since) => self.forward(self.age(since)),
            Seen::Unhealthy(since) => self.make_room().or_else(|| self.give_up(self.age(since))),
        }
    }

    fn age(&self, since: Instant) -> Duration {
        self.view.now.saturating_duration_since(since)
    }

    fn end(&self, phase: Phase) -> Command {
        Command::SetPhase {
            revision: self.deployment().revision,
            phase,
        }
    }

    /// Why its requests are a reason to go back.
    fn broken_bound(&self) -> Option<String> {
        if !self.deployment().phase.takes_requests() {
            return None;
        }
        match self.judge() {
            Verdict::Broken(reason) => Some(format!("as {}, {reason}", self.deployment().phase.name())),
            Verdict::Held | Verdict::TooFew => None,
        }
    }

    fn judge(&self) -> Verdict {
        let counts = self.traffic.of(self.deployment().revision);
        counts.judge(&self.spec().rollout.bounds)
    }

    /// How long replicas have to be ready before the next step.
    fn min_healthy_time(&self) -> Duration {
        if self.rollout.at_once {
            Duration::ZERO
        } else {
            self.spec().rollout.min_healthy_time
        }
    }

    /// The step after one whose replicas have been ready for so long.
    fn forward(&self, healthy_for: Duration) -> Option<Command> {
        let Some(serving) = self.serving else {
            return Some(self.end(Phase::Serving));
        };
        if healthy_for < self.min_healthy_time() {
            return None;
        }
        if !self.rollout.promoted {
            return self.canary(serving);
        }
        let deployment = self.deployment();
        let goal = self.rollout.goal();
        if deployment.replicas == goal {
            return Some(self.end(Phase::Serving));
        }
        let most = match self.spec().rollout.max_parallel {
            0 => u32::MAX,
            most => most,
        };
        let more = |(&count, &goal): (&u32, &u32)| count.saturating_add(most).min(goal);
        let replicas = deployment.replicas.iter().zip(&goal).map(more).collect();
        let ready = &deployment.replicas;
        Some(self.advance(Step {
            phase: Phase::Rolling,
            weight: share(ready, &goal).max(deployment.weight),
            replicas,
            predecessor: self.left_to(serving, ready),
        }))
    }

    /// A canary begins, goes on by itself, or waits.
    fn canary(&self, serving: &Rollout) -> Option<Command> {
        let canary = self.spec().rollout.canary.as_ref()?;
        let deployment = self.deployment();
        if deployment.phase == Phase::Starting {
            return Some(self.advance(Step {
                phase: Phase::Canary,
                weight: canary.weight,
                replicas: deployment.replicas.clone(),
                predecessor: serving.deployment.replicas.clone(),
            }));
        }
        // It has to take requests for that long, however long it was ready before.
        let is_due = self.age(self.progress.in_phase_since()) >= self.min_healthy_time();
        let goes_on = canary.auto_promote && is_due && self.judge() == Verdict::Held;
        goes_on.then(|| Command::Promote {
            pipeline: self.spec().name.clone(),
            origin: Origin {
                by: AUTO_PROMOTE.into(),
                at_unix_ms: 0,
            },
        })
    }

    fn advance(&self, step: Step) -> Command {
        Command::Advance {
            revision: self.deployment().revision,
            step,
            based_on: self.view.model.version,
        }
    }

    /// The replicas that the serving revision keeps beside so many ready ones of the new: together as many as it had,
    /// and one of each stage at least, as it still has requests.
    fn left_to(&self, serving: &Rollout, ready: &[u32]) -> Vec<u32> {
        let goal = serving.goal();
        let left = |(index, stage): (StageIndex, &StageSpec)| {
            let at = usize::from(index.0);
            let now = serving.deployment.count(index);
            let taken_over = self.stage_named(&stage.name).and_then(|at| ready.get(at));
            let left = goal[at].saturating_sub(taken_over.copied().unwrap_or(0));
            left.max(1).min(now)
        };
        serving.deployment.stages().map(left).collect()
    }

    pub(super) fn waits_for(&self) -> Option<Awaited> {
        let spec = &self.spec().rollout;
        let Seen::Healthy(since) = self.progress.state else {
            let ready = self.view.ready_counts();
            let stages = self.deployment().stages().zip(ready);
            let missing = |((index, stage), ready): ((StageIndex, &StageSpec), u32)| {
                let count = self.deployment().count(index);
                (ready < count).then(|| format!("{} {ready}/{count}", stage.name))
            };
            let missing: Vec<_> = stages.filter_map(missing).collect();
            return (!missing.is_empty()).then_some(Awaited::Replicas(missing));
        };
        self.serving?;
        let is_canary = self.deployment().phase == Phase::Canary;
        let canary = spec
            .canary
            .as_ref()
            .filter(|_| is_canary && !self.rollout.promoted);
        // Time changes nothing for one that a person promotes.
        if canary.is_some_and(|canary| !canary.auto_promote) {
            return Some(Awaited::Promotion(self.spec().name.clone()));
        }
        let since = match canary {
            Some(_) => since.max(self.progress.in_phase_since()),
            None => since,
        };
        let (healthy_for, of) = (self.age(since), self.min_healthy_time());
        if healthy_for < of {
            return Some(Awaited::Health { healthy_for, of });
        }
        canary?;
        let found = self.traffic.of(self.deployment().revision).requests;
        let wanted = spec.bounds.min_requests;
        (self.judge() == Verdict::TooFew).then_some(Awaited::Requests { found, wanted })
    }

    fn stage_named(&self, name: &str) -> Option<usize> {
        self.spec().stages.iter().position(|stage| stage.name == name)
    }

    /// Where replicas find no room beside those of the serving revision: a smaller step, or replicas given up for it.
    fn make_room(&self) -> Option<Command> {
        let serving = self.serving?;
        let deployment = self.deployment();
        let ready: BTreeSet<_> = self.view.ready_placements().cloned().collect();
        let plan = plan_of(self.view.model, self.rollout, &ready);
        let cramped: BTreeSet<_> = plan
            .unplaced
            .iter()
            .filter(|unplaced| unplaced.lacks_room())
            .map(|unplaced| unplaced.stage)
            .collect();
        if cramped.is_empty() {
            return None;
        }
        let step = |replicas, predecessor| {
            self.advance(Step {
                phase: deployment.phase.clone(),
                weight: deployment.weight,
                replicas,
                predecessor,
            })
        };
        let now = serving.deployment.counts();
        let placed = placed_counts(deployment);
        let ready = self.view.ready_counts();
        if placed != ready && placed.iter().all(|&count| count > 0) {
            // What has found a place goes first.
            return Some(step(placed, now));
        }
        let smallest = smallest_step(&ready, &deployment.replicas);
        if smallest != deployment.replicas {
            return Some(step(smallest, now));
        }
        let mut lower = now.clone();
        for ((_, stage), count) in serving.deployment.stages().zip(&mut lower) {
            let wanted = self
                .stage_named(&stage.name)
                .and_then(|at| u16::try_from(at).ok());
            if wanted.is_some_and(|at| cramped.contains(&StageIndex(at))) && *count > 1 {
                *count -= 1;
            }
        }
        if lower != now {
            let helps = self.fits_better_without(serving, &now, &lower, plan.unplaced.len());
            return helps.then(|| step(deployment.replicas.clone(), lower));
        }
        self.takes_over(&ready).then(|| self.end(Phase::Serving))
    }

    /// Whether fewer replicas than `unplaced` would be without a place if the serving revision gave up those stages
    /// that it could give up some of. What fits nowhere, with nothing in its way, costs nobody a replica.
    fn fits_better_without(&self, serving: &Rollout, now: &[u32], lower: &[u32], unplaced: usize) -> bool {
        let mut roomier = self.view.model.clone();
        if let Some(serving) = roomier.rollouts.get_mut(&serving.deployment.revision) {
            let stays = |stage: StageIndex| {
                let at = usize::from(stage.0);
                now.get(at) == lower.get(at)
            };
            serving
                .deployment
                .placements
                .retain(|placement| stays(placement.stage));
        }
        plan_of(&roomier, self.rollout, &BTreeSet::new()).unplaced.len() < unplaced
    }

    /// Whether it may serve with the replicas it has: the serving one gives up its last for the others to find room.
    fn takes_over(&self, ready: &[u32]) -> bool {
        let takes_requests = self.rollout.promoted && self.deployment().phase.takes_requests();
        if !takes_requests || ready.contains(&0) {
            return false;
        }
        // Only where all of it fits then.
        let mut alone = self.view.model.clone();
        if let Some(serving) = self.serving {
            alone.rollouts.remove(&serving.deployment.revision);
        }
        let mut whole = self.rollout.clone();
        whole.deployment.replicas = whole.goal();
        plan_of(&alone, &whole, &BTreeSet::new()).unplaced.is_empty()
    }

    /// The end of one that is not healthy in time.
    fn give_up(&self, late_for: Duration) -> Option<Command> {
        let stuck_for = || {
            self.view
                .now
                .saturating_duration_since(self.progress.came_further())
        };
        let limit = Duration::from_millis(self.rollout.healthy_deadline_ms);
        let why = match self.spec().rollout.progress_deadline {
            Some(limit) if stuck_for() >= limit => format!("no further replica was ready within {limit:?}"),
            None if late_for >= limit => format!("not healthy within {limit:?}"),
            _ => return None,
        };
        let plan = plan_of(self.view.model, self.rollout, &BTreeSet::new());
        let reason = self.view.lateness(why, &plan);
        Some(self.end(Phase::Failed { reason }))
    }
}

/// One replica of each stage, and where there are some, one more.
fn smallest_step(ready: &[u32], wanted: &[u32]) -> Vec<u32> {
    let more = if ready.contains(&0) { 0 } else { 1 };
    let least = |(&ready, &wanted): (&u32, &u32)| (ready + more).max(1).min(wanted);
    ready.iter().zip(wanted).map(least).collect()
}

/// Percent of the requests for a revision with so many replicas of so many: its scarcest stage decides.
fn share(ready: &[u32], goal: &[u32]) -> u32 {
    let percent = |(&ready, &goal): (&u32, &u32)| u64::from(ready) * 100 / u64::from(goal.max(1));
    let least = ready.iter().zip(goal).map(percent).min().unwrap_or(100);
    // Nobody takes all before the end.
    least.clamp(1, 99) as u32
}
