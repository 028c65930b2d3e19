use openraft::CommittedLeaderId;

use super::*;

fn log(term: u64, index: u64) -> Option<LogId> {
    Some(LogId::new(CommittedLeaderId::new(term, 1), index))
}

fn nothing() -> Position {
    Position {
        vote: Vote::default(),
        last_log_id: None,
    }
}

fn led(term: u64, index: u64) -> Position {
    Position {
        vote: Vote::new_committed(term, 1),
        last_log_id: log(term, index),
    }
}

fn judged(members: usize, answers: &[Position]) -> Option<Standing> {
    judge(members, &(2..).zip(answers.iter().copied()).collect())
}

#[test]
fn a_majority_of_others_must_answer() {
    assert_eq!(
        judged(1, &[]),
        Some(Standing::Level),
        "alone there is nobody to ask"
    );
    assert_eq!(judged(3, &[led(4, 9)]), None);
    assert_eq!(judged(5, &[led(4, 9), led(4, 9)]), None);
    assert!(judged(5, &[led(4, 9), led(4, 9), nothing()]).is_some());
}

#[test]
fn the_latest_vote_and_the_longest_log_must_be_reached() {
    let standing = judged(3, &[led(4, 12), led(5, 9)]);
    let expected = Standing::Behind {
        vote: Vote::new_committed(5, 1),
        log: log(5, 9),
    };
    assert_eq!(standing, Some(expected), "an entry of a later term is later");
}

#[test]
fn where_nobody_has_anything_the_cluster_is_new() {
    assert_eq!(judged(3, &[nothing(), nothing()]), Some(Standing::Level));
    let founder = Position {
        vote: Vote::new(1, 1),
        last_log_id: Some(LogId::new(CommittedLeaderId::default(), 0)),
    };
    assert_eq!(judged(3, &[founder, nothing()]), Some(Standing::Level));
    let leads = Position {
        vote: Vote::new_committed(1, 1),
        ..founder
    };
    assert!(matches!(
        judged(3, &[leads, nothing()]),
        Some(Standing::Behind { .. })
    ));
}

#[test]
fn leaders_of_the_past_are_refused() {
    let vote = Vote::new_committed(5, 2);
    let behind = Standing::Behind { vote, log: None };
    assert_eq!(admit(behind, &Vote::new_committed(4, 3)), Admit::Refuse(vote));
    assert_eq!(admit(behind, &vote), Admit::Take);
    assert_eq!(admit(behind, &Vote::new_committed(6, 1)), Admit::Take);
    assert_eq!(admit(Standing::Asking, &vote), Admit::NotYet);
    assert_eq!(admit(Standing::Level, &Vote::new_committed(1, 1)), Admit::Take);
}
