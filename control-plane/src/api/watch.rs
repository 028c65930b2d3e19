//! Streams of the topology, from this member's own state.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use mosec_telemetry::Counted;
use mosec_wire::control::proto;
use tokio::sync::watch::Receiver;
use tokio::time::Instant;
use tonic::Status;

use super::{Api, forward};
use crate::feed::Have;
use crate::state::Model;

/// How often a quiet stream asks itself whether this member is still a good source.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// A member out of touch, or behind the caller, for so long sends the caller to another one.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends what has changed since what the caller has, and each change from then on.
///
/// Errors: this member has no topology to send.
pub(super) fn follow(
    api: Api,
    request: &proto::WatchTopologyRequest,
) -> Result<impl Stream<Item = Result<proto::TopologyUpdate, Status>> + use<>, Status> {
    if !api.handle.has_state() {
        // Another one may have, and an empty topology would be taken for the cluster's.
        return Err(Status::unavailable("this member has nothing of its cluster yet"));
    }
    let model = api.model.clone();
    let counted = Counted::new(&api.metrics.watch_clients);
    let have = (request.from_version > 0).then_some(Have::Told {
        version: request.from_version,
        crc: request.from_crc,
    });
    let watcher = Watcher {
        api,
        model,
        have,
        due: VecDeque::new(),
        told: request.wants_members.then(Vec::new),
        poor_since: None,
        _counted: counted,
    };
    Ok(stream::unfold(Some(watcher), |watcher| async {
        let mut watcher = watcher?;
        match watcher.next().await {
            Ok(update) => Some((Ok(update), Some(watcher))),
            Err(status) => Some((Err(status), None)),
        }
    }))
}

struct Watcher {
    api: Api,
    model: Receiver<Arc<Model>>,
    /// What the caller has, once it has all that is due.
    have: Option<Have>,
    /// What is to be sent before anything newer: no more than the feed keeps.
    due: VecDeque<proto::TopologyUpdate>,
    /// The members that the caller knows from here, if it wants to.
    told: Option<Vec<String>>,
    /// Since when this member is out of touch or behind the caller.
    poor_since: Option<Instant>,
    _counted: Counted,
}

impl Watcher {
    async fn next(&mut self) -> Result<proto::TopologyUpdate, Status> {
        loop {
            if let Some(update) = self.due.pop_front() {
                return Ok(update);
            }
            let model = self.model.borrow_and_update().clone();
            self.api.feed.update(&model);
            self.due = self.api.feed.since(self.have).into();
            if let Some(last) = self.due.back() {
                self.have = Some(Have::Sent(last.version));
                continue;
            }
            let members = self.api.handle.peers.addresses();
            if let Some(told) = self.told.as_mut().filter(|told| **told != members) {
                told.clone_from(&members);
                return Ok(proto::TopologyUpdate {
                    version: self.have.map_or(0, Have::version),
                    change: None,
                    members,
                });
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

    /// Ends the stream where another member is the better source.
    async fn check(&mut self) -> Result<Option<proto::TopologyUpdate>, Status> {
        let version = self.have.map(Have::version);
        let is_behind = version > Some(self.model.borrow().version);
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
                theirs = version,
                ours = model.version,
                "a watcher came with a version from the future"
            );
            self.api.feed.update(&model);
            let whole = self.api.feed.whole();
            self.have = Some(Have::Sent(whole.version));
            return Ok(Some(whole));
        }
        Err(forward::not_leader(self.api.handle.leader().as_ref()))
    }
}
