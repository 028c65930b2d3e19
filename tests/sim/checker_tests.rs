use proptest::prelude::*;

use super::*;

/// One register that counts up when written.
struct Register;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Write(u8),
    Read(u8),
    /// Writes where the register has the first value; says whether it did.
    Swap(u8, u8, bool),
}

impl Sequential for Register {
    type State = u8;
    type Op = Op;

    fn initial(&self) -> u8 {
        0
    }

    fn only_looks(&self, op: &Op) -> bool {
        matches!(op, Op::Read(_) | Op::Swap(_, _, false))
    }

    fn step(&self, state: &u8, op: &Op) -> Option<u8> {
        match *op {
            Op::Write(value) => Some(value),
            Op::Read(value) => (value == *state).then_some(*state),
            Op::Swap(from, to, done) => match (*state == from, done) {
                (true, true) => Some(to),
                (false, false) => Some(*state),
                _ => None,
            },
        }
    }
}

fn call(op: Op, began: u64, ended: u64) -> Call<Op> {
    Call {
        op,
        began,
        ended: (ended != 0).then_some(ended),
    }
}

fn verdict(calls: &[Call<Op>]) -> Verdict {
    check(&Register, calls, 100_000)
}

#[test]
fn good_histories_pass() {
    let good: &[&[Call<Op>]] = &[
        &[],
        &[call(Op::Write(1), 1, 2), call(Op::Read(1), 3, 4)],
        // A read beside a write may see either.
        &[
            call(Op::Write(1), 1, 6),
            call(Op::Read(0), 2, 3),
            call(Op::Read(1), 4, 5),
        ],
        // A write without an outcome may come late.
        &[
            call(Op::Write(1), 1, 0),
            call(Op::Read(0), 2, 3),
            call(Op::Write(2), 4, 5),
            call(Op::Read(1), 6, 7),
        ],
        // Or never.
        &[call(Op::Write(1), 1, 0), call(Op::Read(0), 2, 3)],
        &[
            call(Op::Swap(0, 1, true), 1, 4),
            call(Op::Swap(0, 2, false), 2, 3),
            call(Op::Read(1), 5, 6),
        ],
    ];
    for calls in good {
        assert_eq!(verdict(calls), Verdict::Linearizable, "{calls:?}");
    }
}

#[test]
fn bad_histories_are_rejected() {
    let bad: &[&[Call<Op>]] = &[
        // A stale read.
        &[call(Op::Write(1), 1, 2), call(Op::Read(0), 3, 4)],
        // Of two reads, the later sees the earlier state.
        &[
            call(Op::Write(1), 1, 6),
            call(Op::Read(1), 2, 3),
            call(Op::Read(0), 4, 5),
        ],
        // A value that nobody wrote.
        &[call(Op::Write(1), 1, 2), call(Op::Read(7), 3, 4)],
        // A write that was lost.
        &[
            call(Op::Write(1), 1, 2),
            call(Op::Write(2), 3, 4),
            call(Op::Read(1), 5, 6),
        ],
        // Both won.
        &[call(Op::Swap(0, 1, true), 1, 3), call(Op::Swap(0, 2, true), 2, 4)],
        // A write without an outcome cannot come before it began.
        &[call(Op::Read(1), 1, 2), call(Op::Write(1), 3, 0)],
    ];
    for calls in bad {
        assert!(matches!(verdict(calls), Verdict::Violation { .. }), "{calls:?}");
    }
}

#[test]
fn a_violation_shows_what_could_be_ordered() {
    let calls = [
        call(Op::Write(1), 1, 2),
        call(Op::Read(1), 3, 4),
        call(Op::Read(0), 5, 6),
    ];
    assert_eq!(verdict(&calls), Verdict::Violation { longest: vec![0, 1] });
}

#[test]
fn a_search_is_bounded() {
    let calls: Vec<_> = (0..24)
        .map(|n| call(Op::Write(n), 1, 100))
        .chain([call(Op::Read(99), 101, 102)])
        .collect();
    assert!(matches!(
        check(&Register, &calls, 1000),
        Verdict::Undecided { .. }
    ));
}

/// Tries every order.
fn any_order(state: u8, left: &[Call<Op>]) -> bool {
    let known: Vec<_> = left.iter().filter_map(|call| call.ended).collect();
    if known.is_empty() {
        return true;
    }
    left.iter().enumerate().any(|(at, call)| {
        let follows = known
            .iter()
            .all(|&end| call.began < end || call.ended == Some(end));
        let rest: Vec<_> = [&left[..at], &left[at + 1..]].concat();
        follows
            && Register
                .step(&state, &call.op)
                .is_some_and(|state| any_order(state, &rest))
    })
}

fn any_call() -> impl Strategy<Value = (Op, u64, u64)> {
    let op = prop_oneof![
        (0u8..3).prop_map(Op::Write),
        (0u8..3).prop_map(Op::Read),
        (0u8..3, 0u8..3, any::<bool>()).prop_map(|(from, to, done)| Op::Swap(from, to, done)),
    ];
    (op, 0u64..20, 0u64..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn it_agrees_with_trying_every_order(calls in proptest::collection::vec(any_call(), 0..7)) {
        // Times differ, as in a recorded order: beginnings are even, ends odd.
        let calls: Vec<_> = calls.iter().enumerate().map(|(n, &(op, began, lasted))| {
            let place = |time: u64, odd: u64| (time * 16 + n as u64) * 2 + odd;
            let ended = (lasted != 7).then(|| place(began + lasted, 1));
            Call { op, began: place(began, 0), ended }
        }).collect();
        let expected = any_order(0, &calls);
        prop_assert_eq!(verdict(&calls) == Verdict::Linearizable, expected);
    }
}
