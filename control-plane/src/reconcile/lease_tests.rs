//! Leases over a made-up time.

use mosec_types::WorkerState;
use mosec_types::topology::NodeHealth::{Down, Suspect, Up};

use super::*;
use crate::fixtures::{node, node_id, nodes, up, worker};

const SECOND: Duration = Duration::from_secs(1);

fn mark(name: &str, health: NodeHealth) -> Command {
    Command::MarkNode {
        node: node_id(name),
        incarnation: Incarnation(1),
        health,
    }
}

/// Leases of a leader whose grace is over, and the time.
fn leases(of: &BTreeMap<NodeId, Node>) -> (Leases, Instant) {
    let start = Instant::now();
    let timing = LeaseTiming {
        takeover_grace: Duration::ZERO,
        ..LeaseTiming::default()
    };
    (Leases::take_over(timing, of, start), start)
}

#[test]
fn a_silent_node_is_suspect_and_then_down() {
    let of = |health| nodes([node("a", health, &[])]);
    let (mut leases, start) = leases(&of(Up));
    assert_eq!(
        leases.renew(of(Up).values().next(), Incarnation(1), vec![], start),
        Ok(false)
    );
    type Case = (NodeHealth, f64, Option<NodeHealth>);
    let cases: &[Case] = &[
        (Up, 0.0, None),
        (Up, 2.9, None),
        (Up, 3.0, Some(Suspect)),
        (Suspect, 32.9, None),
        (Suspect, 33.0, Some(Down)),
        (Up, 33.0, Some(Down)),
        (Down, 33.0, None),
        (Suspect, 1.0, Some(Up)),
        (Down, 1.0, Some(Up)),
    ];
    for &(health, after, expected) in cases {
        let found = leases.transitions(&of(health), start + Duration::from_secs_f64(after));
        assert_eq!(
            found,
            expected
                .map(|health| mark("a", health))
                .into_iter()
                .collect::<Vec<_>>(),
            "{health:?} {after}"
        );
    }
}

#[test]
fn a_new_leader_gives_everyone_time() {
    let of = nodes([up("a"), node("b", Suspect, &[]), node("c", Down, &[])]);
    let start = Instant::now();
    let leases = Leases::take_over(LeaseTiming::default(), &of, start);
    assert_eq!(
        leases.transitions(&of, start + 5 * SECOND),
        [],
        "3 s of lease and 3 s of grace"
    );
    assert_eq!(leases.transitions(&of, start + 6 * SECOND), [mark("a", Suspect)]);
    assert_eq!(
        leases.transitions(&of, start + 36 * SECOND),
        [mark("a", Down), mark("b", Down)]
    );
}

#[test]
fn a_registered_node_has_a_lease_from_then_on() {
    let (mut leases, start) = leases(&nodes([]));
    let of = nodes([up("a")]);
    leases.observe(&of, start + 100 * SECOND);
    leases.observe(&of, start + 102 * SECOND);
    assert_eq!(leases.transitions(&of, start + 102 * SECOND), []);
    assert_eq!(
        leases.transitions(&of, start + 103 * SECOND),
        [mark("a", Suspect)]
    );
    let restarted = nodes([Node {
        incarnation: Incarnation(2),
        ..up("a")
    }]);
    leases.observe(&restarted, start + 103 * SECOND);
    assert_eq!(leases.transitions(&restarted, start + 105 * SECOND), []);
    leases.observe(&nodes([]), start);
    assert!(leases.is_empty());
}

#[test]
fn only_the_current_incarnation_renews() {
    let host = Node {
        incarnation: Incarnation(5),
        ..up("a")
    };
    let (mut leases, start) = leases(&nodes([host.clone()]));
    let mut renew = |node, incarnation, workers| leases.renew(node, Incarnation(incarnation), workers, start);
    assert_eq!(renew(None, 5, vec![]), Err(Unleased::NotRegistered));
    assert_eq!(renew(Some(&host), 6, vec![]), Err(Unleased::NotRegistered));
    assert_eq!(renew(Some(&host), 4, vec![]), Err(Unleased::Stale));
    let workers = vec![worker(1, 0, 1, WorkerState::Ready)];
    assert_eq!(
        renew(Some(&host), 5, workers.clone()),
        Ok(true),
        "new workers are news"
    );
    assert_eq!(renew(Some(&host), 5, workers.clone()), Ok(false));
    let suspect = Node {
        health: Suspect,
        ..host.clone()
    };
    assert_eq!(
        renew(Some(&suspect), 5, workers.clone()),
        Ok(true),
        "so is a return"
    );
    assert_eq!(
        leases.fresh_workers(&host, start + 2 * SECOND),
        Some(workers.as_slice())
    );
    assert_eq!(
        leases.fresh_workers(&host, start + 3 * SECOND),
        None,
        "silence makes them unknown"
    );
}
