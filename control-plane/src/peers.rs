//! Who belongs to the control plane, where the members are, and the connections to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::time::Instant;

use mosec_wire::control::EndpointError;
use mosec_wire::control::endpoint::Channels;
use mosec_wire::tls::LiveIdentity;
use openraft::{BasicNode, Membership, RaftMetrics};
use parking_lot::Mutex;
use tokio::sync::watch::Receiver;
use tonic::Status;
use tonic::transport::Channel;

use crate::raft::MemberId;

/// The members: those of the configuration until there is a log, and those of the log from then on.
///
/// Addresses from the configuration win over those in the log: so all members are moved by a restart with new flags.
pub struct Peers {
    configured: BTreeMap<MemberId, String>,
    raft: OnceLock<Receiver<RaftMetrics<MemberId, BasicNode>>>,
    channels: Mutex<Channels>,
    contacts: Mutex<BTreeMap<MemberId, Contact>>,
}

/// What became of the messages to a member.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Contact {
    /// When it last answered.
    pub heard: Option<Instant>,
    /// The last message did not reach it.
    pub is_lost: bool,
}

impl Peers {
    pub fn new(configured: BTreeMap<MemberId, String>, identity: Option<LiveIdentity>) -> Self {
        Self {
            configured,
            raft: OnceLock::new(),
            channels: Mutex::new(Channels::new(identity)),
            contacts: Mutex::default(),
        }
    }

    /// Follows the membership in the log from now on. Raft is made after this, with it in hand.
    pub fn follow(&self, raft: Receiver<RaftMetrics<MemberId, BasicNode>>) {
        // A second Raft would be a second member.
        self.raft.set(raft).ok();
    }

    /// The newest membership in the log, be it committed or not; the configured one where there is no log.
    pub fn membership(&self) -> Membership<MemberId, BasicNode> {
        if let Some(raft) = self.raft.get() {
            let raft = raft.borrow();
            let logged = raft.membership_config.membership();
            if logged.voter_ids().next().is_some() {
                return logged.clone();
            }
        }
        let nodes: BTreeMap<_, _> = self
            .configured
            .iter()
            .map(|(&member, address)| (member, BasicNode::new(address)))
            .collect();
        Membership::new(vec![nodes.keys().copied().collect()], nodes)
    }

    /// The address of a member in the configuration.
    pub fn configured(&self, member: MemberId) -> Option<&str> {
        self.configured.get(&member).map(String::as_str)
    }

    /// The member's `host:port`: as configured, else `logged`.
    pub fn address<'a>(&'a self, member: MemberId, logged: &'a str) -> &'a str {
        self.configured(member).unwrap_or(logged)
    }

    /// The members that vote, with their addresses.
    pub fn voters(&self) -> BTreeMap<MemberId, String> {
        let membership = self.membership();
        let voters = membership.voter_ids().filter_map(|voter| {
            let logged = &membership.get_node(&voter)?.addr;
            Some((voter, self.address(voter, logged).to_owned()))
        });
        voters.collect()
    }

    /// The members with their addresses, learners too, in the order of their numbers.
    pub fn all(&self) -> Vec<(MemberId, String)> {
        let membership = self.membership();
        let nodes = membership.nodes();
        nodes
            .map(|(&member, node)| (member, self.address(member, &node.addr).to_owned()))
            .collect()
    }

    /// As [`Peers::all`], without `own`.
    pub fn others(&self, own: MemberId) -> Vec<(MemberId, String)> {
        let mut others = self.all();
        others.retain(|(member, _)| *member != own);
        others
    }

    /// Where the members are.
    pub fn addresses(&self) -> Vec<String> {
        self.all().into_iter().map(|(_, address)| address).collect()
    }

    /// A channel to a member, shared by all that talk to it.
    pub fn channel(&self, member: MemberId, logged: &str) -> Result<Channel, EndpointError> {
        self.channel_at(self.address(member, logged))
    }

    /// A channel to an address, shared by all that talk to it.
    pub fn channel_at(&self, address: &str) -> Result<Channel, EndpointError> {
        self.channels.lock().get(address)
    }

    /// A connection to an address that is shared with nobody: for bulk, behind which heartbeats would have to wait.
    pub fn own_channel(&self, address: &str) -> Result<Channel, EndpointError> {
        self.channels.lock().own(address)
    }

    /// Notes whether a message reached a member, and logs where that is news.
    pub fn note(&self, member: MemberId, failure: Option<&Status>) {
        let mut contacts = self.contacts.lock();
        let contact = contacts.entry(member).or_default();
        let was_lost = std::mem::replace(&mut contact.is_lost, failure.is_some());
        match failure {
            Some(status) if !was_lost => {
                tracing::warn!(member, error = status.message(), "member is unreachable");
            }
            None if was_lost => tracing::info!(member, "member is reachable again"),
            _ => {}
        }
        if failure.is_none() {
            contact.heard = Some(Instant::now());
        }
    }

    /// What became of this node's messages to a member. It sends them as a leader, many in a second, and as a candidate.
    pub fn contact(&self, member: MemberId) -> Contact {
        self.contacts.lock().get(&member).copied().unwrap_or_default()
    }
}

/// Whether `some` are a majority of the voters: of both sets, while a change is under way.
pub fn are_majority(membership: &Membership<MemberId, BasicNode>, some: &BTreeSet<MemberId>) -> bool {
    let sets = membership.get_joint_config();
    sets.iter()
        .all(|voters| voters.intersection(some).count() > voters.len() / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_is_one_of_both_sets_during_a_change() {
        let sets = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([3, 4, 5])];
        let nodes: BTreeMap<_, _> = (1..=5).map(|id| (id, BasicNode::new(id))).collect();
        let joint = Membership::new(sets, nodes);
        assert!(are_majority(&joint, &BTreeSet::from([2, 3, 4])));
        assert!(!are_majority(&joint, &BTreeSet::from([1, 2, 3])));
        assert!(!are_majority(&joint, &BTreeSet::from([1, 2])));
    }

    #[test]
    fn a_contact_is_lost_and_found() {
        let peers = Peers::new(BTreeMap::new(), None);
        assert_eq!(peers.contact(2), Contact::default());
        peers.note(2, None);
        let before = peers.contact(2);
        assert!(before.heard.is_some() && !before.is_lost);
        peers.note(2, Some(&Status::unavailable("no route")));
        let lost = Contact {
            is_lost: true,
            ..before
        };
        assert_eq!(peers.contact(2), lost);
        peers.note(2, None);
        assert!(!peers.contact(2).is_lost && peers.contact(2).heard >= before.heard);
    }

    #[test]
    fn without_a_log_the_configuration_counts() {
        let peers = Peers::new(BTreeMap::from([(1, "a:1".into()), (2, "b:1".into())]), None);
        let voters: Vec<_> = peers.membership().voter_ids().collect();
        assert_eq!(voters, [1, 2]);
        assert_eq!(peers.others(1), [(2, "b:1".to_owned())]);
        assert_eq!(peers.address(3, "c:1"), "c:1");
    }
}
