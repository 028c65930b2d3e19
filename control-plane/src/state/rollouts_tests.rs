//! Rollouts as the state has them.

use std::sync::Arc;

use mosec_types::StageSpec;
use mosec_types::rollout::CanarySpec;

use super::*;
use crate::fixtures::{pipeline, stage};
use crate::state::format::{FIRST, SECOND};
use crate::state::{Command, Outcome, Reply, apply};

fn name() -> PipelineName {
    PipelineName::new("p").unwrap()
}

fn origin() -> Origin {
    Origin {
        by: "someone".into(),
        at_unix_ms: 1,
    }
}

fn deploy(spec: &PipelineSpec) -> Command {
    Command::Deploy {
        spec: Arc::new(spec.clone()),
        healthy_deadline_ms: 1,
        origin: origin(),
    }
}

fn serve(revision: u64) -> Command {
    Command::SetPhase {
        revision: Revision(revision),
        phase: Phase::Serving,
    }
}

fn scale(count: u32) -> Command {
    Command::Scale {
        pipeline: name(),
        replicas: [("A".to_owned(), count)].into(),
        origin: origin(),
    }
}

fn back(at_once: bool) -> Command {
    Command::Rollback {
        pipeline: name(),
        to: None,
        healthy_deadline_ms: 1,
        origin: origin(),
        at_once,
    }
}

fn with_canary(mut spec: PipelineSpec) -> PipelineSpec {
    spec.rollout.canary = Some(CanarySpec {
        replicas: 1,
        weight: 10,
        header: None,
        auto_promote: false,
    });
    spec
}

/// A state after these commands, logged from 1 on.
struct State {
    model: Model,
    index: u64,
}

impl State {
    fn after(commands: impl IntoIterator<Item = Command>) -> Self {
        let mut state = Self {
            model: Model::default(),
            index: 0,
        };
        for command in commands {
            let reply = state.run(command);
            assert!(!matches!(reply, Reply::Refused(_) | Reply::Void), "{reply:?}");
        }
        state
    }

    fn run(&mut self, command: Command) -> Reply {
        self.index += 1;
        apply(&mut self.model, self.index, command.into())
    }

    fn refused(&mut self, command: Command) -> String {
        match self.run(command) {
            Reply::Refused(refusal) => refusal.to_string(),
            other => panic!("{other:?}"),
        }
    }

    fn advance(&mut self, revision: u64, phase: Phase, weight: u32, counts: [u32; 2]) -> Reply {
        let [new, old] = counts;
        let step = Step {
            phase,
            weight,
            replicas: vec![new],
            predecessor: vec![old],
        };
        let based_on = self.model.version;
        self.run(Command::Advance {
            revision: Revision(revision),
            step,
            based_on,
        })
    }

    /// Phase, replicas of the first stage and weight of each revision.
    fn rows(&self) -> Vec<(u64, &'static str, u32, u32)> {
        let row = |(revision, rollout): (&Revision, &Rollout)| {
            let deployment = &rollout.deployment;
            let phase = deployment.phase.name();
            (
                revision.0,
                phase,
                deployment.count(StageIndex(0)),
                deployment.weight,
            )
        };
        self.model.rollouts.iter().map(row).collect()
    }
}

#[test]
fn an_update_begins_with_what_its_specification_says() {
    let plain = pipeline("p", vec![stage("A", 4)]);
    let mut rolling = plain.clone();
    rolling.rollout.max_parallel = 2;
    let cases = [(&plain, 4), (&rolling, 2), (&with_canary(plain.clone()), 1)];
    for (spec, replicas) in cases {
        let first = State::after([deploy(spec)]);
        assert_eq!(first.rows(), [(1, "starting", 4, 0)], "nothing to be replaced");
        let state = State::after([deploy(&plain), serve(1), deploy(spec)]);
        assert_eq!(
            state.rows(),
            [(1, "serving", 4, 100), (3, "starting", replicas, 0)]
        );
    }
}

#[test]
fn steps_move_replicas_and_requests() {
    let spec = with_canary(pipeline("p", vec![stage("A", 4)]));
    let mut state = State::after([deploy(&spec), serve(1), deploy(&spec)]);
    state.advance(3, Phase::Canary, 10, [1, 4]);
    assert_eq!(state.rows(), [(1, "serving", 4, 90), (3, "canary", 1, 10)]);
    let traffic = |weight| Command::SetTraffic {
        pipeline: name(),
        weight,
        origin: origin(),
    };
    state.run(traffic(30));
    assert_eq!(state.rows(), [(1, "serving", 4, 70), (3, "canary", 1, 30)]);
    state.run(Command::Promote {
        pipeline: name(),
        origin: origin(),
    });
    assert!(state.model.rollouts[&Revision(3)].promoted);
    assert_eq!(
        state.refused(traffic(5)),
        "revision 3 of pipeline p is canary and has no canary to send requests to"
    );
    state.advance(3, Phase::Rolling, 50, [2, 2]);
    assert_eq!(state.rows(), [(1, "serving", 2, 50), (3, "rolling", 2, 50)]);
    // A step that was decided on an older state is void.
    let step = Step {
        phase: Phase::Rolling,
        weight: 75,
        replicas: vec![3],
        predecessor: vec![1],
    };
    let late = Command::Advance {
        revision: Revision(3),
        step,
        based_on: 2,
    };
    assert_eq!(state.run(late), Reply::Void);
    state.run(serve(3));
    assert_eq!(state.rows(), [(3, "serving", 4, 100)]);
}

#[test]
fn whatever_ends_a_rollout_gives_all_back() {
    let spec = pipeline("p", vec![stage("A", 4)]);
    let abort = Command::Abort {
        pipeline: name(),
        origin: origin(),
    };
    let fail = Command::SetPhase {
        revision: Revision(3),
        phase: Phase::Failed { reason: "x".into() },
    };
    for (command, reason) in [
        (abort.clone(), "aborted by someone"),
        (fail, "x"),
        (deploy(&spec), "replaced by revision 5 before it was healthy"),
    ] {
        let mut state = State::after([deploy(&spec), serve(1), deploy(&spec)]);
        state.advance(3, Phase::Rolling, 50, [2, 2]);
        state.run(command);
        assert_eq!(state.rows()[..2], [(1, "serving", 4, 100), (3, "failed", 2, 0)]);
        let failed = Phase::Failed {
            reason: reason.into(),
        };
        assert_eq!(state.model.rollouts[&Revision(3)].deployment.phase, failed);
    }
    let mut state = State::after([deploy(&spec), serve(1)]);
    assert_eq!(
        state.refused(abort),
        "no revision of pipeline p is on its way to serve"
    );
}

#[test]
fn a_rollback_at_once_is_no_canary() {
    let mut spec = with_canary(pipeline("p", vec![stage("A", 4)]));
    spec.rollout.max_parallel = 2;
    let served = || [deploy(&spec), serve(1), deploy(&spec), serve(3)];
    // As earlier builds logged it: the canary that the specification has.
    let mut state = State::after(served());
    state.run(back(false));
    assert_eq!(state.rows(), [(3, "serving", 4, 100), (5, "starting", 1, 0)]);
    assert!(!state.model.rollouts[&Revision(5)].promoted);

    let mut state = State::after(served());
    state.run(back(true));
    assert_eq!(state.rows(), [(3, "serving", 4, 100), (5, "starting", 2, 0)]);
    assert!(state.model.rollouts[&Revision(5)].promoted);
    let promote = Command::Promote {
        pipeline: name(),
        origin: origin(),
    };
    assert_eq!(
        state.refused(promote),
        "revision 5 of pipeline p is starting and has no canary to promote"
    );
    assert_eq!(state.advance(5, Phase::Canary, 10, [2, 4]), Reply::Void);
    state.advance(5, Phase::Rolling, 50, [4, 2]);
    assert_eq!(state.rows(), [(3, "serving", 2, 50), (5, "rolling", 4, 50)]);
}

#[test]
fn a_rollback_ends_the_canary_that_is_there() {
    let spec = with_canary(pipeline("p", vec![stage("A", 4)]));
    let served = [deploy(&spec), serve(1), deploy(&spec), serve(3), deploy(&spec)];
    let mut state = State::after(served);
    state.advance(5, Phase::Canary, 10, [1, 4]);
    assert_eq!(state.rows(), [(3, "serving", 4, 90), (5, "canary", 1, 10)]);
    state.run(back(true));
    // It takes no more requests from here on, and what serves has them until the way back takes over.
    let expected = [(3, "serving", 4, 100), (5, "failed", 1, 0), (7, "starting", 4, 0)];
    assert_eq!(state.rows(), expected);
    let history = &state.model.histories[&name()];
    let back = history.find(Revision(7)).unwrap();
    assert_eq!(
        back.rollback_of,
        Some(Revision(1)),
        "of the one before what serves"
    );
}

#[test]
fn what_a_newer_revision_takes_the_place_of_is_superseded() {
    let spec = with_canary(pipeline("p", vec![stage("A", 4)]));
    let after = |format| {
        let mut state = State::after([deploy(&spec), serve(1), deploy(&spec)]);
        state.model.format = format;
        state.advance(3, Phase::Canary, 10, [1, 4]);
        state.run(deploy(&spec));
        let expected = [(1, "serving", 4, 100), (3, "failed", 1, 0), (5, "starting", 1, 0)];
        assert_eq!(state.rows(), expected);
        state
    };
    let outcome = |state: &State, revision| {
        let record = state.model.histories[&name()].find(Revision(revision));
        record.unwrap().outcome.clone()
    };
    let mut state = after(SECOND);
    assert_eq!(outcome(&state, 3), Outcome::Superseded { by: Revision(5) });
    let reason = "superseded by revision 5 before it served".into();
    let failed = Phase::Failed { reason };
    assert_eq!(state.model.rollouts[&Revision(3)].deployment.phase, failed);
    // It has never served, but its number brings it back.
    let unnamed = state.refused(back(true));
    assert_eq!(
        unnamed,
        "no revision of pipeline p has served before the one that does now"
    );
    let named = Command::Rollback {
        pipeline: name(),
        to: Some(Revision(3)),
        healthy_deadline_ms: 1,
        origin: origin(),
        at_once: true,
    };
    assert!(matches!(state.run(named), Reply::Deployed { .. }));

    // What earlier builds apply alike.
    let state = after(FIRST);
    let reason = "replaced by revision 5 before it was healthy".into();
    assert_eq!(outcome(&state, 3), Outcome::Failed { reason });
}

#[test]
fn a_scale_outlives_rollbacks_and_not_deployments() {
    let spec = pipeline("p", vec![stage("A", 2), stage("B", 1)]);
    let mut state = State::after([deploy(&spec), serve(1), deploy(&spec), serve(3), scale(6)]);
    assert_eq!(state.rows(), [(3, "serving", 6, 100)]);
    assert_eq!(state.run(scale(6)), Reply::Done { version: 5 }, "no news");
    state.run(back(false));
    assert_eq!(state.rows()[1], (7, "starting", 6, 0));
    state.run(serve(7));
    assert_eq!(state.model.rollouts[&Revision(7)].goal(), [6, 1]);
    state.run(deploy(&spec));
    state.run(serve(9));
    assert_eq!(state.rows(), [(9, "serving", 2, 100)]);
}

#[test]
fn a_scale_during_a_rollout_is_for_both() {
    let spec = pipeline("p", vec![stage("A", 2)]);
    let mut state = State::after([deploy(&spec), serve(1), deploy(&spec)]);
    state.advance(3, Phase::Rolling, 50, [1, 1]);
    state.run(scale(5));
    assert_eq!(state.rows(), [(1, "serving", 1, 50), (3, "rolling", 1, 50)]);
    for revision in [1, 3] {
        assert_eq!(state.model.rollouts[&Revision(revision)].goal(), [5]);
    }
}

#[test]
fn what_cannot_be_scaled_is_named() {
    let env = |text: &str| [("X".to_owned(), text.to_owned())].into();
    let various = StageSpec {
        env: vec![env("1"), env("2")],
        ..stage("A", 2)
    };
    let mut state = State::after([deploy(&pipeline("p", vec![various, stage("B", 1)]))]);
    assert_eq!(
        state.refused(scale(3)),
        "stage A has variables for each of its 2 replicas, so there cannot be 3"
    );
    let unknown = Command::Scale {
        pipeline: name(),
        replicas: [("B".to_owned(), 2), ("C".to_owned(), 2)].into(),
        origin: origin(),
    };
    let before = state.model.clone();
    assert_eq!(
        state.refused(unknown),
        "pipeline p has no stage C, its stages are A, B"
    );
    assert_eq!(state.model.rollouts, before.rollouts, "all or nothing");
    let many = Command::Scale {
        pipeline: name(),
        replicas: [("B".to_owned(), 4096)].into(),
        origin: origin(),
    };
    assert_eq!(
        state.refused(many),
        "expected at most 4096 replicas in all, found 4098"
    );
    assert!(matches!(state.run(scale(1)), Reply::Done { .. }));
}
