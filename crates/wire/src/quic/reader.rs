//! Hot path. Reads frames from a stream.

use bytes::Bytes;
use quinn::{ConnectionError, ReadError, RecvStream};

use super::Code;
use crate::frame::{Frame, FrameError, HEADER_BYTES, Header};

/// Most that is taken from quinn at once.
const READ_BYTES: usize = 64 * 1024;
/// Allocated for a body before any of it has arrived.
const FIRST_BYTES: usize = 256 * 1024;
/// From then on the buffer grows to this many times what has arrived, so a peer that announces much and sends little
/// does not make us allocate it.
const GROWTH: usize = 4;

/// Why a stream gave no frame.
#[derive(Debug)]
pub(super) enum StreamError {
    Frame(FrameError),
    /// It ended within a frame.
    CutOff,
    /// The peer reset it, or this end stopped it.
    Reset,
    Lost(ConnectionError),
}

/// Reads one frame after the other. All methods are cancel safe: what has been read stays here.
pub(super) struct FrameReader {
    stream: RecvStream,
    max_body_bytes: usize,
    /// Received, not used yet.
    chunk: Bytes,
    head: Vec<u8>,
    header: Option<Header>,
    body: Vec<u8>,
}

impl FrameReader {
    pub(super) fn new(stream: RecvStream, max_body_bytes: usize) -> Self {
        Self {
            stream,
            max_body_bytes,
            chunk: Bytes::new(),
            head: Vec::with_capacity(HEADER_BYTES),
            header: None,
            body: Vec::new(),
        }
    }

    /// The next frame, `None` where the stream ends properly.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, StreamError> {
        match self.header().await? {
            Some(_) => self.frame().await.map(Some),
            None => Ok(None),
        }
    }

    /// The next frame's header, before its body is read.
    pub(super) async fn header(&mut self) -> Result<Option<Header>, StreamError> {
        if self.header.is_some() {
            return Ok(self.header);
        }
        while self.head.len() < HEADER_BYTES {
            if !self.fill().await? {
                return if self.head.is_empty() {
                    Ok(None)
                } else {
                    Err(StreamError::CutOff)
                };
            }
            let part = self
                .chunk
                .split_to(self.chunk.len().min(HEADER_BYTES - self.head.len()));
            self.head.extend_from_slice(&part);
        }
        let head = self.head.first_chunk().expect("the loop has filled it");
        let header = Header::decode(head, self.max_body_bytes).map_err(StreamError::Frame)?;
        self.head.clear();
        self.header = Some(header);
        Ok(self.header)
    }

    /// The frame whose header has been read.
    async fn frame(&mut self) -> Result<Frame, StreamError> {
        let Some(header) = self.header else {
            return Err(StreamError::CutOff);
        };
        while self.body.len() < header.body_bytes {
            if !self.fill().await? {
                return Err(StreamError::CutOff);
            }
            let part = self
                .chunk
                .split_to(self.chunk.len().min(header.body_bytes - self.body.len()));
            self.reserve(part.len(), header.body_bytes);
            // The one copy on the way in: a slice of the packets would keep whole receive buffers alive.
            self.body.extend_from_slice(&part);
        }
        self.header = None;
        let body = Bytes::from(std::mem::take(&mut self.body));
        header.decode_body(body).map_err(StreamError::Frame)
    }

    fn reserve(&mut self, bytes: usize, body_bytes: usize) {
        let needed = self.body.len() + bytes;
        if needed > self.body.capacity() {
            let capacity = body_bytes.min(FIRST_BYTES.max(needed * GROWTH));
            self.body.reserve_exact(capacity - self.body.len());
        }
    }

    /// Checks that the stream ends here.
    pub(super) async fn end(&mut self) -> Result<(), StreamError> {
        match self.fill().await? {
            true => Err(StreamError::Frame(FrameError::Trailing(self.chunk.len()))),
            false => Ok(()),
        }
    }

    /// Tells the peer that no more is wanted.
    pub(super) fn stop(&mut self, code: Code) {
        let _ = self.stream.stop(code.to_wire()); // it may have ended already
    }

    /// Makes sure that there is a part of the stream to use; false at its end.
    async fn fill(&mut self) -> Result<bool, StreamError> {
        while self.chunk.is_empty() {
            match self.stream.read_chunk(READ_BYTES, true).await {
                Ok(Some(chunk)) => self.chunk = chunk.bytes,
                Ok(None) => return Ok(false),
                Err(ReadError::ConnectionLost(error)) => return Err(StreamError::Lost(error)),
                // The others cannot be: every read is ordered, and there is no early data.
                Err(ReadError::Reset(_) | ReadError::ClosedStream) => return Err(StreamError::Reset),
                Err(ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected) => {
                    return Err(StreamError::Reset);
                }
            }
        }
        Ok(true)
    }
}
