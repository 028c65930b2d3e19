//! Which stage may wait for which. Pure.
//!
//! A stage whose answers find no room at the next stage keeps its credit until there is: that is how a slow stage is
//! felt where clients are refused. Where routes cross, as `[a, b]` and `[b, a]` do, stages that wait for each other stand
//! still until their requests' deadlines. So on a circle of stages some do not wait; what they pass on has a bound instead.

use std::collections::BTreeSet;

use mosec_types::{PipelineSpec, StageIndex};

/// By route: whether `stage` waits for room at the stage that comes next there.
pub(crate) fn by_route(spec: &PipelineSpec, stage: StageIndex) -> Vec<bool> {
    let waits = |next| waits(spec, stage, next);
    spec.routes
        .iter()
        .map(|route| route.next(stage).is_some_and(waits))
        .collect()
}

/// Every circle has a step to an earlier stage of the pipeline's list. Those steps do not wait; all others do.
fn waits(spec: &PipelineSpec, stage: StageIndex, next: StageIndex) -> bool {
    stage < next || !leads_to(spec, next, stage)
}

/// Whether requests at `from` have an effect on `to`, over however many routes.
fn leads_to(spec: &PipelineSpec, from: StageIndex, to: StageIndex) -> bool {
    let mut seen = BTreeSet::from([from]);
    let mut open = vec![from];
    while let Some(stage) = open.pop() {
        if stage == to {
            return true;
        }
        let next = spec.routes.iter().filter_map(|route| route.next(stage));
        open.extend(next.filter(|&next| seen.insert(next)));
    }
    false
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mosec_types::RouteSpec;
    use proptest::prelude::*;

    use super::*;

    const STAGES: u16 = 6;

    fn spec(routes: &[Vec<u16>]) -> PipelineSpec {
        let spec = crate::tests::topology(1, 1).deployments.remove(0).spec;
        let mut spec = Arc::unwrap_or_clone(spec);
        let routes = routes.iter().map(|stages| RouteSpec {
            path: "/x".into(),
            stages: stages.iter().copied().map(StageIndex).collect(),
        });
        spec.routes = routes.collect();
        spec
    }

    #[test]
    fn the_table() {
        for (routes, stage, expected) in [
            (vec![vec![0, 1], vec![0]], 0, vec![true, false]),
            (vec![vec![0, 1]], 1, vec![false]),
            // Backwards in the list, but no circle.
            (vec![vec![2, 1, 0]], 2, vec![true]),
            (vec![vec![0, 1], vec![1, 0]], 0, vec![true, false]),
            (vec![vec![0, 1], vec![1, 0]], 1, vec![false, false]),
            (
                vec![vec![0, 1], vec![1, 2], vec![2, 0]],
                1,
                vec![false, true, false],
            ),
            (
                vec![vec![0, 1], vec![1, 2], vec![2, 0]],
                2,
                vec![false, false, false],
            ),
            // Off the circle.
            (
                vec![vec![0, 1], vec![1, 0], vec![3, 1]],
                3,
                vec![false, false, true],
            ),
        ] {
            assert_eq!(
                by_route(&spec(&routes), StageIndex(stage)),
                expected,
                "{routes:?} {stage}"
            );
        }
    }

    fn routes() -> impl Strategy<Value = Vec<Vec<u16>>> {
        let all: Vec<_> = (0..STAGES).collect();
        let route = (Just(all).prop_shuffle(), 1..=usize::from(STAGES));
        prop::collection::vec(route, 1..6).prop_map(|routes| {
            let cut = |(mut stages, len): (Vec<u16>, usize)| {
                stages.truncate(len);
                stages
            };
            routes.into_iter().map(cut).collect()
        })
    }

    proptest! {
        #[test]
        fn nobody_waits_for_itself_and_only_circles_go_without(routes in routes()) {
            let spec = spec(&routes);
            let all = || (0..STAGES).map(StageIndex);
            let next = |stage| spec.routes.iter().filter_map(move |route| route.next(stage));
            // Whoever only waits for those of the sets before is free in the end; all must become free.
            let mut free = BTreeSet::new();
            for _ in all() {
                for stage in all() {
                    if next(stage).all(|next| !waits(&spec, stage, next) || free.contains(&next)) {
                        free.insert(stage);
                    }
                }
            }
            prop_assert_eq!(free.len(), usize::from(STAGES));
            for stage in all() {
                for next in next(stage) {
                    prop_assert!(waits(&spec, stage, next) || leads_to(&spec, next, stage));
                }
            }
        }
    }
}
