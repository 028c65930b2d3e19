//! Follows the cluster's topology through losses of control-plane nodes.

use std::sync::Arc;
use std::time::Duration;

use mosec_types::Topology;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use super::client::{ControlClient, leader_hint};
use super::proto;
use super::proto::topology_update::Change;

/// How long a node may take to open the stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

impl ControlClient {
    /// Gives the newest known topology, kept fresh by a task on `tasks` until `cancel` or the last receiver is gone.
    ///
    /// It starts with `known`: empty, or a topology kept from an earlier run. While no control-plane node answers,
    /// the last value stays.
    pub fn watch_topology(
        &self,
        known: Topology,
        tasks: &TaskTracker,
        cancel: CancellationToken,
    ) -> watch::Receiver<Arc<Topology>> {
        let (sender, receiver) = watch::channel(Arc::new(known));
        let client = self.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = client.follow(&sender) => {}
                () = sender.closed() => {}
                () = cancel.cancelled() => {}
            }
        });
        receiver
    }

    /// Goes from node to node forever.
    async fn follow(&self, sender: &watch::Sender<Arc<Topology>>) {
        let mut route = self.route();
        loop {
            let target = route.next();
            let before = sender.borrow().version;
            let status = match self.follow_one(&target, sender).await {
                Ok(()) => Status::unavailable("the stream ended"),
                Err(status) => status,
            };
            if sender.borrow().version != before {
                route.succeeded();
            }
            tracing::debug!(%target, %status, "topology watch lost");
            let pause = route.failed(leader_hint(&status).filter(|hint| self.admit(hint)));
            tokio::time::sleep(pause).await;
        }
    }

    /// Follows one node until it is lost.
    async fn follow_one(&self, target: &str, sender: &watch::Sender<Arc<Topology>>) -> Result<(), Status> {
        let mut service = self.service(target);
        let request = proto::WatchTopologyRequest {
            from_version: sender.borrow().version,
        };
        let open = tokio::time::timeout(OPEN_TIMEOUT, service.watch_topology(request));
        let opened = open
            .await
            .map_err(|_| Status::deadline_exceeded("the stream was not opened in time"))?;
        let mut updates = opened?.into_inner();
        while let Some(update) = updates.message().await? {
            let Some(Change::Full(full)) = update.change else {
                return Err(Status::unimplemented(format!(
                    "update {} is of a kind not known here",
                    update.version
                )));
            };
            let topology = Topology::try_from(full).map_err(|error| Status::data_loss(error.to_string()))?;
            sender.send_replace(Arc::new(topology));
        }
        Ok(())
    }
}
