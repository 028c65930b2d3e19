//! What a member says of itself to those that ask.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use futures_util::future::join_all;
use mosec_wire::control::raft as proto;
use openraft::{BasicNode, CommittedLeaderId, Membership};

use super::{LogId, MemberId, StoredMembership, Vote};
use crate::state::{Format, Formats};

/// How long one question may take.
pub const ASK_FOR: Duration = Duration::from_secs(1);

/// Asks members who they are and where they stand. A cheap handle.
pub trait Ask: Clone + Send + Sync {
    /// What the member at `address` says; or why it says nothing, for people.
    fn describe(&self, address: &str) -> impl Future<Output = Result<Description, String>> + Send;
}

/// Asks all of these members at once. Whoever else answers at a member's address is no answer of that member.
pub async fn describe_all<A: Ask>(
    asker: &A,
    cluster_id: &str,
    members: impl IntoIterator<Item = (MemberId, String)>,
) -> BTreeMap<MemberId, Result<Description, String>> {
    let asked = members.into_iter().map(|(member, address)| async move {
        let told = asker.describe(&address).await;
        let told = told.and_then(
            |told| match told.member == member && told.cluster_id == cluster_id {
                true => Ok(told),
                false => Err(format!(
                    "there is member {} of cluster {:?}",
                    told.member, told.cluster_id
                )),
            },
        );
        (member, told)
    });
    join_all(asked).await.into_iter().collect()
}

/// What a member says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    pub cluster_id: String,
    pub member: MemberId,
    /// Version of the build.
    pub build: String,
    pub formats: Formats,
    /// The one in force, as far as it has applied the log.
    pub format: Format,
    /// Whether it takes part in votes.
    pub is_level: bool,
    /// Whether it holds the authority's key.
    pub signs: bool,
    /// The leader as it knows it.
    pub leader: Option<MemberId>,
    pub last_applied: Option<LogId>,
    pub position: Position,
}

/// What a member has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Position {
    pub vote: Vote,
    pub last_log_id: Option<LogId>,
    /// The newest in its log, be it committed or not.
    pub membership: StoredMembership,
}

impl From<proto::DescribeReply> for Description {
    fn from(reply: proto::DescribeReply) -> Self {
        Self {
            cluster_id: reply.cluster_id,
            member: reply.member,
            build: reply.build,
            formats: to_formats(reply.formats.unwrap_or_default()),
            format: to_format(reply.format),
            is_level: reply.level,
            signs: reply.signs,
            leader: reply.leader,
            last_applied: reply.last_applied.as_ref().map(to_log_id),
            position: Position {
                vote: reply.vote.as_ref().map(to_vote).unwrap_or_default(),
                last_log_id: reply.last_log.as_ref().map(to_log_id),
                membership: reply.membership.map(to_membership).unwrap_or_default(),
            },
        }
    }
}

impl From<Description> for proto::DescribeReply {
    fn from(described: Description) -> Self {
        let position = described.position;
        Self {
            cluster_id: described.cluster_id,
            member: described.member,
            build: described.build,
            formats: Some(proto::FormatRange {
                min: described.formats.min.0.into(),
                max: described.formats.max.0.into(),
            }),
            format: described.format.0.into(),
            vote: Some(from_vote(&position.vote)),
            last_log: position.last_log_id.as_ref().map(from_log_id),
            last_applied: described.last_applied.as_ref().map(from_log_id),
            level: described.is_level,
            signs: described.signs,
            leader: described.leader,
            membership: Some(from_membership(&position.membership)),
        }
    }
}

fn to_formats(range: proto::FormatRange) -> Formats {
    Formats {
        min: to_format(range.min),
        max: to_format(range.max),
    }
}

/// There are no more; of one who says so all that is known is that they are later.
fn to_format(number: u32) -> Format {
    Format(u8::try_from(number).unwrap_or(u8::MAX))
}

fn from_log_id(id: &LogId) -> proto::LogId {
    proto::LogId {
        term: id.leader_id.term,
        leader: id.leader_id.node_id,
        index: id.index,
    }
}

fn to_log_id(id: &proto::LogId) -> LogId {
    LogId::new(CommittedLeaderId::new(id.term, id.leader), id.index)
}

fn from_vote(vote: &Vote) -> proto::Vote {
    proto::Vote {
        term: vote.leader_id.term,
        leader: vote.leader_id.node_id,
        committed: vote.committed,
    }
}

fn to_vote(vote: &proto::Vote) -> Vote {
    let mut known = Vote::new(vote.term, vote.leader);
    known.committed = vote.committed;
    known
}

fn from_membership(stored: &StoredMembership) -> proto::Membership {
    let membership = stored.membership();
    let voters = membership.get_joint_config().iter();
    proto::Membership {
        log_id: stored.log_id().as_ref().map(from_log_id),
        members: membership
            .nodes()
            .map(|(&id, node)| proto::Member {
                id,
                address: node.addr.clone(),
            })
            .collect(),
        voters: voters
            .map(|set| proto::VoterSet {
                members: set.iter().copied().collect(),
            })
            .collect(),
        learners: membership.learner_ids().collect(),
    }
}

fn to_membership(membership: proto::Membership) -> StoredMembership {
    let nodes = membership.members.into_iter();
    let nodes: BTreeMap<_, _> = nodes
        .map(|member| (member.id, BasicNode::new(member.address)))
        .collect();
    let sets = membership.voters.into_iter();
    let sets: Vec<BTreeSet<_>> = sets.map(|set| set.members.into_iter().collect()).collect();
    StoredMembership::new(
        membership.log_id.as_ref().map(to_log_id),
        Membership::new(sets, nodes),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_arrives() {
        let id = |index| LogId::new(CommittedLeaderId::new(3, 2), index);
        let nodes = BTreeMap::from([1, 2, 3, 4].map(|id| (id, BasicNode::new(format!("host-{id}:1")))));
        let sets = vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])];
        let described = Description {
            cluster_id: "c".into(),
            member: 4,
            build: "0.1.0".into(),
            formats: Formats::BUILD,
            format: Format(2),
            is_level: true,
            signs: true,
            leader: Some(2),
            last_applied: Some(id(7)),
            position: Position {
                vote: Vote::new_committed(3, 2),
                last_log_id: Some(id(9)),
                membership: StoredMembership::new(Some(id(8)), Membership::new(sets, nodes)),
            },
        };
        let sent = proto::DescribeReply::from(described.clone());
        assert_eq!(Description::from(sent), described);
        let empty = Description {
            leader: None,
            last_applied: None,
            position: Position::default(),
            ..described
        };
        assert_eq!(
            Description::from(proto::DescribeReply::from(empty.clone())),
            empty
        );
    }
}
