//! Hot path. A request in custody, and the one way to answer it.

use std::time::Duration;

use bytes::Bytes;
use mosec_shm_ring::Slice;
use mosec_types::{ErrorCode, RequestId, Span, spec::RouteIndex};
use tokio::time::Instant;

use crate::custody::Loss;

/// A request on its way through one stage.
#[derive(Debug)]
pub struct Request {
    pub id: RequestId,
    pub route: RouteIndex,
    pub deadline: Instant,
    /// When it came to the stage's queue; the batch window counts from here.
    pub arrived: Instant,
    /// The client's headers that the route's stages ask for, as [`mosec_wire::Item::headers`] says.
    pub headers: Bytes,
    pub payload: Payload,
    /// Replicas of this stage that have been lost under it.
    pub losses: u8,
    /// Whether it is noted where its time goes.
    pub traced: bool,
    /// Where the time of the stages before went, for a traced request.
    pub spans: Vec<Span>,
    pub stream: Stream,
    pub reply: Reply,
}

/// What a request knows of the events that its last stage may send before its answer.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    idle: Duration,
    started: bool,
}

impl Stream {
    /// `idle`: the longest silence. Each event moves the request's deadline to this much later, so that the pipeline's
    /// timeout limits the pauses of a stream and not its length.
    pub fn new(idle: Duration) -> Self {
        Self { idle, started: false }
    }

    /// Whether an event has gone out. To run the request again would repeat it.
    pub fn has_started(self) -> bool {
        self.started
    }
}

impl Request {
    /// Answers and ends the request.
    pub fn respond(self, code: ErrorCode, payload: Payload) {
        self.reply.respond(Outcome {
            code,
            payload,
            spans: self.spans,
            lost: None,
        });
    }

    /// Gives custody back to whoever sent it here, with the reason: from another process, or of another revision.
    pub fn give_back(self, loss: Loss, code: ErrorCode) {
        let losses = self.losses;
        self.reply.respond(Outcome {
            code,
            payload: Payload::Bytes(Bytes::from_static(code.text().as_bytes())),
            spans: self.spans,
            lost: Some(Lost { loss, losses }),
        });
    }

    /// Takes note of the losses that another process has counted, which went on from those it was told of.
    pub(crate) fn note_losses(&mut self, losses: u8) {
        self.losses = self.losses.max(losses);
    }

    /// Passes on one event of a stream that goes on. False: it was dropped, as nobody waits for it any more.
    pub fn event(&mut self, payload: Payload, now: Instant) -> bool {
        if !self.is_live(now) {
            return false;
        }
        self.stream.started = true;
        self.deadline = self.deadline.max(now + self.stream.idle);
        if let Some(respond) = &self.reply.0 {
            respond.event(payload);
        }
        true
    }

    /// Bytes that it takes on a link.
    pub(crate) fn bytes(&self) -> usize {
        self.headers.len() + self.payload.len()
    }

    /// Answers with the error's own text.
    pub fn fail(self, code: ErrorCode) {
        self.respond(code, Payload::Bytes(Bytes::from_static(code.text().as_bytes())));
    }

    /// Whether it still makes sense to work on it.
    pub fn is_live(&self, now: Instant) -> bool {
        now < self.deadline && self.reply.is_wanted()
    }
}

/// Bytes of a request or an answer, in this process or in the node's shared memory.
#[derive(Debug, Clone)]
pub enum Payload {
    Bytes(Bytes),
    /// A previous stage's output, still where its worker wrote it.
    Slice(Slice),
}

impl Payload {
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Slice(slice) => slice.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, copied out of shared memory where they are there.
    pub fn to_bytes(&self) -> Bytes {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Slice(slice) => slice.to_bytes(),
        }
    }
}

/// What became of a request.
#[derive(Debug)]
pub struct Outcome {
    pub code: ErrorCode,
    /// The result, or the error's text.
    pub payload: Payload,
    pub spans: Vec<Span>,
    /// Set where this is no answer: custody goes back.
    pub lost: Option<Lost>,
}

/// A request that goes back to whoever sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    pub loss: Loss,
    /// Replicas of the stage that were lost under it before.
    pub losses: u8,
}

/// Whoever waits for a request's answer.
pub trait Respond: Send + Sync {
    /// Takes the answer. Called once at most.
    fn respond(self: Box<Self>, outcome: Outcome);

    /// Takes one event of a stream that goes on. Never waits: whoever reads slowly has a bounded buffer of its own, and is
    /// no longer wanted when that is full.
    fn event(&self, _payload: Payload) {}

    /// Whether the answer is still wanted.
    fn is_wanted(&self) -> bool;

    /// Whether the request may be given back instead of answered, as whoever waits can send it elsewhere.
    fn takes_back(&self) -> bool {
        false
    }
}

/// The right and the duty to answer one request.
///
/// Dropping it unused answers with [`ErrorCode::Internal`]: a client never hangs on a bug of ours.
pub struct Reply(Option<Box<dyn Respond>>);

impl Reply {
    pub fn new(respond: impl Respond + 'static) -> Self {
        Self(Some(Box::new(respond)))
    }

    fn respond(mut self, outcome: Outcome) {
        if let Some(respond) = self.0.take() {
            respond.respond(outcome);
        }
    }

    pub fn is_wanted(&self) -> bool {
        self.0.as_ref().is_some_and(|respond| respond.is_wanted())
    }

    pub(crate) fn takes_back(&self) -> bool {
        self.0.as_ref().is_some_and(|respond| respond.takes_back())
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(respond) = self.0.take() {
            if respond.is_wanted() {
                tracing::error!("a request was dropped without an answer");
            }
            let payload = Payload::Bytes(Bytes::from_static(ErrorCode::Internal.text().as_bytes()));
            respond.respond(Outcome {
                code: ErrorCode::Internal,
                payload,
                spans: Vec::new(),
                lost: None,
            });
        }
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reply")
    }
}

impl Respond for tokio::sync::oneshot::Sender<Outcome> {
    fn respond(self: Box<Self>, outcome: Outcome) {
        // The client may have left; then nobody wants the answer.
        let _ = self.send(outcome);
    }

    fn is_wanted(&self) -> bool {
        !self.is_closed()
    }
}
