//! Hot path. A request's body: read within its limits, and counted against the memory for bodies.
//!
//! A body that is there at once is taken as it is, without a timer or a copy. Only a body that must be waited for asks first
//! whether the request would be refused anyway.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame, Incoming};
use mosec_types::ErrorCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::config::{Config, MIN_BODY_RATE};

/// Unit in which body memory is counted; a semaphore counts to 2^32 in one step.
const BLOCK_BYTES: usize = 1024;

/// Room taken for a body of several pieces whose length is known, before they come: a client's word alone is not worth more.
const FIRST_BYTES: usize = 256 * 1024;

/// What is read and thrown away of a refused body, so that its client reads the answer and keeps its connection. Beyond
/// it the connection is closed.
const DISCARD_BYTES: usize = 16 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(1);

/// The memory for bodies. Clones share it.
#[derive(Clone)]
pub(crate) struct Memory {
    free: Arc<Semaphore>,
    blocks: u32,
    wait: Duration,
}

/// Room for one body. Dropping it gives it back.
#[derive(Default)]
pub(crate) struct Room(Option<OwnedSemaphorePermit>);

impl Room {
    /// Gives back what is beyond `bytes`.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        if let Some(held) = &mut self.0 {
            let beyond = held.num_permits().saturating_sub(bytes.div_ceil(BLOCK_BYTES));
            drop(held.split(beyond));
        }
    }
}

impl Memory {
    pub(crate) fn new(config: &Config) -> Self {
        let blocks = u32::try_from(config.max_body_bytes.div_ceil(BLOCK_BYTES as u64)).unwrap_or(u32::MAX);
        Self {
            free: Arc::new(Semaphore::new(blocks as usize)),
            blocks,
            wait: config.body_memory_wait,
        }
    }

    /// Bytes in use now.
    pub(crate) fn used_bytes(&self) -> usize {
        (self.blocks as usize - self.free.available_permits()) * BLOCK_BYTES
    }

    /// Makes `room` as large as `bytes`. A body larger than all the memory has it alone.
    ///
    /// Errors: there is no room, and none came free in a while.
    pub(crate) async fn grow(&self, room: &mut Room, bytes: usize) -> Result<(), ErrorCode> {
        let wanted = u32::try_from(bytes.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX);
        let held = room.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = wanted.min(self.blocks).saturating_sub(held as u32);
        if more == 0 {
            return Ok(());
        }
        let permit = match self.free.clone().try_acquire_many_owned(more) {
            Ok(permit) => permit,
            Err(_) => {
                let wait = self.free.clone().acquire_many_owned(more);
                match tokio::time::timeout(self.wait, wait).await {
                    Ok(Ok(permit)) => permit,
                    Ok(Err(_)) | Err(_) => return Err(ErrorCode::BodyMemory),
                }
            }
        };
        match &mut room.0 {
            Some(held) => held.merge(permit),
            None => room.0 = Some(permit),
        }
        Ok(())
    }
}

/// Limits of one body.
pub(crate) struct Limits {
    pub(crate) bytes: usize,
    pub(crate) idle: Duration,
    pub(crate) total: Duration,
}

/// A body that is being read.
pub(crate) struct Reader<'a> {
    pub(crate) body: &'a mut Incoming,
    pub(crate) memory: &'a Memory,
    pub(crate) room: &'a mut Room,
    pub(crate) limits: Limits,
    /// The client waits for a word before it sends anything: reading gives it.
    pub(crate) expects_continue: bool,
    /// A refused body is in the way of the connection's next request, as in HTTP/1.
    pub(crate) blocks_connection: bool,
}

impl Reader<'_> {
    /// The whole body. `refuse` is asked, once, before waiting for any of it.
    ///
    /// Errors: what to answer instead.
    pub(crate) async fn read(mut self, refuse: impl Fn() -> Option<ErrorCode>) -> Result<Bytes, ErrorCode> {
        let result = self.read_whole(refuse).await;
        if matches!(result, Err(code) if code != ErrorCode::BodyUnreadable) {
            self.discard().await;
        }
        result
    }

    async fn read_whole(&mut self, refuse: impl Fn() -> Option<ErrorCode>) -> Result<Bytes, ErrorCode> {
        let declared = self
            .body
            .size_hint()
            .exact()
            .map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        if declared.is_some_and(|bytes| bytes > self.limits.bytes) {
            return Err(ErrorCode::BodyTooLarge);
        }
        if self.expects_continue && declared != Some(0) {
            refuse().map_or(Ok(()), Err)?;
        }
        let mut asked = self.expects_continue;
        // From here on the client has its word, if it waited for one.
        self.expects_continue = false;
        let mut since = None;
        let mut whole: Vec<u8> = Vec::new();
        loop {
            let next = match self.body.frame().now_or_never() {
                Some(next) => next,
                None => {
                    // A body of unknown length may still be empty, and an empty one is not refused.
                    if !asked && (declared.is_some() || !whole.is_empty()) {
                        refuse().map_or(Ok(()), Err)?;
                        asked = true;
                    }
                    self.wait(*since.get_or_insert_with(Instant::now), whole.len())
                        .await?
                }
            };
            let data = match next.map(|frame| frame.map(Frame::into_data)) {
                None => break,
                // Trailers, which nobody asked for.
                Some(Ok(Err(_))) => continue,
                Some(Ok(Ok(data))) => data,
                Some(Err(_)) => return Err(ErrorCode::BodyUnreadable),
            };
            if data.len() > self.limits.bytes - whole.len() {
                return Err(ErrorCode::BodyTooLarge);
            }
            if whole.is_empty() && self.body.is_end_stream() {
                self.memory.grow(self.room, data.len()).await?;
                return Ok(data);
            }
            self.append(&mut whole, &data, declared).await?;
        }
        // The memory moves into `Bytes` as it is.
        Ok(whole.into())
    }

    /// The next piece, within the time it may take.
    async fn wait(
        &mut self,
        since: Instant,
        read: usize,
    ) -> Result<Option<Result<Frame<Bytes>, hyper::Error>>, ErrorCode> {
        let earned = Duration::from_secs(read as u64 / MIN_BODY_RATE);
        let end = (since + self.limits.total + earned).min(Instant::now() + self.limits.idle);
        tokio::time::timeout_at(end, self.body.frame())
            .await
            .map_err(|_| ErrorCode::BodyUnreadable)
    }

    /// Appends a piece. The one copy of a body that did not come in one piece; its memory grows as it comes.
    async fn append(
        &mut self,
        whole: &mut Vec<u8>,
        data: &[u8],
        declared: Option<usize>,
    ) -> Result<(), ErrorCode> {
        let needed = whole.len() + data.len();
        if needed > whole.capacity() {
            let known = declared.unwrap_or(self.limits.bytes);
            let target = (whole.capacity() * 2).max(FIRST_BYTES).min(known).max(needed);
            self.memory.grow(self.room, target).await?;
            whole.reserve_exact(target - whole.len());
        }
        whole.extend_from_slice(data);
        Ok(())
    }

    /// Reads what is left of a refused request's body, within bounds.
    pub(crate) async fn discard(self) {
        if self.expects_continue || !self.blocks_connection {
            return;
        }
        let rest = async {
            let mut left = DISCARD_BYTES;
            while let Some(Ok(frame)) = self.body.frame().await {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                match left.checked_sub(bytes) {
                    Some(rest) => left = rest,
                    None => return,
                }
            }
        };
        // Out of time or not: the answer goes out either way.
        let _ = tokio::time::timeout(DISCARD_TIME, rest).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(bytes: u64) -> Memory {
        Memory::new(&Config {
            max_body_bytes: bytes,
            ..Default::default()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn room_is_taken_in_blocks_and_given_back() {
        let memory = memory(4096);
        let mut room = Room::default();
        for (bytes, used) in [(0, 0), (1, 1024), (1024, 1024), (1025, 2048), (4096, 4096)] {
            memory.grow(&mut room, bytes).await.unwrap();
            assert_eq!(memory.used_bytes(), used, "{bytes}");
        }
        let mut other = Room::default();
        assert_eq!(memory.grow(&mut other, 1).await, Err(ErrorCode::BodyMemory));
        drop(room);
        memory
            .grow(&mut other, 1 << 30)
            .await
            .expect("it has the memory alone");
        assert_eq!(memory.used_bytes(), 4096);
        drop(other);
        assert_eq!(memory.used_bytes(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_gets_what_comes_free() {
        let memory = memory(4096);
        let (mut first, mut second) = (Room::default(), Room::default());
        memory.grow(&mut first, 4096).await.unwrap();
        let (grown, ()) = tokio::join!(memory.grow(&mut second, 4096), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(first);
        });
        assert_eq!(grown, Ok(()));
    }
}
