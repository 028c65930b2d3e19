//! Hot path. A batch's way into the arena.

use bytes::Bytes;

use crate::arena::{Arena, ArenaFull, Extent, Slice};
use crate::descriptor::{ANSWER_BYTES, Body, ITEM_BYTES, ItemEntry, PAYLOAD_ALIGN, Region, align};

/// A batch for a worker.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Names the batch in its responses; not in flight yet.
    pub batch: u64,
    /// At least one.
    pub items: &'a [RequestItem<'a>],
    /// Bytes of answers to expect, all items together. More cost the worker a question, not an error.
    pub reply_hint: usize,
}

/// One item of a batch.
#[derive(Debug, Clone, Copy)]
pub struct RequestItem<'a> {
    /// [`crate::ITEM_INGRESS`], [`crate::ITEM_EGRESS`].
    pub flags: u32,
    /// As [`crate::now_micros`] counts; zero means none.
    pub deadline_micros: u64,
    /// The request's id, for the worker to read.
    pub request: u64,
    /// What the worker is told of the client's headers; copied.
    pub headers: &'a [u8],
    pub payload: ItemPayload<'a>,
}

/// Where an item's bytes are.
#[derive(Debug, Clone, Copy)]
pub enum ItemPayload<'a> {
    /// In private memory; copied.
    Bytes(&'a Bytes),
    /// In the arena already, as another worker's answer; not copied.
    Slice(&'a Slice),
}

/// A batch in the arena, ready to be named by a descriptor. Dropping it returns the memory.
pub struct Prepared {
    pub(super) items: usize,
    /// Item table, then headers, then the payloads that were copied.
    pub(super) request: Extent,
    pub(super) request_bytes: usize,
    pub(super) reply: Extent,
    /// Keeps the payloads that were there already.
    pub(super) inputs: Vec<Slice>,
    pub(super) highest_segment: usize,
}

impl Prepared {
    pub(super) fn body(&self) -> Body {
        Body::Batch {
            items: u32::try_from(self.items).expect("a table of more items does not fit into a segment"),
            table: self.request.region(self.request_bytes),
            reply: self.reply.region(self.reply.capacity()),
        }
    }
}

/// Writes a batch into the arena.
pub(super) fn prepare(
    arena: &Arena,
    items: &[RequestItem<'_>],
    reply_hint: usize,
) -> Result<Prepared, ArenaFull> {
    let table_bytes = items.len() * ITEM_BYTES;
    let (copies, inputs) = split(arena, items);
    let headers_end = table_bytes + items.iter().map(|item| item.headers.len()).sum::<usize>();
    let request_bytes = copies
        .iter()
        .flatten()
        .fold(headers_end, |end, copy| align(end) + copy.len());
    let mut extent = arena.alloc(request_bytes)?;
    // Each answer may need up to one alignment step beyond its bytes.
    let reply = arena.alloc((items.len() * (ANSWER_BYTES + PAYLOAD_ALIGN)).saturating_add(reply_hint))?;

    let mut table = Vec::with_capacity(table_bytes);
    let (mut headers_at, mut end) = (table_bytes, headers_end);
    let mut shared = inputs.iter();
    for (item, copy) in items.iter().zip(&copies) {
        let payload = match copy {
            Some(bytes) => {
                let at = align(end);
                extent
                    .write(at, bytes)
                    .expect("the extent was sized for every copy");
                end = at + bytes.len();
                extent.region_at(at, bytes.len())
            }
            None => shared.next().expect("what is not copied is shared").region(),
        };
        let headers = if item.headers.is_empty() {
            Region::default()
        } else {
            let at = headers_at;
            extent
                .write(at, item.headers)
                .expect("the extent was sized for all headers");
            headers_at += item.headers.len();
            extent.region_at(at, item.headers.len())
        };
        let entry = ItemEntry {
            payload,
            flags: item.flags,
            deadline_micros: item.deadline_micros,
            request: item.request,
            headers,
        };
        table.extend_from_slice(&entry.encode());
    }
    extent
        .write(0, &table)
        .expect("the extent was sized for the table");

    let segments = inputs
        .iter()
        .map(Slice::segment)
        .chain([extent.segment(), reply.segment()]);
    let highest_segment = segments.max().unwrap_or(0);
    Ok(Prepared {
        items: items.len(),
        request: extent,
        request_bytes,
        reply,
        inputs,
        highest_segment,
    })
}

/// For each item the bytes to copy, or nothing for one that is in the arena; and those that are.
fn split(arena: &Arena, items: &[RequestItem<'_>]) -> (Vec<Option<Bytes>>, Vec<Slice>) {
    let mut inputs = Vec::new();
    let copies = items
        .iter()
        .map(|item| match item.payload {
            ItemPayload::Bytes(bytes) => Some(bytes.clone()),
            ItemPayload::Slice(slice) if arena.owns(slice) => {
                inputs.push(slice.clone());
                None
            }
            ItemPayload::Slice(slice) => Some(slice.to_bytes()), // of another arena, which this worker has not mapped
        })
        .collect();
    (copies, inputs)
}
