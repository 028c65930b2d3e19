//! Hot path. The body of an `Answers` frame: a table of answers, then all their spans, then all their payloads.
//!
//! | offset | bytes | answer field |   | offset | bytes | span field |
//! |---|---|---|---|---|---|---|
//! | 0 | 4 | item | | 0 | 1 | kind |
//! | 4 | 4 | bytes of the payload | | 1 | 2 | stage |
//! | 8 | 2 | error code | | 3 | 4 | microseconds |
//! | 10 | 2 | number of spans | | | | |
//! | 12 | 1 | bit 0: last | | | | |
//! | 13 | 1 | custody: 0 done, 1 refused, 2 lost | | | | |
//! | 14 | 1 | losses; 0 where done | | | | |
//! | 15 | 1 | reserved, 0 | | | | |

use bytes::Bytes;
use mosec_types::{ErrorCode, Span, SpanKind, StageIndex};

use super::fields::{Chunks, Fields, Payloads};
use super::{FrameError, HEADER_BYTES, Kind, NO_STAGE, check_size, encode_header};
use crate::link::{Answer, Custody};

pub(super) const ANSWER_BYTES: usize = 16;
const SPAN_BYTES: usize = 7;

/// Bytes one answer adds to a frame's body.
pub(crate) fn body_bytes_of(answer: &Answer) -> usize {
    ANSWER_BYTES + answer.spans.len() * SPAN_BYTES + answer.payload.len()
}

/// Encodes a group of one answer or more.
pub fn encode(answers: &[Answer], max_body_bytes: usize) -> Result<Vec<Bytes>, FrameError> {
    let spans: usize = answers.iter().map(|answer| answer.spans.len()).sum();
    let table_bytes = answers.len() * ANSWER_BYTES + spans * SPAN_BYTES;
    let payload_bytes: u64 = answers.iter().map(|answer| answer.payload.len() as u64).sum();
    let body_bytes = table_bytes as u64 + payload_bytes;
    let count = check_size(answers.len(), body_bytes, max_body_bytes)?;
    let sizes = answers.iter().map(|answer| answer.payload.len());
    let mut chunks = Chunks::for_frame(HEADER_BYTES + table_bytes, sizes);
    encode_header(&mut chunks, Kind::Answers, NO_STAGE, count, body_bytes as usize);
    for answer in answers {
        put_answer(&mut chunks, answer)?;
    }
    for span in answers.iter().flat_map(|answer| &answer.spans) {
        chunks.put(&[span.kind.to_wire()]);
        chunks.put(&span.stage.0.to_le_bytes());
        chunks.put(&span.micros.to_le_bytes());
    }
    for answer in answers {
        chunks.put_payload(&answer.payload);
    }
    Ok(chunks.finish())
}

fn put_answer(chunks: &mut Chunks, answer: &Answer) -> Result<(), FrameError> {
    let bytes = answer.payload.len();
    let len = u32::try_from(bytes).map_err(|_| FrameError::TooLarge {
        bytes: bytes as u64,
        limit: u32::MAX as usize,
    })?;
    let spans =
        u16::try_from(answer.spans.len()).map_err(|_| FrameError::TooManySpans(answer.spans.len()))?;
    chunks.put(&answer.item.to_le_bytes());
    chunks.put(&len.to_le_bytes());
    chunks.put(&answer.code.to_wire().to_le_bytes());
    chunks.put(&spans.to_le_bytes());
    let (custody, losses) = match answer.custody {
        Custody::Done => (0, 0),
        Custody::Refused { losses } => (1, losses),
        Custody::Lost { losses } => (2, losses),
    };
    chunks.put(&[u8::from(answer.last), custody, losses, 0]);
    Ok(())
}

fn take_custody(fields: &mut Fields<'_>) -> Result<Custody, FrameError> {
    match fields.take()? {
        [0, 0] => Ok(Custody::Done),
        [1, losses] => Ok(Custody::Refused { losses }),
        [2, losses] => Ok(Custody::Lost { losses }),
        _ => Err(FrameError::Reserved),
    }
}

/// One row of the table.
struct Row {
    item: u32,
    payload_bytes: u32,
    code: ErrorCode,
    spans: u16,
    last: bool,
    custody: Custody,
}

impl Row {
    fn take(mut fields: Fields<'_>) -> Result<Self, FrameError> {
        let (item, payload_bytes) = (fields.u32()?, fields.u32()?);
        let number = fields.u16()?;
        let code = ErrorCode::from_wire(number).ok_or(FrameError::Code(number))?;
        let (spans, last) = (fields.u16()?, fields.flag()?);
        let custody = take_custody(&mut fields)?;
        if fields.u8()? != 0 {
            return Err(FrameError::Reserved);
        }
        Ok(Self {
            item,
            payload_bytes,
            code,
            spans,
            last,
            custody,
        })
    }
}

/// `body` holds at least the table of `count` answers, as the header's check has shown.
pub(super) fn decode(count: usize, body: &Bytes) -> Result<Vec<Answer>, FrameError> {
    let table = body.get(..count * ANSWER_BYTES).ok_or(FrameError::Truncated)?;
    let rows = || table.chunks_exact(ANSWER_BYTES).map(|row| Row::take(Fields(row)));
    let (mut all_spans, mut payload_bytes) = (0, 0);
    for row in rows() {
        let row = row?;
        all_spans += usize::from(row.spans);
        payload_bytes += u64::from(row.payload_bytes);
    }
    let spans_end = table.len() + all_spans * SPAN_BYTES;
    let mut spans = Fields(body.get(table.len()..spans_end).ok_or(FrameError::Truncated)?);
    let mut payloads = Payloads::new(body, spans_end, payload_bytes)?;
    let mut answers = Vec::with_capacity(count);
    for row in rows() {
        let Row {
            item,
            payload_bytes,
            code,
            spans: count,
            last,
            custody,
        } = row?;
        let spans = (0..count)
            .map(|_| take_span(&mut spans))
            .collect::<Result<Vec<_>, _>>()?;
        answers.push(Answer {
            item,
            code,
            custody,
            last,
            payload: payloads.next(payload_bytes)?,
            spans,
        });
    }
    Ok(answers)
}

fn take_span(fields: &mut Fields<'_>) -> Result<Span, FrameError> {
    let number = fields.u8()?;
    let kind = SpanKind::from_wire(number).ok_or(FrameError::SpanKind(number))?;
    Ok(Span {
        kind,
        stage: StageIndex(fields.u16()?),
        micros: fields.u32()?,
    })
}
