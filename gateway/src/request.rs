//! Hot path. The steps of one request, in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::EXPECT;
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request as HttpRequest, StatusCode, Version};
use mosec_dispatch::{Outcome, Payload, Registry, Reply, Request, Respond, Stream};
use mosec_types::{ErrorCode, RequestId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::admission::{Admission, Permit};
use crate::body::{Limits, Memory, Reader, Room};
use crate::coding::{Coding, Codings};
use crate::config::Config;
use crate::events::{self, End, EventStream};
use crate::headers;
use crate::metrics::Metrics;
use crate::pages;
use crate::respond::{self, HttpResponse, SERVER_TIMING};
use crate::routes::{Route, Table};
use crate::trace::{self, TRACE_HEADER};
use crate::traffic::Traffic;

/// What every request needs.
pub(crate) struct Shared {
    pub(crate) admission: Admission,
    pub(crate) routes: ArcSwap<Table>,
    /// Whether there has been a topology, from the control plane or from an earlier run: it may be one without pipelines.
    pub(crate) knows_topology: AtomicBool,
    pub(crate) dispatchers: Registry,
    pub(crate) metrics: Metrics,
    /// What others in this process count.
    pub(crate) series: mosec_telemetry::Series,
    pub(crate) ids: Ids,
    pub(crate) turns: Turns,
    pub(crate) traffic: Traffic,
    pub(crate) body_memory: Memory,
    /// Absent where bodies are passed as they are.
    pub(crate) codings: Option<Codings>,
    pub(crate) config: Config,
}

impl Shared {
    /// The route of a request, drawn anew with each call.
    fn route(&self, path: &str, headers: &HeaderMap) -> Option<Arc<Route>> {
        let routes = self.routes.load();
        routes.find(path)?.pick(headers, self.turns.next()).cloned()
    }

    /// The route that takes the requests of one whose revision has ended.
    fn successor(&self, ended: &Route, headers: &HeaderMap) -> Result<Arc<Route>, ErrorCode> {
        self.route(&ended.path, headers).ok_or(ErrorCode::UnknownRoute)
    }

    /// Whether a request to `route` is to be refused before its body is here.
    fn refuse_early(&self, route: &Route) -> Option<ErrorCode> {
        // A route without a dispatcher may have a successor by the time the body is here.
        // So may one that ends.
        let refused = self.dispatchers.dispatcher(route.first)?.refuse_early();
        refused.filter(|&code| code != ErrorCode::Draining)
    }

    /// Counts what became of a request, whose answer took so long to begin.
    fn note(&self, route: &Route, code: ErrorCode, took: Duration) {
        self.traffic.note(route.first.revision, &route.spec, code, took);
    }

    fn body_limits(&self, route: &Route) -> Limits {
        Limits {
            bytes: usize::try_from(route.spec.max_request_bytes).unwrap_or(usize::MAX),
            idle: self.config.body_idle_timeout,
            total: self.config.body_timeout,
        }
    }
}

/// Request ids: unique in this process, and with a random start very likely so among gateways.
pub(crate) struct Ids(AtomicU64);

impl Ids {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(rand::random::<u64>() << 32))
    }

    fn next(&self) -> RequestId {
        RequestId(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// Counts requests, for each revision to get its share of them.
#[derive(Default)]
pub(crate) struct Turns(AtomicU64);

impl Turns {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// Answers one HTTP request.
pub(crate) async fn handle(shared: Arc<Shared>, http: HttpRequest<Incoming>) -> HttpResponse {
    let Some(codings) = &shared.codings else {
        return page_or_answer(&shared, http).await;
    };
    let accepted = Coding::accepted(http.headers());
    let is_head = http.method() == Method::HEAD;
    let answer = page_or_answer(&shared, http).await;
    if is_head {
        answer
    } else {
        codings.encode(answer, accepted).await
    }
}

async fn page_or_answer(shared: &Arc<Shared>, http: HttpRequest<Incoming>) -> HttpResponse {
    if pages::is_health(&http) {
        return pages::answer(shared, &http).await;
    }
    match shared.route(http.uri().path(), http.headers()) {
        Some(route) if http.method() == Method::POST => infer(shared, route, http).await,
        Some(_) => respond::method_not_allowed("POST"),
        None => pages::answer(shared, &http).await,
    }
}

/// An inference request: its answer, counted.
async fn infer(shared: &Arc<Shared>, route: Arc<Route>, http: HttpRequest<Incoming>) -> HttpResponse {
    let streams = route.streams;
    let mut open = Open::new(shared, route);
    let response = match answer(shared, &mut open.route, http).await {
        Ok(response) => response,
        Err(code) if streams => respond::stream_refusal(code),
        Err(code) => respond::error(code, None),
    };
    if response.body().is_stream() {
        open.goes_on();
    } else {
        open.answered(response.status());
    }
    response
}

/// A request that has not been counted yet. Dropped so, it counts as one whose client left.
struct Open {
    shared: Arc<Shared>,
    route: Arc<Route>,
    is_counted: bool,
}

impl Open {
    fn new(shared: &Arc<Shared>, route: Arc<Route>) -> Self {
        Self {
            shared: shared.clone(),
            route,
            is_counted: false,
        }
    }

    fn answered(mut self, status: StatusCode) {
        self.is_counted = true;
        self.shared.metrics.answered(status.as_u16(), &self.route);
    }

    /// Counts one whose answer was a stream that has come to its end.
    fn streamed(mut self, code: ErrorCode) {
        self.is_counted = true;
        self.shared.metrics.streamed(code, &self.route);
    }

    /// Leaves it to the stream that answers it, which is counted at its end.
    fn goes_on(mut self) {
        self.is_counted = true;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.is_counted {
            self.shared.metrics.left(&self.route);
        }
    }
}

/// The steps of an inference request. Each may end it with an error. `route` is in the end that of the revision which took it.
async fn answer(
    shared: &Arc<Shared>,
    route: &mut Arc<Route>,
    http: HttpRequest<Incoming>,
) -> Result<HttpResponse, ErrorCode> {
    let started = Instant::now();
    let mut room = Room::default();
    let (parts, mut incoming) = http.into_parts();
    let received = receive(shared, route, &parts, &mut incoming, &mut room).await;
    let (permit, body) = received.inspect_err(|&code| shared.metrics.revisions.refused(route, code))?;
    // MOSEC's clients rely on it: nothing in, a fixed text out, and no worker is called.
    if body.is_empty() {
        return Ok(respond::no_data(route.streams));
    }
    let mut sent = Sent {
        body,
        arrived: Instant::now(),
        was_let_in: false,
        losses: 0,
    };
    loop {
        let (queued, answer) = enqueue(shared, route, &parts.headers, &sent)?;
        match answer {
            Awaited::Whole(outcome) => {
                let outcome = wait(queued.deadline, outcome).await;
                if let Ok(Outcome { lost: Some(lost), .. }) = outcome {
                    // Its revision is replaced, and it waited there: the successor's turn.
                    sent.was_let_in = true;
                    sent.losses = lost.losses;
                    *route = shared.successor(&queued.route, &parts.headers)?;
                    if lost.losses > 0 && route.runs_once() {
                        // Whether it ran is not known, and here it must not run twice.
                        shared.note(&queued.route, ErrorCode::ReplicaLost, started.elapsed());
                        return Err(ErrorCode::ReplicaLost);
                    }
                    continue;
                }
                let code = outcome.as_ref().map_or_else(|&code| code, |outcome| outcome.code);
                shared.note(&queued.route, code, started.elapsed());
                let outcome = outcome?;
                return Ok(whole(shared, &queued, outcome, started));
            }
            Awaited::Events(events) => {
                let open = Open::new(shared, queued.route.clone());
                let shared = shared.clone();
                events.hold(room);
                let events = events.on_end(move |End { code, first }| {
                    // The request's place is held as long as its stream, whoever ends it.
                    drop(permit);
                    // How long a stream lasts is the request's to say; how long its client waits for it, the service's.
                    let began = first.saturating_duration_since(started);
                    shared.note(&queued.route, code, began);
                    if code.is_ok() {
                        shared.metrics.revisions.took(&queued.route, began);
                    }
                    open.streamed(code);
                    shared.metrics.worked(started.elapsed());
                });
                return Ok(respond::events(events));
            }
        }
    }
}

/// Lets a request in and takes its body.
async fn receive(
    shared: &Shared,
    route: &Route,
    parts: &Parts,
    incoming: &mut Incoming,
    room: &mut Room,
) -> Result<(Permit, Bytes), ErrorCode> {
    let coding = match &shared.codings {
        Some(codings) => Coding::of_request(&parts.headers).map(|coding| Some((codings, coding?))),
        None => Ok(None),
    };
    let mut limits = shared.body_limits(route);
    let limit = limits.bytes;
    if !matches!(coding, Ok(None)) {
        // The limit is for what comes out; a body that does not shrink is this much larger at most.
        limits.bytes = limit.saturating_add(limit / 1024 + 1024);
    }
    let reader = Reader {
        body: incoming,
        memory: &shared.body_memory,
        room: &mut *room,
        limits,
        expects_continue: parts.headers.contains_key(EXPECT),
        blocks_connection: parts.version <= Version::HTTP_11,
    };
    let coding = match coding {
        Ok(coding) => coding,
        Err(code) => {
            reader.discard().await;
            return Err(code);
        }
    };
    // Admission first: a draining gateway keeps no bodies.
    let Some(permit) = shared.admission.admit() else {
        reader.discard().await;
        return Err(ErrorCode::Draining);
    };
    let refuse = || {
        let code = shared.refuse_early(route)?;
        // As that of a request whose body came with its head. What its client takes for the rest is not the service's time.
        shared.note(route, code, Duration::ZERO);
        Some(code)
    };
    let mut body = reader.read(refuse).await?;
    // Nothing is nothing in any coding.
    if let Some((codings, coding)) = coding.filter(|_| !body.is_empty()) {
        let memory = &shared.body_memory;
        body = codings.decode(coding, body, limit, memory, room).await?;
    }
    Ok((permit, body))
}

/// Waits for what becomes of a request.
///
/// If the client leaves, this future is dropped, the receiver with it, and the dispatcher sees an unwanted request.
async fn wait(deadline: Instant, outcome: oneshot::Receiver<Outcome>) -> Result<Outcome, ErrorCode> {
    match tokio::time::timeout_at(deadline, outcome).await {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(_)) => Err(ErrorCode::Internal),
        Err(_) => Err(ErrorCode::DeadlineExceeded),
    }
}

/// The answer to a request that is not a stream.
fn whole(shared: &Shared, queued: &Queued, outcome: Outcome, started: Instant) -> HttpResponse {
    let Queued { route, traced, .. } = queued;
    let took = started.elapsed();
    let mut response = match outcome.code {
        ErrorCode::Ok => {
            shared.metrics.worked(took);
            let revisions = &shared.metrics.revisions;
            revisions.took_in_parts(route, took, &outcome.spans);
            respond::result(outcome.payload.to_bytes(), &route.mime)
        }
        code => respond::error(code, Some(outcome.payload.to_bytes())),
    };
    if *traced && let Ok(value) = trace::server_timing(&route.spec, &outcome.spans, took).parse() {
        response.headers_mut().insert(SERVER_TIMING, value);
    }
    response
}

/// A request in its first stage's queue.
struct Queued {
    /// The route it took.
    route: Arc<Route>,
    deadline: Instant,
    /// Whether its client asked where the time goes.
    traced: bool,
}

/// What goes into a queue, and once more into another where its revision is replaced meanwhile.
struct Sent {
    body: Bytes,
    /// When all of the body was here. The deadline counts from then: a slow client does not use up its own time.
    arrived: Instant,
    /// Whether it has had a place in a queue.
    was_let_in: bool,
    /// Replicas that have been lost under it.
    losses: u8,
}

/// Who waits for the answer to a request that is not a stream, and sends it elsewhere where it is given back.
struct Waiter(oneshot::Sender<Outcome>);

impl Respond for Waiter {
    fn respond(self: Box<Self>, outcome: Outcome) {
        // The client may have left; then nobody wants the answer.
        let _ = self.0.send(outcome);
    }

    fn is_wanted(&self) -> bool {
        !self.0.is_closed()
    }

    fn takes_back(&self) -> bool {
        true
    }
}

enum Awaited {
    Whole(oneshot::Receiver<Outcome>),
    Events(EventStream),
}

impl Awaited {
    fn new(route: &Route) -> (Reply, Self) {
        if route.streams {
            let (sink, events) = events::stream(route.spec.timeout);
            (Reply::new(sink), Self::Events(events))
        } else {
            let (sender, outcome) = oneshot::channel();
            (Reply::new(Waiter(sender)), Self::Whole(outcome))
        }
    }
}

/// Puts the request into its first stage's queue.
///
/// Its revision may have ended meanwhile: then the newest one takes it, once.
fn enqueue(
    shared: &Shared,
    route: &mut Arc<Route>,
    http: &HeaderMap,
    sent: &Sent,
) -> Result<(Queued, Awaited), ErrorCode> {
    let traced = http.contains_key(TRACE_HEADER);
    // One that was let in has had its place.
    let count_refusal = |route: &Route, code| {
        if !sent.was_let_in {
            shared.metrics.revisions.refused(route, code);
        }
    };
    let mut is_last_try = false;
    loop {
        let (reply, answer) = Awaited::new(route);
        let deadline = sent.arrived + route.spec.timeout;
        let request = Request {
            id: shared.ids.next(),
            route: route.index,
            deadline,
            arrived: sent.arrived,
            headers: headers::collect(&route.headers, http),
            payload: Payload::Bytes(sent.body.clone()),
            losses: sent.losses,
            // The series tell of all requests but streams, of which nobody is told where their time went.
            traced: !route.streams,
            spans: Vec::new(),
            stream: Stream::new(route.spec.timeout),
            reply,
        };
        let dispatcher = shared.dispatchers.dispatcher(route.first);
        let refused = match &dispatcher {
            None => Some((request, ErrorCode::NoReplica)),
            // It was let in before. To refuse it now would be to drop it.
            Some(dispatcher) if sent.was_let_in => dispatcher.offer_again(request),
            Some(dispatcher) => dispatcher.offer(request),
        };
        let Some((refused, code)) = refused else {
            let queued = Queued {
                route: route.clone(),
                deadline,
                traced,
            };
            return Ok((queued, answer));
        };
        refused.fail(code);
        let is_gone = dispatcher.is_none() || code == ErrorCode::Draining;
        if !is_gone || is_last_try {
            shared.note(route, code, sent.arrived.elapsed());
            count_refusal(route, code);
            return Err(code);
        }
        let successor = shared.successor(route, http);
        *route = successor.inspect_err(|&code| count_refusal(route, code))?;
        is_last_try = true;
    }
}
