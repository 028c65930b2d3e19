//! Frames with a small body or none: the control stream's, and the end of a batch's answers and of its credit.

use bytes::Bytes;
use mosec_types::id::MAX_NAME_BYTES;
use mosec_types::{Incarnation, NodeId, StageKey};

use super::fields::{Chunks, Fields};
use super::{FrameError, HEADER_BYTES, Kind, NO_STAGE, encode_header};
use crate::link::{LinkEvent, Window};

/// Least and most bytes of a `Hello`'s body.
pub(super) const HELLO_BYTES: (usize, usize) = (8 + 1, 8 + MAX_NAME_BYTES);
pub(super) const WINDOW_BYTES: usize = 8;
/// Largest body on a control stream.
pub(crate) const MAX_EVENT_BYTES: usize = HELLO_BYTES.1;

/// Encodes what an agent tells its upstream.
pub fn encode(event: &LinkEvent) -> Bytes {
    match event {
        LinkEvent::Hello { node, incarnation } => small(
            Kind::Hello,
            NO_STAGE,
            &[&incarnation.0.to_le_bytes(), node.as_str().as_bytes()],
        ),
        LinkEvent::Window { stage, window } => {
            let Window { replicas, limit } = window;
            small(
                Kind::Window,
                *stage,
                &[&replicas.to_le_bytes(), &limit.to_le_bytes()],
            )
        }
        LinkEvent::Drain => small(Kind::Drain, NO_STAGE, &[]),
    }
}

/// Encodes the sign of life that an agent sends when it has nothing to tell.
pub fn encode_heartbeat() -> Bytes {
    small(Kind::Heartbeat, NO_STAGE, &[])
}

/// Encodes the end of a batch's answers.
pub fn encode_finish() -> Bytes {
    small(Kind::Finish, NO_STAGE, &[])
}

/// Encodes the return of a batch's credit.
pub fn encode_credit() -> Bytes {
    small(Kind::Credit, NO_STAGE, &[])
}

fn small(kind: Kind, stage: StageKey, parts: &[&[u8]]) -> Bytes {
    let body_bytes = parts.iter().map(|part| part.len()).sum();
    let mut chunks = Chunks::for_frame(HEADER_BYTES + body_bytes, std::iter::empty());
    encode_header(&mut chunks, kind, stage, 0, body_bytes);
    for part in parts {
        chunks.put(part);
    }
    chunks.finish().swap_remove(0)
}

pub(super) fn decode_hello(body: &[u8]) -> Result<LinkEvent, FrameError> {
    let mut fields = Fields(body);
    let incarnation = Incarnation(fields.u64()?);
    let name = std::str::from_utf8(fields.0).map_err(|_| FrameError::Name)?;
    let node = NodeId::new(name).map_err(|_| FrameError::Name)?;
    Ok(LinkEvent::Hello { node, incarnation })
}

pub(super) fn decode_window(stage: StageKey, body: &[u8]) -> Result<LinkEvent, FrameError> {
    let mut fields = Fields(body);
    let window = Window {
        replicas: fields.u32()?,
        limit: fields.u32()?,
    };
    Ok(LinkEvent::Window { stage, window })
}
