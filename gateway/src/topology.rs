//! Follows the topology: keeps the routes, the first stages' dispatchers and the links to their nodes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mosec_dispatch::{Links, StageConfig};
use mosec_types::Topology;
use mosec_types::topology::Node;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::request::Shared;
use crate::routes::Table;

/// Keeps `shared` up to date until `stop`, or until there will be no newer topology.
///
/// `links` is absent where the replicas are in this process and register themselves.
pub(crate) async fn follow(
    shared: Arc<Shared>,
    config: Config,
    mut topology: watch::Receiver<Arc<Topology>>,
    mut links: Option<Links>,
    stop: CancellationToken,
) {
    let mut has_come = false;
    loop {
        let now = {
            let newest = topology.borrow_and_update();
            has_come |= newest.has_changed();
            newest.clone()
        };
        apply(&shared, &config, &now, links.as_mut());
        // A cluster in which nothing has happened yet is at version 0, as is what stands for a topology before there is one.
        if has_come {
            shared.knows_topology.store(true, Ordering::Relaxed);
        }
        tokio::select! {
            changed = topology.changed() => {
                if changed.is_err() {
                    // The last topology stays in force; the links live on with it.
                    stop.cancelled().await;
                    return;
                }
                has_come = true;
            }
            () = stop.cancelled() => return,
        }
    }
}

/// Makes everything agree with `topology`. Routes change last, when their dispatchers are there.
pub(crate) fn apply(shared: &Shared, config: &Config, topology: &Topology, links: Option<&mut Links>) {
    let table = Table::new(topology);
    for (key, route) in table.first_stages() {
        if let Some(stage) = StageConfig::of(&route.spec, key, config.replica_grace) {
            shared.dispatchers.ensure(stage);
        }
    }
    if let Some(links) = links {
        links.set_nodes(nodes_of(topology));
    }
    tracing::debug!(version = topology.version, "topology applied");
    shared.traffic.follow(topology);
    shared.metrics.revisions.follow(topology);
    let table = Arc::new(table);
    let former = shared.routes.swap(table.clone());
    if topology.version > 0 {
        shared.knows_topology.store(true, Ordering::Relaxed);
    }
    // Requests that wait for a revision which takes none any more need not wait for its replicas, slow or broken as those
    // may be: what takes its place serves them.
    for key in table.replaced(&former) {
        shared.dispatchers.hand_back(key);
    }
    // A revision that is gone has no new requests; those it has are finished first.
    shared.dispatchers.retire(|key| {
        topology
            .deployment(key.revision)
            .is_some_and(|deployment| !deployment.is_over())
    });
}

/// The nodes that run first stages, those of revisions that only start among them: their links are up by the time
/// requests may go there. Those of revisions that are over are there until they have finished.
fn nodes_of(topology: &Topology) -> Vec<Node> {
    let first_stages = topology.deployments.iter().flat_map(|deployment| {
        let first = deployment.spec.routes.iter().filter_map(|route| route.first());
        first.flat_map(|stage| deployment.nodes_of(stage))
    });
    let ids: BTreeSet<_> = first_stages.collect();
    ids.into_iter()
        .filter_map(|id| topology.node(id))
        .cloned()
        .collect()
}
