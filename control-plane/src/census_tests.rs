use std::time::Instant;

use mosec_types::Incarnation;
use mosec_types::WorkerState::{BackOff, Draining, Ready, Starting};

use super::*;
use crate::fixtures::{model, node, pipeline, placement, rollout, stage, up, worker};
use crate::reconcile::lease::LeaseTiming;
use crate::state::{Command, Origin, Proposal, apply};

/// Those of which there are some.
fn some(counts: &Counts) -> Vec<(&'static str, i64)> {
    let some = counts.iter().filter(|(_, count)| **count > 0);
    some.map(|(state, count)| (*state, *count)).collect()
}

#[test]
fn all_is_counted_by_its_state() {
    let spec = pipeline("p", vec![stage("A", 4), stage("B", 2)]);
    let other = pipeline("q", vec![stage("A", 1)]);
    let failed = Phase::Failed { reason: "x".into() };
    let old = vec![placement(0, 1, "a")];
    let new = vec![
        placement(0, 1, "a"),
        placement(0, 2, "a"),
        placement(0, 3, "b"),
        placement(1, 1, "c"),
    ];
    let model = model(
        9,
        [
            up("a"),
            up("b"),
            node("c", NodeHealth::Suspect, &[]),
            node("d", NodeHealth::Down, &[]),
        ],
        vec![
            rollout(3, &spec, Phase::Retiring, old),
            rollout(5, &spec, Phase::Rolling, new),
            rollout(6, &other, Phase::Serving, vec![placement(0, 1, "b")]),
            rollout(7, &other, failed, Vec::new()),
        ],
    );
    let now = Instant::now();
    let mut leases = Leases::take_over(LeaseTiming::default(), &model.nodes, now);
    let mut report = |name: &str, workers| {
        let node = &model.nodes[&NodeId::new(name).unwrap()];
        leases.renew(Some(node), Incarnation(1), workers, now).unwrap();
    };
    report(
        "a",
        vec![
            worker(3, 0, 1, Draining),
            worker(5, 0, 1, Ready),
            worker(5, 0, 2, Starting),
        ],
    );
    report("b", vec![worker(5, 0, 3, BackOff)]);
    let census = Census::take(&model, &leases);
    assert_eq!(some(&census.nodes), [("down", 1), ("suspect", 1), ("up", 2)]);
    let replicas = [
        ("back-off", 1),
        ("draining", 1),
        ("placed", 1),
        ("ready", 1),
        ("starting", 1),
        ("unknown", 1),
        ("unplaced", 2),
    ];
    assert_eq!(some(&census.replicas), replicas);
    assert_eq!(some(&census.rollouts), [("failed", 1), ("rolling", 1)]);
    assert_eq!(census.pipelines, 2);
    let states = (census.nodes.len(), census.replicas.len(), census.rollouts.len());
    assert_eq!(states, (3, 8, 6), "those that there are none of are zero");
}

/// A state to which commands are applied.
#[derive(Default)]
struct Log(Model, u64);

impl Log {
    fn apply(&mut self, command: Command) -> Revision {
        self.1 += 1;
        apply(&mut self.0, self.1, Proposal::from(command));
        Revision(self.1)
    }

    fn deploy(&mut self) -> Revision {
        self.apply(Command::Deploy {
            spec: pipeline("p", vec![stage("A", 1)]).into(),
            healthy_deadline_ms: 1000,
            origin: Origin::default(),
        })
    }

    fn end(&mut self, revision: Revision, phase: Phase) {
        self.apply(Command::SetPhase { revision, phase });
    }
}

#[test]
fn each_rollout_is_counted_once_when_it_ends() {
    let mut log = Log::default();
    log.0.format = crate::state::Formats::BUILD.max;
    let mut seen = OnTheirWay::seen(&log.0);
    let first = log.deploy();
    assert_eq!(seen.next(&log.0), []);
    log.end(first, Phase::Serving);
    assert_eq!(seen.next(&log.0), [Finish::Promoted]);
    assert_eq!(seen.next(&log.0), []);
    let second = log.deploy();
    seen.next(&log.0);
    let third = log.deploy();
    assert_eq!(seen.next(&log.0), [Finish::Superseded]);
    log.end(third, Phase::Failed { reason: "x".into() });
    assert_eq!(seen.next(&log.0), [Finish::Reverted]);
    // Two that began and ended since the last look.
    let fourth = log.deploy();
    log.end(fourth, Phase::Serving);
    let fifth = log.deploy();
    log.end(fifth, Phase::Failed { reason: "x".into() });
    assert_eq!(seen.next(&log.0), [Finish::Promoted, Finish::Reverted]);
    log.deploy();
    seen.next(&log.0);
    log.apply(Command::Delete {
        pipeline: PipelineName::new("p").unwrap(),
        origin: Origin::default(),
    });
    assert_eq!(seen.next(&log.0), [Finish::Deleted]);
    assert_eq!(second, Revision(3));
}
