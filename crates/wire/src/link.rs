//! Hot path. The seam between a dispatcher and a node agent: batches one way, answers the other.
//!
//! A dispatcher (gateway or agent) holds one [`Link`] to each agent it sends to; the agent holds the
//! [`LinkServer`] half. There are two implementations, [`crate::quic`] between processes and [`crate::memory`]
//! inside one, and one conformance suite runs on both.
//!
//! Story of a batch: `Link::send` hands it over and gives back its [`Answers`]. The agent gets an [`Incoming`] with
//! the batch and an [`AnswerSink`]. Each item is answered on the sink once; the stream ends when the sink is finished.
//! - Dropping `Answers` early cancels: the sink's `cancelled()` resolves and its sends fail with `Cancelled`.
//! - `Answers::cancel` cancels single items, of which the sink's `cancelled()` tells, too.
//! - Dropping the sink before every item was answered is a loss: `Answers::next` gives `LinkError::Reset`.
//! - A connection that breaks or falls silent is a loss of every batch on it.
//!
//! Custody stays with the sender throughout: whatever it has not seen answered, it may send elsewhere.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use mosec_types::spec::RouteIndex;
use mosec_types::{ErrorCode, Incarnation, NodeId, RequestId, Span, StageKey};

/// Requests for one stage, to be run together in one `forward`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub stage: StageKey,
    pub items: Vec<Item>,
}

/// One request's part of a batch. Answers name it by its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub id: RequestId,
    pub route: RouteIndex,
    /// Time left until the request's deadline when the batch was sent.
    pub remaining: Duration,
    /// Replicas of this stage that have been lost under this request.
    pub losses: u8,
    /// Whether the answer should say where the time went.
    pub traced: bool,
    /// The client's headers that the stages of its route ask for: `name:value` in lines that end with a line feed, which
    /// neither has. Names are in lower case; values are the client's bytes.
    pub headers: Bytes,
    pub payload: Bytes,
}

/// Who has custody of an item after its answer.
///
/// `losses`: replicas of the stage that were lost under the item before this, those that its upstream told of included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Custody {
    /// Nobody needs it any more: the answer is final, whatever its code.
    #[default]
    Done,
    /// The upstream has it back; this time the stage did not start on it.
    Refused { losses: u8 },
    /// The upstream has it back; one more replica of the stage was lost under it.
    Lost { losses: u8 },
}

/// One item's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Position of the item in its batch.
    pub item: u32,
    pub code: ErrorCode,
    pub custody: Custody,
    /// False for an event of a stream that goes on.
    pub last: bool,
    /// The result, or the error's own text.
    pub payload: Bytes,
    /// For a traced item: where the time went on the far side. Empty otherwise.
    pub spans: Vec<Span>,
}

/// How much of one stage an upstream may have outstanding at one agent.
///
/// Absolute, so a lost or repeated message does no harm. One unit of `limit` is one credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Window {
    /// Replicas that are ready. A batch beyond this many waits at the agent.
    pub replicas: u32,
    /// Batches the upstream may have outstanding: the replicas' own and those prefetched for them.
    pub limit: u32,
}

/// What an agent says on its own account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// First event of every connection: who is there.
    Hello { node: NodeId, incarnation: Incarnation },
    /// The window of one stage has changed. A stage never named has a window of zero.
    Window { stage: StageKey, window: Window },
    /// The agent takes no new batches and will close the link when it has answered what it has.
    Drain,
}

/// Why a link, or one batch on it, ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    #[error("connection to {peer} could not be made: {reason}")]
    Connect { peer: String, reason: String },
    #[error("connection lost: {0}")]
    Lost(String),
    #[error("peer has been silent for {0:?}")]
    Silent(Duration),
    #[error("batch was reset by the peer")]
    Reset,
    #[error("batch was cancelled")]
    Cancelled,
    #[error("peer broke the protocol: {0}")]
    Protocol(#[from] crate::frame::FrameError),
    #[error("link is closed")]
    Closed,
}

impl LinkError {
    /// Stable word for labels.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::Lost(_) => "lost",
            Self::Silent(_) => "silent",
            Self::Reset => "reset",
            Self::Cancelled => "cancelled",
            Self::Protocol(_) => "protocol",
            Self::Closed => "closed",
        }
    }
}

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The sending half, one for each pair of dispatcher and agent.
pub trait Link: Send + Sync + fmt::Debug + 'static {
    /// Hands a batch over.
    ///
    /// Completes when the batch is with the transport, not when it is answered. Waits while the peer accepts no more
    /// streams or bytes, so callers bound it by the batch's deadline. After an error the batch has not arrived whole: the
    /// agent has not seen it.
    fn send(&self, batch: Batch) -> BoxFuture<'_, Result<Box<dyn Answers>, LinkError>>;

    /// The peer's next event, or why the link ended. One caller at a time; cancel safe.
    fn event(&self) -> BoxFuture<'_, Result<LinkEvent, LinkError>>;

    /// Ends the link. Batches on it are lost.
    fn close(&self);

    /// What the transport has counted so far; `None` where there is nothing to count.
    fn stats(&self) -> Option<LinkStats> {
        None
    }
}

/// What a transport counts of one link, at the upstream's end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// The current estimate of the time a packet takes there and back.
    pub round_trip: Duration,
    /// Bytes that may be on the way before one is acknowledged.
    pub congestion_window_bytes: u64,
    pub sent_packets: u64,
    pub lost_packets: u64,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub sent_datagrams: u64,
    /// Calls of the system that sent them: fewer than datagrams where it divides what one call hands over.
    pub send_calls: u64,
}

/// What comes back on a batch's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Returned {
    /// The answers that have arrived since the last call, at least one.
    Answers(Vec<Answer>),
    /// The stage has finished with the batch and its credit is free again, though later stages still work on the
    /// answers. At most once; the end of the stream returns the credit too.
    Credit,
}

/// The answers of one batch. Dropping it early cancels what is not answered yet.
pub trait Answers: Send {
    /// What has come back; `None` when the agent has finished.
    ///
    /// Cancel safe.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Returned>, LinkError>>;

    /// Tells the agent that nobody waits for these items any more, while others of the batch are awaited. They are answered
    /// all the same.
    ///
    /// Never waits, and may be lost on its way: to be said again while their answers are not there. The agent is told of
    /// each once.
    fn cancel(&mut self, items: &[u32]);
}

/// The receiving half of one connection.
pub trait LinkServer: Send + Sync + fmt::Debug + 'static {
    /// The next batch, or why the link ended. One caller at a time; cancel safe.
    fn accept(&self) -> BoxFuture<'_, Result<Incoming, LinkError>>;

    /// Tells the upstream something. Keeps the order of calls. Never waits: of windows that the peer has not taken yet
    /// only the newest of each stage is kept.
    fn tell(&self, event: LinkEvent);

    /// Ends the link. Batches on it are lost.
    fn close(&self);
}

/// A batch that has arrived.
pub struct Incoming {
    pub batch: Batch,
    pub answers: Box<dyn AnswerSink>,
}

/// Where an agent puts the answers of one batch.
///
/// Dropping it before [`AnswerSink::finish`] resets the stream: the upstream sees a loss.
pub trait AnswerSink: Send {
    /// Sends answers. Waits while the upstream reads slowly.
    fn send(&mut self, answers: Vec<Answer>) -> BoxFuture<'_, Result<(), LinkError>>;

    /// Says that the batch's credit is free before its answers are all there. See [`Returned::Credit`].
    fn return_credit(&mut self) -> BoxFuture<'_, Result<(), LinkError>>;

    /// Says that every item has been answered.
    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<(), LinkError>>;

    /// What the upstream does not want any more. Cancel safe.
    fn cancelled(&mut self) -> BoxFuture<'_, Cancelled>;
}

/// What of a batch its upstream has given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cancelled {
    /// Some items, by position, each told once. They still have to be answered.
    Items(Vec<u32>),
    /// All of it. Answers go nowhere.
    Batch,
}
