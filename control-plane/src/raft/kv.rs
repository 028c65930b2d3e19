//! The seam below the Raft log: a small ordered store. sled is behind it, and a map in memory for tests.

use std::ops::Range;

/// A named value beside the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MetaKey {
    /// Whose log this is.
    Owner,
    Vote,
    /// The last committed log id that was seen: without promise of being the newest.
    Committed,
    /// Whether its member has not been level with the others since the store was empty.
    Newcomer,
    /// The last log id that was dropped because a snapshot has it.
    Purged,
}

impl MetaKey {
    pub fn name(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Vote => "vote",
            Self::Committed => "committed",
            Self::Newcomer => "newcomer",
            Self::Purged => "purged",
        }
    }
}

/// One change of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    PutEntry(u64, Vec<u8>),
    /// Removes the entries of these indexes, where there are any.
    DropEntries(Range<u64>),
    PutMeta(MetaKey, Vec<u8>),
}

/// A failure of the store. It stays failed: the process must be restarted.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    #[error("the log store failed")]
    Sled(#[from] sled::Error),
    #[error("the log store's file could not be used")]
    Io(#[from] std::io::Error),
    #[error("the log store is in use by another process")]
    InUse,
    #[error("the log store holds a key that is no index: {0:?}")]
    Key(Vec<u8>),
    #[error("the log store's files are corrupt: {0}")]
    Corrupt(String),
}

/// Log entries by index, and a few named values. Methods block.
pub trait LogKv: Send + Sync + 'static {
    /// Makes the changes in order. They can be read at once, and survive a crash after [`LogKv::sync`].
    fn write(&self, changes: Vec<Change>) -> Result<(), KvError>;

    /// Makes all writes so far survive the loss of power.
    fn sync(&self) -> Result<(), KvError>;

    /// Entries of these indexes in order: the first, and as many more as fit into `max_bytes`.
    fn entries(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<(u64, Vec<u8>)>, KvError>;

    /// The entry with the largest index.
    fn last_entry(&self) -> Result<Option<(u64, Vec<u8>)>, KvError>;

    fn meta(&self, key: MetaKey) -> Result<Option<Vec<u8>>, KvError>;

    /// Bytes on disk.
    fn disk_bytes(&self) -> Result<u64, KvError>;
}
