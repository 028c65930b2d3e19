//! openraft's own suite on both stores, and what it leaves out: restarts and damage.

use std::path::Path;
use std::time::Duration;

use mosec_types::{Incarnation, NodeId};
use openraft::storage::{RaftLogStorageExt, RaftStateMachine};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{CommittedLeaderId, EntryPayload, RaftSnapshotBuilder};
use tempfile::TempDir;

use super::*;
use crate::raft::memory_kv::MemoryKv;
use crate::raft::sled_kv::SledKv;
use crate::raft::snapshot::SnapshotDir;
use crate::raft::state_machine::{Snapshots, StateMachine};
use crate::state::{Command, Proposal};

fn owner() -> Owner {
    Owner {
        cluster_id: "test".into(),
        member: 1,
    }
}

fn open_log(dir: &Path) -> Result<LogStore, OpenError> {
    let kv = SledKv::open(&dir.join("log"), Duration::from_secs(10))?;
    LogStore::open(Arc::new(kv), &owner())
}

fn open_machine(dir: &Path) -> StateMachine {
    let snapshots = SnapshotDir::open(&dir.join("snapshots")).unwrap();
    StateMachine::open(Snapshots::Dir(snapshots)).unwrap().0
}

struct OnDisk;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let (log, machine) = (open_log(dir.path()).unwrap(), open_machine(dir.path()));
        Ok((dir, log, machine))
    }
}

struct InMemory;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, ()> for InMemory {
    async fn build(&self) -> Result<((), LogStore, StateMachine), StorageError> {
        let log = LogStore::open(Arc::new(MemoryKv::default()), &owner()).unwrap();
        let (machine, _) = StateMachine::open(Snapshots::Memory(Default::default())).unwrap();
        Ok(((), log, machine))
    }
}

#[test]
fn openrafts_suite_passes_on_disk() {
    Suite::test_all(OnDisk).unwrap();
}

#[test]
fn openrafts_suite_passes_in_memory() {
    Suite::test_all(InMemory).unwrap();
}

fn log_id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(1, 1), index)
}

/// Registers a node named after the entry's index.
fn entry(index: u64) -> Entry<TypeConfig> {
    let command = Command::RegisterNode {
        id: NodeId::new(format!("n{index}")).unwrap(),
        incarnation: Incarnation(index),
        address: "host:1".into(),
        labels: Default::default(),
        capacity: Default::default(),
        build: None,
    };
    Entry {
        log_id: log_id(index),
        payload: EntryPayload::Normal(Proposal::from(command)),
    }
}

#[tokio::test]
async fn a_reopened_store_has_vote_log_and_state() {
    let dir = tempfile::tempdir().unwrap();
    let vote = Vote::new_committed(7, 2);
    {
        let (mut log, mut machine) = (open_log(dir.path()).unwrap(), open_machine(dir.path()));
        log.save_vote(&vote).await.unwrap();
        log.blocking_append((1..=9).map(entry)).await.unwrap();
        log.truncate(log_id(9)).await.unwrap();
        machine.apply((1..=6).map(entry)).await.unwrap();
        let snapshot = machine
            .get_snapshot_builder()
            .await
            .build_snapshot()
            .await
            .unwrap();
        assert_eq!(snapshot.meta.last_log_id, Some(log_id(6)));
        log.save_committed(Some(log_id(8))).await.unwrap();
        log.purge(log_id(4)).await.unwrap();
        machine.apply((7..=8).map(entry)).await.unwrap();
    }
    let (mut log, mut machine) = (open_log(dir.path()).unwrap(), open_machine(dir.path()));
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    let state = log.get_log_state().await.unwrap();
    assert_eq!(
        (state.last_purged_log_id, state.last_log_id),
        (Some(log_id(4)), Some(log_id(8)))
    );
    let kept = log.try_get_log_entries(0..100).await.unwrap();
    assert_eq!(
        kept.iter().map(|entry| entry.log_id.index).collect::<Vec<_>>(),
        [5, 6, 7, 8]
    );
    assert_eq!(kept[0], entry(5));
    // The state is the snapshot's; openraft applies the log after it again.
    assert_eq!(machine.applied_state().await.unwrap().0, Some(log_id(6)));
    machine.apply(kept.into_iter().skip(2)).await.unwrap();
    assert_eq!(machine.applied_state().await.unwrap().0, Some(log_id(8)));
}

#[tokio::test]
async fn a_leader_sends_nothing_rather_than_what_is_left_of_purged_entries() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open_log(dir.path()).unwrap();
    log.blocking_append((0..10).map(entry)).await.unwrap();
    log.purge(log_id(4)).await.unwrap();
    let mut sent = async |from, to| {
        let entries = log.limited_get_log_entries(from, to).await.unwrap();
        entries.iter().map(|entry| entry.log_id.index).collect::<Vec<_>>()
    };
    assert!(sent(0, 8).await.is_empty());
    assert!(sent(4, 8).await.is_empty());
    assert_eq!(sent(5, 8).await, [5, 6, 7]);
}

#[tokio::test]
async fn a_crash_during_a_purge_leaves_no_hole() {
    let kv = Arc::new(MemoryKv::default());
    let mut log = LogStore::open(kv.clone(), &owner()).unwrap();
    log.blocking_append((1..=5).map(entry)).await.unwrap();
    // The first half of a purge beyond the log's end, as after a snapshot from the leader.
    kv.write(vec![Change::PutMeta(
        MetaKey::Purged,
        codec::encode(&log_id(20)).unwrap(),
    )])
    .unwrap();
    let state = log.get_log_state().await.unwrap();
    assert_eq!(
        (state.last_purged_log_id, state.last_log_id),
        (Some(log_id(20)), Some(log_id(20)))
    );
}

#[tokio::test]
async fn replication_reads_are_bounded() {
    let mut log = LogStore::open(Arc::new(MemoryKv::default()), &owner()).unwrap();
    let large = |index| {
        let mut entry = entry(index);
        if let EntryPayload::Normal(Proposal {
            command: Command::RegisterNode { address, .. },
            ..
        }) = &mut entry.payload
        {
            *address = "x".repeat(60_000);
        }
        entry
    };
    log.blocking_append((1..=40).map(large)).await.unwrap();
    let read = log.limited_get_log_entries(1, 41).await.unwrap().len();
    assert_eq!(read, REPLICATION_BYTES / 60_200);
    assert_eq!(log.try_get_log_entries(1..41).await.unwrap().len(), 40);
}

#[tokio::test]
async fn damaged_records_are_errors_that_name_them() {
    let dir = tempfile::tempdir().unwrap();
    {
        let mut log = open_log(dir.path()).unwrap();
        log.save_vote(&Vote::new(1, 1)).await.unwrap();
        log.blocking_append((1..=3).map(entry)).await.unwrap();
    }
    let kv = SledKv::open(&dir.path().join("log"), Duration::from_secs(10)).unwrap();
    let mut damaged = kv.entries(2..3, usize::MAX).unwrap().remove(0).1;
    damaged[20] ^= 1;
    let torn = codec::encode(&Vote::new(1, 1)).unwrap()[..7].to_vec();
    kv.write(vec![
        Change::PutEntry(2, damaged),
        Change::PutMeta(MetaKey::Vote, torn),
    ])
    .unwrap();
    let misplaced = kv.entries(1..2, usize::MAX).unwrap().remove(0).1;
    kv.write(vec![Change::PutEntry(3, misplaced)]).unwrap();
    let mut log = LogStore::open(Arc::new(kv), &owner()).unwrap();

    let error = log.try_get_log_entries(1..3).await.unwrap_err().to_string();
    assert!(
        error.contains("log entry 2 is unreadable") && error.contains("corrupt"),
        "{error}"
    );
    let error = log.read_vote().await.unwrap_err().to_string();
    assert!(error.contains("the log's vote is unreadable"), "{error}");
    let error = log.get_log_state().await.unwrap_err().to_string();
    assert!(error.contains("log entry 3 says that it is entry 1"), "{error}");
}

#[tokio::test]
async fn garbage_in_sleds_file_is_an_error_not_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    {
        let mut log = open_log(dir.path()).unwrap();
        log.blocking_append((1..=50).map(entry)).await.unwrap();
    }
    // Waits for the log's thread to have released the file.
    drop(SledKv::open(&dir.path().join("log"), Duration::from_secs(10)).unwrap());
    std::fs::write(dir.path().join("log/conf"), b"no configuration of sled").unwrap();
    let error = open_log(dir.path()).map(drop).unwrap_err();
    assert!(
        matches!(error, OpenError::Kv(KvError::Sled(_) | KvError::Corrupt(_))),
        "{error}"
    );
}

#[tokio::test]
async fn a_log_belongs_to_one_member() {
    let kv = Arc::new(MemoryKv::default());
    drop(LogStore::open(kv.clone(), &owner()).unwrap());
    let other = Owner { member: 2, ..owner() };
    let error = LogStore::open(kv, &other).map(drop).unwrap_err().to_string();
    assert_eq!(
        error,
        "the log belongs to member 1 of cluster \"test\", not to member 2 of cluster \"test\""
    );
}

#[tokio::test]
async fn a_member_that_led_must_be_elected_anew() {
    let kv = Arc::new(MemoryKv::default());
    let mut log = LogStore::open(kv, &owner()).unwrap();
    log.save_vote(&Vote::new_committed(7, 1)).await.unwrap();
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(7, 1)));
    let of_another = Vote::new_committed(8, 2);
    log.save_vote(&of_another).await.unwrap();
    assert_eq!(log.read_vote().await.unwrap(), Some(of_another));
}

#[tokio::test]
async fn a_member_is_new_until_it_is_level() {
    let kv = Arc::new(MemoryKv::default());
    assert!(LogStore::open(kv.clone(), &owner()).unwrap().is_newcomer());
    let log = LogStore::open(kv.clone(), &owner()).unwrap();
    assert!(log.is_newcomer(), "a restart makes nobody level");
    log.note_level().await.unwrap();
    assert!(!LogStore::open(kv, &owner()).unwrap().is_newcomer());

    let older = Arc::new(MemoryKv::default());
    let record = codec::encode(&owner()).unwrap();
    older
        .write(vec![Change::PutMeta(MetaKey::Owner, record)])
        .unwrap();
    assert!(!LogStore::open(older, &owner()).unwrap().is_newcomer());
}
