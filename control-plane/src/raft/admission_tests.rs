use openraft::{CommittedLeaderId, Membership};
use proptest::prelude::*;

use super::super::StoredMembership;
use super::*;

fn log(term: u64, index: u64) -> Option<LogId> {
    Some(LogId::new(CommittedLeaderId::new(term, 1), index))
}

fn nothing() -> Position {
    Position {
        vote: Vote::default(),
        last_log_id: None,
        membership: StoredMembership::default(),
    }
}

fn led(term: u64, index: u64) -> Position {
    Position {
        vote: Vote::new_committed(term, 1),
        last_log_id: log(term, index),
        membership: StoredMembership::default(),
    }
}

fn knows(sets: &[&[MemberId]], position: Position) -> Position {
    let sets: Vec<BTreeSet<_>> = sets.iter().map(|set| set.iter().copied().collect()).collect();
    let nodes: BTreeMap<_, _> = sets
        .iter()
        .flatten()
        .map(|&id| (id, BasicNode::new(id)))
        .collect();
    Position {
        membership: StoredMembership::new(position.last_log_id, Membership::new(sets, nodes)),
        ..position
    }
}

/// What member 1 is told by the members 2, 3 and so on of as many as `members`.
fn judged(members: u64, answers: &[Position]) -> Option<Standing> {
    let founders = (1..=members).collect();
    judge(1, &founders, &(2..).zip(answers.iter().cloned()).collect())
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
fn the_membership_that_the_others_know_counts() {
    let of_five = |position| knows(&[&[1, 2, 3, 4, 5]], position);
    let two = [of_five(led(4, 9)), led(3, 7)];
    assert_eq!(judged(3, &two), None, "of three they were enough");
    assert!(judged(3, &[of_five(led(4, 9)), led(3, 7), led(4, 9)]).is_some());
    let in_change = |position| knows(&[&[1, 2, 3], &[3, 4, 5]], position);
    let old = [in_change(led(4, 9)), led(4, 9)];
    assert_eq!(
        judged(3, &old),
        None,
        "of the new set, only member 3 has answered"
    );
    let both = [in_change(led(4, 9)), led(4, 9), led(4, 8)];
    assert!(judged(3, &both).is_some());
    let without = |position| knows(&[&[2, 3, 4]], position);
    assert_eq!(judged(4, &[without(led(4, 9))]), None);
    assert!(
        judged(4, &[without(led(4, 9)), led(4, 9)]).is_some(),
        "one that was never part of any majority needs just one"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever this member has forgotten, somebody who was part of it has answered: with any membership and any
    /// majority of it, and whichever of the others answer.
    #[test]
    fn no_majority_is_forgotten(size in 1u64..=6, quorum in any::<u64>(), there in any::<u64>()) {
        let voters: BTreeSet<MemberId> = (1..=size).collect();
        let picked = |bits: u64| voters.iter().copied().filter(move |id| bits >> id & 1 == 1);
        let quorum: BTreeSet<_> = picked(quorum).chain([1]).collect();
        prop_assume!(quorum.len() > voters.len() / 2 && quorum.len() > 1);
        let sets: Vec<_> = voters.iter().copied().collect();
        let answers: BTreeMap<_, _> = picked(there)
            .filter(|&id| id != 1)
            .map(|id| (id, knows(&[&sets], led(4, 9))))
            .collect();
        if judge(1, &voters, &answers).is_some() {
            prop_assert!(quorum.iter().any(|id| answers.contains_key(id)));
        }
    }
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
fn who_founds_nothing_waits_for_a_cluster() {
    let answers = |position| BTreeMap::from([(1, position)]);
    assert_eq!(judge(4, &BTreeSet::new(), &BTreeMap::new()), None);
    assert_eq!(judge(4, &BTreeSet::new(), &answers(nothing())), None);
    let alone = knows(&[&[1]], led(2, 5));
    assert!(judge(4, &BTreeSet::new(), &answers(alone)).is_some());
}

#[test]
fn where_nobody_has_anything_the_cluster_is_new() {
    assert_eq!(judged(3, &[nothing(), nothing()]), Some(Standing::Level));
    let founder = Position {
        vote: Vote::new(1, 1),
        last_log_id: Some(LogId::new(CommittedLeaderId::default(), 0)),
        ..nothing()
    };
    assert_eq!(judged(3, &[founder.clone(), nothing()]), Some(Standing::Level));
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
