//! Hot path. A stream of server-sent events: from whoever has the request to one client, framed as MOSEC does.
//!
//! Nobody waits for a slow client: what it has not read is kept up to a bound, and beyond that its stream ends.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use hyper::StatusCode;
use hyper::body::{Body, Frame};
use mosec_dispatch::{Outcome, Payload, Respond};
use mosec_types::ErrorCode;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::body::Room;
use crate::stall::Progress;

/// Silence after which the client is told that the stream goes on.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
const KEEP_ALIVE_TEXT: &[u8] = b":\n\n";

/// Most bytes of events that a client may leave unread for [`PATIENCE`]: some minutes of a language model's words. One event
/// may be larger.
const MAX_UNREAD_BYTES: usize = 1 << 20;
/// How long a client that is behind may take nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of events that come faster than any client reads, as a few pictures do.
const MAX_BURST_BYTES: usize = 8 << 20;
const TOO_SLOW: &[u8] = b"the client reads too slowly";

/// A stream to a client: where its events come in, and the body they leave by.
///
/// `idle`: the longest silence between events before the stream ends with an error.
pub(crate) fn stream(idle: Duration) -> (EventSink, EventStream) {
    let now = Instant::now();
    let shared = Arc::new(Shared {
        idle,
        state: Mutex::new(State {
            unread: BytesMut::new(),
            behind_since: now,
            deadline: now + idle,
            first: None,
            end: None,
            reader: None,
            room: None,
            is_answered: false,
        }),
    });
    let stream = EventStream {
        shared: shared.clone(),
        quiet_until: now + KEEP_ALIVE,
        timer: Box::pin(sleep_until(now + KEEP_ALIVE)),
        on_end: None,
        progress: Progress::watched(),
    };
    (EventSink(shared), stream)
}

struct Shared {
    idle: Duration,
    state: Mutex<State>,
}

struct State {
    /// Framed, for the client.
    unread: BytesMut,
    /// When the client last took something, or the first of `unread` came.
    behind_since: Instant,
    /// When the silence has been too long.
    deadline: Instant,
    /// When the first event came, or the end of a stream without any.
    first: Option<Instant>,
    /// What became of the request; while there is none, events may be added and are wanted.
    end: Option<ErrorCode>,
    reader: Option<Waker>,
    /// The request's body, as long as it may be needed.
    room: Option<Room>,
    /// Whether the request is done with, be its client or not.
    is_answered: bool,
}

/// Where a stream's events come in.
pub(crate) struct EventSink(Arc<Shared>);

impl Respond for EventSink {
    fn respond(self: Box<Self>, outcome: Outcome) {
        let mut state = self.0.state.lock();
        if state.is_open() && !outcome.code.is_ok() {
            write_error(&mut state.unread, outcome.code, &outcome.payload.to_bytes());
        }
        state.close(outcome.code);
    }

    fn event(&self, payload: Payload) {
        let text = payload.to_bytes();
        let mut state = self.0.state.lock();
        if !state.is_open() {
            return;
        }
        let now = Instant::now();
        if state.unread.is_empty() {
            state.behind_since = now;
        } else if state.is_too_slow(text.len(), now) {
            write_error(&mut state.unread, ErrorCode::DeadlineExceeded, TOO_SLOW);
            // The client's own doing, as if it had left.
            return state.close(ErrorCode::Cancelled);
        }
        write_event(&mut state.unread, &text);
        state.first.get_or_insert(now);
        state.deadline = now + self.0.idle;
        state.wake();
    }

    fn is_wanted(&self) -> bool {
        self.0.state.lock().is_open()
    }
}

impl Drop for EventSink {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.is_answered = true;
        state.room = None;
    }
}

impl State {
    /// Whether an event of so many bytes more is too much for a client that has not read those before it.
    fn is_too_slow(&self, bytes: usize, now: Instant) -> bool {
        let unread = self.unread.len() + bytes;
        let stands_still = now.saturating_duration_since(self.behind_since) > PATIENCE;
        unread > MAX_BURST_BYTES || (unread > MAX_UNREAD_BYTES && stands_still)
    }

    fn is_open(&self) -> bool {
        self.end.is_none()
    }

    /// What became of the request, once it has ended.
    fn ended(&self) -> Option<End> {
        let (code, first) = (self.end?, self.first?);
        Some(End { code, first })
    }

    /// Ends the stream, unless it has ended. The client reads first what it has not read yet.
    fn close(&mut self, code: ErrorCode) {
        self.first.get_or_insert_with(Instant::now);
        self.end.get_or_insert(code);
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// What became of a request whose answer is a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) code: ErrorCode,
    /// When its first event came, or its end where there was none: whatever its client took to read it.
    pub(crate) first: Instant,
}

/// The body of an answer that is a stream of events. Dropping it tells the other side that nobody reads any more.
pub(crate) struct EventStream {
    shared: Arc<Shared>,
    quiet_until: Instant,
    timer: Pin<Box<Sleep>>,
    on_end: Option<Box<dyn FnOnce(End) + Send>>,
    /// Absent where the kernel sees whether the client reads.
    progress: Option<Arc<Progress>>,
}

impl EventStream {
    /// Keeps the room of the request's body until the request is answered, however long its client reads.
    pub(crate) fn hold(&self, room: Room) {
        let mut state = self.shared.state.lock();
        if !state.is_answered {
            state.room = Some(room);
        }
    }

    /// Calls `end` with what became of the request, when the client has read everything or leaves after the request
    /// had ended. It is dropped uncalled where the client leaves before.
    pub(crate) fn on_end(mut self, end: impl FnOnce(End) + Send + 'static) -> Self {
        self.on_end = Some(Box::new(end));
        self
    }

    fn tell(&mut self, end: End) {
        if let Some(told) = self.on_end.take() {
            told(end);
        }
    }
}

impl Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if let Some(progress) = &this.progress {
            progress.taken();
        }
        loop {
            let now = Instant::now();
            let mut state = this.shared.state.lock();
            if state.is_open() && state.deadline <= now {
                let code = ErrorCode::DeadlineExceeded;
                write_error(&mut state.unread, code, code.text().as_bytes());
                state.close(code);
            }
            let data = if !state.unread.is_empty() {
                state.behind_since = now;
                state.unread.split().freeze()
            } else if let Some(end) = state.ended() {
                drop(state);
                this.tell(end);
                return Poll::Ready(None);
            } else if this.quiet_until <= now {
                Bytes::from_static(KEEP_ALIVE_TEXT)
            } else {
                state.reader = Some(context.waker().clone());
                let due = state.deadline.min(this.quiet_until);
                drop(state);
                if this.timer.deadline() != due {
                    this.timer.as_mut().reset(due);
                }
                match this.timer.as_mut().poll(context) {
                    Poll::Ready(()) => continue,
                    Poll::Pending => return Poll::Pending,
                }
            };
            this.quiet_until = now + KEEP_ALIVE;
            if let Some(progress) = &this.progress {
                progress.handed();
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        let ended = {
            let mut state = self.shared.state.lock();
            let ended = state.ended();
            state.end = Some(ErrorCode::Cancelled);
            ended
        };
        if let Some(end) = ended {
            self.tell(end);
        }
    }
}

/// One event. Every line is data; a carriage return ends a line, too, and stays as it is. No text is no data.
fn write_event(out: &mut BytesMut, text: &[u8]) {
    const FIELD: &[u8] = b"data: ";
    if !text.is_empty() {
        out.put_slice(FIELD);
        for piece in text.split_inclusive(|&byte| byte == b'\n' || byte == b'\r') {
            out.put_slice(piece);
            if piece.ends_with(b"\n") || piece.ends_with(b"\r") {
                out.put_slice(FIELD);
            }
        }
        out.put_u8(b'\n');
    }
    out.put_u8(b'\n');
}

/// The event that tells an error.
fn write_error(out: &mut BytesMut, code: ErrorCode, text: &[u8]) {
    let status = code.http_status();
    let reason = match StatusCode::from_u16(status) {
        // RFC 9110's name; the library has the older one.
        Ok(StatusCode::UNPROCESSABLE_ENTITY) => "Unprocessable Content",
        Ok(status) => status.canonical_reason().unwrap_or("Error"),
        Err(_) => "Error",
    };
    out.put_slice(b"event: error\n");
    let mut message = format!("SSE inference error: {status}: {reason}: ").into_bytes();
    message.extend_from_slice(text);
    write_event(out, &message);
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use mosec_dispatch::Reply;

    use super::*;

    const IDLE: Duration = Duration::from_secs(10);

    fn event(text: &str) -> Payload {
        Payload::Bytes(Bytes::copy_from_slice(text.as_bytes()))
    }

    fn outcome(code: ErrorCode, text: &str) -> Outcome {
        Outcome {
            code,
            payload: event(text),
            spans: Vec::new(),
            lost: None,
        }
    }

    async fn next(stream: &mut EventStream) -> Option<String> {
        let frame = poll_fn(|context| Pin::new(&mut *stream).poll_frame(context)).await?;
        let data = frame.unwrap().into_data().unwrap();
        Some(String::from_utf8(data.to_vec()).unwrap())
    }

    #[test]
    fn events_have_mosecs_bytes() {
        for (text, expected) in [
            ("a", "data: a\n\n"),
            ("", "\n"),
            ("b\nc", "data: b\ndata: c\n\n"),
            ("d\re", "data: d\rdata: e\n\n"),
            ("f\r\ng", "data: f\rdata: \ndata: g\n\n"),
            ("a\n", "data: a\ndata: \n\n"),
            ("\n", "data: \ndata: \n\n"),
            ("\r", "data: \rdata: \n\n"),
            ("é", "data: é\n\n"),
        ] {
            let mut out = BytesMut::new();
            write_event(&mut out, text.as_bytes());
            assert_eq!(out, expected, "{text:?}");
        }
    }

    #[test]
    fn errors_have_mosecs_texts() {
        for (code, text, expected) in [
            (
                ErrorCode::Validation,
                "request validation error: text is required",
                "422: Unprocessable Content: request validation error: text is required",
            ),
            (
                ErrorCode::BadRequest,
                "decoding error: decoding error",
                "400: Bad Request: decoding error: decoding error",
            ),
            (
                ErrorCode::DeadlineExceeded,
                "inference timeout",
                "408: Request Timeout: inference timeout",
            ),
            (
                ErrorCode::Inference,
                "inference internal error",
                "500: Internal Server Error: inference internal error",
            ),
        ] {
            let mut out = BytesMut::new();
            write_error(&mut out, code, text.as_bytes());
            assert_eq!(
                out,
                format!("event: error\ndata: SSE inference error: {expected}\n\n")
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_after_its_last_event() {
        let (sink, mut stream) = stream(IDLE);
        sink.event(event("a"));
        sink.event(event("b"));
        assert_eq!(next(&mut stream).await.unwrap(), "data: a\n\ndata: b\n\n");
        sink.event(event("c"));
        Box::new(sink).respond(outcome(ErrorCode::Ok, "not sent"));
        assert_eq!(next(&mut stream).await.unwrap(), "data: c\n\n");
        assert_eq!(next(&mut stream).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_filled_and_too_much_of_it_is_an_error() {
        let (sink, mut stream) = stream(IDLE);
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        for seconds in [3, 6] {
            assert_eq!(next(&mut stream).await.unwrap(), ":\n\n");
            assert_eq!(Instant::now(), at(seconds));
        }
        tokio::time::sleep_until(at(8)).await;
        sink.event(event("a"));
        assert_eq!(next(&mut stream).await.unwrap(), "data: a\n\n");
        for seconds in [11, 14, 17] {
            assert_eq!(next(&mut stream).await.unwrap(), ":\n\n");
            assert_eq!(Instant::now(), at(seconds));
        }
        assert!(sink.is_wanted());
        let error = next(&mut stream).await.unwrap();
        assert_eq!(
            error,
            "event: error\ndata: SSE inference error: 408: Request Timeout: inference timeout\n\n"
        );
        assert_eq!(Instant::now(), at(18));
        assert!(!sink.is_wanted());
        assert_eq!(next(&mut stream).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_loses_its_stream_and_nothing_more() {
        let (sink, mut stream) = stream(IDLE);
        let huge = "x".repeat(MAX_UNREAD_BYTES * 2);
        // Events may come faster than anybody reads.
        for _ in 0..2 {
            sink.event(event(&huge));
        }
        tokio::time::advance(PATIENCE).await;
        sink.event(event("and"));
        assert!(sink.is_wanted());
        tokio::time::advance(Duration::from_millis(1)).await;
        sink.event(event("more"));
        assert!(!sink.is_wanted());
        sink.event(event("dropped"));
        let read = next(&mut stream).await.unwrap();
        let rest = read
            .strip_prefix(&format!("data: {huge}\n\ndata: {huge}\n\ndata: and\n\n"))
            .unwrap();
        assert_eq!(
            rest,
            "event: error\ndata: SSE inference error: 408: Request Timeout: the client reads too slowly\n\n"
        );
        assert_eq!(next(&mut stream).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_for_a_client_is_bounded_and_one_that_reads_is_waited_for() {
        let (sink, mut stream) = stream(IDLE);
        let large = "x".repeat(MAX_UNREAD_BYTES * 3 / 4);
        for _ in 0..20 {
            for _ in 0..2 {
                sink.event(event(&large));
            }
            tokio::time::advance(PATIENCE / 2).await;
            assert!(next(&mut stream).await.is_some() && sink.is_wanted(), "it reads");
        }
        // One event alone may be of any size.
        sink.event(event(&"x".repeat(2 * MAX_BURST_BYTES)));
        assert!(sink.is_wanted());
        sink.event(event("more"));
        assert!(!sink.is_wanted(), "whatever the time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_left_wants_nothing() {
        let (sink, stream) = stream(IDLE);
        let reply = Reply::new(sink);
        assert!(reply.is_wanted());
        drop(stream);
        assert!(!reply.is_wanted());
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_is_told_once_everything_is_read() {
        let (sink, stream) = stream(IDLE);
        let (mut stream, mut end) = told(stream);
        Box::new(sink).respond(outcome(ErrorCode::Validation, "x"));
        next(&mut stream).await.unwrap();
        assert!(end.try_recv().is_err());
        assert_eq!(next(&mut stream).await, None);
        assert_eq!(end.try_recv().unwrap().code, ErrorCode::Validation);
    }

    fn told(stream: EventStream) -> (EventStream, tokio::sync::oneshot::Receiver<End>) {
        let (told, end) = tokio::sync::oneshot::channel();
        (stream.on_end(|end| told.send(end).unwrap()), end)
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_says_when_the_first_event_came_however_long_it_all_takes() {
        for has_events in [true, false] {
            let first = Instant::now() + Duration::from_secs(1);
            let (sink, stream) = stream(IDLE);
            let (mut stream, mut end) = told(stream);
            tokio::time::advance(Duration::from_secs(1)).await;
            if has_events {
                sink.event(event("a"));
                tokio::time::advance(Duration::from_secs(5)).await;
                sink.event(event("b"));
            }
            Box::new(sink).respond(outcome(ErrorCode::Ok, ""));
            // Its client is in no hurry.
            tokio::time::advance(Duration::from_secs(3)).await;
            while next(&mut stream).await.is_some() {}
            let code = ErrorCode::Ok;
            assert_eq!(end.try_recv().unwrap(), End { code, first }, "{has_events}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_says_what_broke_a_stream_whether_its_client_reads_on_or_leaves() {
        for (leaves, ends, expected) in [
            (
                false,
                Some(ErrorCode::WorkerCrashed),
                Some(ErrorCode::WorkerCrashed),
            ),
            (
                true,
                Some(ErrorCode::WorkerCrashed),
                Some(ErrorCode::WorkerCrashed),
            ),
            (true, Some(ErrorCode::Ok), Some(ErrorCode::Ok)),
            (false, None, Some(ErrorCode::DeadlineExceeded)), // silent for too long
            (true, None, None),
        ] {
            let (sink, stream) = stream(IDLE);
            let (mut stream, mut end) = told(stream);
            sink.event(event("a"));
            next(&mut stream).await.unwrap();
            // A sink that is kept is a request that goes on.
            let mut sink = Some(Box::new(sink));
            if let Some(code) = ends {
                sink.take().unwrap().respond(outcome(code, ""));
            }
            if !leaves {
                while next(&mut stream).await.is_some() {}
            }
            drop(stream);
            let found = end.try_recv().ok().map(|end| end.code);
            assert_eq!(found, expected, "{leaves} {ends:?}");
            drop(sink);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_too_slow_is_not_held_against_the_service() {
        let (sink, stream) = stream(IDLE);
        let (stream, mut end) = told(stream);
        for _ in 0..2 {
            sink.event(event(&"x".repeat(MAX_BURST_BYTES)));
        }
        drop(stream);
        assert_eq!(end.try_recv().unwrap().code, ErrorCode::Cancelled);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bodys_room_is_free_once_its_request_is_answered() {
        let memory = crate::body::Memory::new(&crate::config::Config::default());
        for is_answered_first in [false, true] {
            let (sink, unread) = stream(IDLE);
            let mut room = Room::default();
            memory.grow(&mut room, 1024).await.unwrap();
            if !is_answered_first {
                unread.hold(std::mem::take(&mut room));
                sink.event(event("a"));
                assert_eq!(memory.used_bytes(), 1024);
            }
            Box::new(sink).respond(outcome(ErrorCode::Ok, ""));
            unread.hold(room);
            assert_eq!(memory.used_bytes(), 0, "{is_answered_first}");
        }
    }
}
