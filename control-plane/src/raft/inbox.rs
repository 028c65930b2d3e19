//! What a member does with Raft messages of others, whichever way they came.

use std::sync::Arc;

use openraft::error::{Fatal, InstallSnapshotError, RaftError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};

use super::admission::{Admission, Admit, Position};
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

    /// This member's vote and the end of its log.
    pub async fn position(&self) -> Result<Position, RaftError<MemberId>> {
        // No vote at all is never granted, and the answer tells both.
        let question = VoteRequest {
            vote: Vote::default(),
            last_log_id: None,
        };
        let answer = self.raft.vote(question).await?;
        Ok(Position {
            vote: answer.vote,
            last_log_id: answer.last_log_id,
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
