//! openraft's log storage over a [`LogKv`].
//!
//! All writes go through one thread, in order, each made durable before the next: a vote cannot overtake an append,
//! and no sync blocks the runtime. Reads go to the store directly, from blocking threads.

use std::fmt::Debug;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, Entry, ErrorSubject, ErrorVerb, LogState, OptionalSend, RaftLogReader};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::blocking::Blocking;
use super::codec::{self, CodecError};
use super::kv::{Change, KvError, LogKv, MetaKey};
use super::log_writer::{Job, run_in_line, run_on_thread};
use super::{LogId, MemberId, StorageError, StorageIOError, TypeConfig, Vote, format_of};
use crate::state::{FormatError, Formats};

/// Most bytes of entries that one replication request carries, besides its first entry.
const REPLICATION_BYTES: usize = 1024 * 1024;

/// Whose log it is. A log never changes hands: its vote and entries are promises of one member of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub cluster_id: String,
    pub member: MemberId,
}

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Kv(#[from] KvError),
    #[error("the log's owner is unreadable")]
    Owner(#[source] CodecError),
    #[error(
        "the log belongs to member {} of cluster {:?}, not to member {} of cluster {:?}",
        found.member, found.cluster_id, wanted.member, wanted.cluster_id
    )]
    Foreign { found: Owner, wanted: Owner },
    #[error("whether the log's member is new is unreadable")]
    Newcomer(#[source] CodecError),
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("the log's thread could not be started")]
    Thread(#[source] std::io::Error),
}

/// A cheap handle to the log.
#[derive(Clone)]
pub struct LogStore {
    kv: Arc<dyn LogKv>,
    jobs: mpsc::Sender<Job>,
    blocking: Blocking,
    member: MemberId,
    newcomer: bool,
    formats: Formats,
}

impl LogStore {
    /// Takes the log in `kv` into use for `owner`, to whom a new one then belongs.
    pub fn open(kv: Arc<dyn LogKv>, owner: &Owner) -> Result<Self, OpenError> {
        Self::open_on(Blocking::Threads, kv, owner, Formats::BUILD)
    }

    /// As [`LogStore::open`], with a say in where the work is done, and in which formats.
    pub fn open_on(
        blocking: Blocking,
        kv: Arc<dyn LogKv>,
        owner: &Owner,
        formats: Formats,
    ) -> Result<Self, OpenError> {
        match kv.meta(MetaKey::Owner)? {
            Some(record) => {
                let found: Owner = codec::decode(&record).map_err(OpenError::Owner)?;
                if found != *owner {
                    return Err(OpenError::Foreign {
                        found,
                        wanted: owner.clone(),
                    });
                }
            }
            None => {
                let record = codec::encode(owner).map_err(OpenError::Owner)?;
                let newcomer = codec::encode(&true).map_err(OpenError::Newcomer)?;
                // In this order: whoever finds an owner finds the other, too.
                kv.write(vec![
                    Change::PutMeta(MetaKey::Newcomer, newcomer),
                    Change::PutMeta(MetaKey::Owner, record),
                ])?;
                kv.sync()?;
            }
        }
        check_formats(kv.as_ref(), formats)?;
        let newcomer = match kv.meta(MetaKey::Newcomer)? {
            Some(record) => codec::decode(&record).map_err(OpenError::Newcomer)?,
            // Of a version that knew no newcomers.
            None => false,
        };
        // openraft has one write under way at a time, and a purge's second half.
        let (jobs, queue) = mpsc::channel(4);
        let writer = kv.clone();
        match &blocking {
            Blocking::Threads => {
                let thread = std::thread::Builder::new().name("raft-log".into());
                thread
                    .spawn(move || run_on_thread(writer.as_ref(), queue))
                    .map_err(OpenError::Thread)?;
            }
            Blocking::InLine(pace) => drop(tokio::spawn(run_in_line(writer, queue, pace.clone()))),
        }
        Ok(Self {
            kv,
            jobs,
            blocking,
            member: owner.member,
            newcomer,
            formats,
        })
    }

    /// Whether the store was empty when it was opened first, and [`LogStore::note_level`] has not been called since.
    pub fn is_newcomer(&self) -> bool {
        self.newcomer
    }

    /// Notes that the member has what the others have. Durable when it returns, as is all that was written before.
    pub async fn note_level(&self) -> Result<(), StorageError> {
        let record = record(&false, ErrorSubject::Store)?;
        let change = Change::PutMeta(MetaKey::Newcomer, record);
        self.write(vec![change], true, ErrorSubject::Store).await
    }

    /// Bytes on disk. Blocks.
    pub fn disk_bytes(&self) -> Result<u64, KvError> {
        self.kv.disk_bytes()
    }

    async fn write(
        &self,
        changes: Vec<Change>,
        durable: bool,
        subject: ErrorSubject<MemberId>,
    ) -> Result<(), StorageError> {
        self.submit(changes, durable, None, subject).await
    }

    async fn submit(
        &self,
        changes: Vec<Change>,
        durable: bool,
        flushed: Option<LogFlushed<TypeConfig>>,
        subject: ErrorSubject<MemberId>,
    ) -> Result<(), StorageError> {
        let failed =
            |error: AnyError| StorageError::from(StorageIOError::new(subject, ErrorVerb::Write, error));
        let stopped = || AnyError::error("the log's thread has stopped");
        let (written, wait) = oneshot::channel();
        let job = Job {
            changes,
            durable,
            written,
            flushed,
        };
        match self.jobs.send(job).await {
            Ok(()) => match wait.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(failed(AnyError::new(&error))),
                Err(_) => Err(failed(stopped())),
            },
            Err(_) => Err(failed(stopped())),
        }
    }

    /// Reads from the store on a blocking thread.
    async fn read<T: Send + 'static>(
        &self,
        subject: ErrorSubject<MemberId>,
        read: impl FnOnce(&dyn LogKv) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let kv = self.kv.clone();
        let error = match self.blocking.run(move || read(kv.as_ref())).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => AnyError::new(&error),
            Err(panic) => panic,
        };
        Err(StorageIOError::new(subject, ErrorVerb::Read, error).into())
    }

    async fn read_meta<T: DeserializeOwned + Send + 'static>(
        &self,
        key: MetaKey,
    ) -> Result<Option<T>, StorageError> {
        let subject = match key {
            MetaKey::Vote => ErrorSubject::Vote,
            _ => ErrorSubject::Logs,
        };
        self.read(subject, move |kv| meta(kv, key)).await
    }

    async fn read_entries(
        &self,
        range: Range<u64>,
        max_bytes: usize,
    ) -> Result<Vec<Entry<TypeConfig>>, StorageError> {
        let formats = self.formats;
        let read = move |kv: &dyn LogKv| {
            let records = kv.entries(range, max_bytes)?;
            records
                .into_iter()
                .map(|(index, record)| entry(formats, index, &record))
                .collect()
        };
        self.read(ErrorSubject::Logs, read).await
    }
}

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Kv(#[from] KvError),
    #[error("log entry {index} is unreadable: {problem}")]
    Entry { index: u64, problem: CodecError },
    #[error("log entry {index} says that it is entry {found}")]
    Misplaced { index: u64, found: u64 },
    #[error("the log's {key} is unreadable: {problem}")]
    Meta { key: &'static str, problem: CodecError },
}

/// Refuses a log that a later build has written to.
fn check_formats(kv: &dyn LogKv, formats: Formats) -> Result<(), OpenError> {
    let mut from = 0;
    loop {
        let records = kv.entries(from..u64::MAX, REPLICATION_BYTES)?;
        let Some((last, _)) = records.last() else {
            return Ok(());
        };
        from = last.saturating_add(1);
        for (_, record) in &records {
            // What is damaged is named when it is read.
            if let Ok((format, _)) = codec::check(record) {
                formats.can_read(format)?;
            }
        }
    }
}

fn entry(formats: Formats, index: u64, record: &[u8]) -> Result<Entry<TypeConfig>, ReadError> {
    let entry: Entry<TypeConfig> =
        codec::decode_as(formats, record).map_err(|problem| ReadError::Entry { index, problem })?;
    match entry.log_id.index {
        found if found == index => Ok(entry),
        found => Err(ReadError::Misplaced { index, found }),
    }
}

fn meta<T: DeserializeOwned>(kv: &dyn LogKv, key: MetaKey) -> Result<Option<T>, ReadError> {
    let Some(record) = kv.meta(key)? else {
        return Ok(None);
    };
    codec::decode(&record).map_err(|problem| ReadError::Meta {
        key: key.name(),
        problem,
    })
}

/// The vote with which a member starts: one that led must be elected anew.
///
/// openraft would have it go on leading its term, without a word from the others. But it does not know how much of its
/// log was committed, and begins no term of its own that would tell: it would answer reads with an older state than was
/// acknowledged.
fn without_leadership(mut vote: Vote, member: MemberId) -> Vote {
    if vote.leader_id.voted_for() == Some(member) {
        vote.committed = false;
    }
    vote
}

/// The range of indexes between `bounds`.
fn indexes(bounds: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match bounds.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match bounds.end_bound() {
        Bound::Included(&last) => last.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

#[expect(clippy::result_large_err, reason = "openraft's own error")]
fn record<T: Serialize>(value: &T, subject: ErrorSubject<MemberId>) -> Result<Vec<u8>, StorageError> {
    recorded(codec::encode(value), subject)
}

#[expect(clippy::result_large_err, reason = "openraft's own error")]
fn recorded(
    record: Result<Vec<u8>, CodecError>,
    subject: ErrorSubject<MemberId>,
) -> Result<Vec<u8>, StorageError> {
    record.map_err(|error| StorageIOError::new(subject, ErrorVerb::Write, AnyError::new(&error)).into())
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<TypeConfig>>, StorageError> {
        self.read_entries(indexes(&range), usize::MAX).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry<TypeConfig>>, StorageError> {
        let entries = self.read_entries(start..end, REPLICATION_BYTES).await?;
        // openraft purges what no follower is known to need, and may ask for more right afterwards: of a follower whose
        // log is shorter than it was, or that comes anew. What is left would make a hole in that follower's log; nothing
        // at all makes a heartbeat, after which openraft looks again at what it needs.
        let is_whole = entries.first().is_some_and(|first| first.log_id.index == start);
        Ok(if is_whole { entries } else { Vec::new() })
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let formats = self.formats;
        let read = move |kv: &dyn LogKv| {
            let purged: Option<LogId> = meta(kv, MetaKey::Purged)?;
            let last = kv
                .last_entry()?
                .map(|(index, record)| entry(formats, index, &record))
                .transpose()?;
            // A crash during a purge leaves entries that are gone by right; they are never the last.
            let last = last.map(|entry| entry.log_id).max(purged);
            Ok(LogState {
                last_purged_log_id: purged,
                last_log_id: last,
            })
        };
        self.read(ErrorSubject::Logs, read).await
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let record = record(vote, ErrorSubject::Vote)?;
        self.write(
            vec![Change::PutMeta(MetaKey::Vote, record)],
            true,
            ErrorSubject::Vote,
        )
        .await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let vote: Option<Vote> = self.read_meta(MetaKey::Vote).await?;
        Ok(vote.map(|vote| without_leadership(vote, self.member)))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let record = record(&committed, ErrorSubject::Logs)?;
        // Not durable: it saves work after a restart, and an older value is as correct.
        self.write(
            vec![Change::PutMeta(MetaKey::Committed, record)],
            false,
            ErrorSubject::Logs,
        )
        .await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let committed: Option<Option<LogId>> = self.read_meta(MetaKey::Committed).await?;
        Ok(committed.flatten())
    }

    async fn append<I>(&mut self, entries: I, flushed: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut changes = Vec::new();
        for entry in entries {
            let subject = ErrorSubject::Log(entry.log_id);
            let record = recorded(codec::encode_as(format_of(&entry), &entry), subject)?;
            changes.push(Change::PutEntry(entry.log_id.index, record));
        }
        self.submit(changes, true, Some(flushed), ErrorSubject::Logs)
            .await
    }

    async fn truncate(&mut self, from: LogId) -> Result<(), StorageError> {
        self.write(
            vec![Change::DropEntries(from.index..u64::MAX)],
            true,
            ErrorSubject::Logs,
        )
        .await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        // First that they are gone, then without haste the entries themselves: never a hole.
        let record = record(&upto, ErrorSubject::Logs)?;
        self.write(
            vec![Change::PutMeta(MetaKey::Purged, record)],
            true,
            ErrorSubject::Logs,
        )
        .await?;
        self.write(
            vec![Change::DropEntries(0..upto.index.saturating_add(1))],
            false,
            ErrorSubject::Logs,
        )
        .await
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
