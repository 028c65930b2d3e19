//! Hot path. The steps of one request, in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request as HttpRequest, StatusCode};
use mosec_dispatch::{Outcome, Payload, Registry, Reply, Request, Stream};
use mosec_types::{ErrorCode, RequestId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::admission::Admission;
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
    pub(crate) body_timeout: Duration,
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
    // Not a guard: this request may last far longer than the table.
    let routes = shared.routes.load_full();
    match routes.find(http.uri().path()) {
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
            let mut response = respond::text(StatusCode::OK, mosec_telemetry::render(&shared.series));
            let value = HeaderValue::from_static(mosec_telemetry::METRICS_TYPE);
            response.headers_mut().insert(CONTENT_TYPE, value);
            response
        }
        _ => respond::error(ErrorCode::UnknownRoute, None),
    }
}

/// The steps of an inference request. Each may end it with an answer.
async fn infer(shared: &Shared, route: &Route, http: HttpRequest<Incoming>) -> HttpResponse {
    let started = Instant::now();
    // Admission first: a draining gateway reads no bodies.
    let Some(_permit) = shared.admission.admit() else {
        return respond::error(ErrorCode::Draining, None);
    };
    let traced = http.headers().contains_key(TRACE_HEADER);
    let body = match read_body(http.into_body(), route, shared.body_timeout).await {
        Ok(body) => body,
        Err(code) => return respond::error(code, None),
    };
    // MOSEC's clients rely on it: nothing in, a fixed text out, and no worker is called.
    if body.is_empty() {
        return respond::text(StatusCode::OK, "no data provided");
    }
    // The deadline counts from the body's end: a slow client does not use up its own time.
    let deadline = Instant::now() + route.spec.timeout;
    let outcome = dispatch(shared, route, body, deadline, traced).await;
    let mut response = match outcome.code {
        ErrorCode::Ok => respond::result(outcome.payload.to_bytes(), &route.mime),
        code => respond::error(code, Some(outcome.payload.to_bytes())),
    };
    let took = started.elapsed();
    if traced && let Ok(value) = trace::server_timing(&route.spec, &outcome.spans, took).parse() {
        response.headers_mut().insert(SERVER_TIMING, value);
    }
    if let Some(path) = route.spec.route(route.index) {
        shared
            .metrics
            .finished(response.status().as_u16(), &path.path, took);
    }
    response
}

async fn read_body(body: Incoming, route: &Route, timeout: Duration) -> Result<Bytes, ErrorCode> {
    let limit = usize::try_from(route.spec.max_request_bytes).unwrap_or(usize::MAX);
    let collected = tokio::time::timeout(timeout, Limited::new(body, limit).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ErrorCode::BodyTooLarge),
        Ok(Err(_)) | Err(_) => Err(ErrorCode::BodyUnreadable),
    }
}

/// Puts the request into its first stage's queue and waits for what becomes of it.
///
/// If the client leaves, this future is dropped, the receiver with it, and the dispatcher sees an unwanted request.
async fn dispatch(shared: &Shared, route: &Route, body: Bytes, deadline: Instant, traced: bool) -> Outcome {
    let Some(dispatcher) = shared.dispatchers.dispatcher(route.first) else {
        return failed(ErrorCode::NoReplica);
    };
    let (reply, outcome) = oneshot::channel();
    let request = Request {
        id: shared.ids.next(),
        route: route.index,
        deadline,
        arrived: Instant::now(),
        payload: Payload::Bytes(body),
        losses: 0,
        traced,
        spans: Vec::new(),
        stream: Stream::new(route.spec.timeout),
        reply: Reply::new(reply),
    };
    dispatcher.submit(request);
    match tokio::time::timeout_at(deadline, outcome).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => failed(ErrorCode::Internal),
        Err(_) => failed(ErrorCode::DeadlineExceeded),
    }
}

fn failed(code: ErrorCode) -> Outcome {
    Outcome {
        code,
        payload: Payload::Bytes(Bytes::from_static(code.text().as_bytes())),
        spans: Vec::new(),
        lost: None,
    }
}
