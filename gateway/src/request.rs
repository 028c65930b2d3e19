//! Hot path. The steps of one request, in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, EXPECT, HeaderValue};
use hyper::{Method, Request as HttpRequest, StatusCode, Version};
use mosec_dispatch::{Outcome, Payload, Registry, Reply, Request, Stream};
use mosec_types::{ErrorCode, RequestId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::admission::Admission;
use crate::body::{Limits, Memory, Reader, Room};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::respond::{self, HttpResponse, SERVER_TIMING};
use crate::routes::{Route, Table};
use crate::trace::{self, TRACE_HEADER};

/// What every request needs.
pub(crate) struct Shared {
    pub(crate) admission: Admission,
    pub(crate) routes: ArcSwap<Table>,
    pub(crate) dispatchers: Registry,
    pub(crate) metrics: Metrics,
    pub(crate) series: prometheus::Registry,
    pub(crate) ids: Ids,
    pub(crate) body_memory: Memory,
    pub(crate) config: Config,
}

impl Shared {
    fn route(&self, path: &str) -> Option<Arc<Route>> {
        self.routes.load().find(path).cloned()
    }

    /// Whether a request to `route` is to be refused before its body is here.
    fn refuse_early(&self, route: &Route) -> Option<ErrorCode> {
        // A route without a dispatcher may have a successor by the time the body is here.
        self.dispatchers.dispatcher(route.first)?.refuse_early()
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

/// Answers one HTTP request.
pub(crate) async fn handle(shared: Arc<Shared>, http: HttpRequest<Incoming>) -> HttpResponse {
    match shared.route(http.uri().path()) {
        Some(route) if http.method() == Method::POST => infer(&shared, route, http).await,
        Some(_) => respond::method_not_allowed("POST"),
        None => own_page(&shared, &http),
    }
}

/// The pages the gateway answers itself.
fn own_page(shared: &Shared, http: &HttpRequest<Incoming>) -> HttpResponse {
    let response = page(shared, http);
    if http.method() == Method::HEAD {
        respond::head(response)
    } else {
        response
    }
}

fn page(shared: &Shared, http: &HttpRequest<Incoming>) -> HttpResponse {
    let read = matches!(*http.method(), Method::GET | Method::HEAD);
    match http.uri().path() {
        "/" | "/metrics" if !read => respond::method_not_allowed("GET,HEAD"),
        "/" if shared.admission.is_draining() => respond::error(ErrorCode::Draining, None),
        "/" => respond::text(StatusCode::OK, "MOSEC service"),
        "/metrics" => {
            let used = shared.body_memory.used_bytes();
            shared
                .metrics
                .body_bytes
                .set(i64::try_from(used).unwrap_or(i64::MAX));
            let mut response = respond::text(StatusCode::OK, mosec_telemetry::render(&shared.series));
            let value = HeaderValue::from_static(mosec_telemetry::METRICS_TYPE);
            response.headers_mut().insert(CONTENT_TYPE, value);
            response
        }
        _ => respond::error(ErrorCode::UnknownRoute, None),
    }
}

/// An inference request: its answer, counted.
async fn infer(shared: &Shared, route: Arc<Route>, http: HttpRequest<Incoming>) -> HttpResponse {
    let started = Instant::now();
    let response = match answer(shared, &route, http, started).await {
        Ok(response) => response,
        Err(code) => respond::error(code, None),
    };
    shared.metrics.answered(response.status().as_u16(), &route.path);
    response
}

/// The steps of an inference request. Each may end it with an error.
async fn answer(
    shared: &Shared,
    route: &Arc<Route>,
    http: HttpRequest<Incoming>,
    started: Instant,
) -> Result<HttpResponse, ErrorCode> {
    let traced = http.headers().contains_key(TRACE_HEADER);
    let mut room = Room::default();
    let (parts, mut incoming) = http.into_parts();
    let reader = Reader {
        body: &mut incoming,
        memory: &shared.body_memory,
        room: &mut room,
        limits: shared.body_limits(route),
        expects_continue: parts.headers.contains_key(EXPECT),
        blocks_connection: parts.version <= Version::HTTP_11,
    };
    // Admission first: a draining gateway keeps no bodies.
    let Some(_permit) = shared.admission.admit() else {
        reader.discard().await;
        return Err(ErrorCode::Draining);
    };
    let body = reader.read(|| shared.refuse_early(route)).await?;
    // MOSEC's clients rely on it: nothing in, a fixed text out, and no worker is called.
    if body.is_empty() {
        return Ok(respond::text(StatusCode::OK, "no data provided"));
    }
    let (route, outcome) = dispatch(shared, route.clone(), body, traced).await?;
    let took = started.elapsed();
    let mut response = match outcome.code {
        ErrorCode::Ok => {
            shared.metrics.worked(took);
            respond::result(outcome.payload.to_bytes(), &route.mime)
        }
        code => respond::error(code, Some(outcome.payload.to_bytes())),
    };
    if traced && let Ok(value) = trace::server_timing(&route.spec, &outcome.spans, took).parse() {
        response.headers_mut().insert(SERVER_TIMING, value);
    }
    Ok(response)
}

/// Queues the request and waits for what becomes of it.
///
/// If the client leaves, this future is dropped, the receiver with it, and the dispatcher sees an unwanted request.
async fn dispatch(
    shared: &Shared,
    route: Arc<Route>,
    body: Bytes,
    traced: bool,
) -> Result<(Arc<Route>, Outcome), ErrorCode> {
    let queued = enqueue(shared, route, body, traced)?;
    match tokio::time::timeout_at(queued.deadline, queued.outcome).await {
        Ok(Ok(outcome)) => Ok((queued.route, outcome)),
        Ok(Err(_)) => Err(ErrorCode::Internal),
        Err(_) => Err(ErrorCode::DeadlineExceeded),
    }
}

/// A request in its first stage's queue.
struct Queued {
    /// The route it took.
    route: Arc<Route>,
    deadline: Instant,
    outcome: oneshot::Receiver<Outcome>,
}

/// Puts the request into its first stage's queue.
///
/// Its revision may have ended while its body came: then the newest one takes it, once.
fn enqueue(shared: &Shared, mut route: Arc<Route>, body: Bytes, traced: bool) -> Result<Queued, ErrorCode> {
    let mut payload = Payload::Bytes(body);
    let mut is_last_try = false;
    loop {
        let (reply, outcome) = oneshot::channel();
        // The deadline counts from the body's end: a slow client does not use up its own time.
        let now = Instant::now();
        let request = Request {
            id: shared.ids.next(),
            route: route.index,
            deadline: now + route.spec.timeout,
            arrived: now,
            payload,
            losses: 0,
            traced,
            spans: Vec::new(),
            stream: Stream::new(route.spec.timeout),
            reply: Reply::new(reply),
        };
        let deadline = request.deadline;
        let dispatcher = shared.dispatchers.dispatcher(route.first);
        let refused = match &dispatcher {
            None => Some((request, ErrorCode::NoReplica)),
            Some(dispatcher) => dispatcher.offer(request),
        };
        let Some((mut refused, code)) = refused else {
            return Ok(Queued {
                route,
                deadline,
                outcome,
            });
        };
        payload = std::mem::replace(&mut refused.payload, Payload::Bytes(Bytes::new()));
        refused.fail(code);
        let is_gone = dispatcher.is_none() || code == ErrorCode::Draining;
        if !is_gone || is_last_try {
            return Err(code);
        }
        let Some(newest) = shared.route(&route.path) else {
            return Err(ErrorCode::UnknownRoute);
        };
        route = newest;
        is_last_try = true;
    }
}
