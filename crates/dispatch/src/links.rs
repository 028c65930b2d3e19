//! Keeps a link to each node that batches may go to, and tells the registry what those nodes grant.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mosec_types::NodeId;
use mosec_types::topology::Node;
use mosec_wire::link::BoxFuture;
use mosec_wire::quic::QuicConnector;
use mosec_wire::{Link, LinkError, LinkEvent};
use rand::Rng as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{LinkTarget, Registry, Target, TargetId};

/// First and longest pause between attempts to connect. The first is short as a restarting agent is back in well under
/// a second; the longest bounds how late a node that was away is used again.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(1);

/// Makes links to nodes.
pub trait Connect: Send + Sync + 'static {
    fn connect(&self, node: Node) -> BoxFuture<'_, Result<Arc<dyn Link>, LinkError>>;
}

impl Connect for QuicConnector {
    fn connect(&self, node: Node) -> BoxFuture<'_, Result<Arc<dyn Link>, LinkError>> {
        Box::pin(async move {
            let link = QuicConnector::connect(self, &node.address, Some(&node.id)).await?;
            Ok(Arc::new(link) as Arc<dyn Link>)
        })
    }
}

/// The links of a process. One task for each node, owned here and ended by dropping this.
pub struct Links {
    connect: Arc<dyn Connect>,
    registry: Registry,
    nodes: HashMap<NodeId, (Node, CancellationToken)>,
    tasks: JoinSet<()>,
}

impl Links {
    pub fn new(connect: Arc<dyn Connect>, registry: Registry) -> Self {
        Self {
            connect,
            registry,
            nodes: HashMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Makes the links be those to `nodes`: the missing ones are connected, the others closed.
    ///
    /// A node's health in the topology does not matter here: whether its link works says more.
    pub fn set_nodes(&mut self, nodes: impl IntoIterator<Item = Node>) {
        let mut wanted: HashMap<NodeId, Node> =
            nodes.into_iter().map(|node| (node.id.clone(), node)).collect();
        self.nodes.retain(|id, (node, stop)| {
            let same = wanted.get(id).is_some_and(|new| is_same_place(new, node));
            if same {
                wanted.remove(id);
            } else {
                stop.cancel();
            }
            same
        });
        for (id, node) in wanted {
            let stop = CancellationToken::new();
            self.tasks.spawn(keep_link(
                self.connect.clone(),
                self.registry.clone(),
                node.clone(),
                stop.clone(),
            ));
            self.nodes.insert(id, (node, stop));
        }
        while self.tasks.try_join_next().is_some() {}
    }
}

fn is_same_place(a: &Node, b: &Node) -> bool {
    a.address == b.address && a.incarnation == b.incarnation
}

/// Connects again and again until stopped.
async fn keep_link(connect: Arc<dyn Connect>, registry: Registry, node: Node, stop: CancellationToken) {
    let mut pause = RETRY_FIRST;
    while !stop.is_cancelled() {
        let connected = tokio::select! {
            connected = connect.connect(node.clone()) => connected,
            () = stop.cancelled() => return,
        };
        match connected {
            Ok(link) => {
                tracing::info!(node = %node.id, address = node.address, "link is up");
                let error = follow(&*link, &link, &registry, &node.id, &stop).await;
                link.close();
                if stop.is_cancelled() {
                    return;
                }
                tracing::warn!(node = %node.id, %error, "link lost");
                pause = RETRY_FIRST;
            }
            Err(error) => tracing::debug!(node = %node.id, %error, "could not connect"),
        }
        let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::select! {
            () = tokio::time::sleep(jittered) => {}
            () = stop.cancelled() => return,
        }
        pause = (pause * 2).min(RETRY_LONGEST);
    }
}

/// Passes a link's events on until it ends.
async fn follow(
    link: &dyn Link,
    shared: &Arc<dyn Link>,
    registry: &Registry,
    node: &NodeId,
    stop: &CancellationToken,
) -> LinkError {
    // Each connection is a target of its own, so what an old one still returns never counts for a new one.
    static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
    let id = TargetId(format!("{node}#{}", CONNECTIONS.fetch_add(1, Ordering::Relaxed)));
    let target: Arc<dyn Target> = Arc::new(LinkTarget::new(shared.clone()));
    let error = loop {
        let event = tokio::select! {
            event = link.event() => event,
            () = stop.cancelled() => break LinkError::Closed,
        };
        match event {
            Ok(LinkEvent::Window { stage, window }) => registry.set_window(stage, &id, &target, window),
            Ok(LinkEvent::Hello { .. }) => {}
            // Its windows go; what is outstanding there is still answered.
            Ok(LinkEvent::Drain) => {
                tracing::info!(%node, "node drains");
                registry.remove_target(&id);
            }
            Err(error) => break error,
        }
    };
    registry.remove_target(&id);
    error
}
