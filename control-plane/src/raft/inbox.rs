//! What a member does with Raft messages of others, whichever way they came.

use std::sync::Arc;

use openraft::error::{Fatal, InstallSnapshotError, RaftError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};

use super::admission::{Admission, Admit};
use super::elector::Heard;
use super::{MemberId, Raft, TypeConfig, Vote};

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
        // No vote at all is the question of a newcomer for this member's vote and log.
        let question = message.vote == Vote::default();
        if !question && !self.admission.is_level() {
            return Ok(VoteResponse::new(Vote::default(), None, false));
        }
        let answer = self.raft.vote(message).await;
        if !question && answer.as_ref().is_ok_and(|answer| answer.vote_granted) {
            self.heard.note();
        }
        answer
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
