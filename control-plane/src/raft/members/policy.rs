//! What comes next when a member is to come or go, and whether one has been removed. Pure.

use std::collections::{BTreeMap, BTreeSet};

use openraft::{BasicNode, Membership};

use super::super::describe::{Description, Position};
use super::super::{LogId, MemberId};
use crate::peers::are_majority;
use crate::state::{Format, Formats};

/// Most members. Each write waits for a majority of them, and more than two losses at once are rare.
pub const MAX_MEMBERS: usize = 7;
/// Entries that a member may lack when it becomes a voter: less than a second of a busy log.
const MAX_LAG: u64 = 50;
/// Why a change of members is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("member {member} is at {there}: remove it first, or take another number")]
    OtherAddress { member: MemberId, there: String },
    #[error("{address} is the address of member {member}")]
    AddressTaken { address: String, member: MemberId },
    #[error("member {member} was removed, and numbers are not given twice: take {next}")]
    Retired { member: MemberId, next: MemberId },
    #[error("there are {MAX_MEMBERS} members, which is the most there can be")]
    TooMany,
    #[error("at {address} there is {found}, expected {expected}")]
    Stranger {
        address: String,
        found: String,
        expected: String,
    },
    #[error(
        "member {member} at {address} has a log of its own, of a cluster that it founded or was removed from: start it \
         with an empty --data-dir and --seeds"
    )]
    NotEmpty { member: MemberId, address: String },
    #[error(
        "member {member} at {address} runs build {build}, which supports {formats}, and the cluster is at {in_force}: \
         start it with the build that the others run"
    )]
    Build {
        member: MemberId,
        address: String,
        build: String,
        formats: Formats,
        in_force: Format,
    },
    #[error("member {0} is the only one: without it there is no control plane")]
    Last(MemberId),
    #[error(
        "member {0} is the last that holds the authority's key: nobody could join any more, and no certificate be renewed; \
         start another member with --ca first"
    )]
    LastSigner(MemberId),
    #[error(
        "without member {member}, {needed} of {of} members must have everything, and {} do{}",
        whole.len(), in_words(missing)
    )]
    NoMajority {
        member: MemberId,
        of: usize,
        needed: usize,
        whole: BTreeSet<MemberId>,
        missing: BTreeMap<MemberId, String>,
    },
}

fn in_words(missing: &BTreeMap<MemberId, String>) -> String {
    missing
        .iter()
        .map(|(member, why)| format!("; member {member} {why}"))
        .collect()
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Done,
    /// Nothing can be done now, and why.
    Wait(String),
    AddLearner,
    MakeVoter,
    RemoveLearner,
    RemoveVoter,
}

/// What the leader knows.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) membership: Membership<MemberId, BasicNode>,
    /// Whether a majority has agreed on it, and there is one set of voters.
    pub(super) is_settled: bool,
    /// The format of commands and state that is in force.
    pub(super) format: Format,
    /// Numbers of members that were removed.
    pub(super) retired: BTreeSet<MemberId>,
    pub(super) last_log: u64,
    /// Up to where the member's log is known to be as the leader's.
    pub(super) matched: Option<u64>,
}

/// What a member that was asked says of itself, or why it says nothing; and how many bundles it lacks.
pub(super) type Answer = (Result<Description, String>, usize);

/// A number that no member has or had.
pub fn next_number(membership: &Membership<MemberId, BasicNode>, retired: &BTreeSet<MemberId>) -> MemberId {
    let members = membership.nodes().map(|(member, _)| member);
    members
        .chain(retired)
        .max()
        .map_or(1, |last| last.saturating_add(1))
}

pub(super) fn next_to_add(
    view: &View,
    cluster_id: &str,
    member: MemberId,
    address: &str,
    (answer, lacking): &Answer,
) -> Result<Step, Refusal> {
    let is_voter = view.membership.voter_ids().any(|voter| voter == member);
    if let Some(node) = view.membership.get_node(&member)
        && node.addr != address
    {
        let there = node.addr.clone();
        return Err(Refusal::OtherAddress { member, there });
    }
    let mut nodes = view.membership.nodes();
    if let Some((&other, _)) = nodes.find(|(other, node)| **other != member && node.addr == address) {
        let address = address.to_owned();
        return Err(Refusal::AddressTaken {
            address,
            member: other,
        });
    }
    let is_known = view.membership.get_node(&member).is_some();
    if !is_known && view.retired.contains(&member) {
        let next = next_number(&view.membership, &view.retired);
        return Err(Refusal::Retired { member, next });
    }
    if !is_known && view.membership.nodes().count() >= MAX_MEMBERS {
        return Err(Refusal::TooMany);
    }
    if !view.is_settled {
        return Ok(unsettled());
    }
    if is_voter {
        return Ok(Step::Done);
    }
    let described = match answer {
        Ok(described) => described,
        Err(why) => {
            let text = format!("member {member} does not answer at {address}: {why}");
            return Ok(Step::Wait(text));
        }
    };
    if described.cluster_id != cluster_id || described.member != member {
        let name = |cluster: &str, member| format!("member {member} of cluster {cluster:?}");
        return Err(Refusal::Stranger {
            address: address.to_owned(),
            found: name(&described.cluster_id, described.member),
            expected: name(cluster_id, member),
        });
    }
    if described.formats.check(view.format).is_err() {
        return Err(Refusal::Build {
            member,
            address: address.to_owned(),
            build: described.build.clone(),
            formats: described.formats,
            in_force: view.format,
        });
    }
    if !is_known {
        if described.position.last_log_id.is_some() {
            let address = address.to_owned();
            return Err(Refusal::NotEmpty { member, address });
        }
        return Ok(Step::AddLearner);
    }
    let matched = view.matched.unwrap_or(0);
    if !described.is_level || matched + MAX_LAG < view.last_log {
        let last = view.last_log;
        let text = format!("member {member} is filled: it has entry {matched} of {last}");
        return Ok(Step::Wait(text));
    }
    if *lacking > 0 {
        let text = format!("member {member} fetches code: it lacks {lacking} bundles");
        return Ok(Step::Wait(text));
    }
    Ok(Step::MakeVoter)
}

/// Not even what looks done is, as long as a majority may not have it.
fn unsettled() -> Step {
    Step::Wait("a change of members is under way".into())
}

pub(super) fn next_to_remove(
    view: &View,
    member: MemberId,
    answers: &BTreeMap<MemberId, Answer>,
) -> Result<Step, Refusal> {
    if !view.is_settled {
        return Ok(unsettled());
    }
    let membership = &view.membership;
    if membership.get_node(&member).is_none() {
        return Ok(Step::Done);
    }
    let voters: BTreeSet<_> = membership.voter_ids().collect();
    if !voters.contains(&member) {
        return Ok(Step::RemoveLearner);
    }
    let staying: BTreeSet<_> = voters.into_iter().filter(|voter| *voter != member).collect();
    if staying.is_empty() {
        return Err(Refusal::Last(member));
    }
    let (mut whole, mut missing) = (BTreeSet::new(), BTreeMap::new());
    for &voter in &staying {
        let lack = match answers.get(&voter) {
            Some((Ok(described), 0)) if described.is_level => None,
            Some((Ok(described), 0)) if !described.is_level => {
                Some("is not level with the others".to_owned())
            }
            Some((Ok(_), lacking)) => Some(format!("lacks {lacking} bundles of code")),
            Some((Err(why), _)) => Some(format!("does not answer: {why}")),
            None => Some("was not asked".to_owned()),
        };
        match lack {
            None => drop(whole.insert(voter)),
            Some(lack) => drop(missing.insert(voter, lack)),
        }
    }
    let (of, needed) = (staying.len(), staying.len() / 2 + 1);
    if whole.len() < needed {
        return Err(Refusal::NoMajority {
            member,
            of,
            needed,
            whole,
            missing,
        });
    }
    let signs = |answer: &Answer| answer.0.as_ref().is_ok_and(|described| described.signs);
    let other_signs = answers
        .iter()
        .any(|(other, answer)| *other != member && signs(answer));
    if answers.get(&member).is_some_and(signs) && !other_signs {
        return Err(Refusal::LastSigner(member));
    }
    Ok(Step::RemoveVoter)
}

/// Whether the others' answers say that `own`, which knows the membership at `known`, belongs to them no more.
///
/// A majority of those that the newest membership names has answered, so that there is no newer one.
pub(super) fn is_removed(
    own: MemberId,
    known: Option<LogId>,
    answers: &BTreeMap<MemberId, Position>,
) -> bool {
    let Some(newest) = answers
        .values()
        .map(|position| &position.membership)
        .max_by_key(|membership| *membership.log_id())
    else {
        return false;
    };
    let answered = answers.keys().copied().collect();
    // One that was never added knows none. A leader that was removed wrote the newest itself.
    known.is_some()
        && *newest.log_id() >= known
        && newest.membership().get_node(&own).is_none()
        && are_majority(newest.membership(), &answered)
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
