//! What the rest of the control plane asks of Raft.

use std::sync::Arc;
use std::time::Duration;

use mosec_types::topology::NodeHealth;
use mosec_wire::control::proto::LeaderInfo;
use openraft::error::{CheckIsLeaderError, ClientWriteError, ForwardToLeader, RaftError};
use openraft::{BasicNode, ChangeMembers, ServerState};
use tokio::sync::{Mutex as AsyncMutex, watch};

use super::{LogId, MAX_ENTRY_BYTES, MemberId, Raft, codec};
use crate::peers::Peers;
use crate::state::{Command, Format, Model, Proposal, Reply};

/// What an entry's log id and envelope add to a proposal, with room to spare.
const ENTRY_MARGIN_BYTES: usize = 512;

/// Why a proposal has no reply, or a read no state.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    #[error("the change takes {bytes} bytes in the log, more than {} can", MAX_ENTRY_BYTES - ENTRY_MARGIN_BYTES)]
    TooLarge { bytes: usize },
    #[error(
        "this needs {needed} of commands and state, and {in_force} is in force: upgrade all members first"
    )]
    Format { needed: Format, in_force: Format },
    #[error("this node does not lead")]
    NotLeader { leader: Option<LeaderInfo> },
    #[error("no majority of control-plane nodes answered within {0:?}; a change may still be made")]
    NoQuorum(Duration),
    #[error("another change of members is under way")]
    ChangeUnderWay,
    #[error("this node has stopped")]
    Stopped(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A cheap handle to this member's Raft.
#[derive(Clone)]
pub struct Handle {
    pub raft: Raft,
    pub member: MemberId,
    pub peers: Arc<Peers>,
    /// How long a majority may take to answer.
    pub quorum_timeout: Duration,
    /// Without an answer of a majority for so long, another leader may exist.
    pub lease: Duration,
    /// Held while it is decided what the members may do and that is carried out: who belongs, and in which format they
    /// write. Two such changes that were each right alone need not be together.
    pub changes: Arc<AsyncMutex<()>>,
    /// The state, of which the format in force is asked.
    pub model: watch::Receiver<Arc<Model>>,
}

impl Handle {
    /// `command` as the format in force has it.
    fn fit(&self, command: Command) -> Command {
        command.fitted(self.model.borrow().format)
    }

    /// Has a node's registration committed and applied, where the state does not have just that already: a node that
    /// asks again while the log is busy does not make it busier.
    pub async fn register(&self, registration: Command) -> Result<Reply, ProposeError> {
        // Only what it is compared with is without what the format may lack: this state may lag behind, which
        // `propose` waits for.
        let fitted = self.fit(registration.clone());
        if self.leading_term().is_some()
            && let Some(version) = registered(&self.model.borrow(), &fitted)
        {
            return Ok(Reply::Done { version });
        }
        self.propose(registration.into()).await
    }

    /// Has `proposal` committed and applied, without what the format in force does not have yet.
    pub async fn propose(&self, proposal: Proposal) -> Result<Reply, ProposeError> {
        let Proposal { command, dedup } = proposal;
        let raises = matches!(command, Command::RaiseFormat { .. });
        let lacks = |command: &Command| !raises && command.format() > self.model.borrow().format;
        if lacks(&command) {
            // The state of one that has just come to lead may lag behind, and the format with it: nothing is left out
            // or refused for that.
            self.read_barrier().await?;
        }
        let command = self.fit(command);
        if lacks(&command) {
            let (needed, in_force) = (command.format(), self.model.borrow().format);
            return Err(ProposeError::Format { needed, in_force });
        }
        let proposal = Proposal { command, dedup };
        let record = codec::encode(&proposal).map_err(|error| ProposeError::Stopped(error.into()))?;
        if record.len() > MAX_ENTRY_BYTES - ENTRY_MARGIN_BYTES {
            return Err(ProposeError::TooLarge { bytes: record.len() });
        }
        match tokio::time::timeout(self.quorum_timeout, self.raft.client_write(proposal)).await {
            Ok(Ok(written)) => Ok(written.data),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Err(self.not_leader(forward))
            }
            Ok(Err(error)) => Err(ProposeError::Stopped(error.into())),
            Err(_) => Err(ProposeError::NoQuorum(self.quorum_timeout)),
        }
    }

    /// Has a change of members committed, with the change back to one set of voters where there are two in between.
    ///
    /// Where it is another's turn, or the time is over, the change may still be made, or half of it.
    pub async fn change_members(
        &self,
        change: ChangeMembers<MemberId, BasicNode>,
    ) -> Result<(), ProposeError> {
        let changing = self.raft.change_membership(change, false);
        match tokio::time::timeout(self.quorum_timeout, changing).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Err(self.not_leader(forward))
            }
            Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(_)))) => {
                Err(ProposeError::ChangeUnderWay)
            }
            Ok(Err(error)) => Err(ProposeError::Stopped(error.into())),
            Err(_) => Err(ProposeError::NoQuorum(self.quorum_timeout)),
        }
    }

    /// Returns once this member leads and its state has everything that was acknowledged before the call.
    pub async fn read_barrier(&self) -> Result<(), ProposeError> {
        self.read_point().await.map(drop)
    }

    /// As [`Handle::read_barrier`], and says how far the state goes at least; `None` where nothing was ever logged.
    pub async fn read_point(&self) -> Result<Option<LogId>, ProposeError> {
        match tokio::time::timeout(self.quorum_timeout, self.raft.ensure_linearizable()).await {
            Ok(Ok(point)) => Ok(point),
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward)))) => {
                Err(self.not_leader(forward))
            }
            Ok(Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_)))) | Err(_) => {
                Err(ProposeError::NoQuorum(self.quorum_timeout))
            }
            Ok(Err(error)) => Err(ProposeError::Stopped(error.into())),
        }
    }

    /// The term in which this member leads, if it does and a majority has lately agreed.
    pub fn leading_term(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let leads = metrics.state == ServerState::Leader && metrics.current_leader == Some(self.member);
        // The metric is as old as its last report, which comes with each heartbeat.
        let lease = self.lease.as_millis();
        let acknowledged = metrics
            .millis_since_quorum_ack
            .is_some_and(|age| u128::from(age) < lease);
        (leads && acknowledged).then_some(metrics.current_term)
    }

    /// The leader as this member knows it.
    pub fn leader(&self) -> Option<LeaderInfo> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let id = metrics.current_leader?;
        let logged = metrics
            .membership_config
            .membership()
            .get_node(&id)
            .map_or("", |node| node.addr.as_str());
        Some(LeaderInfo {
            id,
            address: self.peers.address(id, logged).to_owned(),
        })
    }

    /// Whether this member hears of what the others commit.
    pub fn in_touch(&self) -> bool {
        match self.leader() {
            Some(leader) if leader.id == self.member => self.leading_term().is_some(),
            Some(_) => true,
            None => false,
        }
    }

    /// Whether the state is a cluster's: not where the cluster is yet to be founded, or this member to be added to it or
    /// brought level. What there is then looks as a cluster without pipelines does.
    pub fn has_state(&self) -> bool {
        self.raft.metrics().borrow().last_applied.is_some()
    }

    fn not_leader(&self, forward: ForwardToLeader<MemberId, BasicNode>) -> ProposeError {
        let leader = forward.leader_id.map(|id| {
            let logged = forward.leader_node.as_ref().map_or("", |node| node.addr.as_str());
            LeaderInfo {
                id,
                address: self.peers.address(id, logged).to_owned(),
            }
        });
        ProposeError::NotLeader { leader }
    }
}

/// The version of the state that has just this registration, if it does.
fn registered(model: &Model, command: &Command) -> Option<u64> {
    let Command::RegisterNode {
        id,
        incarnation,
        address,
        labels,
        capacity,
        build,
    } = command
    else {
        return None;
    };
    let node = model.nodes.get(id)?;
    let is_same = node.incarnation == *incarnation
        && node.health == NodeHealth::Up
        && node.address == *address
        && node.labels == *labels
        && node.capacity == *capacity
        && node.build == *build;
    is_same.then_some(model.version)
}

#[cfg(test)]
mod tests {
    use mosec_types::Incarnation;

    use super::*;
    use crate::fixtures::{model, node, up};

    /// A thousand agents that ask again after a timeout each would else keep the log from ever getting level.
    #[test]
    fn a_registration_that_is_known_is_answered_without_the_log() {
        let of = |incarnation, address: &str| Command::RegisterNode {
            id: up("a").id,
            incarnation: Incarnation(incarnation),
            address: address.into(),
            labels: Default::default(),
            capacity: Default::default(),
            build: None,
        };
        let known = model(7, [up("a")], vec![]);
        assert_eq!(registered(&known, &of(1, "a:7443")), Some(7));
        assert_eq!(registered(&known, &of(2, "a:7443")), None, "a new start is news");
        assert_eq!(registered(&known, &of(1, "b:7443")), None);
        let suspect = model(7, [node("a", NodeHealth::Suspect, &[])], vec![]);
        assert_eq!(registered(&suspect, &of(1, "a:7443")), None, "so is a return");
    }
}
