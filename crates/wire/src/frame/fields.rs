//! Reading and writing the fixed-width fields of frames.

use bytes::Bytes;

use super::FrameError;

/// Bytes yet to be read. Reading past the end is an error.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (field, rest) = self.0.split_first_chunk().ok_or(FrameError::Truncated)?;
        self.0 = rest;
        Ok(*field)
    }

    pub(super) fn u8(&mut self) -> Result<u8, FrameError> {
        self.take::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, FrameError> {
        self.take().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, FrameError> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, FrameError> {
        self.take().map(u64::from_le_bytes)
    }

    /// A byte of which only the lowest bit may be set.
    pub(super) fn flag(&mut self) -> Result<bool, FrameError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(FrameError::Reserved),
        }
    }
}

/// Payloads up to this size are copied next to their table: the copy is cheaper than a chunk of its own.
const GATHER_BYTES: usize = 1024;

/// A frame being written: small parts are gathered in one buffer, large payloads go by reference.
pub(super) struct Chunks {
    done: Vec<Bytes>,
    tail: Vec<u8>,
}

impl Chunks {
    /// `payloads`: sizes of what [`Chunks::put_payload`] will get; `other_bytes`: of all else.
    pub(super) fn for_frame(other_bytes: usize, payloads: impl Iterator<Item = usize>) -> Self {
        let gathered: usize = payloads.filter(|bytes| *bytes <= GATHER_BYTES).sum();
        Self {
            done: Vec::new(),
            tail: Vec::with_capacity(other_bytes + gathered),
        }
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
    }

    pub(super) fn put_payload(&mut self, payload: &Bytes) {
        if payload.len() <= GATHER_BYTES {
            self.put(payload);
        } else {
            self.flush();
            self.done.push(payload.clone());
        }
    }

    pub(super) fn finish(mut self) -> Vec<Bytes> {
        self.flush();
        self.done
    }

    fn flush(&mut self) {
        if !self.tail.is_empty() {
            self.done.push(Bytes::from(std::mem::take(&mut self.tail)));
        }
    }
}

/// Hands out consecutive payloads of a body, whose sizes its table has named.
pub(super) struct Payloads<'a> {
    body: &'a Bytes,
    at: usize,
}

impl<'a> Payloads<'a> {
    /// `sizes`: of all payloads, which have to fill the body exactly from `at` on.
    pub(super) fn new(body: &'a Bytes, at: usize, sizes: u64) -> Result<Self, FrameError> {
        let rest = body.len().checked_sub(at).ok_or(FrameError::Truncated)? as u64;
        if sizes > rest {
            return Err(FrameError::Truncated);
        }
        if sizes < rest {
            return Err(FrameError::Trailing((rest - sizes) as usize));
        }
        Ok(Self { body, at })
    }

    /// The next payload; the sum of all has been checked.
    pub(super) fn next(&mut self, bytes: u32) -> Result<Bytes, FrameError> {
        let end = self
            .at
            .checked_add(bytes as usize)
            .filter(|end| *end <= self.body.len());
        let end = end.ok_or(FrameError::Truncated)?;
        let payload = self.body.slice(self.at..end);
        self.at = end;
        Ok(payload)
    }
}
