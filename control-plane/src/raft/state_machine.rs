//! openraft's state machine: the state in memory, published after each change, and its snapshots.

use std::io::Cursor;
use std::sync::Arc;

use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::{AnyError, Entry, EntryPayload, OptionalSend, RaftSnapshotBuilder};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::blocking::Blocking;
use super::codec::{self, CodecError};
use super::snapshot::{SnapshotDir, SnapshotError, Stored};
use super::{LogId, SnapshotMeta, StorageError, StorageIOError, StoredMembership, TypeConfig, format_of};
use crate::state::{Formats, Model, Reply, apply};

/// Why the state could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("the snapshot's state cannot be used")]
    State(#[source] CodecError),
}

/// Where snapshots are kept: in files, or for tests in memory.
pub enum Snapshots {
    Dir(SnapshotDir),
    Memory(Arc<Mutex<Option<Stored>>>),
}

impl Snapshots {
    fn newest(&self) -> Result<Option<Stored>, SnapshotError> {
        match self {
            Self::Dir(dir) => dir.newest(),
            Self::Memory(newest) => Ok(newest.lock().clone()),
        }
    }

    fn save(&self, snapshot: Stored) -> Result<(), SnapshotError> {
        match self {
            Self::Dir(dir) => dir.save(&snapshot),
            Self::Memory(newest) => {
                *newest.lock() = Some(snapshot);
                Ok(())
            }
        }
    }
}

/// The state and how far it goes.
#[derive(Clone, Default)]
struct State {
    last_applied: Option<LogId>,
    membership: StoredMembership,
    model: Arc<Model>,
}

pub struct StateMachine {
    state: State,
    snapshots: Arc<Snapshots>,
    published: watch::Sender<Arc<Model>>,
    blocking: Blocking,
    formats: Formats,
}

impl StateMachine {
    /// Restores the state from the newest snapshot. Blocks.
    ///
    /// The receiver sees the state after each change.
    pub fn open(snapshots: Snapshots) -> Result<(Self, watch::Receiver<Arc<Model>>), RestoreError> {
        Self::open_on(Blocking::Threads, snapshots, Formats::BUILD)
    }

    /// As [`StateMachine::open`], with a say in where the work is done, and in which formats.
    pub fn open_on(
        blocking: Blocking,
        snapshots: Snapshots,
        formats: Formats,
    ) -> Result<(Self, watch::Receiver<Arc<Model>>), RestoreError> {
        let state = match snapshots.newest()? {
            Some(Stored { meta, state }) => restore(formats, &meta, &state).map_err(RestoreError::State)?,
            None => State::default(),
        };
        let (published, receiver) = watch::channel(state.model.clone());
        Ok((
            Self {
                state,
                snapshots: Arc::new(snapshots),
                published,
                blocking,
                formats,
            },
            receiver,
        ))
    }

    fn apply_entry(&mut self, entry: Entry<TypeConfig>) -> Reply {
        self.state.last_applied = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => Reply::Void,
            EntryPayload::Normal(proposal) => {
                // Watchers hold the previous state, so this copies it: once for a batch of entries.
                apply(Arc::make_mut(&mut self.state.model), entry.log_id.index, proposal)
            }
            EntryPayload::Membership(membership) => {
                self.state.membership = StoredMembership::new(Some(entry.log_id), membership);
                Reply::Void
            }
        }
    }

    fn publish(&self) {
        self.published.send_if_modified(|published| {
            let newer = !Arc::ptr_eq(published, &self.state.model);
            if newer {
                *published = self.state.model.clone();
            }
            newer
        });
    }
}

fn restore(formats: Formats, meta: &SnapshotMeta, state: &[u8]) -> Result<State, CodecError> {
    let model: Model = codec::decode_as(formats, state)?;
    formats.check(model.format)?;
    Ok(State {
        last_applied: meta.last_log_id,
        membership: meta.last_membership.clone(),
        model: Arc::new(model),
    })
}

/// Runs blocking work off the runtime, with its errors as openraft's.
async fn run<T: Send + 'static>(
    blocking: &Blocking,
    work: impl FnOnce() -> Result<T, AnyError> + Send + 'static,
    error: impl FnOnce(AnyError) -> StorageIOError,
) -> Result<T, StorageError> {
    match blocking.run(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(cause)) | Err(cause) => Err(error(cause).into()),
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.state.last_applied, self.state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Reply>, StorageError>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut replies = Vec::new();
        for entry in entries {
            // A format that this build does not have must not even come into force.
            self.formats
                .can_read(format_of(&entry))
                .map_err(|error| StorageIOError::apply(entry.log_id, AnyError::new(&error)))?;
            replies.push(self.apply_entry(entry));
        }
        self.publish();
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder {
            state: self.state.clone(),
            snapshots: self.snapshots.clone(),
            blocking: self.blocking.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let signature = meta.signature();
        let (meta, state) = (meta.clone(), snapshot.into_inner());
        let (snapshots, formats) = (self.snapshots.clone(), self.formats);
        let install = move || {
            let restored = restore(formats, &meta, &state).map_err(|error| AnyError::new(&error))?;
            snapshots
                .save(Stored { meta, state })
                .map_err(|error| AnyError::new(&error))?;
            Ok(restored)
        };
        self.state = run(&self.blocking, install, |cause| {
            StorageIOError::write_snapshot(Some(signature), cause)
        })
        .await?;
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let snapshots = self.snapshots.clone();
        let read = move || snapshots.newest().map_err(|error| AnyError::new(&error));
        let newest = run(&self.blocking, read, |cause| {
            StorageIOError::read_snapshot(None, cause)
        })
        .await?;
        Ok(newest.map(|Stored { meta, state }| Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(state)),
        }))
    }
}

/// Builds a snapshot of the state at the time of its making.
pub struct SnapshotBuilder {
    state: State,
    snapshots: Arc<Snapshots>,
    blocking: Blocking,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let State {
            last_applied,
            membership,
            model,
        } = self.state.clone();
        let snapshot_id = last_applied.map_or_else(
            || "empty".to_owned(),
            |id| format!("{}-{}", id.leader_id, id.index),
        );
        let meta = SnapshotMeta {
            last_log_id: last_applied,
            last_membership: membership,
            snapshot_id,
        };
        let signature = meta.signature();
        let snapshots = self.snapshots.clone();
        let build = move || {
            let state = codec::encode_as(model.format, &*model).map_err(|error| AnyError::new(&error))?;
            let stored = Stored { meta, state };
            // Durable before openraft hears of it, as it then purges the log that the snapshot covers.
            snapshots
                .save(stored.clone())
                .map_err(|error| AnyError::new(&error))?;
            Ok(stored)
        };
        let built = run(&self.blocking, build, |cause| {
            StorageIOError::write_snapshot(Some(signature), cause)
        })
        .await?;
        Ok(Snapshot {
            meta: built.meta,
            snapshot: Box::new(Cursor::new(built.state)),
        })
    }
}
