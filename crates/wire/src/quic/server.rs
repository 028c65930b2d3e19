//! Hot path. The agent's half of a connection.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::Code;
use super::code::lost;
use super::config::{BUDGET_UNIT_BYTES, Settings, budget_units};
use super::reader::{FrameReader, StreamError};
use super::sink::{Open, QuicSink};
use super::speaker::Speaker;
use crate::frame::{Frame, FrameError, Kind};
use crate::link::{Batch, BoxFuture, Incoming, LinkError, LinkEvent, LinkServer};
use crate::outbox::Outbox;
use crate::tls::PeerIdentity;

/// Largest body of a datagram; no packet is longer.
const MAX_DATAGRAM_BYTES: usize = u16::MAX as usize;

/// A link from an upstream in another process. Dropping it closes the connection.
pub struct QuicServer {
    connection: Connection,
    peer: PeerIdentity,
    outbox: Arc<Outbox>,
    closing: CancellationToken,
    max_body_bytes: usize,
    /// Bounds the batches that are being received. One beyond it is refused, not left waiting: unread streams would
    /// use up the connection's window, which the others need to be completed. Upstreams hold back far earlier.
    budget: Arc<Semaphore>,
    open: Arc<Open>,
    /// Streams whose batch has not arrived completely.
    arriving: Mutex<FuturesUnordered<BoxFuture<'static, Option<Incoming>>>>,
}

/// What a handshake leads to.
pub(super) struct ServerParts {
    pub(super) connection: Connection,
    pub(super) control: SendStream,
    pub(super) peer: PeerIdentity,
    pub(super) hello: LinkEvent,
    pub(super) settings: Settings,
}

impl QuicServer {
    /// Starts the connection's speaker and its reader of datagrams, on `tasks`.
    pub(super) fn start(parts: ServerParts, tasks: &TaskTracker) -> Self {
        let ServerParts {
            connection,
            control,
            peer,
            hello,
            settings,
        } = parts;
        let outbox = Arc::new(Outbox::default());
        outbox.push(hello);
        let closing = CancellationToken::new();
        let max_body_bytes = settings.max_body_bytes;
        let budget = settings.receive_budget();
        let speaker = Speaker {
            stream: control,
            connection: connection.clone(),
            outbox: Arc::clone(&outbox),
            closing: closing.clone(),
            settings,
        };
        tasks.spawn(speaker.run());
        let open = Arc::default();
        tasks.spawn(read_datagrams(connection.clone(), Arc::clone(&open)));
        Self {
            connection,
            peer,
            outbox,
            closing,
            max_body_bytes,
            budget,
            open,
            arriving: Mutex::default(),
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    pub fn remote_address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    async fn accept_batch(&self) -> Result<Incoming, LinkError> {
        let mut arriving = self.arriving.lock().await;
        loop {
            tokio::select! {
                biased; // an end counts at once, and batches begun are finished before others are begun
                () = self.closing.cancelled() => return Err(LinkError::Closed),
                Some(arrived) = arriving.next() => {
                    let Some(incoming) = arrived else { continue };
                    // quinn hands out what arrived before the end, but nobody waits for its answers.
                    return match self.connection.close_reason() {
                        Some(error) => Err(lost(&error)),
                        None => Ok(incoming),
                    };
                }
                stream = self.connection.accept_bi() => {
                    let (send, recv) = stream.map_err(|error| lost(&error))?;
                    arriving.push(self.receive(send, recv));
                }
            }
        }
    }

    /// Receives one batch. A stream that brings none costs itself alone.
    fn receive(&self, mut send: SendStream, recv: RecvStream) -> BoxFuture<'static, Option<Incoming>> {
        let mut reader = FrameReader::new(recv, self.max_body_bytes);
        let (peer, closing, max_body_bytes) = (self.peer.clone(), self.closing.clone(), self.max_body_bytes);
        let (budget, open) = (Arc::clone(&self.budget), Arc::clone(&self.open));
        Box::pin(async move {
            let code = match read_batch(&mut reader, &budget).await {
                Ok(batch) => {
                    let sink = QuicSink::new(send, closing, max_body_bytes, batch.items.len(), open);
                    return Some(Incoming {
                        batch,
                        answers: Box::new(sink),
                    });
                }
                Err(StreamError::Frame(error)) => {
                    warn!(%peer, %error, "batch refused: not a valid frame");
                    Code::Protocol
                }
                Err(StreamError::CutOff) => {
                    warn!(%peer, "batch refused: cut off");
                    Code::Protocol
                }
                Err(StreamError::Reset) => Code::Cancelled,
                Err(StreamError::Lost(_)) => return None, // `accept` tells
            };
            let _ = send.reset(code.to_wire());
            reader.stop(code);
            None
        })
    }
}

/// Takes note of cancelled items until the connection ends. A datagram that is anything else costs itself alone.
async fn read_datagrams(connection: Connection, open: Arc<Open>) {
    while let Ok(datagram) = connection.read_datagram().await {
        match Frame::decode(datagram, MAX_DATAGRAM_BYTES) {
            Ok(Frame::Cancel(cancel)) => open.cancel(&cancel),
            Ok(other) => warn!(kind = ?other.kind(), "datagram refused: misplaced"),
            Err(error) => warn!(%error, "datagram refused: not a valid frame"),
        }
    }
}

async fn read_batch(reader: &mut FrameReader, budget: &Semaphore) -> Result<Batch, StreamError> {
    let header = reader.header().await?.ok_or(StreamError::CutOff)?;
    if header.kind != Kind::Batch {
        return Err(StreamError::Frame(FrameError::Misplaced(header.kind)));
    }
    // Goes when the batch is handed over: from then on it counts against the agent's own limits.
    let units = budget_units(header.body_bytes);
    let Ok(_permit) = budget.try_acquire_many(units) else {
        let free = budget.available_permits() * BUDGET_UNIT_BYTES;
        return Err(StreamError::Frame(FrameError::TooLarge {
            bytes: header.body_bytes as u64,
            limit: free,
        }));
    };
    let Some(Frame::Batch(batch)) = reader.next().await? else {
        return Err(StreamError::CutOff);
    };
    reader.end().await?;
    Ok(batch)
}

impl LinkServer for QuicServer {
    fn accept(&self) -> BoxFuture<'_, Result<Incoming, LinkError>> {
        Box::pin(self.accept_batch())
    }

    fn tell(&self, event: LinkEvent) {
        self.outbox.push(event);
    }

    /// Ends the link. Answers of finished batches still arrive, within the grace of both ends.
    fn close(&self) {
        self.closing.cancel();
    }
}

impl Drop for QuicServer {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for QuicServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.remote_address();
        f.debug_struct("QuicServer")
            .field("peer", &self.peer)
            .field("address", &address)
            .finish_non_exhaustive()
    }
}
