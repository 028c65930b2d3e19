//! Who belongs to the control plane: members come and go one at a time, while it works.
//!
//! A new member first follows as a learner, without a vote, until it has the log and the code; only then it counts in
//! majorities. A member leaves only where a majority of those that stay has everything. What comes next is decided
//! purely, from what the leader knows and the members say; whoever asked asks again until it is done, so that a leader
//! that fails in between leaves nothing half: each step is whole, and the next leader goes on.

mod policy;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use futures_util::future::join_all;
use openraft::{BasicNode, ChangeMembers};

use self::policy::{Answer, Step, View, next_to_add, next_to_remove};
pub use self::policy::{MAX_MEMBERS, Refusal, next_number};
pub use self::watch::{finish_changes, until_removed};
use super::MemberId;
use super::describe::{Ask, Description, describe_all};
use super::handle::{Handle, ProposeError};

/// Why a member was not added or removed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// How far a change has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    Done,
    /// To be asked for again; what it waits for, for people.
    Waits(String),
}

fn busy() -> Progress {
    Progress::Waits("another change of members is looked at".into())
}

/// Tells how many bundles of code a member lacks.
pub trait Code: Send + Sync {
    fn lacking(&self, member: MemberId, address: &str) -> impl Future<Output = Result<usize, String>> + Send;
}

/// Adds and removes members, on the leader. A cheap handle.
#[derive(Clone)]
pub struct Members<A, C> {
    pub cluster_id: String,
    pub handle: Handle,
    pub asker: A,
    pub code: C,
}

impl<A: Ask, C: Code> Members<A, C> {
    /// Takes the next step to have a member that votes. `note` is called before the first one, and can refuse it.
    pub async fn add<E: From<ChangeError>>(
        &self,
        member: MemberId,
        address: &str,
        note: impl AsyncFnOnce() -> Result<(), E>,
    ) -> Result<Progress, E> {
        let Ok(_alone) = self.handle.changes.try_lock() else {
            return Ok(busy());
        };
        self.barrier().await?;
        let mut answer = (self.asker.describe(address).await, 0);
        if self.handle.peers.membership().get_node(&member).is_some() {
            answer = self.with_code(member, address, answer.0).await;
        }
        let view = self.view(member);
        let step =
            next_to_add(&view, &self.cluster_id, member, address, &answer).map_err(ChangeError::Refused)?;
        match step {
            Step::Done => Ok(Progress::Done),
            Step::Wait(why) => Ok(Progress::Waits(why)),
            Step::MakeVoter => {
                self.change(ChangeMembers::AddVoterIds(BTreeSet::from([member])))
                    .await?;
                tracing::info!(member, address, "member votes");
                Ok(Progress::Done)
            }
            _ => {
                note().await?;
                let nodes = BTreeMap::from([(member, BasicNode::new(address))]);
                self.change(ChangeMembers::AddNodes(nodes)).await?;
                tracing::info!(member, address, "member follows, and is filled");
                Ok(Progress::Waits(format!("member {member} follows, and is filled")))
            }
        }
    }

    /// Takes the next step to be without a member. `note` is called before it is removed, and can refuse it.
    pub async fn remove<E: From<ChangeError>>(
        &self,
        member: MemberId,
        note: impl AsyncFnOnce() -> Result<(), E>,
    ) -> Result<Progress, E> {
        let Ok(_alone) = self.handle.changes.try_lock() else {
            return Ok(busy());
        };
        self.barrier().await?;
        let members = self.handle.peers.all();
        let mut told = describe_all(&self.asker, &self.cluster_id, members.clone()).await;
        let answers = members.iter().filter_map(|(other, address)| {
            let told = told.remove(other)?;
            Some(async move { (*other, self.with_code(*other, address, told).await) })
        });
        let answers = join_all(answers).await.into_iter().collect();
        let step = next_to_remove(&self.view(member), member, &answers).map_err(ChangeError::Refused)?;
        let change = match step {
            Step::Done => return Ok(Progress::Done),
            Step::Wait(why) => return Ok(Progress::Waits(why)),
            Step::RemoveLearner => ChangeMembers::RemoveNodes(BTreeSet::from([member])),
            _ => ChangeMembers::RemoveVoters(BTreeSet::from([member])),
        };
        note().await?;
        self.change(change).await?;
        tracing::info!(member, "member removed");
        Ok(Progress::Done)
    }

    async fn barrier(&self) -> Result<(), ChangeError> {
        Ok(self.handle.read_barrier().await?)
    }

    /// What a member has told, and how many bundles it lacks.
    async fn with_code(&self, member: MemberId, address: &str, told: Result<Description, String>) -> Answer {
        match told {
            Ok(described) if described.member == member => match self.code.lacking(member, address).await {
                Ok(lacking) => (Ok(described), lacking),
                Err(why) => (Err(why), 0),
            },
            told => (told, 0),
        }
    }

    fn view(&self, member: MemberId) -> View {
        let metrics = self.handle.raft.metrics();
        let metrics = metrics.borrow();
        let matched = metrics
            .replication
            .as_ref()
            .and_then(|matched| (*matched.get(&member)?).map(|log_id| log_id.index));
        let newest = &metrics.membership_config;
        let model = self.handle.model.borrow();
        View {
            is_settled: newest.membership().get_joint_config().len() == 1
                && *newest.log_id() <= metrics.last_applied,
            membership: newest.membership().clone(),
            format: model.format,
            retired: model.retired_members.clone(),
            last_log: metrics.last_log_index.unwrap_or(0),
            matched,
        }
    }

    async fn change(&self, change: ChangeMembers<MemberId, BasicNode>) -> Result<(), ChangeError> {
        Ok(self.handle.change_members(change).await?)
    }
}
