//! The pages the gateway answers itself: health, metrics, the service's description.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::Ordering;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, LOCATION, VARY};
use hyper::{HeaderMap, Method, Request as HttpRequest, StatusCode};
use mosec_types::ErrorCode;
use tokio::sync::OnceCell;

use crate::coding::{self, Coding};
use crate::openapi;
use crate::request::Shared;
use crate::respond::{self, HttpResponse};

/// Swagger UI, in one page; see assets/make_swagger_page.py.
const SWAGGER: &[u8] = include_bytes!("../assets/swagger.html.gz");
/// Bound on the page unpacked, about 1.9 MB.
const SWAGGER_BYTES: usize = 4 << 20;
/// The page unpacked, once somebody wants it so.
static UNPACKED: OnceCell<Bytes> = OnceCell::const_new();

/// Whether this gateway works. A pipeline may have a route of this path, which it keeps for its requests.
const HEALTH: &str = "/healthz";

/// Whether somebody asks how this gateway is, be there a route of that path or not.
pub(crate) fn is_health(http: &HttpRequest<Incoming>) -> bool {
    is_read(http) && http.uri().path() == HEALTH
}

fn is_read(http: &HttpRequest<Incoming>) -> bool {
    matches!(*http.method(), Method::GET | Method::HEAD)
}

/// Answers a request whose path is no route's, or that asks how this gateway is.
pub(crate) async fn answer(shared: &Shared, http: &HttpRequest<Incoming>) -> HttpResponse {
    let response = page(shared, http).await;
    match *http.method() {
        Method::HEAD => respond::head(response),
        _ => response,
    }
}

async fn page(shared: &Shared, http: &HttpRequest<Incoming>) -> HttpResponse {
    let path = http.uri().path();
    match path {
        "/" | HEALTH | "/metrics" | "/openapi/metadata.json" | "/openapi/swagger" | "/openapi/swagger/"
            if !is_read(http) =>
        {
            respond::method_not_allowed("GET,HEAD")
        }
        "/" if shared.admission.is_draining() => respond::plain(respond::error(ErrorCode::Draining, None)),
        "/" => respond::plain(respond::text(StatusCode::OK, "MOSEC service")),
        HEALTH => health(shared),
        "/metrics" => metrics(shared),
        "/openapi/metadata.json" => {
            let document = openapi::document(shared.routes.load().pipelines());
            cached(http.headers(), respond::document(document, "application/json"))
        }
        "/openapi/swagger" => {
            let mut response = respond::document("", "text/plain");
            *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
            let target = HeaderValue::from_static("/openapi/swagger/");
            response.headers_mut().insert(LOCATION, target);
            // There is nothing that would be of a type.
            response.headers_mut().remove(CONTENT_TYPE);
            response
        }
        "/openapi/swagger/" => swagger(http.headers()).await,
        _ => respond::error(ErrorCode::UnknownRoute, None),
    }
}

/// As other processes say it on their admin port.
fn health(shared: &Shared) -> HttpResponse {
    let knows_topology = shared.knows_topology.load(Ordering::Relaxed);
    let (status, text) = match (shared.admission.is_draining(), knows_topology) {
        (true, _) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "it drains: what it has is finished, and nothing new is taken\n",
        ),
        (false, false) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "it has not heard from the control plane yet which pipelines there are\n",
        ),
        (false, true) => (StatusCode::OK, "ok\n"),
    };
    respond::plain(respond::text(status, text))
}

fn metrics(shared: &Shared) -> HttpResponse {
    let text = mosec_telemetry::render(&[shared.metrics.series(), &shared.series]);
    let kind = HeaderValue::from_static(mosec_telemetry::METRICS_TYPE);
    respond::with_type(respond::text(StatusCode::OK, text), kind)
}

async fn swagger(headers: &HeaderMap) -> HttpResponse {
    let packed = Bytes::from_static(SWAGGER);
    let mut response = if Coding::Gzip.is_accepted(headers) {
        let mut response = respond::document(packed, "text/html");
        let coding = HeaderValue::from_static("gzip");
        response.headers_mut().insert(CONTENT_ENCODING, coding);
        response
    } else {
        match UNPACKED.get_or_try_init(unpack).await {
            Ok(page) => respond::document(page.clone(), "text/html"),
            Err(code) => return respond::error(code, None),
        }
    };
    let vary = HeaderValue::from_static("accept-encoding");
    response.headers_mut().insert(VARY, vary);
    cached(headers, response)
}

/// The page unpacked, on a thread for such work: it takes some milliseconds.
async fn unpack() -> Result<Bytes, ErrorCode> {
    let work = || coding::decode(Coding::Gzip, SWAGGER, SWAGGER_BYTES);
    let unpacked = tokio::task::spawn_blocking(work).await;
    unpacked.map_err(|_| ErrorCode::Internal)?
}

/// The answer with a tag for its content, or only the tag where the client has that content.
fn cached(headers: &HeaderMap, mut response: HttpResponse) -> HttpResponse {
    let Some(whole) = response.body().whole() else {
        return response;
    };
    let mut hasher = DefaultHasher::new();
    whole.hash(&mut hasher);
    let tag = format!("\"{:016x}\"", hasher.finish());
    let known = headers.get_all(IF_NONE_MATCH).into_iter();
    let is_known = known
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|known| known.trim().trim_start_matches("W/") == tag || known.trim() == "*");
    if is_known {
        response = respond::document("", "");
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}
