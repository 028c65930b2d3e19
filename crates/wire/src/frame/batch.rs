//! Hot path. The body of a `Batch` frame: a table of items, then headers and payload of each, in the same order.
//!
//! | offset | bytes | item field |
//! |---|---|---|
//! | 0 | 8 | request id |
//! | 8 | 8 | remaining time, microseconds |
//! | 16 | 4 | bytes of the payload |
//! | 20 | 2 | route |
//! | 22 | 1 | losses |
//! | 23 | 1 | bit 0: traced |
//! | 24 | 4 | bytes of the headers |

use std::time::Duration;

use bytes::Bytes;
use mosec_types::spec::RouteIndex;
use mosec_types::{RequestId, StageKey};

use super::fields::{Chunks, Fields, Payloads};
use super::{FrameError, HEADER_BYTES, Kind, check_size, encode_header};
use crate::link::{Batch, Item};

pub(super) const ITEM_BYTES: usize = 28;

/// Encodes a batch of one item or more.
pub fn encode(batch: &Batch, max_body_bytes: usize) -> Result<Vec<Bytes>, FrameError> {
    let table_bytes = batch.items.len() * ITEM_BYTES;
    let sizes = batch
        .items
        .iter()
        .flat_map(|item| [item.headers.len(), item.payload.len()]);
    let body_bytes = table_bytes as u64 + sizes.clone().map(|bytes| bytes as u64).sum::<u64>();
    let items = check_size(batch.items.len(), body_bytes, max_body_bytes)?;
    let mut chunks = Chunks::for_frame(HEADER_BYTES + table_bytes, sizes);
    encode_header(&mut chunks, Kind::Batch, batch.stage, items, body_bytes as usize);
    for item in &batch.items {
        put_item(&mut chunks, item)?;
    }
    for item in &batch.items {
        chunks.put_payload(&item.headers);
        chunks.put_payload(&item.payload);
    }
    Ok(chunks.finish())
}

fn put_item(chunks: &mut Chunks, item: &Item) -> Result<(), FrameError> {
    let (payload, headers) = (len(&item.payload)?, len(&item.headers)?);
    let remaining = u64::try_from(item.remaining.as_micros()).unwrap_or(u64::MAX);
    chunks.put(&item.id.0.to_le_bytes());
    chunks.put(&remaining.to_le_bytes());
    chunks.put(&payload.to_le_bytes());
    chunks.put(&item.route.0.to_le_bytes());
    chunks.put(&[item.losses, u8::from(item.traced)]);
    chunks.put(&headers.to_le_bytes());
    Ok(())
}

fn len(bytes: &Bytes) -> Result<u32, FrameError> {
    u32::try_from(bytes.len()).map_err(|_| FrameError::TooLarge {
        bytes: bytes.len() as u64,
        limit: u32::MAX as usize,
    })
}

/// `body` holds at least the table of `items`, as the header's check has shown.
pub(super) fn decode(stage: StageKey, items: usize, body: &Bytes) -> Result<Batch, FrameError> {
    let table = body.get(..items * ITEM_BYTES).ok_or(FrameError::Truncated)?;
    let sizes = table
        .chunks_exact(ITEM_BYTES)
        .flat_map(|row| [16, 24].map(|at| Fields(&row[at..]).u32().map(u64::from)));
    let mut payloads = Payloads::new(body, table.len(), sizes.sum::<Result<u64, _>>()?)?;
    let mut decoded = Vec::with_capacity(items);
    for row in table.chunks_exact(ITEM_BYTES) {
        decoded.push(take_item(&mut Fields(row), &mut payloads)?);
    }
    Ok(Batch {
        stage,
        items: decoded,
    })
}

fn take_item(fields: &mut Fields<'_>, payloads: &mut Payloads<'_>) -> Result<Item, FrameError> {
    let id = RequestId(fields.u64()?);
    let remaining = Duration::from_micros(fields.u64()?);
    let payload_bytes = fields.u32()?;
    let route = RouteIndex(fields.u16()?);
    let losses = fields.u8()?;
    let traced = fields.flag()?;
    let headers = payloads.next(fields.u32()?)?;
    let payload = payloads.next(payload_bytes)?;
    Ok(Item {
        id,
        route,
        remaining,
        losses,
        traced,
        headers,
        payload,
    })
}
