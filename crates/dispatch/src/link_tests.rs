//! Batches on links: when they are given up, what is sent again, and how a stream ends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mosec_types::topology::{Node, NodeHealth};
use mosec_types::{ErrorCode, Incarnation, NodeId, Revision, RouteIndex, StageIndex, StageKey};
use mosec_wire::link::BoxFuture;
use mosec_wire::memory::{MemoryLink, MemoryServer, pair};
use mosec_wire::{
    Answer, Answers, Batch, Cancelled, Custody, Incoming, Link, LinkError, LinkEvent, LinkServer as _,
    LinkStats,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::tests::{DEADLINE, GRACE, request, spec};
use crate::*;

const KEY: StageKey = StageKey {
    revision: Revision(0),
    stage: StageIndex(0),
};

/// A dispatcher of stage 0 with links to agents that the test plays.
struct Bench {
    dispatcher: Dispatcher,
    ends: Vec<MemoryServer>,
}

impl Bench {
    /// Route 0 is stage 0 alone, route 1 goes on to a stage that must not run twice.
    fn new(links: usize) -> Self {
        Self::of(1, links)
    }

    fn of(max_batch_size: u32, links: usize) -> Self {
        let mut spec = spec(2, &[1], &[&[0], &[0, 1]]);
        spec.stages[0].max_batch_size = max_batch_size;
        // Full batches only.
        spec.stages[0].max_wait = DEADLINE;
        let metrics = DispatchMetrics::new(&mosec_telemetry::Series::default()).unwrap();
        let dispatcher = Dispatcher::new(StageConfig::of(&spec, KEY, GRACE).unwrap(), &metrics);
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

fn answer(item: u32) -> Answer {
    Answer {
        item,
        code: ErrorCode::Ok,
        custody: Custody::Done,
        last: true,
        payload: Bytes::new(),
        spans: Vec::new(),
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

#[tokio::test(start_paused = true)]
async fn a_stream_is_read_to_its_end() {
    let bench = Bench::new(1);
    let outcome = bench.submit(0);
    let mut incoming = bench.accept(0).await;
    incoming.answers.send(vec![answer(0)]).await.unwrap();
    assert_eq!(code(outcome).await, ErrorCode::Ok);
    // An agent that is interrupted between the two is not told that its answers were not wanted.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(incoming.answers.finish().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_stream_is_not_waited_for() {
    let bench = Bench::new(1);
    let outcome = bench.submit(0);
    let mut incoming = bench.accept(0).await;
    incoming.answers.send(vec![answer(0)]).await.unwrap();
    let start = Instant::now();
    assert_eq!(code(outcome).await, ErrorCode::Ok);
    // The credit is back, too: the next request goes out.
    let _next = bench.submit(0);
    bench.accept(0).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    // Nor for ever.
    let cancelled = tokio::time::timeout(DEADLINE, incoming.answers.cancelled());
    assert_eq!(cancelled.await, Ok(Cancelled::Batch));
}

#[tokio::test(start_paused = true)]
async fn what_an_agent_gives_back_does_not_wait_for_its_neighbours() {
    let mut bench = Bench::of(2, 1);
    let _slow = bench.submit(0);
    let _lost = bench.submit(0);
    let mut incoming = bench.accept(0).await;
    assert_eq!(incoming.batch.items.len(), 2);
    bench.connect();
    let given_back = Answer {
        custody: Custody::Lost { losses: 1 },
        ..answer(1)
    };
    incoming.answers.send(vec![given_back]).await.unwrap();
    let again = bench.accept(1).await;
    assert_eq!(
        again
            .batch
            .items
            .iter()
            .map(|item| item.losses)
            .collect::<Vec<_>>(),
        [2]
    );
}

#[tokio::test(start_paused = true)]
async fn events_do_not_keep_a_batch_that_nobody_waits_for() {
    let bench = Bench::new(1);
    let outcome = bench.submit(0);
    let mut incoming = bench.accept(0).await;
    drop(outcome);
    let start = Instant::now();
    let event = Answer {
        last: false,
        ..answer(0)
    };
    while incoming.answers.send(vec![event.clone()]).await.is_ok() {
        assert!(start.elapsed() < DEADLINE, "the agent goes on for nobody");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_hears_of_single_requests_that_nobody_waits_for() {
    let bench = Bench::of(3, 1);
    let [first, second, third] = [0; 3].map(|route| bench.submit(route));
    let mut incoming = bench.accept(0).await;
    drop(second);
    let mut cancelled = async || tokio::time::timeout(DEADLINE, incoming.answers.cancelled()).await;
    assert_eq!(cancelled().await, Ok(Cancelled::Items(vec![1])));
    drop(third);
    assert_eq!(cancelled().await, Ok(Cancelled::Items(vec![2])));
    // They are the agent's to answer, as all others are.
    incoming.answers.send(vec![answer(1), answer(0)]).await.unwrap();
    assert_eq!(code(first).await, ErrorCode::Ok);
    let left = tokio::time::timeout(DEADLINE, incoming.answers.cancelled()).await;
    assert_eq!(left, Ok(Cancelled::Batch), "nobody waits for the rest");
}

/// Hands out one link, made before.
struct Ready(Mutex<Option<MemoryLink>>);

impl Connect for Ready {
    fn connect(&self, _: Node) -> BoxFuture<'_, Result<Arc<dyn Link>, LinkError>> {
        let link = self.0.lock().take();
        let link = link.ok_or_else(|| LinkError::Lost("no second link".into()));
        Box::pin(async move { Ok(Arc::new(link?) as Arc<dyn Link>) })
    }
}

/// A link that is no longer wanted, with one batch out on it.
struct Lingering {
    end: MemoryServer,
    incoming: Incoming,
    outcome: oneshot::Receiver<Outcome>,
    _links: Links,
}

async fn lingering() -> Lingering {
    let metrics = DispatchMetrics::new(&mosec_telemetry::Series::default()).unwrap();
    let registry = Registry::new(metrics);
    let config = StageConfig::of(&spec(1, &[], &[&[0]]), KEY, GRACE).unwrap();
    let dispatcher = registry.ensure(config);
    let (link, end) = pair(far().id, Incarnation(1));
    let mut links = Links::new(Arc::new(Ready(Mutex::new(Some(link)))), registry);
    links.set_nodes([far()]);
    let window = Window {
        replicas: 1,
        limit: 1,
    };
    end.tell(LinkEvent::Window { stage: KEY, window });
    let (reply, outcome) = oneshot::channel();
    dispatcher.submit(Request {
        // As a stream's, which each event puts off.
        deadline: Instant::now() + DEADLINE * 1000,
        ..request(1, reply)
    });
    let incoming = end.accept().await.unwrap();
    links.set_nodes([]);
    Lingering {
        end,
        incoming,
        outcome,
        _links: links,
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_that_is_not_wanted_stays_for_what_is_out_on_it() {
    let mut lingering = lingering().await;
    tokio::time::sleep(DEADLINE).await;
    lingering.incoming.answers.send(vec![answer(0)]).await.unwrap();
    lingering.incoming.answers.finish().await.unwrap();
    assert_eq!(code(lingering.outcome).await, ErrorCode::Ok);
    assert!(matches!(lingering.end.accept().await, Err(LinkError::Lost(_))));
}

#[tokio::test(start_paused = true)]
async fn a_link_that_is_not_wanted_ends_in_time_whatever_it_still_says() {
    let lingering = lingering().await;
    let start = Instant::now();
    let talk = async {
        for limit in 2.. {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let window = Window { replicas: 1, limit };
            lingering.end.tell(LinkEvent::Window { stage: KEY, window });
        }
    };
    let end = tokio::select! {
        end = lingering.end.accept() => end.map(drop),
        () = tokio::time::sleep(DEADLINE * 10) => panic!("the link is still there"),
        () = talk => unreachable!("it talks for ever"),
    };
    assert!(matches!(end, Err(LinkError::Lost(_))));
    assert!(
        start.elapsed() > DEADLINE,
        "it was given the time that a request has"
    );
}

/// Fails until it is given a link.
#[derive(Default)]
struct Later(Mutex<Option<MemoryLink>>);

impl Connect for Later {
    fn connect(&self, node: Node) -> BoxFuture<'_, Result<Arc<dyn Link>, LinkError>> {
        let link = self.0.lock().take().ok_or_else(|| LinkError::Connect {
            peer: node.address,
            reason: "nobody answers".into(),
        });
        Box::pin(async move { Ok(Arc::new(link?) as Arc<dyn Link>) })
    }
}

fn far() -> Node {
    Node {
        id: NodeId::new("far").unwrap(),
        incarnation: Incarnation(1),
        address: "far:1".into(),
        health: NodeHealth::Up,
        labels: Default::default(),
        draining: false,
        capacity: Default::default(),
        build: None,
    }
}

async fn until(wanted: impl Fn() -> bool) {
    let wait = async {
        while !wanted() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(DEADLINE * 10, wait)
        .await
        .expect("comes true");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_cannot_be_reached_is_named_until_it_can_or_is_not_wanted() {
    let metrics = DispatchMetrics::new(&mosec_telemetry::Series::default()).unwrap();
    let down = metrics.links_down.clone();
    let connect = Arc::new(Later::default());
    let mut links = Links::new(connect.clone(), Registry::new(metrics));
    let outages = links.outages();
    links.set_nodes([far()]);
    until(|| down.get() == 1).await;
    let found = mosec_types::Unreachable::new(far().id, "far:1", "nobody answers");
    assert_eq!(outages.list(9), [found]);
    assert_eq!(outages.list(0), []);

    let (link, end) = pair(far().id, Incarnation(1));
    *connect.0.lock() = Some(link);
    until(|| outages.list(9).is_empty() && down.get() == 0).await;
    drop(end);
    until(|| down.get() == 1).await;
    links.set_nodes([]);
    until(|| down.get() == 0).await;
}

/// A link that has counted so many bytes.
#[derive(Debug)]
struct Counting(MemoryLink, u64);

impl Link for Counting {
    fn send(&self, batch: Batch) -> BoxFuture<'_, Result<Box<dyn Answers>, LinkError>> {
        self.0.send(batch)
    }

    fn event(&self) -> BoxFuture<'_, Result<LinkEvent, LinkError>> {
        self.0.event()
    }

    fn close(&self) {
        self.0.close();
    }

    fn stats(&self) -> Option<LinkStats> {
        Some(LinkStats {
            round_trip: Duration::from_millis(250),
            sent_bytes: self.1,
            ..LinkStats::default()
        })
    }
}

/// Connects by links that count, and keeps the ends.
#[derive(Default)]
struct Counted(Mutex<Vec<MemoryServer>>);

impl Connect for Counted {
    fn connect(&self, node: Node) -> BoxFuture<'_, Result<Arc<dyn Link>, LinkError>> {
        let (link, end) = pair(node.id, Incarnation(1));
        self.0.lock().push(end);
        Box::pin(async { Ok(Arc::new(Counting(link, 7)) as Arc<dyn Link>) })
    }

    fn receive_buffer_bytes(&self) -> Option<usize> {
        Some(4096)
    }
}

#[tokio::test(start_paused = true)]
async fn a_links_series_are_there_while_it_is_open() {
    let series = mosec_telemetry::Series::default();
    let registry = Registry::new(DispatchMetrics::new(&series).unwrap());
    let dispatcher = registry.ensure(StageConfig::of(&spec(1, &[], &[&[0]]), KEY, GRACE).unwrap());
    let connect = Arc::new(Counted::default());
    let mut links = Links::new(connect.clone(), registry);
    let has = |lines: &[&str]| {
        let page = mosec_telemetry::render(&[&series]);
        lines.iter().all(|line| page.lines().any(|found| found == *line))
    };
    let shown = || mosec_telemetry::render(&[&series]).contains("{node=");
    assert!(has(&["mosec_link_receive_buffer_bytes 4096"]) && !shown());
    let never = ["lost", "silent", "protocol"]
        .map(|reason| format!("mosec_link_lost_total{{reason=\"{reason}\"}} 0"));
    assert!(
        has(&never.each_ref().map(String::as_str)),
        "before the first of them"
    );

    links.set_nodes([far()]);
    until(|| {
        has(&[
            "mosec_link_round_trip_seconds{node=\"far\"} 0.25",
            "mosec_link_sent_bytes_total{node=\"far\"} 7",
            "mosec_link_batches_in_flight{node=\"far\"} 0",
            "mosec_link_opened_total 1",
            "mosec_link_resets_total 0",
        ])
    })
    .await;

    let window = Window {
        replicas: 1,
        limit: 1,
    };
    connect.0.lock()[0].tell(LinkEvent::Window { stage: KEY, window });
    let (reply, outcome) = oneshot::channel();
    dispatcher.submit(request(1, reply));
    until(|| has(&["mosec_link_batches_in_flight{node=\"far\"} 1"])).await;
    drop(outcome);
    until(|| has(&["mosec_link_resets_total 1"])).await;

    // It breaks, and is made anew: its counts begin with it.
    connect.0.lock().clear();
    until(|| {
        has(&[
            "mosec_link_opened_total 2",
            "mosec_link_lost_total{reason=\"lost\"} 1",
        ])
    })
    .await;
    assert!(shown());
    links.set_nodes([]);
    until(|| !shown()).await;
    assert!(
        has(&["mosec_link_lost_total{reason=\"lost\"} 1"]),
        "it was not wanted"
    );
}

#[test]
fn a_link_that_lingers_is_not_shown_after_a_newer_one() {
    let series = mosec_telemetry::Series::default();
    let metrics = DispatchMetrics::new(&series).unwrap();
    let open = |bytes| {
        let (link, _end) = pair(far().id, Incarnation(1));
        let link: Arc<dyn Link> = Arc::new(Counting(link, bytes));
        metrics.links.open(&far().id, &LinkTarget::new(link))
    };
    let shown = || {
        let page = mosec_telemetry::render(&[&series]);
        let name = "mosec_link_sent_bytes_total{node=\"far\"} ";
        let value = page.lines().find_map(|line| line.strip_prefix(name));
        value.map(|value| value.parse::<u64>().unwrap())
    };
    let older = open(900);
    assert_eq!(shown(), Some(900));
    let newer = open(7);
    assert_eq!(shown(), Some(7));
    drop(newer);
    assert_eq!(shown(), None, "the older one has counted more");
    let newest = open(8);
    drop(older);
    assert_eq!(shown(), Some(8));
    drop(newest);
    assert_eq!(shown(), None);
}
