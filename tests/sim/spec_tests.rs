//! Histories made by hand: that what is wrong with a weight is found.

use super::*;

const PIPELINE: &str = "p";
/// Marks and revisions of what serves and of the canary.
const SERVING: (u64, u64) = (2, 1);
const CANARY: (u64, u64) = (5, 2);

fn after(history: &mut History, act: Act, outcome: Outcome) {
    let at = history.len() as u64 * 2;
    history.push(Call {
        began: at,
        ended: (outcome != Outcome::Unknown).then_some(at + 1),
        op: Op {
            client: 1,
            act,
            outcome,
            at_ms: (at, at + 1),
        },
    });
}

fn deploy(mark: u64) -> Act {
    Act::Deploy {
        pipeline: PIPELINE.into(),
        mark,
    }
}

fn canary(based_on: u64) -> Act {
    Act::Canary {
        pipeline: PIPELINE.into(),
        revision: CANARY.0,
        based_on,
    }
}

fn set_traffic(weight: u32) -> Act {
    Act::SetTraffic {
        pipeline: PIPELINE.into(),
        weight,
    }
}

/// A read that shows the canary with this weight.
fn shown(version: u64, weight: u32) -> Outcome {
    let shares = BTreeMap::from([(SERVING.1, 100 - weight), (CANARY.1, weight)]);
    Outcome::View(View {
        version,
        pipelines: BTreeMap::from([(PIPELINE.into(), vec![SERVING, CANARY])]),
        shares: BTreeMap::from([(PIPELINE.into(), shares)]),
        nodes: BTreeMap::new(),
    })
}

/// A revision serves and the next is a canary since version 6.
fn with_canary() -> History {
    let serve = Act::Serve {
        pipeline: PIPELINE.into(),
        revision: SERVING.0,
    };
    let mut history = History::new();
    after(&mut history, deploy(SERVING.1), Outcome::Deployed(SERVING.0));
    after(&mut history, serve, Outcome::Done(Some(3)));
    after(&mut history, deploy(CANARY.1), Outcome::Deployed(CANARY.0));
    after(&mut history, canary(CANARY.0), Outcome::Done(Some(6)));
    history
}

/// The verdict on such a history that goes on with these calls.
fn with(calls: &[(Act, Outcome)]) -> Result<(), String> {
    let mut history = with_canary();
    for (act, outcome) in calls {
        after(&mut history, act.clone(), outcome.clone());
    }
    verify(&history, Rollouts::ByCalls)
}

fn good(calls: &[(Act, Outcome)]) {
    assert_eq!(with(calls), Ok(()), "{calls:?}");
}

fn bad(calls: &[(Act, Outcome)]) {
    let found = with(calls);
    assert!(
        found.is_err_and(|text| text.contains("no order explains")),
        "{calls:?}"
    );
}

fn done(version: u64) -> Outcome {
    Outcome::Done(Some(version))
}

#[test]
fn weights_that_are_read_as_they_were_set_pass() {
    good(&[(Act::Read, shown(6, CANARY_WEIGHT))]);
    good(&[(set_traffic(50), done(8)), (Act::Read, shown(8, 50))]);
    // The same weight again changes nothing: it is told the version that there is.
    good(&[
        (set_traffic(50), done(8)),
        (set_traffic(50), done(8)),
        (Act::Read, shown(8, 50)),
    ]);
    // Without an answer it may have been set, now or later, or not.
    let lost = (set_traffic(50), Outcome::Unknown);
    good(&[lost.clone(), (Act::Read, shown(8, 50))]);
    good(&[lost.clone(), (Act::Read, shown(6, CANARY_WEIGHT))]);
    good(&[
        lost,
        (Act::Read, shown(6, CANARY_WEIGHT)),
        (Act::Read, shown(8, 50)),
    ]);
}

#[test]
fn a_weight_that_was_lost_is_caught() {
    bad(&[(set_traffic(50), done(8)), (Act::Read, shown(8, CANARY_WEIGHT))]);
    bad(&[
        (set_traffic(50), done(8)),
        (Act::Read, shown(8, 50)),
        (Act::Read, shown(9, CANARY_WEIGHT)),
    ]);
}

#[test]
fn a_weight_that_is_stale_is_caught() {
    bad(&[
        (set_traffic(50), done(8)),
        (set_traffic(60), done(9)),
        (Act::Read, shown(9, 50)),
    ]);
    // An older version was read after a newer one had been acknowledged.
    bad(&[(set_traffic(50), done(8)), (Act::Read, shown(6, CANARY_WEIGHT))]);
    // A weight that differs is a change, and has a version of its own; one that does not has no older one.
    bad(&[(set_traffic(50), done(6))]);
    bad(&[(set_traffic(50), done(8)), (set_traffic(50), done(6))]);
    // Nobody set it.
    bad(&[(set_traffic(50), done(8)), (Act::Read, shown(8, 70))]);
}

#[test]
fn a_weight_of_what_is_no_canary_is_caught() {
    let refused = |no| (set_traffic(50), Outcome::Refused(no));
    bad(&[refused(No::NotCanary)]);
    bad(&[refused(No::NotRollingOut)]);
    // A revision that starts is none, whatever the one before it was.
    let deployed = (deploy(3), Outcome::Deployed(9));
    good(&[deployed.clone(), refused(No::NotCanary)]);
    bad(&[deployed, (set_traffic(50), done(10))]);
    let serve = Act::Serve {
        pipeline: PIPELINE.into(),
        revision: CANARY.0,
    };
    good(&[(serve.clone(), done(9)), refused(No::NotRollingOut)]);
    bad(&[(serve, done(9)), (set_traffic(50), done(10))]);
}

#[test]
fn a_canary_of_what_goes_back_at_once_is_caught() {
    let serve = Act::Serve {
        pipeline: PIPELINE.into(),
        revision: CANARY.0,
    };
    let next = Act::Deploy {
        pipeline: PIPELINE.into(),
        mark: 3,
    };
    let back = |at_once| Act::Rollback {
        pipeline: PIPELINE.into(),
        to: SERVING.0,
        mark: 4,
        at_once,
    };
    let canary = |outcome| {
        let act = Act::Canary {
            pipeline: PIPELINE.into(),
            revision: 12,
            based_on: 12,
        };
        (act, outcome)
    };
    let after = |at_once, call| {
        let deployed = [
            (serve.clone(), done(9)),
            (next.clone(), Outcome::Deployed(10)),
            (back(at_once), Outcome::Deployed(12)),
        ];
        [&deployed[..], &[call]].concat()
    };
    good(&after(false, canary(done(13))));
    good(&after(true, canary(Outcome::Void)));
    bad(&after(true, canary(done(13))));
    let set = |outcome| (set_traffic(50), outcome);
    good(&after(true, set(Outcome::Refused(No::NotCanary))));
    bad(&after(true, set(done(13))));
}

#[test]
fn a_step_based_on_what_is_no_longer_so_is_caught() {
    // What it was based on is older than what had been acknowledged.
    let mut history = History::new();
    after(&mut history, deploy(SERVING.1), Outcome::Deployed(SERVING.0));
    let serve = |revision| Act::Serve {
        pipeline: PIPELINE.into(),
        revision,
    };
    after(&mut history, serve(SERVING.0), done(3));
    after(&mut history, deploy(CANARY.1), Outcome::Deployed(CANARY.0));
    let mut void = history.clone();
    after(&mut void, canary(4), Outcome::Void);
    assert_eq!(verify(&void, Rollouts::ByCalls), Ok(()));
    after(&mut history, canary(4), done(6));
    assert!(verify(&history, Rollouts::ByCalls).is_err());
    // A revision serves once.
    bad(&[(serve(CANARY.0), done(9)), (serve(CANARY.0), done(10))]);
    good(&[
        (serve(CANARY.0), done(9)),
        (serve(CANARY.0), Outcome::Refused(No::NotStarting)),
    ]);
}

/// The verdict on a history of a pipeline whose revisions a reconciler takes on, that ends in this read.
fn reconciled(calls: &[(Act, Outcome)], marks: &[(u64, u64)], shares: &[(u64, u32)]) -> Result<(), String> {
    let mut history = History::new();
    after(&mut history, deploy(SERVING.1), Outcome::Deployed(SERVING.0));
    after(&mut history, deploy(CANARY.1), Outcome::Deployed(CANARY.0));
    for (act, outcome) in calls {
        after(&mut history, act.clone(), outcome.clone());
    }
    let read = View {
        version: 20,
        pipelines: BTreeMap::from([(PIPELINE.into(), marks.to_vec())]),
        shares: BTreeMap::from([(PIPELINE.into(), shares.iter().copied().collect())]),
        nodes: BTreeMap::new(),
    };
    after(&mut history, Act::Read, Outcome::View(read));
    verify(&history, Rollouts::ByReconciler)
}

#[test]
fn what_a_reconciler_does_between_calls_passes() {
    let (both, newest) = ([SERVING, CANARY], [CANARY]);
    let canary = [(SERVING.1, 100 - CANARY_WEIGHT), (CANARY.1, CANARY_WEIGHT)];
    let good = |calls: &[_], marks: &[_], shares: &[_]| {
        assert_eq!(reconciled(calls, marks, shares), Ok(()), "{calls:?} {shares:?}");
    };
    good(&[], &both, &[]);
    good(&[], &both, &[(SERVING.1, 100)]);
    good(&[], &both, &canary);
    // The first is over.
    good(&[], &newest, &[(CANARY.1, 100)]);
    let refused = (set_traffic(50), Outcome::Refused(No::NotCanary));
    good(&[refused], &both, &canary);
    let set = [(set_traffic(50), done(8))];
    good(&set, &both, &[(SERVING.1, 50), (CANARY.1, 50)]);
    good(&set, &newest, &[(CANARY.1, 100)]);
}

#[test]
fn what_no_reconciler_does_is_caught() {
    let both = [SERVING, CANARY];
    let set = [(set_traffic(50), done(8))];
    let bad = |calls: &[_], marks: &[_], shares: &[_]| {
        assert!(reconciled(calls, marks, shares).is_err(), "{calls:?} {shares:?}");
    };
    let canary = [(SERVING.1, 100 - CANARY_WEIGHT), (CANARY.1, CANARY_WEIGHT)];
    // A weight that was lost, one that nobody set, and shares that are not the whole.
    bad(&set, &both, &canary);
    bad(&[], &both, &[(SERVING.1, 30), (CANARY.1, 70)]);
    bad(&set, &both, &[(SERVING.1, 100), (CANARY.1, 50)]);
    bad(&[], &both, &[(SERVING.1, 100 - CANARY_WEIGHT)]);
    // The weight of the canary before is not that of the next.
    let next = (deploy(3), Outcome::Deployed(9));
    let calls = [set[0].clone(), next];
    bad(&calls, &[SERVING, (9, 3)], &[(SERVING.1, 50), (3, 50)]);
    // The newest is not shown, or not as the last.
    bad(&[], &[SERVING], &[(SERVING.1, 100)]);
    bad(&[], &[CANARY, SERVING], &[(SERVING.1, 100)]);
}
