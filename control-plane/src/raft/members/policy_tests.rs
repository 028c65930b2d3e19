use super::super::super::{StoredMembership, Vote};
use super::*;
use crate::state::{Format, Formats};

fn membership(voters: &[&[MemberId]], learners: &[MemberId]) -> Membership<MemberId, BasicNode> {
    let sets: Vec<BTreeSet<_>> = voters.iter().map(|set| set.iter().copied().collect()).collect();
    let ids = voters.iter().flat_map(|set| set.iter()).chain(learners);
    let nodes: BTreeMap<_, _> = ids.map(|&id| (id, BasicNode::new(address(id)))).collect();
    Membership::new(sets, nodes)
}

fn address(member: MemberId) -> String {
    format!("host-{member}:7400")
}

fn log(index: u64) -> LogId {
    LogId::new(openraft::CommittedLeaderId::new(1, 1), index)
}

fn fresh(member: MemberId) -> Description {
    Description {
        cluster_id: "c".into(),
        member,
        build: "1".into(),
        formats: Formats::BUILD,
        format: Format(2),
        is_level: false,
        signs: false,
        leader: None,
        last_applied: None,
        position: Position::default(),
    }
}

fn level(member: MemberId) -> Description {
    Description {
        is_level: true,
        position: Position {
            vote: Vote::new_committed(1, 1),
            last_log_id: Some(log(90)),
            membership: StoredMembership::default(),
        },
        ..fresh(member)
    }
}

fn view(membership: Membership<MemberId, BasicNode>, matched: Option<u64>) -> View {
    View {
        is_settled: membership.get_joint_config().len() == 1,
        membership,
        format: Format(2),
        retired: BTreeSet::from([9]),
        last_log: 100,
        matched,
    }
}

/// What comes next for member 4.
fn adding(view: &View, answer: Result<Description, &str>, lacking: usize) -> Result<Step, Refusal> {
    let answer = (answer.map_err(str::to_owned), lacking);
    next_to_add(view, "c", 4, &address(4), &answer)
}

fn waits(text: &str) -> Result<Step, Refusal> {
    Ok(Step::Wait(text.into()))
}

#[test]
fn a_member_is_added_step_by_step() {
    let before = view(membership(&[&[1, 2, 3]], &[]), None);
    assert_eq!(
        adding(&before, Err("no answer"), 0),
        waits("member 4 does not answer at host-4:7400: no answer")
    );
    assert_eq!(adding(&before, Ok(fresh(4)), 0), Ok(Step::AddLearner));
    let follows = |matched| view(membership(&[&[1, 2, 3]], &[4]), matched);
    let filled = waits("member 4 is filled: it has entry 20 of 100");
    assert_eq!(adding(&follows(Some(20)), Ok(level(4)), 0), filled);
    let filled = waits("member 4 is filled: it has entry 99 of 100");
    assert_eq!(adding(&follows(Some(99)), Ok(fresh(4)), 0), filled);
    assert_eq!(
        adding(&follows(Some(99)), Ok(level(4)), 2),
        waits("member 4 fetches code: it lacks 2 bundles")
    );
    assert_eq!(adding(&follows(Some(50)), Ok(level(4)), 0), Ok(Step::MakeVoter));
    let there = view(membership(&[&[1, 2, 3, 4]], &[]), Some(100));
    assert_eq!(adding(&there, Err("no answer"), 0), Ok(Step::Done));
    let changing = view(membership(&[&[1, 2, 3], &[1, 2, 3, 4]], &[]), Some(100));
    let under_way = waits("a change of members is under way");
    assert_eq!(adding(&changing, Ok(level(4)), 0), under_way);
    let appended = View {
        is_settled: false,
        ..there
    };
    assert_eq!(
        adding(&appended, Ok(level(4)), 0),
        under_way,
        "a leader's word alone is no majority"
    );
    assert_eq!(next_to_remove(&appended, 9, &BTreeMap::new()), under_way);
}

#[test]
fn what_is_no_new_member_of_this_cluster_is_refused() {
    let before = view(membership(&[&[1, 2, 3]], &[]), None);
    let text = |answer| adding(&before, answer, 0).unwrap_err().to_string();
    let other = Description {
        cluster_id: "d".into(),
        ..fresh(4)
    };
    assert_eq!(
        text(Ok(other)),
        "at host-4:7400 there is member 4 of cluster \"d\", expected member 4 of cluster \"c\""
    );
    assert_eq!(
        text(Ok(fresh(5))),
        "at host-4:7400 there is member 5 of cluster \"c\", expected member 4 of cluster \"c\""
    );
    assert_eq!(
        text(Ok(level(4))),
        "member 4 at host-4:7400 has a log of its own, of a cluster that it founded or was removed from: start it with \
         an empty --data-dir and --seeds"
    );
    let old = Description {
        formats: Formats {
            min: Format(1),
            max: Format(1),
        },
        build: "0.0.9".into(),
        ..fresh(4)
    };
    assert_eq!(
        text(Ok(old)),
        "member 4 at host-4:7400 runs build 0.0.9, which supports format 1 alone, and the cluster is at format 2: start it \
         with the build that the others run"
    );
    let silent = (Err("-".to_owned()), 0);
    let taken = next_to_add(&before, "c", 4, &address(2), &silent);
    assert_eq!(
        taken.unwrap_err().to_string(),
        "host-2:7400 is the address of member 2"
    );
    let moved = next_to_add(&before, "c", 2, &address(8), &silent);
    assert_eq!(
        moved.unwrap_err().to_string(),
        "member 2 is at host-2:7400: remove it first, or take another number"
    );
    let again = next_to_add(&before, "c", 9, &address(9), &silent);
    assert_eq!(
        again.unwrap_err().to_string(),
        "member 9 was removed, and numbers are not given twice: take 10"
    );
    let full = view(membership(&[&[1, 2, 3, 5, 6, 7, 8]], &[]), None);
    assert_eq!(adding(&full, Ok(fresh(4)), 0), Err(Refusal::TooMany));
}

fn answers(of: &[(MemberId, Answer)]) -> BTreeMap<MemberId, Answer> {
    of.iter().cloned().collect()
}

#[test]
fn a_member_goes_only_where_a_majority_of_the_others_has_everything() {
    let three = view(membership(&[&[1, 2, 3]], &[4]), None);
    let whole = |member| (member, (Ok(level(member)), 0));
    let both = answers(&[whole(1), whole(2)]);
    assert_eq!(next_to_remove(&three, 3, &both), Ok(Step::RemoveVoter));
    assert_eq!(next_to_remove(&three, 4, &both), Ok(Step::RemoveLearner));
    assert_eq!(next_to_remove(&three, 9, &both), Ok(Step::Done));
    let silent = (2, (Err("connection refused".to_owned()), 0));
    let one = next_to_remove(&three, 3, &answers(&[whole(1), silent.clone()])).unwrap_err();
    assert_eq!(
        one.to_string(),
        "without member 3, 2 of 2 members must have everything, and 1 do; member 2 does not answer: connection refused"
    );
    assert_eq!(
        next_to_remove(&three, 2, &answers(&[whole(1), whole(3)])),
        Ok(Step::RemoveVoter),
        "the one that is gone can go"
    );
    let lacks = (1, (Ok(level(1)), 3));
    let text = next_to_remove(&three, 3, &answers(&[lacks, silent]))
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("; member 1 lacks 3 bundles of code; member 2 "),
        "{text}"
    );
    let signer = |member| {
        let described = Description {
            signs: true,
            ..level(member)
        };
        (member, (Ok(described), 0))
    };
    assert_eq!(
        next_to_remove(&three, 3, &answers(&[whole(1), whole(2), signer(3)])),
        Err(Refusal::LastSigner(3))
    );
    assert_eq!(
        next_to_remove(&three, 3, &answers(&[whole(1), signer(2), signer(3)])),
        Ok(Step::RemoveVoter)
    );
    let alone = view(membership(&[&[1]], &[]), None);
    assert_eq!(next_to_remove(&alone, 1, &answers(&[])), Err(Refusal::Last(1)));
}

fn knows(voters: &[&[MemberId]], index: u64) -> Position {
    Position {
        membership: StoredMembership::new(Some(log(index)), membership(voters, &[])),
        ..Position::default()
    }
}

#[test]
fn a_member_is_removed_when_a_majority_of_the_newest_members_says_so() {
    let told = |known, answers: &[(MemberId, Position)]| {
        is_removed(3, Some(log(known)), &answers.iter().cloned().collect())
    };
    let without = || knows(&[&[1, 2, 4]], 50);
    assert!(told(7, &[(1, without()), (2, without())]));
    assert!(told(7, &[(1, without()), (4, knows(&[&[1, 2, 3]], 7))]));
    assert!(told(50, &[(1, without()), (2, without())]), "it led then");
    assert!(
        !is_removed(3, None, &BTreeMap::from([(1, without()), (2, without())])),
        "it waits to be added"
    );
    assert!(!told(7, &[(1, without())]), "one of three");
    assert!(!told(60, &[(1, without()), (2, without())]), "it was added since");
    let again = knows(&[&[1, 2, 3, 4]], 70);
    assert!(!told(7, &[(1, without()), (2, without()), (4, again)]));
    assert!(!told(7, &[]));
}
