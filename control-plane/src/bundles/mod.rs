//! Bundles of code: on every member, beside the log.
//!
//! Whoever takes a bundle stores it and gives it to the other members before it answers. A revision that names one is logged only when
//! a majority has it, so that it outlives what the log outlives. A member that lacks one, because it was
//! away or its file is damaged, fetches it from another: [`keeper`] looks after that, and removes what no revision names.

mod exchange;
pub(crate) mod files;
pub(crate) mod keeper;
pub(crate) mod memory;
mod plan;
pub(crate) mod store;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use mosec_types::BundleId;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use self::store::{BundleStore, StoreError};
use crate::peers::Peers;
use crate::raft::MemberId;

/// Most transfers at a time, in both directions: with the largest bundle by default, 2 GiB of memory if all differ.
const MAX_TRANSFERS: usize = 32;
/// How long a transfer may wait for its turn. Beyond it another member may have time.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);

/// What a member may keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BundleLimits {
    /// Largest bundle that is taken.
    pub max_bytes: u64,
    /// How long a bundle stays that no remembered revision names.
    pub grace: Duration,
    /// How often time alone is looked at: for bundles that have become old, and those that could not be fetched.
    pub check_every: Duration,
}

impl Default for BundleLimits {
    /// An hour: a deployment that comes so long after its bundle was put has to put it again.
    fn default() -> Self {
        Self {
            max_bytes: mosec_bundle::DEFAULT_MAX_BYTES,
            grace: Duration::from_secs(3600),
            check_every: Duration::from_secs(30),
        }
    }
}

/// The bundles of this member, and the way to those of the others. A cheap handle.
#[derive(Clone)]
pub(crate) struct Bundles(Arc<Inner>);

struct Inner {
    store: Arc<dyn BundleStore>,
    limits: BundleLimits,
    member: MemberId,
    peers: Arc<Peers>,
    /// What is being sent, so that a hundred agents that ask for one bundle share one copy.
    loaded: Mutex<BTreeMap<BundleId, Weak<Bytes>>>,
    transfers: Arc<Semaphore>,
}

impl Bundles {
    pub(crate) fn new(
        store: Arc<dyn BundleStore>,
        limits: BundleLimits,
        member: MemberId,
        peers: Arc<Peers>,
    ) -> Self {
        Self(Arc::new(Inner {
            store,
            limits,
            member,
            peers,
            loaded: Mutex::default(),
            transfers: Arc::new(Semaphore::new(MAX_TRANSFERS)),
        }))
    }

    pub(crate) fn limits(&self) -> BundleLimits {
        self.0.limits
    }

    /// Waits until one more transfer may be under way.
    pub(crate) async fn turn(&self) -> Result<OwnedSemaphorePermit, Status> {
        let permit = tokio::time::timeout(TURN_TIMEOUT, self.0.transfers.clone().acquire_owned()).await;
        match permit {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Status::unavailable(format!(
                "{MAX_TRANSFERS} bundles are under way here, which is the most there can be"
            ))),
        }
    }

    /// Checks a bundle and keeps it here.
    pub(crate) async fn keep(&self, id: BundleId, bytes: Bytes) -> Result<(), Status> {
        self.store(move |store| store.put(&id, &bytes)).await
    }

    /// Whether a bundle is here, which makes it stay for another while.
    pub(crate) async fn renew(&self, id: BundleId) -> Result<bool, Status> {
        self.store(move |store| store.renew(&id)).await
    }

    /// A bundle that is here.
    pub(crate) async fn load(&self, id: BundleId) -> Result<Option<Arc<Bytes>>, Status> {
        if let Some(loaded) = self.0.loaded.lock().get(&id).and_then(Weak::upgrade) {
            return Ok(Some(loaded));
        }
        let Some(bytes) = self.store(move |store| store.read(&id)).await? else {
            return Ok(None);
        };
        let bytes = Arc::new(bytes);
        let mut loaded = self.0.loaded.lock();
        loaded.retain(|_, other| other.strong_count() > 0);
        loaded.insert(id, Arc::downgrade(&bytes));
        Ok(Some(bytes))
    }

    /// A bundle, fetched from another member where it is not here.
    pub(crate) async fn obtain(&self, id: BundleId) -> Result<Arc<Bytes>, Status> {
        match self.load(id).await? {
            Some(bytes) => Ok(bytes),
            None => self.fetch(id).await.map(Arc::new),
        }
    }

    /// Runs what blocks where blocking does no harm.
    async fn store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn BundleStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Status> {
        let store = self.0.store.clone();
        let done = tokio::task::spawn_blocking(move || work(&*store)).await;
        match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error @ StoreError::Hash { .. })) => Err(Status::invalid_argument(error.to_string())),
            Ok(Err(StoreError::Io { path, source })) => {
                let path = path.display();
                tracing::error!(%path, error = %source, "a bundle file could not be used");
                // Another member may have room on its disk.
                Err(Status::unavailable(format!(
                    "bundle file {path} could not be used: {source}"
                )))
            }
            Err(panicked) => Err(Status::internal(panicked.to_string())),
        }
    }
}
