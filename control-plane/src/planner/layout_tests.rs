//! What spread and anti-affinity make of plans, by table and for any sequence of events.

use std::sync::Arc;

use mosec_types::Revision;
use mosec_types::topology::{Deployment, NodeHealth, Phase};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::fixtures::{node, nodes, pipeline, placement, stage, up};
use crate::planner::{Input, Plan, Usage, plan};

/// Plans with all kept replicas ready but those in `starting`.
fn run(
    spec: &PipelineSpec,
    of: &BTreeMap<NodeId, Node>,
    current: &[Placement],
    starting: &BTreeSet<Placement>,
) -> Plan {
    let goal: Vec<_> = spec.stages.iter().map(|stage| stage.replicas).collect();
    scaled(spec, &goal, of, current, starting)
}

/// As [`run`], where the pipeline was scaled to other counts than its specification has.
fn scaled(
    spec: &PipelineSpec,
    goal: &[u32],
    of: &BTreeMap<NodeId, Node>,
    current: &[Placement],
    starting: &BTreeSet<Placement>,
) -> Plan {
    let ready = current.iter().filter(|place| !starting.contains(place));
    plan(Input {
        deployment: &Deployment {
            replicas: goal.to_vec(),
            ..Deployment::new(
                Revision(5),
                Arc::new(spec.clone()),
                Phase::Serving,
                current.to_vec(),
            )
        },
        goal,
        nodes: of,
        usage: &Usage::default(),
        ready: &ready.cloned().collect(),
    })
}

fn fresh(spec: &PipelineSpec, of: &[Node]) -> (Vec<String>, Vec<String>) {
    told(&run(spec, &nodes(of.to_vec()), &[], &BTreeSet::new()))
}

/// Placements as `stage/replica@node`, and what is said of those that are missing.
fn told(plan: &Plan) -> (Vec<String>, Vec<String>) {
    let place = |p: &Placement| format!("{}/{}@{}", p.stage, p.replica, p.node);
    (
        plan.placements.iter().map(place).collect(),
        plan.unplaced.iter().map(ToString::to_string).collect(),
    )
}

fn spread(name: &str, replicas: u32, spreads: &[(&str, Option<u32>)]) -> StageSpec {
    let by = |&(label, max): &(&str, Option<u32>)| Spread {
        by: label.into(),
        max,
    };
    StageSpec {
        spread: spreads.iter().map(by).collect(),
        ..stage(name, replicas)
    }
}

fn apart(name: &str, replicas: u32, from: u16) -> StageSpec {
    StageSpec {
        anti_affinity: vec![StageIndex(from)],
        ..stage(name, replicas)
    }
}

fn zoned(name: &str, zone: &str) -> Node {
    node(name, NodeHealth::Up, &[("zone", zone)])
}

fn drained(node: Node) -> Node {
    Node {
        draining: true,
        ..node
    }
}

const NONE: [&str; 0] = [];

#[test]
fn replicas_are_spread_over_a_labels_values_before_nodes() {
    let of = [
        zoned("a", "x"),
        zoned("b", "x"),
        zoned("c", "x"),
        zoned("d", "y"),
        up("e"),
    ];
    let soft = pipeline("p", vec![spread("A", 4, &[("zone", None)])]);
    let (places, missing) = fresh(&soft, &of);
    assert_eq!(
        places,
        ["0/1@a", "0/2@d", "0/3@b", "0/4@d"],
        "e has no zone and comes last"
    );
    assert_eq!(missing, NONE);
    let both = pipeline("p", vec![spread("A", 4, &[("node", Some(1)), ("zone", None)])]);
    assert_eq!(fresh(&both, &of).0, ["0/1@a", "0/2@d", "0/3@b", "0/4@c"]);
}

#[test]
fn a_bound_is_kept_and_who_finds_no_place_says_so() {
    let hosts = pipeline("p", vec![spread("A", 3, &[("node", Some(1))])]);
    let (places, missing) = fresh(&hosts, &[up("a"), up("b")]);
    assert_eq!(places, ["0/1@a", "0/2@b"]);
    let why = "stage A replica 3 fits no node: a has node=a, where spread allows 1 of the stage and no more; \
               b has node=b, where spread allows 1 of the stage and no more";
    assert_eq!(missing, [why]);
    let zones = pipeline("p", vec![spread("A", 5, &[("zone", Some(2))])]);
    let (places, missing) = fresh(
        &zones,
        &[zoned("a", "x"), zoned("b", "x"), zoned("c", "y"), up("d")],
    );
    assert_eq!(places, ["0/1@a", "0/2@c", "0/3@b", "0/4@c"]);
    assert!(
        missing[0].ends_with("; d has no label zone to spread by"),
        "{missing:?}"
    );
}

#[test]
fn stages_that_are_apart_leave_each_other_nodes() {
    let of = |count| -> Vec<Node> { ('a'..).take(count).map(|name| up(&name.to_string())).collect() };
    type Case<'a> = (usize, Vec<StageSpec>, &'a [&'a str]);
    let cases: [Case<'_>; 4] = [
        (
            2,
            vec![stage("A", 4), apart("B", 1, 0)],
            &["0/1@a", "0/2@a", "0/3@a", "0/4@a", "1/1@b"],
        ),
        // Whichever of the two says so.
        (
            2,
            vec![apart("A", 2, 1), stage("B", 1)],
            &["0/1@a", "0/2@a", "1/1@b"],
        ),
        (
            4,
            vec![stage("A", 2), apart("B", 2, 0)],
            &["0/1@a", "0/2@b", "1/1@c", "1/2@d"],
        ),
        (
            3,
            vec![spread("A", 2, &[("node", Some(1))]), apart("B", 2, 0)],
            &["0/1@a", "0/2@b", "1/1@c", "1/2@c"],
        ),
    ];
    for (count, stages, expected) in cases {
        assert_eq!(
            fresh(&pipeline("p", stages), &of(count)),
            (expected.iter().map(|s| (*s).to_owned()).collect(), vec![])
        );
    }
    let (places, missing) = fresh(&pipeline("p", vec![stage("A", 1), apart("B", 1, 0)]), &of(1));
    assert_eq!(places, ["0/1@a"]);
    assert_eq!(
        missing,
        ["stage B replica 1 fits no node: a runs stage A, which anti_affinity keeps apart"]
    );
}

#[test]
fn stages_that_are_apart_share_the_nodes_as_they_are_scaled() {
    let spec = pipeline("p", vec![stage("A", 4), apart("B", 1, 0)]);
    let of = nodes(["a", "b", "c", "d", "e"].map(up).to_vec());
    let before = run(&spec, &of, &[], &BTreeSet::new());
    assert_eq!(told(&before).0, ["0/1@a", "0/2@b", "0/3@c", "0/4@d", "1/1@e"]);
    let after = scaled(&spec, &[1, 4], &of, &before.placements, &BTreeSet::new());
    assert_eq!(
        told(&after),
        (
            ["0/1@a", "1/1@e", "1/2@b", "1/3@c", "1/4@d"]
                .map(str::to_owned)
                .to_vec(),
            vec![]
        )
    );
}

#[test]
fn a_replica_that_moves_is_one_of_those_that_a_bound_counts() {
    let spec = pipeline("p", vec![spread("A", 2, &[("zone", Some(1))])]);
    let current = [placement(0, 1, "a"), placement(0, 2, "c")];
    let at = |of: &[Node], current: &[Placement]| {
        told(&run(&spec, &nodes(of.to_vec()), current, &BTreeSet::new()))
    };
    // Within its zone, where it is still the only one.
    let of = [drained(zoned("a", "x")), zoned("b", "x"), zoned("c", "y")];
    assert_eq!(
        at(&of, &current),
        (vec!["0/1@a".into(), "0/1@b".into(), "0/2@c".into()], vec![])
    );
    // Nowhere to go: it serves on where it is.
    let of = [drained(zoned("a", "x")), zoned("c", "y"), zoned("d", "y")];
    let (places, missing) = at(&of, &current);
    assert_eq!(places, ["0/1@a", "0/2@c"]);
    assert!(
        missing[0].contains("a is drained; c has zone=y, where spread allows 1"),
        "{missing:?}"
    );
    // A node that came back with another label.
    let of = [zoned("a", "y"), zoned("c", "y"), zoned("d", "x")];
    assert_eq!(at(&of, &current).0, ["0/1@a", "0/2@d"]);
    // A node that is lost.
    let down = Node {
        health: NodeHealth::Down,
        ..zoned("a", "x")
    };
    assert_eq!(
        at(&[down, zoned("b", "x"), zoned("c", "y")], &current).0,
        ["0/1@b", "0/2@c"]
    );
}

/// What happens between two plans.
#[derive(Debug, Clone)]
enum Event {
    Health(usize, NodeHealth),
    Drain(usize, bool),
    /// It comes back with another label, or none.
    Relabel(usize, Option<usize>),
    Scale(usize, u32),
    /// Those of the placements that have not become ready.
    Starting(Vec<bool>),
}

const ZONES: [&str; 3] = ["x", "y", "z"];

fn any_event() -> impl Strategy<Value = Event> {
    let health = prop_oneof![
        Just(NodeHealth::Up),
        Just(NodeHealth::Suspect),
        Just(NodeHealth::Down)
    ];
    prop_oneof![
        3 => (0usize..6, health).prop_map(|(node, health)| Event::Health(node, health)),
        3 => (0usize..6, any::<bool>()).prop_map(|(node, drains)| Event::Drain(node, drains)),
        1 => (0usize..6, proptest::option::of(0usize..3)).prop_map(|(node, zone)| Event::Relabel(node, zone)),
        2 => (0usize..3, 1u32..6).prop_map(|(stage, replicas)| Event::Scale(stage, replicas)),
        2 => vec(any::<bool>(), 12).prop_map(Event::Starting),
    ]
}

prop_compose! {
    fn any_spec()(
        stages in vec((1u32..6, vec((any::<bool>(), proptest::option::of(1u32..4)), 0..3), vec(0u16..3, 0..3)), 3),
    ) -> PipelineSpec {
        let stages = (0u16..).zip(stages).map(|(index, (replicas, spreads, others))| StageSpec {
            spread: spreads.into_iter().map(|(by_node, max)| Spread {
                by: if by_node { "node" } else { "zone" }.into(),
                max,
            }).collect(),
            anti_affinity: others.into_iter().filter(|&other| other != index).map(StageIndex).collect(),
            ..stage(&format!("S{index}"), replicas)
        });
        pipeline("p", stages.collect())
    }
}

/// What a plan breaks, if anything.
fn broken(spec: &PipelineSpec, of: &BTreeMap<NodeId, Node>, plan: &Plan) -> Option<String> {
    for place in &plan.placements {
        let (own, host) = (spec.stage(place.stage)?, &of[&place.node]);
        let mates = plan.placements.iter().filter(|other| other.stage == place.stage);
        for spread in own.spread.iter().filter(|spread| spread.max.is_some()) {
            let Some(value) = label(host, &spread.by) else {
                return Some(format!("{place:?} is on a node without {}", spread.by));
            };
            let near = mates
                .clone()
                .filter(|other| label(&of[&other.node], &spread.by) == Some(value));
            let near: BTreeSet<_> = near.map(|other| other.replica).collect();
            if near.len() > spread.max? as usize {
                return Some(format!("{near:?} of {} have {}={value}", own.name, spread.by));
            }
        }
        let guests = plan.placements.iter().filter(|other| other.node == place.node);
        if let Some(guest) = guests
            .clone()
            .find(|guest| own.anti_affinity.contains(&guest.stage))
        {
            return Some(format!("{guest:?} is beside {place:?}"));
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_sequence_of_plans_breaks_a_constraint(
        mut spec in any_spec(),
        zones in vec(proptest::option::of(0usize..3), 6),
        events in vec(any_event(), 1..24),
    ) {
        let labels = |zone: Option<usize>| zone.map(|zone| ("zone".to_owned(), ZONES[zone].to_owned()));
        let host = |(index, zone)| Node { labels: labels(zone).into_iter().collect(), ..up(&format!("n{index}")) };
        let mut hosts: Vec<Node> = zones.into_iter().enumerate().map(host).collect();
        let (mut current, mut starting) = (Vec::new(), BTreeSet::new());
        for event in events {
            let relabels = matches!(event, Event::Relabel(..));
            match event {
                Event::Health(at, health) => hosts[at].health = health,
                Event::Drain(at, drains) => hosts[at].draining = drains,
                Event::Relabel(at, zone) => hosts[at].labels = labels(zone).into_iter().collect(),
                Event::Scale(at, replicas) => spec.stages[at].replicas = replicas,
                Event::Starting(which) => {
                    let slow = current.iter().zip(which).filter(|(_, slow)| *slow);
                    starting = slow.map(|(place, _): (&Placement, _)| place.clone()).collect();
                }
            }
            let of = nodes(hosts.clone());
            let plan = run(&spec, &of, &current, &starting);
            prop_assert_eq!(broken(&spec, &of, &plan), None);
            for missing in &plan.unplaced {
                prop_assert_eq!(missing.reasons.len(), of.len(), "each node has its reason: {}", missing);
            }
            // Nothing but a node's death or its new labels takes a replica its place before it has another.
            let is_there = |place: &&Placement| of[&place.node].health != NodeHealth::Down;
            for place in current.iter().filter(is_there).filter(|_| !relabels) {
                let mut places = plan.placements.iter();
                let has_one = places.any(|at| (at.stage, at.replica) == (place.stage, place.replica));
                let is_wanted = place.replica.0 <= spec.stage(place.stage).unwrap().replicas;
                prop_assert!(has_one || !is_wanted, "{place:?} is left for nothing");
            }
            current = plan.placements;
        }
    }
}
