//! Hot path. The data plane's frames, version 2: little-endian, a fixed header, then tables, then payloads.
//!
//! | offset | bytes | header field | used by |
//! |---|---|---|---|
//! | 0 | 4 | magic `msec` | all |
//! | 4 | 1 | version, 2 | all |
//! | 5 | 1 | kind | all |
//! | 6 | 2 | flags, 0 | none yet |
//! | 8 | 8 | revision | `Batch`, `Window`, else 0 |
//! | 16 | 2 | stage | `Batch`, `Window`, else 0 |
//! | 18 | 2 | number of items or answers | `Batch`, `Answers`, `Cancel`, else 0 |
//! | 20 | 4 | reserved, 0 | none yet |
//! | 24 | 8 | bytes of the body | all |
//!
//! Bodies: `batch.rs`, `answers.rs` and `cancel.rs` list theirs. `Hello`: incarnation u64, then the node's name. `Window`: replicas
//! u32, limit u32. `Finish`, `Credit`, `Drain`, `Heartbeat`: empty.
//!
//! Decoding trusts nothing: every length is checked against the bytes at hand before anything is allocated for it, a
//! body is used up exactly, and a value has one encoding. Payloads are slices of the body, not copies.

mod answers;
mod batch;
mod cancel;
mod event;
mod fields;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use mosec_types::spec::{MAX_HEADER_BYTES, MAX_LINK_REQUEST_BYTES};
use mosec_types::{Revision, StageIndex, StageKey};

pub(crate) use answers::body_bytes_of;
pub use answers::encode as encode_answers;
pub use batch::encode as encode_batch;
pub(crate) use cancel::{MAX_CANCELLED, encode as encode_cancel};
pub(crate) use event::MAX_EVENT_BYTES;
pub use event::{encode as encode_event, encode_credit, encode_finish, encode_heartbeat};

use crate::link::{Answer, Batch, LinkEvent};
use fields::{Chunks, Fields};

/// Bytes of every frame's header.
pub const HEADER_BYTES: usize = 32;
/// Most items of one frame: the count is 16 bits wide.
pub const MAX_ITEMS: usize = u16::MAX as usize;
/// Default limit of a body: the largest request, or as many bytes of smaller ones, and the tables that go with the most items.
pub const DEFAULT_MAX_BODY_BYTES: usize = MAX_LINK_REQUEST_BYTES as usize + MAX_HEADER_BYTES + MAX_ITEMS * 32;

const MAGIC: [u8; 4] = *b"msec";
const VERSION: u8 = 2;

/// Why bytes are not a frame, or a value does not fit into one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    #[error("not a frame: it starts with {0:02x?}")]
    Magic([u8; 4]),
    #[error(
        "it speaks version {0} of the link, and this build speaks version {VERSION}: upgrade the older of the two"
    )]
    Version(u8),
    #[error("unknown frame kind {0}")]
    Kind(u8),
    #[error("unused bits or fields of a frame are set")]
    Reserved,
    #[error("body of {bytes} bytes exceeds the limit of {limit}")]
    TooLarge { bytes: u64, limit: usize },
    #[error("{0} items exceed the limit of {MAX_ITEMS}")]
    TooManyItems(usize),
    #[error("{0} spans of one answer exceed the limit of 65535")]
    TooManySpans(usize),
    #[error("a frame of items has none")]
    NoItems,
    #[error("frame is cut off")]
    Truncated,
    #[error("frame has {0} bytes too many")]
    Trailing(usize),
    #[error("unknown error code {0}")]
    Code(u16),
    #[error("unknown span kind {0}")]
    SpanKind(u8),
    #[error("invalid node name")]
    Name,
    #[error("frame of kind {0:?} in the wrong place")]
    Misplaced(Kind),
    #[error("answer to item {item} of a batch of {items}")]
    UnknownItem { item: u32, items: usize },
    #[error("peer is {found}, expected {expected}")]
    WrongPeer { expected: String, found: String },
}

/// What a frame is. The numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Upstream to agent: the one frame of a batch's stream.
    Batch = 1,
    /// Agent to upstream, on the batch's stream.
    Answers = 2,
    /// Agent to upstream: the last frame of a batch's stream.
    Finish = 3,
    /// Agent to upstream, on the batch's stream: the batch's credit is free.
    Credit = 4,
    /// Upstream to agent, as a datagram: nobody waits for some items of a batch any more.
    Cancel = 5,
    /// These come from the agent on the control stream.
    Hello = 16,
    Window = 17,
    Drain = 18,
    Heartbeat = 19,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Batch,
        Self::Answers,
        Self::Finish,
        Self::Credit,
        Self::Cancel,
        Self::Hello,
        Self::Window,
        Self::Drain,
        Self::Heartbeat,
    ];

    fn from_wire(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    fn has_items(self) -> bool {
        matches!(self, Self::Batch | Self::Answers | Self::Cancel)
    }

    fn has_stage(self) -> bool {
        matches!(self, Self::Batch | Self::Window)
    }
}

/// A decoded frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Batch(Batch),
    /// At least one.
    Answers(Vec<Answer>),
    Finish,
    Credit,
    Cancel(Cancel),
    Event(LinkEvent),
    Heartbeat,
}

/// Items of one batch that nobody waits for any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cancel {
    /// The number of the batch's stream.
    pub stream: u64,
    /// Positions in the batch, at least one.
    pub items: Vec<u32>,
}

impl Frame {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Batch(_) => Kind::Batch,
            Self::Answers(_) => Kind::Answers,
            Self::Finish => Kind::Finish,
            Self::Credit => Kind::Credit,
            Self::Cancel(_) => Kind::Cancel,
            Self::Event(LinkEvent::Hello { .. }) => Kind::Hello,
            Self::Event(LinkEvent::Window { .. }) => Kind::Window,
            Self::Event(LinkEvent::Drain) => Kind::Drain,
            Self::Heartbeat => Kind::Heartbeat,
        }
    }

    /// Encodes the frame: small parts gathered, large payloads by reference.
    pub fn encode(&self, max_body_bytes: usize) -> Result<Vec<Bytes>, FrameError> {
        match self {
            Self::Batch(batch) => encode_batch(batch, max_body_bytes),
            Self::Answers(answers) => encode_answers(answers, max_body_bytes),
            Self::Finish => Ok(vec![encode_finish()]),
            Self::Credit => Ok(vec![encode_credit()]),
            Self::Cancel(Cancel { stream, items }) => {
                check_size(
                    items.len(),
                    cancel::body_bytes(items.len()) as u64,
                    max_body_bytes,
                )?;
                Ok(vec![encode_cancel(*stream, items)])
            }
            Self::Event(event) => Ok(vec![encode_event(event)]),
            Self::Heartbeat => Ok(vec![encode_heartbeat()]),
        }
    }

    /// Decodes a buffer that holds one frame and nothing else.
    pub fn decode(bytes: Bytes, max_body_bytes: usize) -> Result<Self, FrameError> {
        let header = bytes.first_chunk().ok_or(FrameError::Truncated)?;
        Header::decode(header, max_body_bytes)?.decode_body(bytes.slice(HEADER_BYTES..))
    }
}

/// A frame's header, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub body_bytes: usize,
    stage: StageKey,
    items: u16,
}

impl Header {
    /// Reads a header. The body it announces is within the limit, and plausible for its kind and number of items.
    pub fn decode(bytes: &[u8; HEADER_BYTES], max_body_bytes: usize) -> Result<Self, FrameError> {
        let mut fields = Fields(bytes);
        let magic = fields.take()?;
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        let version = fields.u8()?;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let number = fields.u8()?;
        let kind = Kind::from_wire(number).ok_or(FrameError::Kind(number))?;
        let flags = fields.u16()?;
        let stage = StageKey {
            revision: Revision(fields.u64()?),
            stage: StageIndex(fields.u16()?),
        };
        let items = fields.u16()?;
        let reserved = fields.u32()?;
        let body = fields.u64()?;
        let unused_stage = !kind.has_stage() && stage != NO_STAGE;
        if flags != 0 || reserved != 0 || unused_stage || (!kind.has_items() && items != 0) {
            return Err(FrameError::Reserved);
        }
        let body_bytes = usize::try_from(body)
            .ok()
            .filter(|bytes| *bytes <= max_body_bytes)
            .ok_or(FrameError::TooLarge {
                bytes: body,
                limit: max_body_bytes,
            })?;
        let header = Self {
            kind,
            body_bytes,
            stage,
            items,
        };
        header.check_body_bytes()?;
        Ok(header)
    }

    /// Checks the body's size before anyone waits or allocates for it.
    fn check_body_bytes(&self) -> Result<(), FrameError> {
        let items = usize::from(self.items);
        let (least, most) = match self.kind {
            Kind::Batch => (items * batch::ITEM_BYTES, usize::MAX),
            Kind::Answers => (items * answers::ANSWER_BYTES, usize::MAX),
            Kind::Cancel => (cancel::body_bytes(items), cancel::body_bytes(items)),
            Kind::Hello => event::HELLO_BYTES,
            Kind::Window => (event::WINDOW_BYTES, event::WINDOW_BYTES),
            Kind::Finish | Kind::Credit | Kind::Drain | Kind::Heartbeat => (0, 0),
        };
        if self.kind.has_items() && items == 0 {
            Err(FrameError::NoItems)
        } else if self.body_bytes < least {
            Err(FrameError::Truncated)
        } else if self.body_bytes > most {
            Err(FrameError::Trailing(self.body_bytes - most))
        } else {
            Ok(())
        }
    }

    /// Decodes the body that belongs to this header.
    pub fn decode_body(&self, body: Bytes) -> Result<Frame, FrameError> {
        if body.len() < self.body_bytes {
            return Err(FrameError::Truncated);
        }
        if body.len() > self.body_bytes {
            return Err(FrameError::Trailing(body.len() - self.body_bytes));
        }
        let items = usize::from(self.items);
        match self.kind {
            Kind::Batch => batch::decode(self.stage, items, &body).map(Frame::Batch),
            Kind::Answers => answers::decode(items, &body).map(Frame::Answers),
            Kind::Cancel => cancel::decode(items, &body).map(Frame::Cancel),
            Kind::Hello => event::decode_hello(&body).map(Frame::Event),
            Kind::Window => event::decode_window(self.stage, &body).map(Frame::Event),
            Kind::Finish => Ok(Frame::Finish),
            Kind::Credit => Ok(Frame::Credit),
            Kind::Drain => Ok(Frame::Event(LinkEvent::Drain)),
            Kind::Heartbeat => Ok(Frame::Heartbeat),
        }
    }
}

/// The header of a frame under construction. `body_bytes` has been checked.
fn encode_header(chunks: &mut Chunks, kind: Kind, stage: StageKey, items: u16, body_bytes: usize) {
    chunks.put(&MAGIC);
    chunks.put(&[VERSION, kind as u8, 0, 0]);
    chunks.put(&stage.revision.0.to_le_bytes());
    chunks.put(&stage.stage.0.to_le_bytes());
    chunks.put(&items.to_le_bytes());
    chunks.put(&[0; 4]);
    chunks.put(&(body_bytes as u64).to_le_bytes());
}

/// Checks that a frame of `items` and `body_bytes` may be sent.
fn check_size(items: usize, body_bytes: u64, max_body_bytes: usize) -> Result<u16, FrameError> {
    if items == 0 {
        return Err(FrameError::NoItems);
    }
    if body_bytes > max_body_bytes as u64 {
        return Err(FrameError::TooLarge {
            bytes: body_bytes,
            limit: max_body_bytes,
        });
    }
    u16::try_from(items).map_err(|_| FrameError::TooManyItems(items))
}

/// The key in the headers of frames that concern no stage.
const NO_STAGE: StageKey = StageKey {
    revision: Revision(0),
    stage: StageIndex(0),
};
