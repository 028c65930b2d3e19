//! What a control-plane node is started with.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use mosec_wire::tls::{Identity, Role};

use crate::authority::Authority;
use crate::bundles::BundleLimits;
use crate::raft::MemberId;
use crate::reconcile::lease::LeaseTiming;
use crate::state::Formats;

/// Default of [`Config::healthy_deadline`]: a large model's load from a warm disk, and half again.
pub const DEFAULT_HEALTHY_DEADLINE: Duration = Duration::from_secs(120);

/// Shorter ones are late whenever a core is busy.
const MIN_HEARTBEAT: Duration = Duration::from_millis(10);

/// A node's configuration.
#[derive(Clone)]
pub struct Config {
    /// Name of the cluster; members of another one are refused.
    pub cluster_id: String,
    pub member: MemberId,
    /// Where the API and Raft are served; port 0 takes any, which only a single node can.
    pub listen: SocketAddr,
    /// `host:port` of every member that founds the cluster, this one included, the same on each; empty for a single node.
    /// Later members are in the log.
    pub peers: BTreeMap<MemberId, String>,
    /// `host:port` of members of a cluster that this one is added to, instead of `peers`.
    pub seeds: Vec<String>,
    /// Log and snapshots; in memory only where absent.
    pub data_dir: Option<PathBuf>,
    pub security: Security,
    /// Signs certificates of those that join and renew, where this member holds the authority's key.
    pub authority: Option<Authority>,
    /// Where the identity is kept, and renewed in time. Not renewed where absent.
    pub identity_dir: Option<PathBuf>,
    pub raft: RaftTiming,
    pub leases: LeaseTiming,
    pub bundles: BundleLimits,
    /// How long a revision may take to become healthy where its deployer does not say.
    pub healthy_deadline: Duration,
    /// Formats of commands and state that this member can work with: the build's own. Tests play other builds.
    pub formats: Formats,
}

/// How peers are told from strangers.
#[derive(Clone)]
pub enum Security {
    /// Mutual TLS with the cluster's certificates.
    Tls(Box<Identity>),
    /// Plain text and no checks: for a single machine and for tests.
    Insecure,
}

impl Security {
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Tls(identity) => Some(identity),
            Self::Insecure => None,
        }
    }
}

/// Raft's clock and the growth of its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RaftTiming {
    /// A lost leader is replaced after six to nine times as long, with three members.
    pub heartbeat: Duration,
    /// Log entries between snapshots.
    pub snapshot_every: u64,
}

impl Default for RaftTiming {
    /// Calm enough for two shared cores: without a pre-vote, a stalled follower would depose a good leader.
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(150),
            snapshot_every: 2000,
        }
    }
}

/// Why a configuration cannot work.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("cluster id {0:?}: expected 1 to 64 bytes")]
    ClusterId(String),
    #[error("peers: member {0} itself is missing")]
    NotAPeer(MemberId),
    #[error(
        "peers and seeds: expected one of them, found both: peers found a cluster, seeds are of one that exists"
    )]
    PeersAndSeeds,
    #[error(
        "listen: {0} is every address of this host, and the others must be told one: say under which they reach this node \
         with peers, as {member}=HOST:{port}", port = .0.port(), member = .1
    )]
    NoAddress(SocketAddr, MemberId),
    #[error("peers: expected 1, 3 or 5 members, found {0}")]
    Members(usize),
    #[error("raft: expected a heartbeat of at least {MIN_HEARTBEAT:?}, found {0:?}")]
    Heartbeat(Duration),
    #[error("raft: expected at least 10 entries between snapshots, found {0}")]
    SnapshotEvery(u64),
    #[error("identity: expected a certificate of role control-plane, found {0}")]
    Role(Role),
    #[error("{0}: expected a time above zero")]
    Zero(&'static str),
    #[error("bundles: expected a largest one of 1 byte to 1 GiB, found {0} bytes")]
    BundleSize(u64),
}

impl Config {
    /// A single node without TLS that keeps its data in memory; the base of tests and of embedded use.
    pub fn single(cluster_id: impl Into<String>) -> Self {
        Self {
            cluster_id: cluster_id.into(),
            member: 1,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            peers: BTreeMap::new(),
            seeds: Vec::new(),
            data_dir: None,
            security: Security::Insecure,
            authority: None,
            identity_dir: None,
            raft: RaftTiming::default(),
            leases: LeaseTiming::default(),
            bundles: BundleLimits::default(),
            healthy_deadline: DEFAULT_HEALTHY_DEADLINE,
            formats: Formats::BUILD,
        }
    }

    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=64).contains(&self.cluster_id.len()) {
            return Err(ConfigError::ClusterId(self.cluster_id.clone()));
        }
        if !self.peers.is_empty() && !self.seeds.is_empty() {
            return Err(ConfigError::PeersAndSeeds);
        }
        match self.peers.len() {
            0 if self.seeds.is_empty() && self.listen.ip().is_unspecified() => {
                return Err(ConfigError::NoAddress(self.listen, self.member));
            }
            0 => {}
            1 | 3 | 5 if !self.peers.contains_key(&self.member) => {
                return Err(ConfigError::NotAPeer(self.member));
            }
            1 | 3 | 5 => {}
            members => return Err(ConfigError::Members(members)),
        }
        let RaftTiming {
            heartbeat,
            snapshot_every,
        } = self.raft;
        if heartbeat < MIN_HEARTBEAT {
            return Err(ConfigError::Heartbeat(heartbeat));
        }
        if snapshot_every < 10 {
            return Err(ConfigError::SnapshotEvery(snapshot_every));
        }
        let zero = [
            ("leases.suspect_after", self.leases.suspect_after),
            ("healthy_deadline", self.healthy_deadline),
            ("bundles.check_every", self.bundles.check_every),
        ];
        if let Some((name, _)) = zero.iter().find(|(_, time)| time.is_zero()) {
            return Err(ConfigError::Zero(name));
        }
        if !(1..=mosec_bundle::MAX_BYTES).contains(&self.bundles.max_bytes) {
            return Err(ConfigError::BundleSize(self.bundles.max_bytes));
        }
        match self.security.identity().map(Identity::role) {
            None | Some(Role::ControlPlane) => Ok(()),
            Some(role) => Err(ConfigError::Role(role)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bad_value_is_named() {
        type Edit = fn(&mut Config);
        let peers = |ids: &[MemberId]| ids.iter().map(|&id| (id, format!("host-{id}:7000"))).collect();
        let cases: &[(ConfigError, Edit)] = &[
            (ConfigError::ClusterId(String::new()), |c| c.cluster_id.clear()),
            (ConfigError::NotAPeer(4), |c| c.member = 4),
            (ConfigError::Members(2), |c| drop(c.peers.remove(&3))),
            (
                ConfigError::NoAddress(SocketAddr::from(([0, 0, 0, 0], 7400)), 1),
                |c| {
                    c.peers.clear();
                    c.listen = SocketAddr::from(([0, 0, 0, 0], 7400));
                },
            ),
            (ConfigError::PeersAndSeeds, |c| c.seeds.push("host-1:7000".into())),
            (ConfigError::Heartbeat(Duration::ZERO), |c| {
                c.raft.heartbeat = Duration::ZERO
            }),
            (ConfigError::SnapshotEvery(0), |c| c.raft.snapshot_every = 0),
            (ConfigError::BundleSize(0), |c| c.bundles.max_bytes = 0),
            (ConfigError::Zero("healthy_deadline"), |c| {
                c.healthy_deadline = Duration::ZERO
            }),
        ];
        let config = Config {
            peers: peers(&[1, 2, 3]),
            ..Config::single("test")
        };
        assert_eq!(config.validate(), Ok(()));
        for (error, edit) in cases {
            let mut config = config.clone();
            edit(&mut config);
            assert_eq!(config.validate().as_ref(), Err(error));
        }
    }
}
