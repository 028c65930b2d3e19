//! Hot path. What clients are answered. The only place that turns an error into an HTTP answer.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{
    ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue,
    RETRY_AFTER, SERVER,
};
use hyper::{Response, StatusCode};
use mosec_types::ErrorCode;

use crate::events::EventStream;
use crate::stall::Progress;

pub(crate) type HttpResponse = Response<AnswerBody>;

/// MOSEC's `server` header, with our version.
const SERVER_VALUE: HeaderValue = HeaderValue::from_static(concat!("mosec/", env!("CARGO_PKG_VERSION")));
pub(crate) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
pub(crate) const MOSEC_REPLICA_WAIT_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// The body of an answer.
pub(crate) enum AnswerBody {
    Whole(Whole),
    Events(EventStream),
}

/// An answer that is all there. On HTTP/1 it is handed over at once. On HTTP/2 what a client does not read would then lie in its
/// connection, where nobody looks after it: there it goes piece by piece.
pub(crate) struct Whole {
    /// What has not been handed over.
    rest: Bytes,
    /// How the client gets on; absent where the kernel sees whether it reads, and of small answers.
    progress: Option<Arc<Progress>>,
    begun: bool,
}

/// Bytes that a client of HTTP/2 may be slow to take: enough to cost little, few enough to show that it reads.
const PIECE_BYTES: usize = 64 * 1024;
/// Answers up to this size are handed over at once. As many as a connection may have streams take no more than a few
/// hundred KiB.
const SMALL_BYTES: usize = 1024;

impl Whole {
    fn next(&mut self) -> Option<Bytes> {
        if !std::mem::replace(&mut self.begun, true) && self.rest.len() > SMALL_BYTES {
            self.progress = Progress::watched();
        }
        let left = self.rest.len();
        let piece = match &self.progress {
            None => left,
            // Hyper takes a piece once the client's window has room for all before it. So a last byte of its own keeps the
            // stream, and the look at it, until the others are gone.
            Some(progress) => {
                progress.handed();
                PIECE_BYTES.min(left.saturating_sub(1)).max(1)
            }
        };
        (left > 0).then(|| self.rest.split_to(piece))
    }
}

impl AnswerBody {
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self, Self::Events(_))
    }

    /// The bytes of one that is all there, and not read yet.
    pub(crate) fn whole(&self) -> Option<&Bytes> {
        match self {
            Self::Whole(body) => Some(&body.rest).filter(|bytes| !bytes.is_empty()),
            Self::Events(_) => None,
        }
    }
}

impl From<Bytes> for AnswerBody {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(Whole {
            rest: bytes,
            progress: None,
            begun: false,
        })
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(body) => Poll::Ready(body.next().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Events(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.rest.is_empty(),
            Self::Events(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => SizeHint::with_exact(body.rest.len() as u64),
            Self::Events(body) => body.size_hint(),
        }
    }
}

/// An answer with this body. No content type, as MOSEC's texts have none.
pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> HttpResponse {
    let mut response = Response::new(body.into().into());
    *response.status_mut() = status;
    response.headers_mut().insert(SERVER, SERVER_VALUE);
    response
}

/// The same answer, with the content type of plain text.
pub(crate) fn plain(response: HttpResponse) -> HttpResponse {
    with_type(response, HeaderValue::from_static("text/plain; charset=utf-8"))
}

pub(crate) fn with_type(mut response: HttpResponse, value: HeaderValue) -> HttpResponse {
    response.headers_mut().insert(CONTENT_TYPE, value);
    response
}

/// A page that is no answer of the service: its headers say nothing of it. No type where `mime` is empty.
pub(crate) fn document(body: impl Into<Bytes>, mime: &'static str) -> HttpResponse {
    let response = Response::new(body.into().into());
    match mime {
        "" => response,
        mime => with_type(response, HeaderValue::from_static(mime)),
    }
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
        ErrorCode::UnsupportedCoding => {
            response.headers_mut().remove(SERVER);
            let known = HeaderValue::from_static("zstd,gzip");
            response.headers_mut().insert(ACCEPT_ENCODING, known);
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

/// A stream of events, that begins now.
pub(crate) fn events(events: EventStream) -> HttpResponse {
    let mut response = Response::new(AnswerBody::Events(events));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Why a stream does not begin. MOSEC's streams have a router of their own, which names no server.
pub(crate) fn stream_refusal(code: ErrorCode) -> HttpResponse {
    let response = error(code, None);
    match code {
        // These its streams share with the rest.
        ErrorCode::BodyTooLarge
        | ErrorCode::BodyUnreadable
        | ErrorCode::UnknownRoute
        | ErrorCode::UnsupportedCoding => response,
        _ => of_bytes(response),
    }
}

/// The answer to a request without a body.
pub(crate) fn no_data(streams: bool) -> HttpResponse {
    let response = text(StatusCode::OK, "no data provided");
    if streams { of_bytes(response) } else { response }
}

fn of_bytes(mut response: HttpResponse) -> HttpResponse {
    response.headers_mut().remove(SERVER);
    with_type(response, HeaderValue::from_static("application/octet-stream"))
}

/// 405 with what is allowed.
pub(crate) fn method_not_allowed(allow: &'static str) -> HttpResponse {
    let mut response = error(ErrorCode::MethodNotAllowed, None);
    let headers = response.headers_mut();
    headers.insert(ALLOW, HeaderValue::from_static(allow));
    // Said over HTTP/2 and to HEAD too, as MOSEC does.
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    response
}

/// The answer to HEAD, made of the one to GET. Hyper leaves the body out of HTTP/1.1 alone, and a client of HTTP/2 takes
/// one for a broken protocol.
pub(crate) fn head(mut response: HttpResponse) -> HttpResponse {
    let body = std::mem::replace(response.body_mut(), Bytes::new().into());
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
