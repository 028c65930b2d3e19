//! What to start and what to stop. Pure.

use std::collections::BTreeSet;

use mosec_types::topology::{Deployment, Node};
use mosec_types::{NodeId, ReplicaId, Revision, StageKey, Topology};

pub(crate) type Slot = (StageKey, ReplicaId);

/// The difference between what should run here and what does.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) start: Vec<Slot>,
    pub(crate) stop: Vec<Slot>,
}

/// Compares the replicas that `topology` places on `node` with those `observed`.
pub(crate) fn plan(topology: &Topology, node: &NodeId, observed: &BTreeSet<Slot>) -> Plan {
    let placed = |deployment: &Deployment| !deployment.placements.is_empty();
    // What a revision that is over still has here finishes what comes from earlier stages. Nothing of it is started.
    let running = |deployment: &Deployment| deployment.phase.runs();
    Plan {
        start: slots(topology, node, running)
            .difference(observed)
            .copied()
            .collect(),
        stop: observed
            .difference(&slots(topology, node, placed))
            .copied()
            .collect(),
    }
}

/// The replicas of these deployments that are placed on `node`.
fn slots(topology: &Topology, node: &NodeId, which: impl Fn(&Deployment) -> bool) -> BTreeSet<Slot> {
    let deployments = topology.deployments.iter().filter(|deployment| which(deployment));
    let placements = deployments.flat_map(|deployment| {
        let mine = deployment
            .placements
            .iter()
            .filter(|placement| &placement.node == node);
        mine.map(|placement| {
            let key = StageKey {
                revision: deployment.revision,
                stage: placement.stage,
            };
            (key, placement.replica)
        })
    });
    placements.collect()
}

/// The stages of deployments that come second or later on some route: those this node dispatches to.
pub(crate) fn later_stages(topology: &Topology) -> BTreeSet<StageKey> {
    let there = topology
        .deployments
        .iter()
        .filter(|deployment| !deployment.is_over());
    there
        .flat_map(|deployment| {
            let later = deployment
                .spec
                .routes
                .iter()
                .flat_map(|route| route.stages.iter().skip(1));
            later.map(|&stage| StageKey {
                revision: deployment.revision,
                stage,
            })
        })
        .collect()
}

/// The other nodes this one may have to send batches to.
///
/// `running`: revisions of which a replica is here, be it one that leaves.
pub(crate) fn peers(topology: &Topology, node: &NodeId, running: &BTreeSet<Revision>) -> Vec<Node> {
    let runs_here =
        |d: &Deployment| running.contains(&d.revision) || d.placements.iter().any(|p| &p.node == node);
    let mut ids = BTreeSet::new();
    for deployment in topology
        .deployments
        .iter()
        .filter(|deployment| runs_here(deployment))
    {
        for route in &deployment.spec.routes {
            for &stage in route.stages.iter().skip(1) {
                ids.extend(deployment.nodes_of(stage));
            }
        }
    }
    ids.into_iter()
        .filter(|id| *id != node)
        .filter_map(|id| topology.node(id))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mosec_types::topology::{NodeHealth, Phase, Placement};
    use mosec_types::{Incarnation, RouteSpec};

    use mosec_types::StageIndex;

    use super::*;
    use crate::windows::Place;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn key(revision: u64, stage: u16) -> StageKey {
        StageKey {
            revision: Revision(revision),
            stage: StageIndex(stage),
        }
    }

    fn slot(revision: u64, stage: u16, replica: u32) -> Slot {
        (key(revision, stage), ReplicaId(replica))
    }

    /// Placements are stage, replica and node.
    fn deployment(
        revision: u64,
        phase: Phase,
        routes: &[&[u16]],
        placements: &[(u16, u32, &str)],
    ) -> Deployment {
        let mut spec = crate::tests::topology(revision, 1).deployments.remove(0).spec;
        let routes = routes.iter().map(|stages| RouteSpec {
            path: "/x".into(),
            stages: stages.iter().copied().map(StageIndex).collect(),
        });
        Arc::make_mut(&mut spec).routes = routes.collect();
        let placements = placements.iter().map(|(stage, replica, name)| Placement {
            stage: StageIndex(*stage),
            replica: ReplicaId(*replica),
            node: node(name),
            gpus: Vec::new(),
        });
        Deployment::new(Revision(revision), spec, phase, placements.collect())
    }

    fn topology(deployments: Vec<Deployment>) -> Topology {
        let nodes = ["a", "b", "c"].map(|name| Node {
            id: node(name),
            incarnation: Incarnation(1),
            address: format!("{name}:1"),
            health: NodeHealth::Up,
            labels: Default::default(),
            draining: false,
            capacity: Default::default(),
            build: None,
        });
        Topology {
            version: 1,
            nodes: nodes.into(),
            deployments,
        }
    }

    #[test]
    fn the_difference_is_started_and_stopped() {
        let placed: &[(u16, u32, &str)] = &[(0, 1, "a"), (0, 2, "b"), (1, 1, "a")];
        let serving = |revision| deployment(revision, Phase::Serving, &[&[0, 1]], placed);
        let starting = deployment(2, Phase::Starting, &[&[0, 1]], &[(0, 1, "a")]);
        let failed = deployment(
            3,
            Phase::Failed {
                reason: "no model".into(),
            },
            &[&[0, 1]],
            placed,
        );
        type Case = (
            &'static str,
            Vec<Deployment>,
            &'static [(u64, u16, u32)],
            Vec<Slot>,
            Vec<Slot>,
        );
        let cases: [Case; 8] = [
            ("nothing anywhere", vec![], &[], vec![], vec![]),
            (
                "a first look",
                vec![serving(1)],
                &[],
                vec![slot(1, 0, 1), slot(1, 1, 1)],
                vec![],
            ),
            (
                "all there",
                vec![serving(1)],
                &[(1, 0, 1), (1, 1, 1)],
                vec![],
                vec![],
            ),
            (
                "a replica moved here",
                vec![serving(1)],
                &[(1, 1, 1)],
                vec![slot(1, 0, 1)],
                vec![],
            ),
            (
                "a replica moved away",
                vec![serving(1)],
                &[(1, 0, 1), (1, 0, 2), (1, 1, 1)],
                vec![],
                vec![slot(1, 0, 2)],
            ),
            (
                "a rollout: the new starts while the old serves",
                vec![serving(1), starting],
                &[(1, 0, 1), (1, 1, 1)],
                vec![slot(2, 0, 1)],
                vec![],
            ),
            (
                "one finishes and one is gone",
                vec![failed],
                &[(1, 0, 1), (3, 0, 1)],
                vec![],
                vec![slot(1, 0, 1)],
            ),
            (
                "one has finished its first stage",
                vec![deployment(3, Phase::Retiring, &[&[0, 1]], &[(1, 1, "a")])],
                &[(3, 0, 1), (3, 1, 1)],
                vec![],
                vec![slot(3, 0, 1)],
            ),
        ];
        for (name, deployments, observed, start, stop) in cases {
            let observed = observed
                .iter()
                .map(|&(revision, stage, replica)| slot(revision, stage, replica))
                .collect();
            assert_eq!(
                plan(&topology(deployments), &node("a"), &observed),
                Plan { start, stop },
                "{name}"
            );
        }
    }

    #[test]
    fn later_stages_are_those_that_something_leads_to() {
        let routes: &[&[u16]] = &[&[0, 2], &[1, 2, 3], &[2]];
        let deployments = vec![
            deployment(1, Phase::Serving, routes, &[]),
            deployment(2, Phase::Starting, &[&[0, 1]], &[]),
            deployment(
                3,
                Phase::Failed {
                    reason: String::new(),
                },
                &[&[0, 1]],
                &[],
            ),
            deployment(4, Phase::Serving, &[&[0], &[]], &[]),
        ];
        let places = (0..4).map(|stage| Place::of(&deployments[0].spec, StageIndex(stage)));
        let places: Vec<_> = places.map(|place| (place.first, place.later)).collect();
        let expected = [(true, false), (true, false), (true, true), (false, true)];
        assert_eq!(places, expected, "a stage may be both");
        let later = later_stages(&topology(deployments));
        assert_eq!(later, BTreeSet::from([key(1, 2), key(1, 3), key(2, 1)]));
    }

    #[test]
    fn peers_run_what_comes_after_the_stages_here() {
        let placed: &[(u16, u32, &str)] = &[(0, 1, "a"), (1, 1, "b"), (1, 2, "a"), (0, 2, "c")];
        let names = |deployments: Vec<Deployment>, here: &str| -> Vec<String> {
            peers(&topology(deployments), &node(here), &BTreeSet::new())
                .iter()
                .map(|node| node.id.to_string())
                .collect()
        };
        let one = |phase| vec![deployment(1, phase, &[&[0, 1]], placed)];
        assert_eq!(names(one(Phase::Serving), "a"), ["b"]);
        assert_eq!(
            names(one(Phase::Starting), "c"),
            ["a", "b"],
            "links are there before the first request"
        );
        assert_eq!(names(one(Phase::Serving), "nobody"), [""; 0], "it runs nothing");
        assert_eq!(names(one(Phase::Retiring), "a"), ["b"], "until it has finished");
        let leaving = vec![deployment(1, Phase::Retiring, &[&[0, 1]], &[(1, 1, "b")])];
        assert_eq!(names(leaving.clone(), "a"), [""; 0]);
        let here = BTreeSet::from([Revision(1)]);
        let found = peers(&topology(leaving), &node("a"), &here);
        assert_eq!(found[0].id, node("b"), "a replica that leaves still sends");
        let unknown = vec![deployment(
            1,
            Phase::Serving,
            &[&[0, 1]],
            &[(0, 1, "a"), (1, 1, "gone")],
        )];
        assert_eq!(
            names(unknown, "a"),
            [""; 0],
            "without an address there is no link"
        );
    }
}
