//! Hot path. What clients are answered. The only place that turns an error into an HTTP answer.

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Body as _;
use hyper::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, SERVER};
use hyper::{Response, StatusCode};
use mosec_types::ErrorCode;

pub(crate) type HttpResponse = Response<Full<Bytes>>;

/// MOSEC's `server` header, with our version.
const SERVER_VALUE: HeaderValue = HeaderValue::from_static(concat!("mosec/", env!("CARGO_PKG_VERSION")));
pub(crate) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
pub(crate) const MOSEC_REPLICA_WAIT_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// An answer with this body. No content type, as MOSEC's texts have none.
pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> HttpResponse {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(SERVER, SERVER_VALUE);
    response
}

/// A worker's result.
pub(crate) fn result(body: Bytes, mime: &str) -> HttpResponse {
    let mut response = text(StatusCode::OK, body);
    if let Ok(value) = HeaderValue::from_str(mime) {
        response.headers_mut().insert(CONTENT_TYPE, value);
    }
    response
}

/// An error, with its own text where it has one.
pub(crate) fn error(code: ErrorCode, detail: Option<Bytes>) -> HttpResponse {
    let status = StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = detail.unwrap_or_else(|| Bytes::from_static(code.text().as_bytes()));
    let mut response = text(status, body);
    match code {
        // The router's own answers carry nothing of the service.
        ErrorCode::UnknownRoute | ErrorCode::MethodNotAllowed => {
            response.headers_mut().remove(SERVER);
        }
        _ if code.is_retryable() => {
            // A restarted worker is back within about a second.
            response
                .headers_mut()
                .insert(RETRY_AFTER, MOSEC_REPLICA_WAIT_SECONDS);
        }
        _ => {}
    }
    response
}

/// 405 with what is allowed.
pub(crate) fn method_not_allowed(allow: &'static str) -> HttpResponse {
    let mut response = error(ErrorCode::MethodNotAllowed, None);
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allow));
    response
}

/// The answer to HEAD, made of the one to GET. Hyper leaves the body out of HTTP/1.1 alone, and a client of HTTP/2 takes
/// one for a broken protocol.
pub(crate) fn head(mut response: HttpResponse) -> HttpResponse {
    let body = std::mem::take(response.body_mut());
    if let Some(length) = body.size_hint().exact() {
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_an_answer() {
        for code in ErrorCode::all() {
            let response = error(code, None);
            assert_eq!(response.status().as_u16(), code.http_status(), "{code}");
            assert_eq!(
                response.headers().contains_key(RETRY_AFTER),
                code.is_retryable(),
                "{code}"
            );
        }
    }

    #[test]
    fn errors_have_no_content_type() {
        assert!(
            !error(ErrorCode::Validation, Some(Bytes::from_static(b"x")))
                .headers()
                .contains_key(CONTENT_TYPE)
        );
    }
}
