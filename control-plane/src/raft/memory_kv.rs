//! The log store in memory, for tests and for a control plane that need not outlive its process.

use std::collections::BTreeMap;
use std::ops::Range;

use parking_lot::Mutex;

use super::kv::{Change, KvError, LogKv, MetaKey};

#[derive(Debug, Default)]
pub struct MemoryKv {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<u64, Vec<u8>>,
    meta: BTreeMap<MetaKey, Vec<u8>>,
}

impl LogKv for MemoryKv {
    fn write(&self, changes: Vec<Change>) -> Result<(), KvError> {
        let mut inner = self.inner.lock();
        for change in changes {
            match change {
                Change::PutEntry(index, value) => drop(inner.entries.insert(index, value)),
                Change::DropEntries(range) => inner.entries.retain(|index, _| !range.contains(index)),
                Change::PutMeta(key, value) => drop(inner.meta.insert(key, value)),
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), KvError> {
        Ok(())
    }

    fn entries(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<(u64, Vec<u8>)>, KvError> {
        let inner = self.inner.lock();
        let mut found: Vec<(u64, Vec<u8>)> = Vec::new();
        if range.is_empty() {
            // A map's range must not be backwards.
            return Ok(found);
        }
        let mut bytes = 0;
        for (&index, value) in inner.entries.range(range) {
            bytes += value.len();
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push((index, value.clone()));
        }
        Ok(found)
    }

    fn last_entry(&self) -> Result<Option<(u64, Vec<u8>)>, KvError> {
        Ok(self
            .inner
            .lock()
            .entries
            .last_key_value()
            .map(|(&index, value)| (index, value.clone())))
    }

    fn meta(&self, key: MetaKey) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.inner.lock().meta.get(&key).cloned())
    }

    fn disk_bytes(&self) -> Result<u64, KvError> {
        Ok(0)
    }
}
