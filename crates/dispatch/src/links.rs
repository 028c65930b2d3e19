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
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::outage::{Outage, Outages};
use crate::{LinkTarget, Registry, Target, TargetId};

/// First and longest pause between attempts to connect. The first is short as a restarting agent is back in well under
/// a second; the longest bounds how late a node that was away is used again.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(1);

/// Makes links to nodes.
pub trait Connect: Send + Sync + 'static {
    fn connect(&self, node: Node) -> BoxFuture<'_, Result<Arc<dyn Link>, LinkError>>;

    /// Bytes that the system keeps of what has arrived on any link and is not read; `None` where it keeps none.
    fn receive_buffer_bytes(&self) -> Option<usize> {
        None
    }
}

impl Connect for QuicConnector {
    fn connect(&self, node: Node) -> BoxFuture<'_, Result<Arc<dyn Link>, LinkError>> {
        Box::pin(async move {
            let link = QuicConnector::connect(self, &node.address, Some(&node.id)).await?;
            Ok(Arc::new(link) as Arc<dyn Link>)
        })
    }

    fn receive_buffer_bytes(&self) -> Option<usize> {
        QuicConnector::receive_buffer_bytes(self)
    }
}

/// How long a link that is no longer wanted stays for what is out on it, beyond the longest timeout of the pipelines.
const LINGER: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(50);

/// How a link is told to end.
#[derive(Clone, Default)]
struct Stop {
    /// Nothing new goes there: when what is out has been answered.
    idle: CancellationToken,
    /// The node's process is another one now: at once.
    now: CancellationToken,
}

/// The links of a process. One task for each node, owned here and ended by dropping this.
pub struct Links {
    connect: Arc<dyn Connect>,
    registry: Registry,
    outages: Outages,
    nodes: HashMap<NodeId, (Node, Stop)>,
    tasks: JoinSet<()>,
}

impl Links {
    pub fn new(connect: Arc<dyn Connect>, registry: Registry) -> Self {
        let metrics = registry.metrics();
        let outages = Outages::new(metrics.links_down.clone());
        if let Some(bytes) = connect.receive_buffer_bytes() {
            metrics.links.set_receive_buffer_bytes(bytes);
        }
        Self {
            connect,
            registry,
            outages,
            nodes: HashMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Tells which of the nodes cannot be reached.
    pub fn outages(&self) -> Outages {
        self.outages.clone()
    }

    /// Makes the links be those to `nodes`: the missing ones are connected, the others closed.
    ///
    /// A node's health in the topology does not matter here: whether its link works says more.
    pub fn set_nodes(&mut self, nodes: impl IntoIterator<Item = Node>) {
        let mut wanted: HashMap<NodeId, Node> =
            nodes.into_iter().map(|node| (node.id.clone(), node)).collect();
        self.nodes.retain(|id, (node, stop)| {
            let same = match wanted.get(id) {
                Some(new) if is_same_place(new, node) => true,
                Some(_) => {
                    stop.now.cancel();
                    false
                }
                None => {
                    stop.idle.cancel();
                    false
                }
            };
            if same {
                wanted.remove(id);
            }
            same
        });
        for (id, node) in wanted {
            let stop = Stop::default();
            let link = keep_link(
                self.connect.clone(),
                self.registry.clone(),
                self.outages.clone(),
                node.clone(),
                stop.clone(),
            );
            self.tasks.spawn(link);
            self.nodes.insert(id, (node, stop));
        }
        while let Some(ended) = self.tasks.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "the task of a link failed");
            }
        }
    }
}

impl Stop {
    fn is_cancelled(&self) -> bool {
        self.idle.is_cancelled() || self.now.is_cancelled()
    }

    async fn requested(&self) {
        tokio::select! {
            () = self.idle.cancelled() => {}
            () = self.now.cancelled() => {}
        }
    }
}

/// Completes when a link that is to end has nothing out any more, or has lingered for long enough.
async fn idle(stop: &Stop, registry: &Registry, id: &TargetId, flights: &LinkTarget) {
    stop.idle.cancelled().await;
    // Taken now: dispatchers may retire while the link lingers.
    let longest = registry.longest_request();
    let quiet = async {
        while registry.is_busy(id) || !flights.is_idle() {
            tokio::time::sleep(LOOK).await;
        }
    };
    let _ = tokio::time::timeout(longest + LINGER, quiet).await;
}

fn is_same_place(a: &Node, b: &Node) -> bool {
    a.address == b.address && a.incarnation == b.incarnation
}

/// Connects again and again until stopped.
async fn keep_link(connect: Arc<dyn Connect>, registry: Registry, outages: Outages, node: Node, stop: Stop) {
    let mut pause = RETRY_FIRST;
    let mut outage = Outage::begin(&outages, &node, Instant::now());
    while !stop.is_cancelled() {
        let connected = tokio::select! {
            connected = connect.connect(node.clone()) => connected,
            () = stop.requested() => return,
        };
        match connected {
            Ok(link) => {
                outage.end(Instant::now());
                tracing::info!(node = %node.id, address = node.address, "link is up");
                let error = follow(&*link, &link, &registry, &node.id, &stop).await;
                link.close();
                if stop.is_cancelled() {
                    return;
                }
                tracing::warn!(node = %node.id, %error, "link lost");
                registry.metrics().links.lost(&error);
                pause = RETRY_FIRST;
                outage = Outage::begin(&outages, &node, Instant::now());
            }
            Err(error) => outage.note(&error, Instant::now()),
        }
        let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::select! {
            () = tokio::time::sleep(jittered) => {}
            () = stop.requested() => return,
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
    stop: &Stop,
) -> LinkError {
    // Each connection is a target of its own, so what an old one still returns never counts for a new one.
    static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
    let id = TargetId(format!("{node}#{}", CONNECTIONS.fetch_add(1, Ordering::Relaxed)));
    let metrics = &registry.metrics().links;
    let flights = LinkTarget::counting(shared.clone(), metrics.resets.clone());
    let _open = metrics.open(node, &flights);
    let target: Arc<dyn Target> = Arc::new(flights.clone());
    let mut draining = false;
    // One for all events: how long it lingers counts from the stop, whatever the link still says.
    let idle = idle(stop, registry, &id, &flights);
    tokio::pin!(idle);
    let error = loop {
        let event = tokio::select! {
            event = link.event() => event,
            () = stop.now.cancelled() => break LinkError::Closed,
            () = &mut idle => break LinkError::Closed,
        };
        match event {
            // After its drain a node grants nothing more, whatever is still on the way.
            Ok(LinkEvent::Window { .. }) if draining => {}
            Ok(LinkEvent::Window { stage, window }) => registry.set_window(stage, &id, &target, window),
            Ok(LinkEvent::Hello { .. }) => {}
            // Its windows go; what is outstanding there is still answered.
            Ok(LinkEvent::Drain) => {
                tracing::info!(%node, "node drains");
                draining = true;
                registry.close_windows(&id);
            }
            Err(error) => break error,
        }
    };
    registry.remove_target(&id);
    error
}
