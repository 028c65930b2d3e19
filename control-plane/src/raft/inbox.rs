//! What a member does with Raft messages of others, whichever way they came.

use std::sync::Arc;

use openraft::error::{InstallSnapshotError, RaftError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};

use super::elector::Heard;
use super::{MemberId, Raft, TypeConfig};

/// Hands messages to this member's Raft, and tells the elector of them. A cheap handle.
#[derive(Clone)]
pub struct Inbox {
    pub raft: Raft,
    pub heard: Arc<Heard>,
}

impl Inbox {
    pub async fn append_entries(
        &self,
        message: AppendEntriesRequest<TypeConfig>,
    ) -> Result<AppendEntriesResponse<MemberId>, RaftError<MemberId>> {
        self.heard.note_leader(&self.raft, &message.vote);
        self.raft.append_entries(message).await
    }

    pub async fn vote(
        &self,
        message: VoteRequest<MemberId>,
    ) -> Result<VoteResponse<MemberId>, RaftError<MemberId>> {
        let answer = self.raft.vote(message).await;
        if answer.as_ref().is_ok_and(|answer| answer.vote_granted) {
            self.heard.note();
        }
        answer
    }

    pub async fn install_snapshot(
        &self,
        message: InstallSnapshotRequest<TypeConfig>,
    ) -> Result<InstallSnapshotResponse<MemberId>, RaftError<MemberId, InstallSnapshotError>> {
        self.heard.note_leader(&self.raft, &message.vote);
        self.raft.install_snapshot(message).await
    }
}
