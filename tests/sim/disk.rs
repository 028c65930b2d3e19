//! A disk that forgets what was not synced when its machine loses power, and that a dead process cannot write to.

use std::sync::Arc;

use mosec_control_plane::raft::kv::{Change, KvError, LogKv, MetaKey};
use mosec_control_plane::raft::memory_kv::MemoryKv;
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;
use std::ops::Range;

/// A lie that the disk tells, for the tests of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lie {
    #[default]
    None,
    /// A sync does nothing.
    Sync,
    /// Votes are never synced.
    Vote,
}

/// One member's disk. A cheap handle.
#[derive(Clone, Default)]
pub struct Disk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// Counts the processes that have had it open; only the last may use it.
    opened: u64,
    /// What survives.
    synced: Vec<Change>,
    /// What may be lost, in the order of its writing.
    unsynced: Vec<Change>,
    lie: Lie,
}

impl Disk {
    pub fn new(lie: Lie) -> Self {
        let disk = Self::default();
        disk.inner.lock().lie = lie;
        disk
    }

    /// The store for one life of a process; earlier ones fail from now on.
    pub fn open(&self) -> Arc<dyn LogKv> {
        let mut inner = self.inner.lock();
        inner.opened += 1;
        let (life, cache) = (inner.opened, MemoryKv::default());
        let kept = inner.synced.iter().chain(&inner.unsynced).cloned().collect();
        // In memory only: it cannot fail.
        drop(cache.write(kept));
        Arc::new(Store {
            disk: self.clone(),
            life,
            cache,
        })
    }

    /// Ends the process that has it open. Of what was not synced a part stays, as the disk had written it anyway.
    pub fn lose_power(&self, rng: &mut StdRng) {
        let mut inner = self.inner.lock();
        inner.opened += 1;
        let kept = rng.random_range(0..=inner.unsynced.len());
        // Where a sync does nothing, nothing is kept in time.
        let kept = if inner.lie == Lie::Sync { 0 } else { kept };
        inner.unsynced.truncate(kept);
        let kept = std::mem::take(&mut inner.unsynced);
        let lie = inner.lie;
        inner
            .synced
            .extend(kept.into_iter().filter(|change| keeps(lie, change)));
    }

    /// Ends the process that has it open; the machine stays up and loses nothing.
    pub fn lose_process(&self) {
        self.inner.lock().opened += 1;
    }

    /// An empty disk in its place.
    pub fn wipe(&self) {
        let mut inner = self.inner.lock();
        inner.opened += 1;
        inner.synced.clear();
        inner.unsynced.clear();
    }
}

/// Whether a change survives with this lie.
fn keeps(lie: Lie, change: &Change) -> bool {
    !(lie == Lie::Vote && matches!(change, Change::PutMeta(MetaKey::Vote, _)))
}

/// The disk as one life of a process has it open.
struct Store {
    disk: Disk,
    life: u64,
    cache: MemoryKv,
}

impl Store {
    fn check(&self) -> Result<parking_lot::MutexGuard<'_, Inner>, KvError> {
        let inner = self.disk.inner.lock();
        if inner.opened == self.life {
            Ok(inner)
        } else {
            Err(std::io::Error::other("the process is dead").into())
        }
    }
}

impl LogKv for Store {
    fn write(&self, changes: Vec<Change>) -> Result<(), KvError> {
        let mut inner = self.check()?;
        inner.unsynced.extend(changes.iter().cloned());
        self.cache.write(changes)
    }

    fn sync(&self) -> Result<(), KvError> {
        let mut inner = self.check()?;
        if inner.lie == Lie::Sync {
            return Ok(());
        }
        let (lie, written) = (inner.lie, std::mem::take(&mut inner.unsynced));
        inner
            .synced
            .extend(written.into_iter().filter(|change| keeps(lie, change)));
        Ok(())
    }

    fn entries(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<(u64, Vec<u8>)>, KvError> {
        drop(self.check()?);
        self.cache.entries(range, max_bytes)
    }

    fn last_entry(&self) -> Result<Option<(u64, Vec<u8>)>, KvError> {
        drop(self.check()?);
        self.cache.last_entry()
    }

    fn meta(&self, key: MetaKey) -> Result<Option<Vec<u8>>, KvError> {
        drop(self.check()?);
        self.cache.meta(key)
    }

    fn disk_bytes(&self) -> Result<u64, KvError> {
        Ok(0)
    }
}
