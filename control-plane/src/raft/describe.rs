//! What a member says of itself, as messages.

use mosec_wire::control::raft as proto;

use super::{LogId, StoredMembership, Vote};

pub(super) fn log_id(id: &LogId) -> proto::LogId {
    proto::LogId {
        term: id.leader_id.term,
        leader: id.leader_id.node_id,
        index: id.index,
    }
}

pub(super) fn vote(vote: &Vote) -> proto::Vote {
    proto::Vote {
        term: vote.leader_id.term,
        leader: vote.leader_id.node_id,
        committed: vote.committed,
    }
}

pub(super) fn membership(stored: &StoredMembership) -> proto::Membership {
    let membership = stored.membership();
    let voters = membership.get_joint_config().iter();
    proto::Membership {
        log_id: stored.log_id().as_ref().map(log_id),
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
