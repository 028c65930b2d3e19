//! Hot path. A link inside one process: values are handed over, not encoded. The embedded server runs on it.
//!
//! Batches go through one bounded channel; each has an exchange of its own for the answers. No task runs here.

mod exchange;

use std::sync::{Arc, OnceLock};

use mosec_types::{Incarnation, NodeId};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use crate::link::{Answers, Batch, BoxFuture, Incoming, Link, LinkError, LinkEvent, LinkServer};
use crate::outbox::Outbox;

/// Batches sent and not accepted yet, beyond which a sender waits. Windows keep well-behaved upstreams far below.
pub const MAX_WAITING_BATCHES: usize = 128;

/// A link and the server it leads to, on the node `node`.
pub fn pair(node: NodeId, incarnation: Incarnation) -> (MemoryLink, MemoryServer) {
    let shared = Arc::new(Shared::default());
    shared.outbox.push(LinkEvent::Hello { node, incarnation });
    let (sender, receiver) = mpsc::channel(MAX_WAITING_BATCHES);
    let link = MemoryLink {
        batches: sender,
        shared: Arc::clone(&shared),
    };
    (
        link,
        MemoryServer {
            batches: Mutex::new(receiver),
            shared,
        },
    )
}

/// The sending half. Dropping it closes the link.
#[derive(Debug)]
pub struct MemoryLink {
    batches: mpsc::Sender<Incoming>,
    shared: Arc<Shared>,
}

/// The receiving half. Dropping it closes the link.
#[derive(Debug)]
pub struct MemoryServer {
    batches: Mutex<mpsc::Receiver<Incoming>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    outbox: Outbox,
    closed: CancellationToken,
    closed_by: OnceLock<Side>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Upstream,
    Agent,
}

impl Shared {
    fn close(&self, by: Side) {
        // The first to close is the one who did; it is known before anyone wakes.
        let _ = self.closed_by.set(by);
        self.closed.cancel();
    }

    /// Why the link has ended, as `side` sees it; `None` while it has not.
    fn ended(&self, side: Side) -> Option<LinkError> {
        if !self.closed.is_cancelled() {
            return None;
        }
        let by_peer = self.closed_by.get().is_some_and(|by| *by != side);
        Some(if by_peer {
            LinkError::Lost("closed by the peer".into())
        } else {
            LinkError::Closed
        })
    }

    /// Waits until the link ends, and says why. Cancel safe.
    async fn end(&self, side: Side) -> LinkError {
        self.closed.cancelled().await;
        self.ended(side).unwrap_or(LinkError::Closed)
    }
}

impl Link for MemoryLink {
    fn send(&self, batch: Batch) -> BoxFuture<'_, Result<Box<dyn Answers>, LinkError>> {
        Box::pin(async {
            if let Some(error) = self.shared.ended(Side::Upstream) {
                return Err(error);
            }
            let (answers, sink) = exchange::pair(Arc::clone(&self.shared), batch.items.len());
            let incoming = Incoming {
                batch,
                answers: Box::new(sink),
            };
            match self.batches.try_send(incoming) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Closed(_)) => {
                    return Err(self.shared.end(Side::Upstream).await);
                }
                Err(mpsc::error::TrySendError::Full(incoming)) => self.wait_and_send(incoming).await?,
            }
            Ok(Box::new(answers) as Box<dyn Answers>)
        })
    }

    fn event(&self) -> BoxFuture<'_, Result<LinkEvent, LinkError>> {
        Box::pin(async {
            tokio::select! {
                biased; // what the agent said before the end still counts
                event = self.shared.outbox.next() => Ok(event),
                error = self.shared.end(Side::Upstream) => Err(error),
            }
        })
    }

    fn close(&self) {
        self.shared.close(Side::Upstream);
    }
}

impl MemoryLink {
    async fn wait_and_send(&self, incoming: Incoming) -> Result<(), LinkError> {
        tokio::select! {
            biased; // once the link has ended, nothing more goes out
            error = self.shared.end(Side::Upstream) => Err(error),
            permit = self.batches.reserve() => match permit {
                Ok(permit) => {
                    permit.send(incoming);
                    Ok(())
                }
                Err(_) => Err(self.shared.end(Side::Upstream).await),
            },
        }
    }
}

impl LinkServer for MemoryServer {
    fn accept(&self) -> BoxFuture<'_, Result<Incoming, LinkError>> {
        Box::pin(async {
            let mut batches = self.batches.lock().await;
            tokio::select! {
                biased; // once the link has ended, its batches are lost
                error = self.shared.end(Side::Agent) => Err(error),
                incoming = batches.recv() => match incoming {
                    Some(incoming) => Ok(incoming),
                    None => Err(self.shared.end(Side::Agent).await),
                },
            }
        })
    }

    fn tell(&self, event: LinkEvent) {
        self.shared.outbox.push(event);
    }

    fn close(&self) {
        self.shared.close(Side::Agent);
    }
}

// Both drop glues run before the channel's half goes, so whoever finds it gone soon finds the link ended.
impl Drop for MemoryLink {
    fn drop(&mut self) {
        self.close();
    }
}

impl Drop for MemoryServer {
    fn drop(&mut self) {
        self.close();
    }
}
