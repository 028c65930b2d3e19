//! Bundles in memory, for members that keep nothing.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;
use mosec_types::BundleId;
use parking_lot::Mutex;

use super::store::{BundleStore, StoreError, Stored, check};

/// Forgets everything with the process.
#[derive(Default)]
pub(crate) struct MemoryBundles {
    kept: Mutex<BTreeMap<BundleId, (Bytes, Instant)>>,
}

impl BundleStore for MemoryBundles {
    fn put(&self, id: &BundleId, bytes: &Bytes) -> Result<(), StoreError> {
        check(id, bytes)?;
        self.kept.lock().insert(*id, (bytes.clone(), Instant::now()));
        Ok(())
    }

    fn read(&self, id: &BundleId) -> Result<Option<Bytes>, StoreError> {
        Ok(self.kept.lock().get(id).map(|(bytes, _)| bytes.clone()))
    }

    fn renew(&self, id: &BundleId) -> Result<bool, StoreError> {
        let mut kept = self.kept.lock();
        let found = kept.get_mut(id);
        Ok(found.map(|(_, since)| *since = Instant::now()).is_some())
    }

    fn list(&self) -> Result<Vec<Stored>, StoreError> {
        let stored = |(id, (_, since)): (&BundleId, &(Bytes, Instant))| Stored {
            id: *id,
            age: since.elapsed(),
        };
        Ok(self.kept.lock().iter().map(stored).collect())
    }

    fn remove(&self, id: &BundleId) -> Result<(), StoreError> {
        self.kept.lock().remove(id);
        Ok(())
    }
}
