//! The log store on sled.
//!
//! sled's own `flush` reaches the kernel but not the disk: on Linux it calls `sync_file_range`, which neither flushes
//! the disk's cache nor writes the file's size. So [`LogKv::sync`] adds an `fdatasync` on a handle of its own.

use std::fs::File;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::kv::{Change, KvError, LogKv, MetaKey};

/// Far more than the log that is kept, so that reads seldom touch the disk.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// sled's file in its directory.
const DATA_FILE: &str = "db";
/// Removals in one batch; a long log is purged in several.
const DROP_BATCH: usize = 1024;

pub struct SledKv {
    db: sled::Db,
    entries: sled::Tree,
    meta: sled::Tree,
    /// Second handle to sled's file, for `fdatasync`.
    data: File,
}

impl SledKv {
    /// Opens or creates the store in `dir`. Waits up to `patience` for another process to release it.
    pub fn open(dir: &Path, patience: Duration) -> Result<Self, KvError> {
        let give_up = Instant::now() + patience;
        let db = loop {
            match open_db(dir) {
                Err(KvError::Sled(sled::Error::Io(error))) if is_locked(&error) => {
                    if Instant::now() >= give_up {
                        return Err(KvError::InUse);
                    }
                    tracing::debug!(dir = %dir.display(), "the log store is still held by another process");
                    sleep(Duration::from_millis(50));
                }
                opened => break opened?,
            }
        };
        let data = File::open(dir.join(DATA_FILE))?;
        let (entries, meta) = (db.open_tree("entries")?, db.open_tree("meta")?);
        Ok(Self {
            db,
            entries,
            meta,
            data,
        })
    }

    fn drop_entries(&self, range: Range<u64>) -> Result<(), KvError> {
        loop {
            let keys = self
                .entries
                .range(range.start.to_be_bytes()..range.end.to_be_bytes())
                .keys();
            let keys = keys.take(DROP_BATCH).collect::<Result<Vec<_>, _>>()?;
            if keys.is_empty() {
                return Ok(());
            }
            let mut batch = sled::Batch::default();
            keys.into_iter().for_each(|key| batch.remove(key));
            self.entries.apply_batch(batch)?;
        }
    }
}

fn open_db(dir: &Path) -> Result<sled::Db, KvError> {
    let config = sled::Config::new()
        .path(dir)
        .mode(sled::Mode::LowSpace)
        // Every write is followed by our own sync where it matters.
        .flush_every_ms(None)
        .cache_capacity(CACHE_BYTES);
    // sled asserts what it reads: on damaged files it may panic where it should fail.
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(opened) => Ok(opened?),
        Err(panic) => Err(KvError::Corrupt(panic_text(panic.as_ref()))),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("sled panicked while opening them")
        .to_owned()
}

/// sled reports a held lock as an error of kind `Other` whose text names the lock.
fn is_locked(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::WouldBlock || error.to_string().contains("could not acquire lock")
}

impl LogKv for SledKv {
    fn write(&self, changes: Vec<Change>) -> Result<(), KvError> {
        let mut batch = sled::Batch::default();
        for change in changes {
            match change {
                Change::PutEntry(index, value) => batch.insert(&index.to_be_bytes(), value),
                Change::DropEntries(range) => {
                    self.entries.apply_batch(std::mem::take(&mut batch))?;
                    self.drop_entries(range)?;
                }
                Change::PutMeta(key, value) => drop(self.meta.insert(key.name(), value)?),
            }
        }
        Ok(self.entries.apply_batch(batch)?)
    }

    fn sync(&self) -> Result<(), KvError> {
        self.db.flush()?;
        Ok(self.data.sync_data()?)
    }

    fn entries(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<(u64, Vec<u8>)>, KvError> {
        let mut found: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut bytes = 0;
        for entry in self
            .entries
            .range(range.start.to_be_bytes()..range.end.to_be_bytes())
        {
            let (key, value) = entry?;
            bytes += value.len();
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push((index_of(&key)?, value.to_vec()));
        }
        Ok(found)
    }

    fn last_entry(&self) -> Result<Option<(u64, Vec<u8>)>, KvError> {
        let Some((key, value)) = self.entries.last()? else {
            return Ok(None);
        };
        Ok(Some((index_of(&key)?, value.to_vec())))
    }

    fn meta(&self, key: MetaKey) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.meta.get(key.name())?.map(|value| value.to_vec()))
    }

    fn disk_bytes(&self) -> Result<u64, KvError> {
        Ok(self.db.size_on_disk()?)
    }
}

fn index_of(key: &[u8]) -> Result<u64, KvError> {
    let bytes = key.try_into().map_err(|_| KvError::Key(key.to_vec()))?;
    Ok(u64::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::memory_kv::MemoryKv;

    #[test]
    fn both_stores_agree() {
        let dir = tempfile::tempdir().unwrap();
        let sled = SledKv::open(dir.path(), Duration::ZERO).unwrap();
        for kv in [&sled as &dyn LogKv, &MemoryKv::default()] {
            assert_eq!(kv.last_entry().unwrap(), None);
            assert_eq!(kv.meta(MetaKey::Vote).unwrap(), None);
            let entries = (0..3000u64)
                .map(|index| Change::PutEntry(index, vec![index as u8; 4]))
                .collect();
            kv.write(entries).unwrap();
            kv.write(vec![
                Change::DropEntries(0..2500),
                Change::PutMeta(MetaKey::Vote, b"v".to_vec()),
            ])
            .unwrap();
            kv.write(vec![
                Change::DropEntries(2998..u64::MAX),
                Change::PutEntry(2998, b"new".to_vec()),
            ])
            .unwrap();
            kv.sync().unwrap();
            assert_eq!(kv.last_entry().unwrap(), Some((2998, b"new".to_vec())));
            assert_eq!(kv.meta(MetaKey::Vote).unwrap(), Some(b"v".to_vec()));
            let indexes = |range, max| {
                kv.entries(range, max)
                    .unwrap()
                    .iter()
                    .map(|e| e.0)
                    .collect::<Vec<_>>()
            };
            assert_eq!(indexes(0..2503, usize::MAX), [2500, 2501, 2502]);
            assert_eq!(indexes(2500..2900, 8), [2500, 2501]);
            assert_eq!(
                indexes(2500..2900, 0),
                [2500],
                "the first comes whatever its size"
            );
            assert_eq!(indexes(9000..9001, 100), [0; 0]);
        }
    }

    #[test]
    fn a_store_in_use_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let held = SledKv::open(dir.path(), Duration::ZERO).unwrap();
        let refused = SledKv::open(dir.path(), Duration::ZERO).map(drop).unwrap_err();
        assert!(matches!(refused, KvError::InUse), "{refused}");
        let path = dir.path().to_owned();
        let waiting = std::thread::spawn(move || SledKv::open(&path, Duration::from_secs(10)).map(drop));
        drop(held);
        waiting.join().unwrap().unwrap();
    }
}
