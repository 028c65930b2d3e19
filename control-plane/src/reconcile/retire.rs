//! Decides how revisions that are over lose their replicas. Pure.
//!
//! Stage by stage: a stage's replicas go when no earlier stage has any left, as what those still work on has to come
//! through. Within a stage, each node sees to it that what has been sent there is finished.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mosec_types::topology::{Deployment, Placement};
use mosec_types::{PipelineSpec, Revision, StageIndex};

use super::lease::Leases;
use crate::state::{Command, Model};

/// What a revision gets beyond the longest of its requests until all its replicas go: for answers on their way, and
/// for news to arrive.
const MARGIN: Duration = Duration::from_secs(10);

/// Since when revisions have been over, as far as this leader has seen.
#[derive(Debug, Default)]
pub struct Retiring(BTreeMap<Revision, Instant>);

impl Retiring {
    pub fn observe(&mut self, model: &Model, now: Instant) {
        let over = |revision: &Revision| {
            model
                .rollouts
                .get(revision)
                .is_some_and(|rollout| is_leaving(&rollout.deployment))
        };
        self.0.retain(|revision, _| over(revision));
        for &revision in model.rollouts.keys().filter(|revision| over(revision)) {
            self.0.entry(revision).or_insert(now);
        }
    }

    /// The next placements that revisions lose.
    pub fn next(&self, model: &Model, leases: &Leases, now: Instant) -> Option<Command> {
        self.0.iter().find_map(|(revision, &since)| {
            let deployment = &model.rollouts.get(revision)?.deployment;
            let late = now.saturating_duration_since(since) >= deployment.spec.longest_request() + MARGIN;
            let left = if late {
                Vec::new()
            } else {
                left(deployment, &busy_stages(model, leases, *revision, now))
            };
            (left != deployment.placements).then(|| Command::SetPlacement {
                revision: *revision,
                places: left.into_iter().collect(),
                based_on: model.version,
            })
        })
    }
}

/// Whether it is over and still has replicas.
fn is_leaving(deployment: &Deployment) -> bool {
    !deployment.phase.runs() && !deployment.placements.is_empty()
}

/// Stages of a revision of which some node has told a worker. A node that is silent tells nothing.
fn busy_stages(model: &Model, leases: &Leases, revision: Revision, now: Instant) -> BTreeSet<StageIndex> {
    let workers = model
        .nodes
        .values()
        .filter_map(|node| leases.fresh_workers(node, now))
        .flatten();
    let of_revision = workers.filter(|worker| worker.stage.revision == revision);
    of_revision.map(|worker| worker.stage.stage).collect()
}

/// The placements that stay for now.
fn left(deployment: &Deployment, busy: &BTreeSet<StageIndex>) -> Vec<Placement> {
    let placed: BTreeSet<_> = deployment
        .placements
        .iter()
        .map(|placement| placement.stage)
        .collect();
    let waited_for = |stage: &StageIndex| placed.contains(stage) || busy.contains(stage);
    let mut going: BTreeSet<_> = placed.clone();
    going.retain(|&stage| !earlier(&deployment.spec, stage).iter().any(waited_for));
    // Stages that come before each other on different routes would wait for ever: those go together, once whatever goes
    // already has gone.
    if going.is_empty() && busy.is_subset(&placed) {
        return Vec::new();
    }
    let stays = |placement: &&Placement| !going.contains(&placement.stage);
    deployment.placements.iter().filter(stays).cloned().collect()
}

/// The stages that come before `stage` on any route.
fn earlier(spec: &PipelineSpec, stage: StageIndex) -> BTreeSet<StageIndex> {
    let before = spec.routes.iter().filter_map(|route| {
        let at = route.stages.iter().position(|&other| other == stage)?;
        Some(&route.stages[..at])
    });
    before.flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use mosec_types::topology::Phase;
    use mosec_types::{Incarnation, RouteSpec, WorkerState};

    use super::*;
    use crate::fixtures::{model, pipeline, placement, rollout, stage, up, worker};
    use crate::reconcile::lease::LeaseTiming;

    /// Routes as stages; revision 5 is over and has one replica of each stage at node a.
    fn over(routes: &[&[u16]], placed: &[u16]) -> Model {
        let count = routes.iter().flat_map(|route| route.iter()).max().unwrap() + 1;
        let mut spec = pipeline(
            "p",
            (0..count).map(|index| stage(&index.to_string(), 1)).collect(),
        );
        let route = |stages: &&[u16]| RouteSpec {
            path: "/x".into(),
            stages: stages.iter().copied().map(StageIndex).collect(),
        };
        spec.routes = routes.iter().map(route).collect();
        let at = placed.iter().map(|&stage| placement(stage, 1, "a")).collect();
        model(7, [up("a")], vec![rollout(5, &spec, Phase::Retiring, at)])
    }

    /// The stages that stay, while workers of `busy` are reported; `None` where nothing changes.
    fn stays(model: &Model, busy: &[u16], age: Duration) -> Option<Vec<u16>> {
        let start = Instant::now();
        let now = start + age;
        let mut leases = Leases::take_over(LeaseTiming::default(), &model.nodes, now);
        let workers = busy
            .iter()
            .map(|&stage| worker(5, stage, 1, WorkerState::Draining))
            .collect();
        leases
            .renew(model.nodes.values().next(), Incarnation(1), workers, now)
            .unwrap();
        let mut retiring = Retiring::default();
        retiring.observe(model, start);
        retiring.observe(model, now);
        match retiring.next(model, &leases, now)? {
            Command::SetPlacement { places, .. } => {
                Some(places.to_placements().iter().map(|place| place.stage.0).collect())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_stage_goes_when_those_before_it_are_gone() {
        let soon = Duration::ZERO;
        let chain = |placed: &[u16]| over(&[&[0, 1, 2]], placed);
        assert_eq!(stays(&chain(&[0, 1, 2]), &[0, 1, 2], soon), Some(vec![1, 2]));
        assert_eq!(
            stays(&chain(&[1, 2]), &[0, 1, 2], soon),
            None,
            "the first still works"
        );
        assert_eq!(stays(&chain(&[1, 2]), &[1, 2], soon), Some(vec![2]));
        assert_eq!(stays(&chain(&[2]), &[1, 2], soon), None);
        assert_eq!(stays(&chain(&[2]), &[2], soon), Some(vec![]));
        let fork = over(&[&[0, 2], &[1, 2], &[3]], &[0, 1, 2, 3]);
        assert_eq!(stays(&fork, &[0, 1, 2, 3], soon), Some(vec![2]));
    }

    #[test]
    fn stages_that_wait_for_each_other_go_together() {
        let cycle = over(&[&[0, 1, 2], &[0, 2, 1]], &[0, 1, 2]);
        assert_eq!(stays(&cycle, &[0, 1, 2], Duration::ZERO), Some(vec![1, 2]));
        let rest = over(&[&[0, 1, 2], &[0, 2, 1]], &[1, 2]);
        assert_eq!(stays(&rest, &[0, 1, 2], Duration::ZERO), None);
        assert_eq!(stays(&rest, &[1, 2], Duration::ZERO), Some(vec![]));
    }

    #[test]
    fn nothing_stays_for_ever() {
        let chain = over(&[&[0, 1]], &[1]);
        assert_eq!(stays(&chain, &[0, 1], Duration::from_secs(12)), None);
        assert_eq!(stays(&chain, &[0, 1], Duration::from_secs(14)), Some(vec![]));
    }

    #[test]
    fn the_last_replica_ends_the_revision() {
        let mut state = over(&[&[0]], &[0]);
        let end = Command::SetPlacement {
            revision: Revision(5),
            places: [].into_iter().collect(),
            based_on: 7,
        };
        crate::state::apply(&mut state, 8, end.into());
        assert!(state.rollouts.is_empty());
    }
}
