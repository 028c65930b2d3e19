//! Follows the cluster's topology through losses of control-plane nodes.

use std::sync::Arc;
use std::time::Duration;

use mosec_types::Topology;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};

use super::client::{ControlClient, leader_hint};
use super::convert;
use super::fingerprint;
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
        let mut leads_on = true;
        loop {
            route.learn(self.endpoints());
            let target = route.next();
            let before = sender.borrow().version;
            let status = match self.follow_one(&target, sender, leads_on).await {
                Ok(()) => Status::unavailable("the stream ended"),
                Err(status) => status,
            };
            if sender.borrow().version != before {
                route.succeeded();
            }
            // What could not be applied is asked for whole.
            leads_on = status.code() != Code::DataLoss;
            tracing::debug!(%target, %status, "topology watch lost");
            let pause = route.failed(leader_hint(&status).filter(|hint| self.admit(hint)));
            tokio::time::sleep(pause).await;
        }
    }

    /// Follows one node until it is lost. What it sends is whole at first where it cannot lead on from what is known
    /// here, and else what has changed.
    async fn follow_one(
        &self,
        target: &str,
        sender: &watch::Sender<Arc<Topology>>,
        leads_on: bool,
    ) -> Result<(), Status> {
        let mut service = self.service(target);
        let known = sender.borrow().clone();
        let request = proto::WatchTopologyRequest {
            from_version: known.version,
            from_crc: leads_on.then(|| fingerprint(&known)),
            wants_members: true,
        };
        let open = tokio::time::timeout(OPEN_TIMEOUT, service.watch_topology(request));
        let opened = open
            .await
            .map_err(|_| Status::deadline_exceeded("the stream was not opened in time"))?;
        let mut updates = opened?.into_inner();
        while let Some(update) = updates.message().await? {
            let topology = match update.change {
                Some(Change::Full(full)) => {
                    Topology::try_from(full).map_err(|error| Status::data_loss(error.to_string()))?
                }
                Some(Change::Delta(delta)) => {
                    let delta = convert::delta(update.version, delta);
                    let delta = delta.map_err(|error| Status::data_loss(error.to_string()))?;
                    let mut topology = Topology::clone(&sender.borrow());
                    topology
                        .apply(delta)
                        .map_err(|gap| Status::data_loss(gap.to_string()))?;
                    topology
                }
                None if !update.members.is_empty() => {
                    self.learn(update.members);
                    continue;
                }
                None => {
                    let version = update.version;
                    let problem = format!("update {version} is of a kind not known here");
                    return Err(Status::unimplemented(problem));
                }
            };
            sender.send_replace(Arc::new(topology));
        }
        Ok(())
    }
}
