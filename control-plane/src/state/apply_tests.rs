//! Command in; whole state and reply out.

use std::sync::Arc;

use mosec_types::rollout::CanarySpec;
use mosec_types::topology::NodeHealth::{Down, Suspect, Up};
use mosec_types::topology::{Phase, Placement};
use mosec_types::{Incarnation, PipelineName, PipelineSpec};
use proptest::prelude::*;

use super::*;
use crate::fixtures::{model, node, node_id, pipeline, placement, rollout, stage, up};
use crate::state::Format;
use crate::state::command::{Origin, Step};
use crate::state::history::MAX_REMEMBERED;
use crate::state::model::{MAX_FAILED, MAX_NODES, MAX_RETIRING};

/// Applies `command` as entry 50 and compares the whole outcome.
fn check(name: &str, before: &Model, command: Command, reply: Reply, edit: impl FnOnce(&mut Model)) {
    let mut expected = before.clone();
    edit(&mut expected);
    let mut after = before.clone();
    assert_eq!(apply(&mut after, 50, command.into()), reply, "{name}");
    // The trail has tests of its own.
    after.audit = expected.audit.clone();
    assert_eq!(after, expected, "{name}");
}

fn changed() -> Reply {
    Reply::Done { version: 50 }
}

fn unchanged(_: &mut Model) {}

fn register(node: Node) -> Command {
    let Node {
        id,
        incarnation,
        address,
        labels,
        capacity,
        build,
        ..
    } = node;
    Command::RegisterNode {
        id,
        incarnation,
        address,
        labels,
        capacity,
        build,
    }
}

fn name(text: &str) -> PipelineName {
    PipelineName::new(text).unwrap()
}

fn delete(pipeline: &str) -> Command {
    Command::Delete {
        pipeline: name(pipeline),
        origin: origin(),
    }
}

fn origin() -> Origin {
    Origin {
        by: "someone".into(),
        at_unix_ms: 1,
    }
}

/// A revision as the history has it once it was deployed.
fn record(revision: u64, spec: &PipelineSpec) -> Record {
    Record {
        revision: Revision(revision),
        spec: Arc::new(spec.clone()),
        origin: origin(),
        rollback_of: None,
        outcome: Outcome::Starting,
    }
}

fn begin(model: &mut Model, record: Record) {
    let pipeline = record.spec.name.clone();
    model.histories.entry(pipeline).or_default().begin(record);
}

fn failed(reason: &str) -> Phase {
    Phase::Failed {
        reason: reason.into(),
    }
}

#[test]
fn nodes_register_and_are_marked() {
    let before = model(7, [node("a", Suspect, &[]), up("b")], vec![]);
    let newer = Node {
        incarnation: Incarnation(2),
        ..node("a", Up, &[("gpu", "1")])
    };
    let older = Node {
        incarnation: Incarnation(0),
        ..up("b")
    };
    let mark = |node, incarnation, health| Command::MarkNode {
        node: node_id(node),
        incarnation: Incarnation(incarnation),
        health,
    };

    let put = |node: Node| {
        move |m: &mut Model| {
            m.version = 50;
            m.nodes.insert(node.id.clone(), node);
        }
    };
    check("a new node", &before, register(up("c")), changed(), put(up("c")));
    check(
        "a restarted node",
        &before,
        register(newer.clone()),
        changed(),
        put(newer),
    );
    check(
        "a suspect node again",
        &before,
        register(up("a")),
        changed(),
        put(up("a")),
    );
    check(
        "an up node again",
        &before,
        register(up("b")),
        Reply::Done { version: 7 },
        unchanged,
    );
    let refusal = Refusal::StaleIncarnation {
        node: node_id("b"),
        offered: Incarnation(0),
        current: Incarnation(1),
    };
    check(
        "an older incarnation",
        &before,
        register(older),
        Reply::Refused(refusal),
        unchanged,
    );

    check(
        "down",
        &before,
        mark("a", 1, Down),
        changed(),
        put(node("a", Down, &[])),
    );
    check("no news", &before, mark("b", 1, Up), Reply::Void, unchanged);
    check(
        "another incarnation",
        &before,
        mark("b", 2, Down),
        Reply::Void,
        unchanged,
    );
    check("nobody", &before, mark("x", 1, Down), Reply::Void, unchanged);
}

#[test]
fn the_cluster_has_a_greatest_size() {
    let full = model(1, (0..MAX_NODES).map(|index| up(&format!("n{index}"))), vec![]);
    check(
        "too many",
        &full,
        register(up("more")),
        Reply::Refused(Refusal::TooManyNodes(MAX_NODES)),
        unchanged,
    );
    let known = Node {
        incarnation: Incarnation(2),
        ..up("n7")
    };
    let put = |m: &mut Model| {
        m.version = 50;
        m.nodes.insert(
            node_id("n7"),
            Node {
                incarnation: Incarnation(2),
                ..up("n7")
            },
        );
    };
    check("one of them", &full, register(known), changed(), put);
}

#[test]
fn deploying_replaces_what_still_starts() {
    let (p, q) = (
        pipeline("p", vec![stage("S", 2)]),
        pipeline("q", vec![stage("S", 1)]),
    );
    let deploy = |spec: &PipelineSpec| Command::Deploy {
        spec: Arc::new(spec.clone()),
        healthy_deadline_ms: 120_000,
        origin: origin(),
    };
    let before = model(
        7,
        [up("a")],
        vec![
            rollout(3, &p, Phase::Serving, vec![placement(0, 1, "a")]),
            rollout(5, &p, Phase::Starting, vec![placement(0, 1, "a")]),
            rollout(6, &q, Phase::Starting, vec![placement(0, 1, "a")]),
        ],
    );
    let reply = Reply::Deployed {
        revision: Revision(50),
    };
    check("a next revision", &before, deploy(&p), reply, |m| {
        m.version = 50;
        let reason = "replaced by revision 50 before it was healthy";
        m.rollouts
            .insert(Revision(5), rollout(5, &p, failed(reason), vec![]));
        m.rollouts
            .insert(Revision(50), rollout(50, &p, Phase::Starting, vec![]));
        begin(m, record(50, &p));
    });

    let mut thief = pipeline("r", vec![stage("S", 1)]);
    thief.routes[0].path = "/q".into();
    let taken = Refusal::RouteTaken {
        path: "/q".into(),
        pipeline: name("q"),
    };
    check(
        "a path of another",
        &before,
        deploy(&thief),
        Reply::Refused(taken),
        unchanged,
    );

    let gone = model(7, [], vec![rollout(6, &q, failed("x"), vec![])]);
    check(
        "a path of a failed one",
        &gone,
        deploy(&thief),
        Reply::Deployed {
            revision: Revision(50),
        },
        |m| {
            m.version = 50;
            m.rollouts
                .insert(Revision(50), rollout(50, &thief, Phase::Starting, vec![]));
            begin(m, record(50, &thief));
        },
    );
}

#[test]
fn the_last_failures_are_kept() {
    let p = pipeline("p", vec![stage("S", 1)]);
    let before = model(
        7,
        [],
        (1..=5)
            .map(|revision| rollout(revision, &p, failed("x"), vec![]))
            .collect(),
    );
    let deploy = Command::Deploy {
        spec: Arc::new(p.clone()),
        healthy_deadline_ms: 120_000,
        origin: origin(),
    };
    check(
        "deploy",
        &before,
        deploy,
        Reply::Deployed {
            revision: Revision(50),
        },
        |m| {
            m.version = 50;
            m.rollouts.retain(|revision, _| revision.0 > 2);
            m.rollouts
                .insert(Revision(50), rollout(50, &p, Phase::Starting, vec![]));
            begin(m, record(50, &p));
        },
    );
}

#[test]
fn a_rollback_deploys_an_earlier_specification_anew() {
    let [old, bad, new] = [1, 2, 3].map(|replicas| pipeline("p", vec![stage("S", replicas)]));
    let mut state = Model::default();
    let mut run = |index, command: Command| apply(&mut state, index, command.into());
    let deploy = |spec: &PipelineSpec| Command::Deploy {
        spec: Arc::new(spec.clone()),
        healthy_deadline_ms: 1,
        origin: origin(),
    };
    let back = |to: Option<u64>| Command::Rollback {
        pipeline: name("p"),
        to: to.map(Revision),
        healthy_deadline_ms: 9,
        origin: origin(),
        at_once: false,
    };
    let serve = |revision, phase| Command::SetPhase {
        revision: Revision(revision),
        phase,
    };
    let unknown = Refusal::UnknownPipeline(name("p"));
    assert_eq!(run(1, back(None)), Reply::Refused(unknown));
    run(2, deploy(&old));
    run(3, serve(2, Phase::Serving));
    let nothing = Refusal::NothingBefore(name("p"));
    assert_eq!(run(4, back(None)), Reply::Refused(nothing));
    run(5, deploy(&bad));
    run(6, serve(5, failed("x")));
    run(7, deploy(&new));
    run(8, serve(7, Phase::Serving));
    // The one that failed never served, so it is not what was before.
    let revision = Revision(9);
    assert_eq!(run(9, back(None)), Reply::Deployed { revision });
    let there = |revision, outcome: &str| Refusal::AlreadyThere {
        pipeline: name("p"),
        revision: Revision(revision),
        outcome: outcome.into(),
    };
    assert_eq!(run(10, back(Some(9))), Reply::Refused(there(9, "starting")));
    assert_eq!(run(11, back(Some(7))), Reply::Refused(there(7, "serving")));
    let forgotten = Refusal::ForgottenRevision {
        pipeline: name("p"),
        revision: Revision(4),
        known: "2, 5, 7, 9".into(),
    };
    assert_eq!(run(12, back(Some(4))), Reply::Refused(forgotten));
    run(13, serve(9, Phase::Serving));
    // By number anything may be taken, as what failed it may be mended by now.
    let revision = Revision(14);
    assert_eq!(run(14, back(Some(5))), Reply::Deployed { revision });
    run(15, serve(14, failed("y")));

    let rolled_back = &state.rollouts[&Revision(9)];
    assert_eq!(
        (&*rolled_back.deployment.spec, rolled_back.healthy_deadline_ms),
        (&old, 9)
    );
    let rows: Vec<_> = state.histories[&name("p")]
        .records()
        .iter()
        .map(|r| (r.revision.0, r.rollback_of.map(|of| of.0), r.outcome.clone()))
        .collect();
    let by = |revision| Outcome::Replaced {
        by: Revision(revision),
    };
    let reason = |reason: &str| Outcome::Failed {
        reason: reason.into(),
    };
    assert_eq!(
        rows,
        [
            (2, None, by(7)),
            (5, None, reason("x")),
            (7, None, by(9)),
            (9, Some(2), Outcome::Serving),
            (14, Some(5), reason("y")),
        ]
    );
    apply(&mut state, 16, delete("p").into());
    assert!(state.histories.is_empty());
}

#[test]
fn placements_hold_for_the_version_they_were_made_for() {
    let p = pipeline("p", vec![stage("S", 2)]);
    let old = vec![placement(0, 1, "a")];
    let before = model(
        7,
        [up("a")],
        vec![
            rollout(3, &p, Phase::Starting, old.clone()),
            rollout(4, &p, failed("x"), vec![]),
        ],
    );
    let place = |revision, places: &[Placement], based_on| Command::SetPlacement {
        revision: Revision(revision),
        places: places.iter().cloned().collect(),
        based_on,
    };
    let new = [placement(0, 2, "a"), placement(0, 1, "a")];
    check("placed", &before, place(3, &new, 7), changed(), |m| {
        m.version = 50;
        let sorted = vec![placement(0, 1, "a"), placement(0, 2, "a")];
        m.rollouts
            .insert(Revision(3), rollout(3, &p, Phase::Starting, sorted));
    });
    check("too late", &before, place(3, &new, 6), Reply::Void, unchanged);
    check("no news", &before, place(3, &old, 7), Reply::Void, unchanged);
    check("failed", &before, place(4, &new, 7), Reply::Void, unchanged);
    check(
        "gone",
        &before,
        place(9, &new, 7),
        Reply::Refused(Refusal::UnknownRevision(Revision(9))),
        unchanged,
    );
}

#[test]
fn a_start_ends_well_or_badly() {
    let (p, q) = (
        pipeline("p", vec![stage("S", 1)]),
        pipeline("q", vec![stage("S", 1)]),
    );
    let at = vec![placement(0, 1, "a")];
    let before = model(
        7,
        [up("a")],
        vec![
            rollout(2, &q, Phase::Serving, at.clone()),
            rollout(3, &p, Phase::Serving, at.clone()),
            rollout(4, &p, failed("x"), vec![]),
            rollout(5, &p, Phase::Starting, at.clone()),
        ],
    );
    let set = |revision, phase| Command::SetPhase {
        revision: Revision(revision),
        phase,
    };
    check("promoted", &before, set(5, Phase::Serving), changed(), |m| {
        m.version = 50;
        m.rollouts
            .insert(Revision(3), rollout(3, &p, Phase::Retiring, at.clone()));
        m.rollouts
            .insert(Revision(5), rollout(5, &p, Phase::Serving, at.clone()));
    });
    check("failed", &before, set(5, failed("Traceback")), changed(), |m| {
        m.version = 50;
        m.rollouts
            .insert(Revision(5), rollout(5, &p, failed("Traceback"), vec![]));
    });
    check(
        "nothing",
        &before,
        set(5, Phase::Starting),
        Reply::Void,
        unchanged,
    );
    let serving = Refusal::NotStarting {
        revision: Revision(3),
        phase: "serving".into(),
    };
    check(
        "serves already",
        &before,
        set(3, failed("x")),
        Reply::Refused(serving),
        unchanged,
    );
    let has_failed = Refusal::NotStarting {
        revision: Revision(4),
        phase: "failed".into(),
    };
    check(
        "has failed",
        &before,
        set(4, Phase::Serving),
        Reply::Refused(has_failed),
        unchanged,
    );

    check("deleted", &before, delete("p"), changed(), |m| {
        m.version = 50;
        m.rollouts.remove(&Revision(4));
        for revision in [3, 5] {
            let retiring = rollout(revision, &p, Phase::Retiring, at.clone());
            m.rollouts.insert(Revision(revision), retiring);
        }
    });
    let unknown = Reply::Refused(Refusal::UnknownPipeline(name("x")));
    check("unknown", &before, delete("x"), unknown, unchanged);
}

#[test]
fn a_long_reason_keeps_its_end() {
    let p = pipeline("p", vec![stage("S", 1)]);
    let mut state = model(7, [], vec![rollout(5, &p, Phase::Starting, vec![])]);
    let reason = format!("{}ValueError: the cause", "x".repeat(100_000));
    apply(
        &mut state,
        50,
        Command::SetPhase {
            revision: Revision(5),
            phase: Phase::Failed { reason },
        }
        .into(),
    );
    let Phase::Failed { reason } = &state.rollouts[&Revision(5)].deployment.phase else {
        panic!("not failed")
    };
    assert!(reason.len() < 17_000 && reason.ends_with("ValueError: the cause"));
}

fn numbered(client: &str, seq: u64, command: Command) -> Proposal {
    Proposal {
        command,
        dedup: Some(Dedup {
            client: client.into(),
            seq,
        }),
    }
}

#[test]
fn a_repeated_write_has_one_effect_and_one_answer() {
    let p = Arc::new(pipeline("p", vec![stage("S", 1)]));
    let deploy = || Command::Deploy {
        spec: p.clone(),
        healthy_deadline_ms: 1,
        origin: origin(),
    };
    let mut state = Model::default();
    let first = apply(&mut state, 10, numbered("c", 4, deploy()));
    assert_eq!(
        first,
        Reply::Deployed {
            revision: Revision(10)
        }
    );
    let once = state.clone();
    assert_eq!(apply(&mut state, 11, numbered("c", 4, deploy())), first);
    assert_eq!(state, once);
    let stale = Refusal::StaleWrite { seq: 3, last: 4 };
    assert_eq!(
        apply(&mut state, 12, numbered("c", 3, deploy())),
        Reply::Refused(stale)
    );
    assert_eq!(state, once);
    let delete = delete("x");
    let refused = apply(&mut state, 13, numbered("c", 5, delete.clone()));
    assert_eq!(
        apply(&mut state, 14, numbered("c", 5, delete)),
        refused,
        "refusals are remembered, too"
    );
    assert_eq!(
        apply(&mut state, 15, numbered("d", 1, deploy())),
        Reply::Deployed {
            revision: Revision(15)
        }
    );
}

#[test]
fn clients_are_forgotten_in_the_order_of_their_writes() {
    let mut state = Model::default();
    for index in 0..MAX_CLIENTS as u64 + 10 {
        // Client 0 writes now and then, so it stays.
        let client = if index % 100 == 0 { 0 } else { index };
        apply(
            &mut state,
            index,
            numbered(&client.to_string(), index + 1, register(up("a"))),
        );
    }
    assert_eq!(state.clients.len(), MAX_CLIENTS);
    apply(&mut state, 5000, numbered("late", 1, register(up("a"))));
    assert_eq!(state.clients.len(), MAX_CLIENTS);
    assert!(
        state.clients.contains_key("0")
            && state.clients.contains_key("late")
            && !state.clients.contains_key("1")
    );
}

fn with_canary(spec: PipelineSpec) -> PipelineSpec {
    let mut spec = spec;
    spec.rollout.canary = Some(CanarySpec {
        replicas: 1,
        weight: 10,
        header: None,
        auto_promote: false,
    });
    spec
}

fn step() -> impl Strategy<Value = Step> {
    let phase = prop_oneof![
        Just(Phase::Starting),
        Just(Phase::Canary),
        Just(Phase::Rolling),
        Just(Phase::Serving),
    ];
    (phase, 0u32..120, 0u32..4, 0u32..4).prop_map(|(phase, weight, new, old)| Step {
        phase,
        weight,
        replicas: vec![new],
        predecessor: vec![old],
    })
}

fn command() -> impl Strategy<Value = Command> {
    let node = || "[ab]".prop_map(|name| node_id(&name));
    let revision = || (0u64..30).prop_map(Revision);
    let phase = prop_oneof![Just(Phase::Serving), Just(failed("x")), Just(Phase::Starting)];
    let health = prop_oneof![Just(Up), Just(Suspect), Just(Down)];
    prop_oneof![
        (node(), 0u64..3).prop_map(|(id, incarnation)| register(Node {
            id,
            incarnation: Incarnation(incarnation),
            ..up("a")
        })),
        (node(), 0u64..3, health).prop_map(|(node, incarnation, health)| Command::MarkNode {
            node,
            incarnation: Incarnation(incarnation),
            health
        }),
        ("[pq]", proptest::option::of(revision()), any::<bool>()).prop_map(|(pipeline, to, at_once)| {
            Command::Rollback {
                pipeline: name(&pipeline),
                to,
                healthy_deadline_ms: 1,
                origin: origin(),
                at_once,
            }
        }),
        "[pq]".prop_map(|name| Command::Deploy {
            spec: Arc::new(pipeline(&name, vec![stage("S", 1)])),
            healthy_deadline_ms: 1,
            origin: origin(),
        }),
        "[pq]".prop_map(|name| Command::Deploy {
            spec: Arc::new(with_canary(pipeline(&name, vec![stage("S", 3)]))),
            healthy_deadline_ms: 1,
            origin: origin(),
        }),
        ("[pq]", 0u32..5).prop_map(|(pipeline, wanted)| Command::Scale {
            pipeline: name(&pipeline),
            replicas: [("S".to_owned(), wanted)].into(),
            origin: origin(),
        }),
        ("[pq]", 0u32..120).prop_map(|(pipeline, weight)| Command::SetTraffic {
            pipeline: name(&pipeline),
            weight,
            origin: origin(),
        }),
        "[pq]".prop_map(|pipeline| Command::Promote {
            pipeline: name(&pipeline),
            origin: origin(),
        }),
        "[pq]".prop_map(|pipeline| Command::Abort {
            pipeline: name(&pipeline),
            origin: origin(),
        }),
        (node(), any::<bool>()).prop_map(|(node, draining)| Command::DrainNode {
            node,
            draining,
            origin: origin(),
        }),
        node().prop_map(|node| Command::RemoveNode {
            node,
            origin: origin(),
        }),
        (revision(), 0u64..30, step()).prop_map(|(revision, based_on, step)| Command::Advance {
            revision,
            step,
            based_on,
        }),
        (revision(), 0u64..30, 0usize..3).prop_map(|(revision, based_on, count)| {
            let places = [placement(0, 1, "a"), placement(0, 2, "b")];
            Command::SetPlacement {
                revision,
                places: places.into_iter().take(count).collect(),
                based_on,
            }
        }),
        (revision(), phase).prop_map(|(revision, phase)| Command::SetPhase { revision, phase }),
        "[pq]".prop_map(|pipeline| delete(&pipeline)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// What must hold whatever happens, and that a state and a log survive their encoding.
    #[test]
    fn any_history_keeps_the_rules(
        commands in proptest::collection::vec(command(), 0..30),
        format in (1u8..3).prop_map(Format),
    ) {
        let mut state = Model { format, ..Model::default() };
        for (index, mut command) in (1u64..).zip(commands) {
            // As a leader makes them: of the state as it is, for a revision that there is.
            if let Command::SetPlacement { revision, based_on, .. } | Command::Advance { revision, based_on, .. } = &mut command
                && !state.rollouts.is_empty()
            {
                let at = revision.0 as usize % state.rollouts.len();
                *revision = *state.rollouts.keys().nth(at).unwrap();
                *based_on = state.version;
            }
            if let Command::SetPhase { revision, .. } = &mut command
                && let Some(newest) = state.rollouts.keys().last()
            {
                *revision = *newest;
            }
            let json = serde_json::to_string(&Proposal::from(command.clone())).unwrap();
            prop_assert_eq!(serde_json::from_str::<Proposal>(&json).unwrap(), Proposal::from(command.clone()));
            let before = state.clone();
            let reply = apply(&mut state, index, command.into());
            let did = matches!(reply, Reply::Deployed { .. }) || reply == Reply::Done { version: index };
            let audited = Model { audit: state.audit.clone(), ..before.clone() };
            prop_assert_eq!(state != audited, did, "{:?}", reply);
            prop_assert_eq!(state.version, if did { index } else { before.version });
            for pipeline in ["p", "q"] {
                let phases = state.revisions_of(&name(pipeline)).into_iter().map(|r| state.rollouts[&r].deployment.phase.clone());
                let phases: Vec<_> = phases.collect();
                prop_assert!(phases.iter().filter(|phase| **phase == Phase::Serving).count() <= 1);
                prop_assert!(phases.iter().filter(|phase| phase.is_rollout()).count() <= 1);
                let pipeline = &name(pipeline);
                let of_pipeline = || state.rollouts_of(pipeline).map(|rollout| &rollout.deployment);
                if of_pipeline().any(|deployment| deployment.phase == Phase::Serving) {
                    prop_assert_eq!(of_pipeline().map(|deployment| deployment.weight).sum::<u32>(), 100);
                }
                prop_assert!(of_pipeline().all(|deployment| deployment.phase != Phase::Retiring || !deployment.placements.is_empty()));
                prop_assert!(of_pipeline().all(|deployment| deployment.phase.runs() || deployment.weight == 0));
                prop_assert!(state.rollouts_of(pipeline).all(|rollout| rollout.goal().iter().all(|&count| count >= 1)));
                let failures = phases.iter().filter(|phase| matches!(phase, Phase::Failed { .. })).count();
                prop_assert!(failures <= MAX_FAILED);
                prop_assert!(phases.iter().filter(|phase| **phase == Phase::Retiring).count() <= MAX_RETIRING);
                let running = |r: &Revision| state.rollouts[r].deployment.phase.runs();
                let expected: Vec<_> = state.revisions_of(pipeline).into_iter().filter(running).collect();
                let records = state.histories.get(pipeline).map_or(&[][..], |history| history.records());
                let is_over = |outcome: &Outcome| matches!(outcome, Outcome::Failed { .. } | Outcome::Replaced { .. } | Outcome::Superseded { .. });
                let found: Vec<_> = records.iter().filter(|record| !is_over(&record.outcome)).map(|record| record.revision).collect();
                prop_assert_eq!(found, expected, "the history knows what runs");
                prop_assert!(records.len() <= MAX_REMEMBERED);
            }
        }
        let json = serde_json::to_string(&state).unwrap();
        prop_assert_eq!(serde_json::from_str::<Model>(&json).unwrap(), state);
    }
}
