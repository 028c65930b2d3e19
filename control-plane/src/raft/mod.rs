//! Replication: openraft over sled, own snapshot files and gRPC.
//!
//! The log, the vote and a few pointers are in sled behind [`kv::LogKv`]; the state is in memory, rebuilt from the
//! newest snapshot and the log after it. One thread does all writes of a log ([`log_store`]).
//!
//! A member that comes back without its disk is filled again by the leader. It has forgotten what it acknowledged, so it
//! takes no part in votes until it is level with the others ([`admission`]), for which a majority of them must answer.

pub mod admission;
pub mod blocking;
pub mod codec;
pub mod describe;
pub mod elector;
pub mod handle;
pub mod inbox;
pub mod kv;
pub mod log_store;
mod log_writer;
pub mod members;
pub mod memory_kv;
pub mod network;
pub mod raise;
pub mod service;
pub mod sled_kv;
pub mod snapshot;
pub mod state_machine;

use std::io::Cursor;

use crate::state::format::FIRST;
use crate::state::{Format, Proposal, Reply};

openraft::declare_raft_types!(
    /// The types this Raft works with.
    pub TypeConfig:
        D = Proposal,
        R = Reply,
        NodeId = u64,
        Node = openraft::BasicNode,
);

/// A member's number in the control plane.
pub type MemberId = u64;
pub type Raft = openraft::Raft<TypeConfig>;
pub type LogId = openraft::LogId<MemberId>;
pub type Vote = openraft::Vote<MemberId>;
pub type StorageError = openraft::StorageError<MemberId>;
pub type StorageIOError = openraft::StorageIOError<MemberId>;
pub type StoredMembership = openraft::StoredMembership<MemberId, openraft::BasicNode>;
pub type SnapshotMeta = openraft::SnapshotMeta<MemberId, openraft::BasicNode>;

/// The lowest format that has all that an entry says.
pub fn format_of(entry: &openraft::Entry<TypeConfig>) -> Format {
    match &entry.payload {
        openraft::EntryPayload::Normal(proposal) => proposal.command.format(),
        openraft::EntryPayload::Blank | openraft::EntryPayload::Membership(_) => FIRST,
    }
}

/// Largest log entry. sled puts values above some 128 KiB into files that it never syncs, so entries stay well below.
pub const MAX_ENTRY_BYTES: usize = 64 * 1024;
