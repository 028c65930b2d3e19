//! Where the other members are, and the connections to them.

use std::collections::{BTreeMap, BTreeSet};

use mosec_wire::control::EndpointError;
use mosec_wire::control::endpoint::Channels;
use mosec_wire::tls::LiveIdentity;
use parking_lot::Mutex;
use tonic::Status;
use tonic::transport::Channel;

use crate::raft::MemberId;

/// Addresses from the configuration, which win over those in the log: so a member is moved by a restart of all with
/// new flags.
pub struct Peers {
    addresses: BTreeMap<MemberId, String>,
    channels: Mutex<Channels>,
    unreachable: Mutex<BTreeSet<MemberId>>,
}

impl Peers {
    pub fn new(addresses: BTreeMap<MemberId, String>, identity: Option<LiveIdentity>) -> Self {
        Self {
            addresses,
            channels: Mutex::new(Channels::new(identity)),
            unreachable: Mutex::default(),
        }
    }

    /// Every member, this one included.
    pub fn members(&self) -> impl Iterator<Item = MemberId> + '_ {
        self.addresses.keys().copied()
    }

    /// The member's `host:port`: as configured, else `logged`.
    pub fn address<'a>(&'a self, member: MemberId, logged: &'a str) -> &'a str {
        self.addresses.get(&member).map_or(logged, String::as_str)
    }

    /// The other members with their addresses, in the order of their numbers.
    pub fn others(&self, own: MemberId) -> Vec<(MemberId, String)> {
        let others = self.addresses.iter().filter(|(member, _)| **member != own);
        others
            .map(|(&member, address)| (member, address.clone()))
            .collect()
    }

    /// A channel to a member, shared by all that talk to it.
    pub fn channel(&self, member: MemberId, logged: &str) -> Result<Channel, EndpointError> {
        let address = self.address(member, logged);
        self.channels.lock().get(address)
    }

    /// A connection to a member that is shared with nobody: for bulk, behind which heartbeats would have to wait.
    pub fn own_channel(&self, member: MemberId) -> Result<Channel, EndpointError> {
        self.channels.lock().own(self.address(member, ""))
    }

    /// Notes whether a message reached a member, and logs where that is news.
    pub fn note(&self, member: MemberId, failure: Option<&Status>) {
        let mut unreachable = self.unreachable.lock();
        match failure {
            Some(status) if unreachable.insert(member) => {
                tracing::warn!(member, error = status.message(), "member is unreachable");
            }
            None if unreachable.remove(&member) => tracing::info!(member, "member is reachable again"),
            _ => {}
        }
    }
}
