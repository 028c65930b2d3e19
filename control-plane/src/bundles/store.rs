//! The seam below the bundles that a member keeps: files, or memory where the member has no data folder.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use mosec_types::BundleId;

/// A bundle that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) id: BundleId,
    /// Since it was put or asked for.
    pub(crate) age: Duration,
}

/// Why a store could not do as told.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the bytes are of bundle {found}, expected {expected}")]
    Hash { expected: BundleId, found: BundleId },
    #[error("bundle file {} could not be used", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Keeps bundles. Methods block.
pub(crate) trait BundleStore: Send + Sync + 'static {
    /// Checks a bundle and keeps it. It survives the loss of power once this has returned.
    fn put(&self, id: &BundleId, bytes: &Bytes) -> Result<(), StoreError>;

    /// A bundle's bytes, checked. One that is damaged is removed, and not there.
    fn read(&self, id: &BundleId) -> Result<Option<Bytes>, StoreError>;

    /// Makes a bundle as young as a new one; false where there is none.
    fn renew(&self, id: &BundleId) -> Result<bool, StoreError>;

    /// What is kept, in the order of the ids.
    fn list(&self) -> Result<Vec<Stored>, StoreError>;

    /// Removes a bundle, if it is there.
    fn remove(&self, id: &BundleId) -> Result<(), StoreError>;
}

/// Refuses bytes of another bundle.
pub(super) fn check(id: &BundleId, bytes: &[u8]) -> Result<(), StoreError> {
    let found = mosec_bundle::id_of(bytes);
    if found == *id {
        Ok(())
    } else {
        Err(StoreError::Hash { expected: *id, found })
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
