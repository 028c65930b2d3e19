//! The body of a `Cancel` frame, which comes as a datagram: the number of the batch's stream, then of each item its
//! position.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | the stream's number among those that the upstream has opened |
//! | 8 | 4 each | positions of items |

use bytes::Bytes;

use super::fields::{Chunks, Fields};
use super::{Cancel, FrameError, HEADER_BYTES, Kind, NO_STAGE, encode_header};

const STREAM_BYTES: usize = 8;
pub(super) const POSITION_BYTES: usize = 4;
/// Most items of one frame: with everything around them they fit into the smallest packet that QUIC allows, 1200 bytes.
pub(crate) const MAX_CANCELLED: usize = 256;

pub(super) const fn body_bytes(items: usize) -> usize {
    STREAM_BYTES + items * POSITION_BYTES
}

/// Encodes the end of interest in some items of a batch, at most [`MAX_CANCELLED`].
pub(crate) fn encode(stream: u64, items: &[u32]) -> Bytes {
    let body_bytes = body_bytes(items.len());
    let count = u16::try_from(items.len()).unwrap_or(u16::MAX);
    let mut chunks = Chunks::for_frame(HEADER_BYTES + body_bytes, std::iter::empty());
    encode_header(&mut chunks, Kind::Cancel, NO_STAGE, count, body_bytes);
    chunks.put(&stream.to_le_bytes());
    for item in items {
        chunks.put(&item.to_le_bytes());
    }
    chunks.finish().swap_remove(0)
}

/// `body` has the bytes of so many items, as the header's check has shown.
pub(super) fn decode(items: usize, body: &Bytes) -> Result<Cancel, FrameError> {
    let mut fields = Fields(body);
    let stream = fields.u64()?;
    let items = (0..items).map(|_| fields.u32()).collect::<Result<_, _>>()?;
    Ok(Cancel { stream, items })
}
