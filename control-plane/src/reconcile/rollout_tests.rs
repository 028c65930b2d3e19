//! Rollouts by table.

use mosec_types::WorkerState::{BackOff, Ready, Starting};
use mosec_types::topology::NodeHealth::{Down, Suspect};
use mosec_types::{Incarnation, PipelineSpec, StageSpec};

use super::*;
use crate::fixtures::{model, node, pipeline, placement, rollout, stage, up, worker};
use crate::reconcile::lease::LeaseTiming;

const MINUTE: Duration = Duration::from_secs(60);

fn spec() -> PipelineSpec {
    pipeline("p", vec![stage("A", 2), stage("B", 1)])
}

/// Revision 5, starting on nodes `a` and `b`.
fn starting() -> Model {
    let at = vec![placement(0, 1, "a"), placement(0, 2, "b"), placement(1, 1, "a")];
    model(
        7,
        [up("a"), up("b")],
        vec![rollout(5, &spec(), Phase::Starting, at)],
    )
}

/// The phase decided at `age` of the rollout, with these workers reported just then.
fn decide(model: &Model, reported: &[(&str, Vec<WorkerStatus>)], age: Duration) -> Option<Phase> {
    let (start, now) = (Instant::now(), Instant::now() + age);
    let mut leases = Leases::take_over(LeaseTiming::default(), &model.nodes, start);
    for (name, workers) in reported {
        let node = &model.nodes[&NodeId::new(*name).unwrap()];
        leases
            .renew(Some(node), Incarnation(1), workers.clone(), now)
            .unwrap();
    }
    match phases(model, &leases, &BTreeMap::from([(Revision(5), start)]), now).as_slice() {
        [] => None,
        [
            Command::SetPhase {
                revision: Revision(5),
                phase,
            },
        ] => Some(phase.clone()),
        other => panic!("{other:?}"),
    }
}

fn reason(phase: Option<Phase>) -> String {
    match phase {
        Some(Phase::Failed { reason }) => reason,
        other => panic!("not failed: {other:?}"),
    }
}

#[test]
fn a_revision_serves_when_all_its_replicas_are_ready() {
    let both = |a2, b| {
        [
            ("a", vec![worker(5, 0, 1, Ready), worker(5, 1, 1, a2)]),
            ("b", vec![worker(5, 0, 2, b)]),
        ]
    };
    assert_eq!(
        decide(&starting(), &both(Ready, Ready), MINUTE),
        Some(Phase::Serving)
    );
    assert_eq!(decide(&starting(), &both(Ready, Starting), MINUTE), None);
    assert_eq!(decide(&starting(), &both(BackOff, Ready), MINUTE), None);
    assert_eq!(
        decide(&starting(), &both(Ready, Ready)[..1], MINUTE),
        None,
        "node b is silent"
    );

    let mut other_revision = both(Ready, Ready);
    other_revision[1].1[0] = worker(4, 0, 2, Ready);
    assert_eq!(decide(&starting(), &other_revision, MINUTE), None);

    let mut partly = starting();
    partly
        .rollouts
        .get_mut(&Revision(5))
        .unwrap()
        .deployment
        .placements
        .pop();
    assert_eq!(
        decide(&partly, &both(Ready, Ready), MINUTE),
        None,
        "a replica has no place"
    );

    let mut serving = starting();
    serving.rollouts.get_mut(&Revision(5)).unwrap().deployment.phase = Phase::Serving;
    assert_eq!(
        decide(&serving, &both(Ready, Ready), MINUTE),
        None,
        "nothing to decide"
    );
}

#[test]
fn a_worker_that_cannot_start_fails_the_revision_at_once() {
    let broken = |failed_starts, error: &str| WorkerStatus {
        failed_starts,
        last_error: Some(error.to_owned()),
        ..worker(5, 0, 2, BackOff)
    };
    let traceback = "Traceback (most recent call last):\n  ...\nValueError: \x1b[31mno model\x1b[0m";
    assert_eq!(
        decide(&starting(), &[("b", vec![broken(2, traceback)])], MINUTE),
        None,
        "it may still come up"
    );
    assert_eq!(
        reason(decide(&starting(), &[("b", vec![broken(3, traceback)])], MINUTE)),
        "stage A replica 2 on node b failed to start 3 times: Traceback (most recent call last):\n  ...\nValueError:  [31mno model [0m"
    );
    let long = format!("{}the end", "é\u{1}".repeat(MAX_ERROR_BYTES));
    let long = reason(decide(&starting(), &[("b", vec![broken(3, &long)])], MINUTE));
    assert!(long.len() <= MAX_ERROR_BYTES, "kept whole by the state");
    assert!(long.starts_with("stage A replica 2 on node b") && long.ends_with("the end"));
    assert!(
        serde_json::to_string(&long).unwrap().len() < 40_000,
        "fits into a log entry"
    );

    let elsewhere = [("a", vec![broken(3, "not placed here")])];
    assert_eq!(decide(&starting(), &elsewhere, MINUTE), None);
}

#[test]
fn a_missed_deadline_says_what_was_missing() {
    let failing = WorkerStatus {
        failed_starts: 1,
        last_error: Some("ImportError: torch".into()),
        ..worker(5, 1, 1, BackOff)
    };
    let reported = [("a", vec![worker(5, 0, 1, Ready), failing])];
    assert_eq!(
        decide(&starting(), &reported, 2 * MINUTE - Duration::from_millis(1)),
        None
    );
    assert_eq!(
        reason(decide(&starting(), &reported, 2 * MINUTE)),
        "not healthy within 120s: stage A replica 2 on node b is unknown, as its node is silent (up); \
         stage B replica 1 on node a is back-off\nlast error of stage B replica 1 on node a: ImportError: torch"
    );
    let picky = StageSpec {
        node_labels: [("gpu".to_owned(), "t4".to_owned())].into(),
        ..stage("A", 1)
    };
    let nowhere = model(
        7,
        [up("a")],
        vec![rollout(5, &pipeline("p", vec![picky]), Phase::Starting, vec![])],
    );
    assert_eq!(
        reason(decide(&nowhere, &[("a", vec![])], 2 * MINUTE)),
        "not healthy within 120s: stage A replica 1 fits no node: a has no label gpu=t4"
    );
    let crowd = model(
        7,
        [],
        vec![rollout(
            5,
            &pipeline("p", vec![stage("A", 20)]),
            Phase::Starting,
            vec![],
        )],
    );
    assert!(reason(decide(&crowd, &[], 2 * MINUTE)).ends_with("; and 12 more"));
}

#[test]
fn placements_follow_the_nodes() {
    assert_eq!(next_placement(&starting()), None);
    let mut lost = starting();
    lost.nodes
        .insert(NodeId::new("b").unwrap(), node("b", Suspect, &[]));
    assert_eq!(next_placement(&lost), None, "a suspect node keeps its replicas");
    lost.nodes.insert(NodeId::new("b").unwrap(), node("b", Down, &[]));
    let moved = vec![placement(0, 1, "a"), placement(0, 2, "a"), placement(1, 1, "a")];
    let places = moved.into_iter().collect();
    assert_eq!(
        next_placement(&lost),
        Some(Command::SetPlacement {
            revision: Revision(5),
            places,
            based_on: 7
        })
    );

    let failed = rollout(6, &spec(), Phase::Failed { reason: "x".into() }, vec![]);
    assert_eq!(
        next_placement(&model(7, [up("a")], vec![failed])),
        None,
        "nothing of it runs"
    );
}

#[test]
fn revisions_share_the_nodes() {
    let one = pipeline("q", vec![stage("A", 1)]);
    let first = rollout(3, &one, Phase::Serving, vec![placement(0, 1, "a")]);
    let second = rollout(5, &one, Phase::Starting, vec![]);
    let places = vec![placement(0, 1, "b")].into_iter().collect();
    let expected = Command::SetPlacement {
        revision: Revision(5),
        places,
        based_on: 7,
    };
    assert_eq!(
        next_placement(&model(7, [up("a"), up("b")], vec![first, second])),
        Some(expected)
    );
}
