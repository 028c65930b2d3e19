//! Hot path. The upstream's half of a connection.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use quinn::{Connection, ConnectionError, RecvStream, SendStream, WriteError};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::answers::QuicAnswers;
use super::code::{Code, close, lost};
use super::config::{Settings, budget_units};
use super::reader::FrameReader;
use crate::frame::{self, HEADER_BYTES};
use crate::link::{Answers, Batch, BoxFuture, Link, LinkError, LinkEvent, LinkStats};
use crate::outbox::Outbox;
use crate::tls::PeerIdentity;

/// A link to an agent in another process. Dropping it closes the connection.
pub struct QuicLink {
    connection: Connection,
    peer: PeerIdentity,
    max_body_bytes: usize,
    /// Bounds the batches that are being written. See [`Settings::send_budget`].
    budget: Arc<Semaphore>,
    shared: Arc<Shared>,
    _follower: AbortOnDropHandle<()>,
}

/// What a link, its answers and its follower know in common.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Events that have arrived.
    pub(super) inbox: Outbox,
    /// Why this end closed the connection, where it was not asked to.
    pub(super) reason: OnceLock<LinkError>,
    /// The agent takes no more batches; answers still arrive.
    pub(super) ending: CancellationToken,
    /// Counts the batches somebody waits for.
    pub(super) outstanding: TaskTracker,
}

impl Shared {
    /// The link's error for a connection that has ended.
    pub(super) fn lost(&self, error: &ConnectionError) -> LinkError {
        match (error, self.reason.get()) {
            (ConnectionError::LocallyClosed, Some(reason)) => reason.clone(),
            _ => lost(error),
        }
    }
}

impl QuicLink {
    pub(super) fn new(
        connection: Connection,
        peer: PeerIdentity,
        settings: &Settings,
        shared: Arc<Shared>,
        follower: AbortOnDropHandle<()>,
    ) -> Self {
        Self {
            connection,
            peer,
            max_body_bytes: settings.max_body_bytes,
            budget: settings.send_budget(),
            shared,
            _follower: follower,
        }
    }

    /// The agent at the other end.
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// The largest packet that the path is known to carry, in bytes.
    pub fn packet_bytes(&self) -> u16 {
        self.connection.stats().path.current_mtu
    }

    async fn send_batch(&self, batch: &Batch) -> Result<Box<dyn Answers>, LinkError> {
        if self.shared.ending.is_cancelled() {
            return Err(LinkError::Lost("the peer is closing".into()));
        }
        let outstanding = self.shared.outstanding.token();
        let mut chunks = frame::encode_batch(batch, self.max_body_bytes)?;
        let bytes = chunks.iter().map(|chunk| chunk.len()).sum::<usize>() - HEADER_BYTES;
        let _permit = self.budget.acquire_many(budget_units(bytes)).await;
        let opened = self.connection.open_bi().await;
        let (send, recv) = opened.map_err(|error| self.shared.lost(&error))?;
        let mut stream = Unsent(Some((send, recv)));
        stream
            .write(&mut chunks)
            .await
            .map_err(|error| self.write_error(error))?;
        let Some((mut send, recv)) = stream.0.take() else {
            return Err(LinkError::Cancelled);
        };
        let _ = send.finish(); // fails only where the agent has stopped it, which the answers will tell
        let reader = FrameReader::new(recv, self.max_body_bytes);
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(QuicAnswers::new(
            reader,
            (self.connection.clone(), send),
            batch.items.len(),
            shared,
            outstanding,
        )))
    }

    fn write_error(&self, error: WriteError) -> LinkError {
        match error {
            WriteError::ConnectionLost(error) => self.shared.lost(&error),
            WriteError::Stopped(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected => {
                LinkError::Reset
            }
        }
    }
}

/// A stream whose batch is being written. Left half-way it must not look complete, so dropping it resets it.
struct Unsent(Option<(SendStream, RecvStream)>);

impl Unsent {
    async fn write(&mut self, chunks: &mut [Bytes]) -> Result<(), WriteError> {
        match &mut self.0 {
            Some((send, _)) => send.write_all_chunks(chunks).await,
            None => Err(WriteError::ClosedStream),
        }
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        if let Some((send, recv)) = &mut self.0 {
            let _ = send.reset(Code::Cancelled.to_wire());
            let _ = recv.stop(Code::Cancelled.to_wire());
        }
    }
}

impl Link for QuicLink {
    fn send(&self, batch: Batch) -> BoxFuture<'_, Result<Box<dyn Answers>, LinkError>> {
        Box::pin(async move { self.send_batch(&batch).await })
    }

    fn event(&self) -> BoxFuture<'_, Result<LinkEvent, LinkError>> {
        Box::pin(async {
            tokio::select! {
                biased; // what the agent said before the end still counts
                event = self.shared.inbox.next() => Ok(event),
                error = self.connection.closed() => Err(self.shared.lost(&error)),
            }
        })
    }

    fn close(&self) {
        close(&self.connection, Code::Closed);
    }

    fn stats(&self) -> Option<LinkStats> {
        let quinn::ConnectionStats {
            udp_tx, udp_rx, path, ..
        } = self.connection.stats();
        Some(LinkStats {
            round_trip: path.rtt,
            congestion_window_bytes: path.cwnd,
            sent_packets: path.sent_packets,
            lost_packets: path.lost_packets,
            sent_bytes: udp_tx.bytes,
            received_bytes: udp_rx.bytes,
            sent_datagrams: udp_tx.datagrams,
            send_calls: udp_tx.ios,
        })
    }
}

impl Drop for QuicLink {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for QuicLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.connection.remote_address();
        f.debug_struct("QuicLink")
            .field("peer", &self.peer)
            .field("address", &address)
            .finish_non_exhaustive()
    }
}
