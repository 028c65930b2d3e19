//! Sees to it that a member has the bundles that revisions name, and no others for long.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mosec_types::BundleId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::Bundles;
use super::plan::{Plan, plan};
use crate::raft::handle::Handle;
use crate::state::Model;

/// A revision's bundle is on its way to all members when the revision is logged. What is there a little later needs no fetching.
const SETTLE: Duration = Duration::from_secs(2);

/// The loop.
pub(crate) struct Keeper {
    pub(crate) bundles: Bundles,
    pub(crate) handle: Handle,
    pub(crate) model: watch::Receiver<Arc<Model>>,
}

impl Keeper {
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&mut self) {
        loop {
            let wanted = self.model.borrow_and_update().bundles();
            if let Err(status) = self.carry_out(&wanted).await {
                tracing::warn!(error = status.message(), "bundles could not be looked after");
            }
            let news = async {
                // The state changes often, and what it names of bundles rarely.
                while self.model.changed().await.is_ok() {
                    if self.model.borrow_and_update().bundles() != wanted {
                        return tokio::time::sleep(SETTLE).await;
                    }
                }
                std::future::pending().await
            };
            let _ = tokio::time::timeout(self.bundles.limits().check_every, news).await;
        }
    }

    async fn carry_out(&self, wanted: &BTreeSet<BundleId>) -> Result<(), Status> {
        let stored = self.bundles.store(|store| store.list()).await?;
        let Plan { fetch, remove } = plan(&stored, wanted, self.bundles.limits().grace);
        for id in fetch {
            let _turn = self.bundles.turn().await?;
            if let Err(status) = self.bundles.fetch(id).await {
                tracing::warn!(bundle = %id.short(), error = status.message(), "a bundle is missing");
            }
        }
        // A member that is out of touch does not know of the newest revisions.
        if self.handle.in_touch() {
            for id in remove {
                self.bundles.store(move |store| store.remove(&id)).await?;
                tracing::info!(bundle = %id.short(), "a bundle that no revision names is removed");
            }
        }
        Ok(())
    }
}
