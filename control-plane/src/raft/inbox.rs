//! What a member does with Raft messages of others, whichever way they came.

use std::sync::Arc;

use openraft::error::{Fatal, InstallSnapshotError, RaftError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};

use super::admission::{Admission, Admit};
use super::describe::Position;
use super::elector::Heard;
use super::{MemberId, Raft, StoredMembership, TypeConfig, Vote};

/// Hands messages to this member's Raft, unless it is not level yet, and tells the elector of them. A cheap handle.
///
/// Who cannot be answered yet is told that this Raft has stopped: openraft knows no other way to say "later".
#[derive(Clone)]
pub struct Inbox {
    pub raft: Raft,
    pub heard: Arc<Heard>,
    pub admission: Arc<Admission>,
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
        self.heard.note_leader(&self.raft, &message.vote);
        self.raft.install_snapshot(message).await
    }
}
