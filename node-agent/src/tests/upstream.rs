//! A dispatcher whose batches go to agents over links, as a gateway's do.

use std::sync::Arc;

use bytes::Bytes;
use mosec_dispatch::{
    DispatchMetrics, Dispatcher, LinkTarget, Outcome, StageConfig, Target, TargetId, Window,
};
use mosec_types::{ErrorCode, Incarnation, NodeId};
use mosec_wire::memory::pair;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::bench::{BOUND, Bench, key, request_of, take, topology, within};
use crate::{Upstream, serve_link};

fn dispatcher() -> Dispatcher {
    let spec = topology(1, 16).deployments.remove(0).spec;
    let metrics = DispatchMetrics::new(&mosec_telemetry::Series::default()).unwrap();
    Dispatcher::new(StageConfig::of(&spec, key(1, 0), BOUND).unwrap(), &metrics)
}

/// Makes an agent a target with room for one batch.
fn connect(dispatcher: &Dispatcher, bench: &Bench, name: &str) {
    let (link, server) = pair(NodeId::new(name).unwrap(), Incarnation(1));
    let stop = CancellationToken::new();
    tokio::spawn(serve_link(
        bench.agent.clone(),
        Arc::new(server),
        Upstream::Gateway,
        stop,
    ));
    let target: Arc<dyn Target> = Arc::new(LinkTarget::new(Arc::new(link)));
    let window = Window {
        replicas: 1,
        limit: 1,
    };
    dispatcher.set_target(&TargetId(name.into()), &target, window);
}

fn submit(dispatcher: &Dispatcher, text: &'static str) -> oneshot::Receiver<Outcome> {
    let (reply, outcome) = oneshot::channel();
    dispatcher.submit(request_of(0, Bytes::from_static(text.as_bytes()), reply));
    outcome
}

#[tokio::test]
async fn attempts_bound_a_requests_losses_on_all_nodes_together() {
    let (near, far, dispatcher) = (Bench::new(), Bench::new(), dispatcher());
    let pool = near.pool(1, 0);
    let dying = near.worker(&pool);
    connect(&dispatcher, &near, "near");
    let outcome = submit(&dispatcher, "poison");
    take(&dying).await;
    let heir = near.worker(&pool);
    // There is another node by the time this one gives up.
    let spared = far.worker(&far.pool(1, 0));
    connect(&dispatcher, &far, "far");
    dying.die();
    take(&heir).await;
    heir.die();
    // Two replicas are gone, as many as its stage's `attempts`.
    let outcome = within("answer", outcome).await.unwrap();
    assert_eq!(outcome.code, ErrorCode::WorkerCrashed);
    assert!(spared.take().is_none());
}
