//! Streams of the topology, from this member's own state.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use mosec_wire::control::proto;
use mosec_wire::control::proto::topology_update::Change;
use tokio::sync::watch::Receiver;
use tokio::time::Instant;
use tonic::Status;

use super::{Api, forward};
use crate::metrics::Counted;
use crate::state::Model;

/// How often a quiet stream asks itself whether this member is still a good source.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// A member out of touch, or behind the caller, for so long sends the caller to another one.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends the topology where it is newer than `from_version`, and after each change.
pub(super) fn follow(
    api: Api,
    from_version: u64,
) -> impl Stream<Item = Result<proto::TopologyUpdate, Status>> {
    let model = api.model.clone();
    let counted = Counted::new(&api.metrics.watch_clients);
    let have = (from_version > 0).then_some(from_version);
    let watcher = Watcher {
        api,
        model,
        have,
        poor_since: None,
        _counted: counted,
    };
    stream::unfold(Some(watcher), |watcher| async {
        let mut watcher = watcher?;
        match watcher.next().await {
            Ok(update) => Some((Ok(update), Some(watcher))),
            Err(status) => Some((Err(status), None)),
        }
    })
}

struct Watcher {
    api: Api,
    model: Receiver<Arc<Model>>,
    /// The version that the caller has.
    have: Option<u64>,
    /// Since when this member is out of touch or behind the caller.
    poor_since: Option<Instant>,
    _counted: Counted,
}

impl Watcher {
    async fn next(&mut self) -> Result<proto::TopologyUpdate, Status> {
        loop {
            let model = self.model.borrow_and_update().clone();
            if self.have.is_none_or(|have| have < model.version) {
                return Ok(self.update(&model));
            }
            let (closing, stopped) = (self.api.closing.clone(), || Status::unavailable("shutting down"));
            tokio::select! {
                () = closing.cancelled() => return Err(stopped()),
                changed = self.model.changed() => changed.map_err(|_| stopped())?,
                () = tokio::time::sleep(CHECK_EVERY) => {
                    if let Some(update) = self.check().await? {
                        return Ok(update);
                    }
                }
            }
        }
    }

    fn update(&mut self, model: &Model) -> proto::TopologyUpdate {
        self.have = Some(model.version);
        let full = proto::Topology::from(&model.topology());
        proto::TopologyUpdate {
            version: model.version,
            change: Some(Change::Full(full)),
        }
    }

    /// Ends the stream where another member is the better source.
    async fn check(&mut self) -> Result<Option<proto::TopologyUpdate>, Status> {
        let is_behind = self.have > Some(self.model.borrow().version);
        if !is_behind && self.api.handle.in_touch() {
            self.poor_since = None;
            return Ok(None);
        }
        let since = *self.poor_since.get_or_insert_with(Instant::now);
        if since.elapsed() < PATIENCE {
            return Ok(None);
        }
        if is_behind && self.api.handle.read_barrier().await.is_ok() {
            // The leader is never behind: the caller's version is from a history that was wiped.
            let model = self.model.borrow_and_update().clone();
            tracing::warn!(
                theirs = self.have,
                ours = model.version,
                "a watcher came with a version from the future"
            );
            return Ok(Some(self.update(&model)));
        }
        Err(forward::not_leader(self.api.handle.leader().as_ref()))
    }
}
