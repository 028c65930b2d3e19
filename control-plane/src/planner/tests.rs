//! Plans by table, and what holds for all of them.

use std::sync::Arc;

use mosec_types::topology::NodeHealth::{Down, Suspect, Up};
use mosec_types::topology::Phase;
use mosec_types::{Capacity, Gpu, Needs, Revision};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::fixtures::{node, nodes, pipeline, placement, stage, up};

fn run(
    spec: &PipelineSpec,
    of: &BTreeMap<NodeId, Node>,
    current: &[Placement],
    load: &[(&str, u32)],
) -> Plan {
    let mut usage = Usage::default();
    for &(name, count) in load {
        for _ in 0..count {
            usage.add(&placement(0, 1, name), &Needs::default());
        }
    }
    let current = current.to_vec();
    let ready = current.iter().cloned().collect();
    let deployment = Deployment::new(Revision(5), Arc::new(spec.clone()), Phase::Serving, current);
    plan(Input {
        deployment: &deployment,
        goal: &deployment.counts(),
        nodes: of,
        usage: &usage,
        ready: &ready,
    })
}

/// Placements as `stage/replica@node`.
fn places(plan: &Plan) -> Vec<String> {
    plan.placements
        .iter()
        .map(|p| format!("{}/{}@{}", p.stage, p.replica, p.node))
        .collect()
}

fn labelled(name: &str, replicas: u32, key: &str, value: &str) -> StageSpec {
    StageSpec {
        node_labels: [(key.to_owned(), value.to_owned())].into(),
        ..stage(name, replicas)
    }
}

#[test]
fn new_replicas_are_spread_and_neighbours_kept_together() {
    let abc = nodes([up("a"), up("b"), up("c")]);
    let chain = |first, second| pipeline("p", vec![stage("A", first), stage("B", second)]);
    type Case<'a> = (&'a str, PipelineSpec, &'a [(&'a str, u32)], &'a [&'a str]);
    let cases: &[Case<'_>] = &[
        (
            "evenly",
            chain(4, 1),
            &[],
            &["0/1@a", "0/2@b", "0/3@c", "0/4@a", "1/1@a"],
        ),
        (
            "beside its neighbour",
            chain(1, 1),
            &[("a", 5)],
            &["0/1@b", "1/1@b"],
        ),
        (
            "pair by pair",
            chain(2, 2),
            &[("b", 9)],
            &["0/1@a", "0/2@c", "1/1@a", "1/2@c"],
        ),
        (
            "where there is least",
            chain(1, 2),
            &[("a", 1), ("b", 2)],
            &["0/1@c", "1/1@c", "1/2@a"],
        ),
    ];
    for (name, spec, load, expected) in cases {
        let plan = run(spec, &abc, &[], load);
        assert_eq!(
            (places(&plan), plan.unplaced),
            (expected.iter().map(|s| (*s).to_owned()).collect(), vec![]),
            "{name}"
        );
    }
}

#[test]
fn labels_choose_nodes() {
    let of = nodes([
        node("a", Up, &[("gpu", "a100")]),
        node("b", Up, &[("gpu", "t4")]),
        up("c"),
    ]);
    let spec = pipeline(
        "p",
        vec![labelled("A", 2, "gpu", "t4"), labelled("B", 1, "node", "c")],
    );
    assert_eq!(places(&run(&spec, &of, &[], &[])), ["0/1@b", "0/2@b", "1/1@c"]);
}

#[test]
fn replicas_move_only_when_they_must() {
    let spec = pipeline("p", vec![stage("A", 3)]);
    let current = [placement(0, 1, "a"), placement(0, 2, "a"), placement(0, 3, "b")];
    type Case<'a> = (&'a str, Vec<Node>, &'a [&'a str]);
    let cases: &[Case<'_>] = &[
        (
            "an uneven spread stays",
            vec![up("a"), up("b"), up("c")],
            &["0/1@a", "0/2@a", "0/3@b"],
        ),
        (
            "suspects keep theirs",
            vec![node("a", Suspect, &[]), up("b"), up("c")],
            &["0/1@a", "0/2@a", "0/3@b"],
        ),
        (
            "the dead lose theirs",
            vec![node("a", Down, &[]), up("b"), up("c")],
            &["0/1@c", "0/2@b", "0/3@b"],
        ),
        (
            "unless nobody is left",
            vec![node("a", Down, &[]), node("b", Down, &[])],
            &["0/1@a", "0/2@a", "0/3@b"],
        ),
        (
            "or only suspects",
            vec![node("a", Down, &[]), node("b", Suspect, &[])],
            &["0/1@a", "0/2@a", "0/3@b"],
        ),
        (
            "an unknown node is as good as gone",
            vec![up("b")],
            &["0/1@b", "0/2@b", "0/3@b"],
        ),
    ];
    for (name, of, expected) in cases {
        assert_eq!(
            places(&run(&spec, &nodes(of.clone()), &current, &[])),
            *expected,
            "{name}"
        );
    }
    let fewer = pipeline("p", vec![stage("A", 2)]);
    let plan = run(&fewer, &nodes([up("a"), up("b")]), &current, &[]);
    assert_eq!(places(&plan), ["0/1@a", "0/2@a"], "replicas beyond the number go");
}

#[test]
fn a_replica_without_a_place_says_why() {
    let spec = pipeline("p", vec![labelled("A", 1, "gpu", "a100")]);
    let none = run(&spec, &BTreeMap::new(), &[], &[]);
    assert_eq!(
        none.unplaced[0].to_string(),
        "stage A replica 1 fits no node: no node has registered"
    );
    let of = nodes([
        up("a"),
        node("b", Up, &[("gpu", "t4")]),
        node("c", Down, &[("gpu", "a100")]),
    ]);
    let plan = run(&spec, &of, &[], &[]);
    assert_eq!(plan.placements, []);
    assert_eq!(
        plan.unplaced[0].to_string(),
        "stage A replica 1 fits no node: a has no label gpu=a100; b has label gpu=t4, not a100; c is down"
    );
    let many = nodes((0..20).map(|index| node(&format!("n{index:02}"), Suspect, &[])));
    assert!(
        run(&spec, &many, &[], &[]).unplaced[0]
            .to_string()
            .ends_with("n07 is suspect; and 12 more")
    );
}

#[test]
fn a_relabelled_node_loses_replicas_even_without_another() {
    let spec = pipeline("p", vec![labelled("A", 1, "gpu", "t4")]);
    let plan = run(
        &spec,
        &nodes([node("a", Down, &[])]),
        &[placement(0, 1, "a")],
        &[],
    );
    assert_eq!((plan.placements.len(), plan.unplaced.len()), (0, 1));
}

fn drained(name: &str) -> Node {
    Node {
        draining: true,
        ..up(name)
    }
}

#[test]
fn a_drained_node_keeps_a_replica_until_it_is_ready_elsewhere() {
    let spec = pipeline("p", vec![stage("A", 2)]);
    let at = |current: &[Placement], of: &[Node], ready: &[Placement]| {
        let deployment = Deployment::new(
            Revision(5),
            Arc::new(spec.clone()),
            Phase::Serving,
            current.to_vec(),
        );
        let plan = plan(Input {
            deployment: &deployment,
            goal: &deployment.counts(),
            nodes: &nodes(of.to_vec()),
            usage: &Usage::default(),
            ready: &ready.iter().cloned().collect(),
        });
        (
            places(&plan),
            plan.unplaced.iter().map(ToString::to_string).collect::<Vec<_>>(),
        )
    };
    let (one, two) = (placement(0, 1, "a"), placement(0, 2, "b"));
    let both = [one.clone(), two.clone()];
    let (moved, _) = at(&both, &[drained("a"), up("b"), up("c")], &both);
    assert_eq!(moved, ["0/1@a", "0/1@c", "0/2@b"]);
    let moving = [one.clone(), placement(0, 1, "c"), two.clone()];
    let of = [drained("a"), up("b"), up("c")];
    assert_eq!(
        at(&moving, &of, &both).0,
        ["0/1@a", "0/1@c", "0/2@b"],
        "it starts there"
    );
    assert_eq!(
        at(&moving, &of, &moving).0,
        ["0/1@c", "0/2@b"],
        "it is ready there"
    );
    assert_eq!(
        at(&moving, &of, &moving[1..]).0,
        ["0/1@c", "0/2@b"],
        "it has died here"
    );
    // Interrupted: whichever serves stays.
    let of = [up("a"), up("b"), up("c")];
    assert_eq!(at(&moving, &of, &both).0, ["0/1@a", "0/2@b"]);
    assert_eq!(at(&moving, &of, &moving[1..]).0, ["0/1@c", "0/2@b"]);
    // Nowhere to go: it serves on where it is.
    let (stays, why) = at(&both, &[drained("a"), drained("b")], &both);
    assert_eq!(stays, ["0/1@a", "0/2@b"]);
    assert_eq!(
        why[0],
        "stage A replica 1 fits no node: a is drained; b is drained"
    );
    // The node dies while it is drained.
    let dead = Node {
        health: Down,
        ..drained("a")
    };
    assert_eq!(
        at(&both, &[dead, up("b"), up("c")], &both[1..]).0,
        ["0/1@c", "0/2@b"]
    );
}

#[test]
fn replicas_go_where_their_gpus_are() {
    let host = |name: &str, gpus: usize| Node {
        capacity: Capacity {
            gpus: vec![Gpu::default(); gpus],
            ..Default::default()
        },
        ..up(name)
    };
    let of = nodes([host("a", 1), host("b", 2), up("c")]);
    let whole = |replicas| StageSpec {
        needs: Needs {
            gpus: 100,
            ..Default::default()
        },
        ..stage("A", replicas)
    };
    let plan = run(&pipeline("p", vec![whole(4)]), &of, &[], &[]);
    assert_eq!(places(&plan), ["0/1@a", "0/2@b", "0/3@b"]);
    let gpus: Vec<_> = plan.placements.iter().map(|place| place.gpus.clone()).collect();
    assert_eq!(gpus, [[0], [0], [1]]);
    assert_eq!(
        plan.unplaced[0].to_string(),
        "stage A replica 4 fits no node: a has 0 of 1 GPUs free, not 1; b has 0 of 2 GPUs free, not 1; c has no GPU"
    );
    assert!(plan.unplaced[0].lacks_room());
    // A node that came back with fewer GPUs loses the replicas of those it has no more.
    let fewer = nodes([host("a", 1), host("b", 1), host("d", 1)]);
    let again = run(&pipeline("p", vec![whole(3)]), &fewer, &plan.placements, &[]);
    assert_eq!(places(&again), ["0/1@a", "0/2@b", "0/3@d"]);
}

prop_compose! {
    fn any_nodes()(of in vec((0usize..3, 0usize..2), 0..6)) -> BTreeMap<NodeId, Node> {
        nodes(of.into_iter().enumerate().map(|(index, (health, label))| {
            node(&format!("n{index}"), [Up, Suspect, Down][health], &[("zone", ["x", "y"][label])])
        }))
    }
}

prop_compose! {
    fn any_spec()(stages in vec((1u32..6, proptest::option::of(0usize..2)), 1..4)) -> PipelineSpec {
        let stages = stages.into_iter().enumerate().map(|(index, (replicas, zone))| match zone {
            Some(zone) => labelled(&format!("S{index}"), replicas, "zone", ["x", "y"][zone]),
            None => stage(&format!("S{index}"), replicas),
        });
        pipeline("p", stages.collect())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_plan_is_sound_and_stable(spec in any_spec(), before in any_nodes(), after in any_nodes()) {
        let first = run(&spec, &before, &[], &[]);
        let second = run(&spec, &after, &first.placements, &[]);
        for (plan, of, current) in [(&first, &before, &vec![]), (&second, &after, &first.placements)] {
            let mut seen = BTreeSet::new();
            for place in &plan.placements {
                let (stage, host) = (spec.stage(place.stage).unwrap(), &of[&place.node]);
                prop_assert!(seen.insert((place.stage, place.replica)), "placed twice: {:?}", place);
                prop_assert!((1..=stage.replicas).contains(&place.replica.0));
                prop_assert!(stage.node_labels.iter().all(|(key, value)| host.labels.get(key) == Some(value)));
                prop_assert!(host.health == Up || current.contains(place), "newly placed on {:?}", host);
            }
            for missing in &plan.unplaced {
                let fits = of.values().any(|n| obstacle(&spec.stages[usize::from(missing.stage.0)], n).is_none());
                prop_assert!(!fits, "{} would fit", missing);
                seen.insert((missing.stage, missing.replica));
            }
            let wanted: u32 = spec.stages.iter().map(|stage| stage.replicas).sum();
            prop_assert_eq!(seen.len() as u32, wanted, "each replica is placed or reported");
            let again = run(&spec, of, &plan.placements, &[]);
            prop_assert_eq!(&again.placements, &plan.placements, "nothing changed, so nothing moves");
        }
    }

    #[test]
    fn fresh_plans_are_even(spec in any_spec(), of in any_nodes()) {
        let plan = run(&spec, &of, &[], &[]);
        for (index, stage) in (0u16..).zip(&spec.stages) {
            let count = |n: &Node| plan.placements.iter().filter(|p| p.stage.0 == index && p.node == n.id).count();
            let counts: Vec<_> = of.values().filter(|n| obstacle(stage, n).is_none()).map(count).collect();
            let (least, most) = (counts.iter().min(), counts.iter().max());
            prop_assert!(most.zip(least).is_none_or(|(most, least)| most - least <= 1), "{:?}", counts);
        }
    }
}
