//! What a member does with Raft messages of others, whichever way they came.

use std::sync::Arc;

use openraft::Entry;
use openraft::error::{Fatal, InstallSnapshotError, RaftError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};

use tokio::sync::watch;

use super::admission::{Admission, Admit};
use super::describe::Position;
use super::elector::Heard;
use super::{LogId, MemberId, Raft, StoredMembership, TypeConfig, Vote, codec, format_of};
use crate::state::{FormatError, Formats};

/// Hands messages to this member's Raft, unless it is not level yet, and tells the elector of them. A cheap handle.
///
/// Who cannot be answered yet is told that this Raft has stopped: openraft knows no other way to say "later".
#[derive(Clone)]
pub struct Inbox {
    pub raft: Raft,
    pub heard: Arc<Heard>,
    pub admission: Arc<Admission>,
    /// What this member can read.
    pub formats: Formats,
    pub outdated: Arc<Outdated>,
}

/// Whether the cluster has gone past this build.
#[derive(Debug, Default)]
pub struct Outdated(watch::Sender<Option<FormatError>>);

impl Outdated {
    /// Notes that a leader has sent what this build cannot read. It will not come to be able to.
    pub fn note(&self, error: FormatError) {
        self.0.send_if_modified(|noted| noted.replace(error).is_none());
    }

    pub fn noted(&self) -> Option<FormatError> {
        *self.0.borrow()
    }

    /// Waits until it is noted.
    pub async fn wait(&self) -> FormatError {
        let mut noted = self.0.subscribe();
        loop {
            if let Some(error) = *noted.borrow_and_update() {
                return error;
            }
            // The sender lives as long as this.
            if noted.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }
}

impl Inbox {
    pub async fn append_entries(
        &self,
        message: AppendEntriesRequest<TypeConfig>,
    ) -> Result<AppendEntriesResponse<MemberId>, RaftError<MemberId>> {
        match self.admission.admit(&message.vote).await {
            Admit::Take => {}
            Admit::Refuse(vote) => return Ok(AppendEntriesResponse::HigherVote(vote)),
            Admit::NotYet => return Err(RaftError::Fatal(Fatal::Stopped)),
        }
        // Over the network it is refused before it is read. This is for who hands messages on as they are.
        for entry in &message.entries {
            if let Err(error) = self.formats.can_read(format_of(entry)) {
                self.outdated.note(error);
                return Err(RaftError::Fatal(Fatal::Stopped));
            }
        }
        // openraft takes it for granted, and would write a log with a hole.
        if !is_consecutive(message.prev_log_id, &message.entries) {
            tracing::error!(vote = %message.vote, prev = ?message.prev_log_id, "a leader has sent entries that do not follow on one another; they are not taken");
            return Err(RaftError::Fatal(Fatal::Stopped));
        }
        self.heard.note_leader(&self.raft, &message.vote);
        self.raft.append_entries(message).await
    }

    pub async fn vote(
        &self,
        message: VoteRequest<MemberId>,
    ) -> Result<VoteResponse<MemberId>, RaftError<MemberId>> {
        if !self.admission.is_level() {
            return Ok(VoteResponse::new(Vote::default(), None, false));
        }
        let answer = self.raft.vote(message).await;
        if answer.as_ref().is_ok_and(|answer| answer.vote_granted) {
            self.heard.note();
        }
        answer
    }

    /// Where this member is.
    pub async fn position(&self) -> Result<Position, RaftError<MemberId>> {
        // No vote at all is never granted, and the answer tells this member's vote and the end of its log.
        let question = VoteRequest {
            vote: Vote::default(),
            last_log_id: None,
        };
        let answer = self.raft.vote(question).await?;
        // Asked later, so that it is no older than the log.
        let membership = self.raft.with_raft_state(|state| {
            let newest = state.membership_state.effective();
            StoredMembership::new(*newest.log_id(), newest.membership().clone())
        });
        Ok(Position {
            vote: answer.vote,
            last_log_id: answer.last_log_id,
            membership: membership.await?,
        })
    }

    pub async fn install_snapshot(
        &self,
        message: InstallSnapshotRequest<TypeConfig>,
    ) -> Result<InstallSnapshotResponse<MemberId>, RaftError<MemberId, InstallSnapshotError>> {
        match self.admission.admit(&message.vote).await {
            Admit::Take => {}
            Admit::Refuse(vote) => return Ok(InstallSnapshotResponse { vote }),
            Admit::NotYet => return Err(RaftError::Fatal(Fatal::Stopped)),
        }
        if message.offset == 0
            && let Err(error) = self.formats.can_read(codec::format_of(&message.data))
        {
            self.outdated.note(error);
            return Err(RaftError::Fatal(Fatal::Stopped));
        }
        self.heard.note_leader(&self.raft, &message.vote);
        self.raft.install_snapshot(message).await
    }
}

/// Whether each entry has the index after that of the one before, the first after that of `prev`.
fn is_consecutive(prev: Option<LogId>, entries: &[Entry<TypeConfig>]) -> bool {
    let first = prev.map_or(0, |prev| prev.index + 1);
    (first..)
        .zip(entries)
        .all(|(index, entry)| entry.log_id.index == index)
}

#[cfg(test)]
mod tests {
    use openraft::{CommittedLeaderId, EntryPayload};

    use super::*;

    fn id(index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(1, 1), index)
    }

    #[test]
    fn entries_follow_on_one_another() {
        for (prev, entries, expected) in [
            (None, vec![], true),
            (Some(7), vec![], true),
            (None, vec![0, 1], true),
            (Some(7), vec![8, 9], true),
            (None, vec![6, 7], false),
            (Some(7), vec![9], false),
            (Some(7), vec![7], false),
            (Some(7), vec![8, 10], false),
        ] {
            let entry = |&index: &u64| Entry {
                log_id: id(index),
                payload: EntryPayload::Blank,
            };
            let sent: Vec<_> = entries.iter().map(entry).collect();
            assert_eq!(
                is_consecutive(prev.map(id), &sent),
                expected,
                "{prev:?} {entries:?}"
            );
        }
    }
}
