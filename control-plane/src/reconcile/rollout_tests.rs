//! Rollouts by table.

use std::time::Duration;

use mosec_types::WorkerState::{BackOff, Ready, Starting};
use mosec_types::topology::Node;
use mosec_types::topology::NodeHealth::{Down, Suspect};
use mosec_types::worker::MAX_ERROR_BYTES;
use mosec_types::{Incarnation, NodeId, PipelineSpec, StageIndex, StageSpec, WorkerStatus};

use super::*;
use crate::fixtures::{model, node, pipeline, placement, rollout, stage, up, worker};
use crate::reconcile::lease::LeaseTiming;
use crate::state::Origin;

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
    let mut watched = Watched::default();
    watched.observe(
        model,
        &Leases::take_over(LeaseTiming::default(), &model.nodes, start),
        start,
    );
    watched.observe(model, &leases, now);
    match next_steps(model, &leases, &Traffic::default(), &watched, now).as_slice() {
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

/// The placement decided while all nodes are silent.
fn placement_of(model: &Model) -> Option<Command> {
    let now = Instant::now();
    let leases = Leases::take_over(LeaseTiming::default(), &model.nodes, now);
    next_placement(model, &leases, now)
}

#[test]
fn stages_that_are_apart_get_nodes_by_what_the_pipeline_was_scaled_to() {
    let mut apart = stage("B", 1);
    apart.anti_affinity = vec![StageIndex(0)];
    let spec = pipeline("p", vec![stage("A", 4), apart]);
    let at = vec![placement(0, 1, "a"), placement(1, 1, "e")];
    let mut scaled = rollout(5, &spec, Phase::Serving, at);
    scaled.scale = [(StageIndex(0), 1), (StageIndex(1), 4)].into();
    scaled.deployment.replicas = vec![1, 4];
    let model = model(7, ["a", "b", "c", "d", "e"].map(up), vec![scaled]);
    let expected = [(0, 1, "a"), (1, 1, "e"), (1, 2, "b"), (1, 3, "c"), (1, 4, "d")];
    let places = expected.map(|(stage, replica, node)| placement(stage, replica, node));
    let expected = Command::SetPlacement {
        revision: Revision(5),
        places: places.into_iter().collect(),
        based_on: 7,
    };
    assert_eq!(placement_of(&model), Some(expected));
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
fn a_step_with_a_progress_deadline_has_it_anew_with_each_replica() {
    let mut spec = spec();
    spec.rollout.progress_deadline = Some(Duration::from_secs(150));
    let at = vec![placement(0, 1, "a"), placement(0, 2, "a"), placement(1, 1, "a")];
    let model = model(7, [up("a")], vec![rollout(5, &spec, Phase::Starting, at)]);
    let (start, mut watched) = (Instant::now(), Watched::default());
    let mut decide = |seconds, ready: u32| {
        let now = start + Duration::from_secs(seconds);
        let state = |replica| if replica <= ready { Ready } else { Starting };
        let mut workers: Vec<_> = (1..=2)
            .map(|replica| worker(5, 0, replica, state(replica)))
            .collect();
        workers.push(worker(5, 1, 1, Starting));
        let mut leases = Leases::take_over(LeaseTiming::default(), &model.nodes, now);
        let node = &model.nodes[&NodeId::new("a").unwrap()];
        leases.renew(Some(node), Incarnation(1), workers, now).unwrap();
        watched.observe(&model, &leases, now);
        let steps = next_steps(&model, &leases, &Traffic::default(), &watched, now);
        steps.into_iter().next().map(|step| match step {
            Command::SetPhase { phase, .. } => reason(Some(phase)),
            other => panic!("{other:?}"),
        })
    };
    // Longer as a whole than the deployment's deadline of two minutes. One that is lost and comes back is no progress.
    for (seconds, ready) in [(0, 0), (149, 1), (298, 2), (310, 1), (400, 2), (447, 2)] {
        assert_eq!(decide(seconds, ready), None, "{seconds} s");
    }
    assert_eq!(
        decide(448, 2).unwrap(),
        "no further replica was ready within 150s: stage B replica 1 on node a is starting"
    );
}

#[test]
fn placements_follow_the_nodes() {
    assert_eq!(placement_of(&starting()), None);
    let mut lost = starting();
    lost.nodes
        .insert(NodeId::new("b").unwrap(), node("b", Suspect, &[]));
    assert_eq!(placement_of(&lost), None, "a suspect node keeps its replicas");
    lost.nodes.insert(NodeId::new("b").unwrap(), node("b", Down, &[]));
    let moved = vec![placement(0, 1, "a"), placement(0, 2, "a"), placement(1, 1, "a")];
    let places = moved.into_iter().collect();
    assert_eq!(
        placement_of(&lost),
        Some(Command::SetPlacement {
            revision: Revision(5),
            places,
            based_on: 7
        })
    );

    let failed = rollout(6, &spec(), Phase::Failed { reason: "x".into() }, vec![]);
    assert_eq!(
        placement_of(&model(7, [up("a")], vec![failed])),
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
        placement_of(&model(7, [up("a"), up("b")], vec![first, second])),
        Some(expected)
    );
}

/// A cluster in which every replica that has a place is ready at once, unless it is not to be.
struct World {
    model: Model,
    index: u64,
    watched: Watched,
    traffic: Traffic,
    now: Instant,
    /// Revisions whose workers never become ready.
    broken: Vec<u64>,
}

impl World {
    fn new(of: impl IntoIterator<Item = Node>) -> Self {
        Self {
            model: model(1, of, vec![]),
            index: 1,
            watched: Watched::default(),
            traffic: Traffic::default(),
            now: Instant::now(),
            broken: Vec::new(),
        }
    }

    fn apply(&mut self, command: Command) -> u64 {
        self.index += 1;
        let reply = crate::state::apply(&mut self.model, self.index, command.into());
        assert!(!matches!(reply, crate::state::Reply::Refused(_)), "{reply:?}");
        self.index
    }

    fn deploy(&mut self, spec: &PipelineSpec) -> u64 {
        let spec = std::sync::Arc::new(spec.clone());
        self.apply(Command::Deploy {
            spec,
            healthy_deadline_ms: 60_000,
            origin: Origin::default(),
        })
    }

    fn leases(&self) -> Leases {
        let mut leases = Leases::take_over(LeaseTiming::default(), &self.model.nodes, self.now);
        for node in self.model.nodes.values() {
            let mut workers = Vec::new();
            for (revision, rollout) in &self.model.rollouts {
                let here = rollout
                    .deployment
                    .placements
                    .iter()
                    .filter(|place| place.node == node.id);
                let state = if self.broken.contains(&revision.0) {
                    Starting
                } else {
                    Ready
                };
                workers.extend(here.map(|place| worker(revision.0, place.stage.0, place.replica.0, state)));
            }
            leases
                .renew(Some(node), Incarnation(1), workers, self.now)
                .unwrap();
        }
        leases
    }

    /// One round of the leader's loop: what it decided.
    fn round(&mut self) -> Option<Command> {
        let leases = self.leases();
        self.watched.observe(&self.model, &leases, self.now);
        let mut steps = next_steps(&self.model, &leases, &self.traffic, &self.watched, self.now);
        let command = next_placement(&self.model, &leases, self.now).or_else(|| steps.pop())?;
        self.apply(command.clone());
        Some(command)
    }

    /// Rounds until nothing is left to decide; the rows after each step of a rollout.
    fn settle(&mut self) -> Vec<String> {
        let mut steps = Vec::new();
        for _ in 0..200 {
            match self.round() {
                None => return steps,
                Some(Command::SetPlacement { .. }) => self.check(),
                Some(_) => {
                    self.check();
                    steps.push(self.row());
                }
            }
        }
        panic!("it never ends: {steps:#?}");
    }

    /// What must hold at any time: a revision that takes requests has a replica of each stage that is ready.
    fn check(&self) {
        for rollout in self.model.rollouts.values() {
            let deployment = &rollout.deployment;
            if !deployment.phase.takes_requests() || deployment.weight == 0 {
                continue;
            }
            for (stage, _) in deployment.stages() {
                let placed = deployment.placements.iter().any(|place| place.stage == stage);
                let is_broken = self.broken.contains(&deployment.revision.0);
                assert!(
                    placed && !is_broken,
                    "{} has no replica of stage {stage}: {deployment:?}",
                    self.row()
                );
            }
        }
    }

    /// What this revision's rollout waits for.
    fn awaited(&self, revision: u64) -> Option<Awaited> {
        let rollout = &self.model.rollouts[&Revision(revision)];
        waits_for(
            &self.model,
            &self.leases(),
            &self.traffic,
            &self.watched,
            rollout,
            self.now,
        )
    }

    /// The same, as people read it.
    fn waits_for(&self, revision: u64) -> Option<String> {
        self.awaited(revision).map(|awaited| awaited.to_string())
    }

    /// Each revision as `number phase weight% replicas`.
    fn row(&self) -> String {
        let row = |(revision, rollout): (&Revision, &Rollout)| {
            let deployment = &rollout.deployment;
            let counts: Vec<_> = deployment
                .stages()
                .map(|(index, _)| deployment.count(index).to_string())
                .collect();
            format!(
                "{revision} {} {}% {}",
                deployment.phase.name(),
                deployment.weight,
                counts.join(",")
            )
        };
        let running = self
            .model
            .rollouts
            .iter()
            .filter(|(_, rollout)| rollout.deployment.phase.runs());
        running.map(row).collect::<Vec<_>>().join(" | ")
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }
}

fn with_gpus(name: &str, gpus: usize) -> Node {
    Node {
        capacity: mosec_types::Capacity {
            gpus: vec![Default::default(); gpus],
            ..Default::default()
        },
        ..up(name)
    }
}

fn on_gpu(name: &str, replicas: u32) -> StageSpec {
    StageSpec {
        needs: mosec_types::Needs {
            gpus: 100,
            ..Default::default()
        },
        ..stage(name, replicas)
    }
}

#[test]
fn all_at_once_is_one_step() {
    let mut world = World::new([up("a"), up("b")]);
    world.deploy(&spec());
    assert_eq!(world.settle(), ["2 serving 100% 2,1"]);
    world.deploy(&spec());
    assert_eq!(world.settle(), ["5 serving 100% 2,1"]);
}

#[test]
fn a_rolling_update_replaces_a_few_at_a_time() {
    let mut world = World::new([up("a"), up("b")]);
    let mut spec = pipeline("p", vec![stage("A", 4), stage("B", 2)]);
    spec.rollout.max_parallel = 1;
    world.deploy(&spec);
    world.settle();
    world.deploy(&spec);
    assert_eq!(
        world.settle(),
        [
            "2 serving 75% 3,1 | 5 rolling 25% 2,2",
            "2 serving 50% 2,1 | 5 rolling 50% 3,2",
            "2 serving 25% 1,1 | 5 rolling 75% 4,2",
            "5 serving 100% 4,2",
        ]
    );
}

fn with_canary(auto_promote: bool) -> PipelineSpec {
    let mut spec = pipeline("p", vec![stage("A", 2)]);
    spec.rollout = mosec_types::RolloutSpec {
        max_parallel: 1,
        min_healthy_time: Duration::from_secs(10),
        canary: Some(mosec_types::rollout::CanarySpec {
            replicas: 1,
            weight: 10,
            header: None,
            auto_promote,
        }),
        bounds: mosec_types::rollout::Bounds {
            max_errors: Some(100),
            ..Default::default()
        },
        ..Default::default()
    };
    spec
}

fn requests(requests: u64, errors: u64) -> BTreeMap<Revision, mosec_types::traffic::Counts> {
    let counts = mosec_types::traffic::Counts {
        requests,
        errors,
        slow: 0,
    };
    (0..100).map(|revision| (Revision(revision), counts)).collect()
}

#[test]
fn a_canary_waits_to_be_promoted() {
    let mut world = World::new([up("a"), up("b")]);
    world.deploy(&with_canary(false));
    world.settle();
    let canary = world.deploy(&with_canary(false));
    assert_eq!(world.settle(), [""; 0], "not healthy for long enough");
    let waits = |world: &World| world.waits_for(canary);
    assert_eq!(waits(&world).unwrap(), "min_healthy_time: 0s of 10s");
    world.pass(Duration::from_secs(10));
    assert_eq!(waits(&world), None, "it goes on at once");
    assert_eq!(world.settle(), ["2 serving 90% 2 | 5 canary 10% 1"]);
    assert_eq!(waits(&world).unwrap(), "promotion: mosectl rollout promote p");
    world.pass(10 * MINUTE);
    assert_eq!(world.settle(), [""; 0], "it waits for as long as it has to");
    assert_eq!(waits(&world).unwrap(), "promotion: mosectl rollout promote p");
    world.apply(Command::Promote {
        pipeline: spec().name,
        origin: Origin::default(),
    });
    assert_eq!(world.settle(), ["2 serving 50% 1 | 5 rolling 50% 2"]);
    assert_eq!(waits(&world).unwrap(), "min_healthy_time: 0s of 10s");
    world.pass(Duration::from_secs(10));
    assert_eq!(world.settle(), ["5 serving 100% 2"]);
}

#[test]
fn what_is_healthy_as_a_canary_is_not_waited_for_again() {
    let promote = || Command::Promote {
        pipeline: spec().name,
        origin: Origin::default(),
    };
    // Promoted as soon as it is a canary: only the replica that is new has to be ready for long enough.
    for (replicas, steps) in [(1, 1), (2, 0)] {
        let mut world = World::new([up("a"), up("b")]);
        let mut spec = with_canary(false);
        spec.rollout.canary.as_mut().unwrap().replicas = replicas;
        world.deploy(&spec);
        world.settle();
        let canary = world.deploy(&spec);
        world.settle();
        world.pass(Duration::from_secs(10));
        world.settle();
        world.apply(promote());
        let mut waited = 0;
        world.settle();
        while world.model.rolling_out(&spec.name).is_some() {
            waited += 1;
            world.pass(Duration::from_secs(10));
            world.settle();
        }
        assert_eq!(world.row(), format!("{canary} serving 100% 2"));
        assert_eq!(waited, steps, "with a canary of {replicas}");
    }
}

#[test]
fn a_canary_that_promotes_itself_takes_requests_for_long_enough() {
    let mut world = World::new([up("a"), up("b")]);
    world.deploy(&with_canary(true));
    world.settle();
    let canary = world.deploy(&with_canary(true));
    world.settle();
    world.pass(Duration::from_secs(10));
    world.traffic.report("g", requests(1000, 0), world.now);
    assert_eq!(world.settle(), ["2 serving 90% 2 | 5 canary 10% 1"]);
    // It was ready for so long before, and took none.
    world.pass(Duration::from_secs(9));
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(world.waits_for(canary).unwrap(), "min_healthy_time: 9s of 10s");
    world.pass(Duration::from_secs(1));
    let steps = world.settle();
    assert_eq!(steps.last().unwrap(), "2 serving 50% 1 | 5 rolling 50% 2");
}

#[test]
fn a_canary_goes_on_by_itself_once_it_has_held_its_bounds() {
    let mut world = World::new([up("a"), up("b")]);
    world.deploy(&with_canary(true));
    world.settle();
    let canary = world.deploy(&with_canary(true));
    world.settle();
    world.pass(Duration::from_secs(10));
    world.settle();
    world.pass(Duration::from_secs(10));
    world.traffic.report("g", requests(49, 0), world.now);
    assert_eq!(world.settle(), [""; 0], "too few requests");
    let awaited = world.awaited(canary);
    let (found, wanted) = (49, 50);
    assert_eq!(awaited, Some(Awaited::Requests { found, wanted }));
    world.traffic.report("g", requests(50, 0), world.now);
    let steps = world.settle();
    assert_eq!(
        steps,
        [
            "2 serving 90% 2 | 5 canary 10% 1",
            "2 serving 50% 1 | 5 rolling 50% 2"
        ]
    );
}

/// A world in which two revisions with a canary have served, of which the later one does.
fn with_a_way_back() -> (World, PipelineSpec) {
    let mut world = World::new([up("a"), up("b")]);
    let mut spec = with_canary(false);
    spec.stages[0].replicas = 4;
    for _ in 0..2 {
        let revision = world.deploy(&spec);
        world.settle();
        // The first has nothing to replace.
        if world.model.rolling_out(&spec.name).is_some() {
            world.apply(Command::Promote {
                pipeline: spec.name.clone(),
                origin: Origin::default(),
            });
        }
        while world.model.rolling_out(&spec.name).is_some() {
            world.pass(Duration::from_secs(10));
            world.settle();
        }
        assert_eq!(world.row(), format!("{revision} serving 100% 4"));
    }
    (world, spec)
}

fn back() -> Command {
    Command::Rollback {
        pipeline: spec().name,
        to: None,
        healthy_deadline_ms: 60_000,
        origin: Origin::default(),
        at_once: true,
    }
}

#[test]
fn a_rollback_waits_for_its_replicas_alone() {
    let (mut world, spec) = with_a_way_back();
    let serving = world.model.serving(&spec.name).unwrap().deployment.revision;
    let next = world.apply(back());
    // Neither a canary nor `min_healthy_time`, and as many replicas at a time as ever.
    assert_eq!(
        world.settle(),
        [
            format!("{serving} serving 75% 3 | {next} rolling 25% 2"),
            format!("{serving} serving 50% 2 | {next} rolling 50% 3"),
            format!("{serving} serving 25% 1 | {next} rolling 75% 4"),
            format!("{next} serving 100% 4"),
        ]
    );
}

#[test]
fn a_rollback_that_does_not_become_healthy_is_reverted() {
    let (mut world, _) = with_a_way_back();
    let before = world.row();
    let next = world.apply(back());
    world.broken.push(next);
    assert_eq!(world.settle(), [""; 0]);
    world.pass(MINUTE);
    assert_eq!(world.settle(), [before]);
}

#[test]
fn a_rollback_takes_the_place_of_a_canary() {
    let (mut world, spec) = with_a_way_back();
    let serving = world.model.serving(&spec.name).unwrap().deployment.revision;
    let canary = world.deploy(&spec);
    world.settle();
    world.pass(Duration::from_secs(10));
    world.settle();
    assert_eq!(
        world.row(),
        format!("{serving} serving 90% 4 | {canary} canary 10% 1")
    );
    let next = world.apply(back());
    assert_eq!(
        world.row(),
        format!("{serving} serving 100% 4 | {next} starting 0% 1")
    );
    let steps = world.settle();
    assert_eq!(steps.last().unwrap(), &format!("{next} serving 100% 4"));
}

#[test]
fn a_broken_bound_reverts_the_update() {
    let mut world = World::new([up("a"), up("b")]);
    world.deploy(&with_canary(false));
    world.settle();
    let canary = world.deploy(&with_canary(false));
    world.traffic.report("g", requests(1000, 500), world.now);
    assert_eq!(
        world.settle(),
        [""; 0],
        "counts before it takes requests are of nobody"
    );
    world.pass(Duration::from_secs(10));
    assert_eq!(
        world.settle(),
        ["2 serving 90% 2 | 5 canary 10% 1", "2 serving 100% 2"]
    );
    let Phase::Failed { reason } = &world.model.rollouts[&Revision(canary)].deployment.phase else {
        panic!("not failed")
    };
    assert!(
        reason.starts_with("as canary, 500 of 1000 requests failed (50.00%)"),
        "{reason}"
    );
}

#[test]
fn a_step_that_does_not_become_healthy_reverts_the_update() {
    let mut world = World::new([up("a"), up("b")]);
    let mut spec = pipeline("p", vec![stage("A", 4)]);
    spec.rollout.max_parallel = 1;
    world.deploy(&spec);
    world.settle();
    let next = world.deploy(&spec);
    world.broken.push(next);
    assert_eq!(world.settle(), [""; 0]);
    world.pass(MINUTE);
    assert_eq!(world.settle(), ["2 serving 100% 4"]);
}

#[test]
fn without_room_for_both_replicas_are_replaced_in_place() {
    for (nodes, max_parallel) in [
        (vec![with_gpus("a", 2), with_gpus("b", 2)], 1),
        (vec![with_gpus("a", 2), with_gpus("b", 2)], 0),
    ] {
        let mut world = World::new(nodes);
        let mut spec = pipeline("p", vec![on_gpu("A", 2), on_gpu("B", 2)]);
        spec.rollout.max_parallel = max_parallel;
        world.deploy(&spec);
        world.settle();
        let next = world.deploy(&spec);
        let steps = world.settle();
        assert_eq!(
            steps.last().unwrap(),
            &format!("{next} serving 100% 2,2"),
            "{steps:#?}"
        );
        assert!(
            steps.iter().any(|step| step.contains("serving 50% 1,1 |")),
            "{steps:#?}"
        );
    }
}

#[test]
fn what_fits_nowhere_takes_no_replica_from_what_serves() {
    for gpus in [0, 1] {
        let mut world = World::new([with_gpus("a", gpus), with_gpus("b", gpus)]);
        world.deploy(&pipeline("p", vec![stage("A", 2)]));
        world.settle();
        let mut spec = pipeline("p", vec![on_gpu("A", 2)]);
        spec.stages[0].needs.gpus = 200;
        let next = world.deploy(&spec);
        world.settle();
        assert_eq!(world.row(), format!("2 serving 100% 2 | {next} starting 0% 1"));
        assert_eq!(world.model.rollouts[&Revision(2)].deployment.placements.len(), 2);
        world.pass(MINUTE);
        assert_eq!(world.settle(), ["2 serving 100% 2"]);
    }
}

#[test]
fn a_last_replica_is_not_given_up() {
    let mut world = World::new([with_gpus("a", 1)]);
    let spec = pipeline("p", vec![on_gpu("A", 1)]);
    world.deploy(&spec);
    world.settle();
    let next = world.deploy(&spec);
    assert_eq!(world.settle(), [""; 0]);
    world.pass(MINUTE);
    assert_eq!(world.settle(), ["2 serving 100% 1"]);
    let Phase::Failed { reason } = &world.model.rollouts[&Revision(next)].deployment.phase else {
        panic!("not failed")
    };
    assert!(
        reason.contains("stage A replica 1 fits no node: a has 0 of 1 GPUs free, not 1"),
        "{reason}"
    );
}

#[test]
fn an_in_place_update_that_fails_gives_the_room_back() {
    let mut world = World::new([with_gpus("a", 2)]);
    let spec = pipeline("p", vec![on_gpu("A", 2)]);
    world.deploy(&spec);
    world.settle();
    let next = world.deploy(&spec);
    world.broken.push(next);
    world.settle();
    assert_eq!(world.row(), format!("2 serving 100% 1 | {next} starting 0% 1"));
    world.pass(MINUTE);
    world.settle();
    assert_eq!(world.row(), "2 serving 100% 2");
    assert_eq!(world.model.rollouts[&Revision(2)].deployment.placements.len(), 2);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]

    /// Whatever the numbers: an update ends, and at no time is a revision that takes requests without a stage.
    #[test]
    fn any_update_ends_and_never_leaves_requests_without_replicas(
        counts in proptest::collection::vec((1u32..5, 1u32..5, proptest::bool::ANY), 1..4),
        gpus in proptest::collection::vec(0usize..4, 1..4),
        max_parallel in 0u32..3,
        fails in proptest::bool::ANY,
    ) {
        let nodes = gpus.iter().enumerate().map(|(index, &gpus)| with_gpus(&format!("n{index}"), gpus));
        let mut world = World::new(nodes);
        let spec = |next: bool| {
            let stages = counts.iter().enumerate().map(|(index, &(old, new, gpu))| {
                let (name, count) = (format!("S{index}"), if next { new } else { old });
                if gpu { on_gpu(&name, count) } else { stage(&name, count) }
            });
            let mut spec = pipeline("p", stages.collect());
            spec.rollout.max_parallel = max_parallel;
            spec
        };
        let first = world.deploy(&spec(false));
        world.settle();
        world.pass(2 * MINUTE);
        world.settle();
        let served = world.model.serving(&spec(false).name).is_some();
        let next = world.deploy(&spec(true));
        if fails {
            world.broken.push(next);
        }
        world.settle();
        world.pass(2 * MINUTE);
        world.settle();
        let row = world.row();
        let (old, new) = (format!("{first} serving 100%"), format!("{next} serving 100%"));
        proptest::prop_assert!(row.is_empty() || row.starts_with(&old) || row.starts_with(&new), "{row}");
        proptest::prop_assert!(!(fails && row.starts_with(&new)));
        proptest::prop_assert!(!served || !row.is_empty(), "something serves on");
    }
}
