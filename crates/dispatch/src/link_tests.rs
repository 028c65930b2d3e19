//! Batches on links: when they are given up, what is sent again, and how a stream ends.

use std::sync::Arc;
use std::time::Duration;

use mosec_types::{ErrorCode, Incarnation, NodeId, RouteIndex, StageIndex, StageKey};
use mosec_wire::memory::{MemoryLink, MemoryServer, pair};
use mosec_wire::{Incoming, Link, LinkServer as _};
use tokio::sync::oneshot;

use crate::tests::{DEADLINE, GRACE, request, spec};
use crate::*;

/// A dispatcher of stage 0 with links to agents that the test plays.
struct Bench {
    dispatcher: Dispatcher,
    ends: Vec<MemoryServer>,
}

impl Bench {
    /// Route 0 is stage 0 alone, route 1 goes on to a stage that must not run twice.
    fn new(links: usize) -> Self {
        let spec = spec(2, &[1], &[&[0], &[0, 1]]);
        let key = StageKey {
            revision: Default::default(),
            stage: StageIndex(0),
        };
        let metrics = DispatchMetrics::new(&prometheus::Registry::new()).unwrap();
        let dispatcher = Dispatcher::new(StageConfig::of(&spec, key, GRACE).unwrap(), &metrics);
        let mut bench = Self {
            dispatcher,
            ends: Vec::new(),
        };
        for _ in 0..links {
            bench.connect();
        }
        bench
    }

    /// Connects one more agent, with one replica. The link ends with the target.
    fn connect(&mut self) {
        let (link, end): (MemoryLink, _) = pair(NodeId::new("far").unwrap(), Incarnation(1));
        let link: Arc<dyn Link> = Arc::new(link);
        let target: Arc<dyn Target> = Arc::new(LinkTarget::new(link));
        let id = TargetId(self.ends.len().to_string());
        let window = Window {
            replicas: 1,
            limit: 1,
        };
        self.dispatcher.set_target(&id, &target, window);
        self.ends.push(end);
    }

    fn submit(&self, route: u16) -> oneshot::Receiver<Outcome> {
        let (reply, outcome) = oneshot::channel();
        self.dispatcher.submit(Request {
            route: RouteIndex(route),
            ..request(1, reply)
        });
        outcome
    }

    /// The next batch at one end.
    async fn accept(&self, end: usize) -> Incoming {
        let accepted = tokio::time::timeout(DEADLINE, self.ends[end].accept()).await;
        accepted.expect("a batch is sent").unwrap()
    }
}

async fn code(outcome: oneshot::Receiver<Outcome>) -> ErrorCode {
    outcome.await.expect("answered").code
}

#[tokio::test(start_paused = true)]
async fn a_link_that_breaks_under_a_later_stage_that_must_not_run_twice_is_the_end() {
    for (route, runs_again) in [(0, true), (1, false)] {
        let mut bench = Bench::new(1);
        let outcome = bench.submit(route);
        let mut incoming = bench.accept(0).await;
        // The first stage is through; what comes after it works on.
        incoming.answers.return_credit().await.unwrap();
        bench.connect();
        drop(bench.ends.remove(0));
        if runs_again {
            assert_eq!(bench.accept(0).await.batch.items.len(), 1);
        } else {
            assert_eq!(code(outcome).await, ErrorCode::ReplicaLost);
            assert_eq!(bench.dispatcher.queued(), 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_broken_link_did_not_take_is_sent_elsewhere_uncharged() {
    let mut bench = Bench::new(1);
    drop(bench.ends.remove(0));
    let _outcome = bench.submit(1);
    tokio::time::sleep(Duration::from_millis(1)).await;
    bench.dispatcher.remove_target(&TargetId("0".into()));
    bench.connect();
    let again = bench.accept(0).await;
    assert_eq!(again.batch.items[0].losses, 0);
}
