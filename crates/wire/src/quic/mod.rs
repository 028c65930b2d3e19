//! Hot path. Links between processes: one QUIC connection for each pair of dispatcher and agent.
//!
//! ```text
//! upstream                                               agent
//! QuicConnector ── connect ──> QuicLink ══ connection ══ QuicServer <── accept ── QuicListener
//!                                 <── control stream ──            Hello, Window, Drain, Heartbeat
//!                                 ── one stream per batch ──>      Batch
//!                                 <── on the same stream ──        Answers, Credit, Finish
//! ```
//! Tasks: the agent's side of a connection has one that writes the control stream (`speaker.rs`), the upstream's side
//! one that reads it (`follower.rs`). Batches need none: they are read while the agent awaits `accept`, answers while
//! the upstream awaits `next`, so whoever does not ask for more is not sent more.
//!
//! Ends of a batch's stream: a `Finish` frame means that every item was answered; an end without one is a loss, and
//! lets the answers before it arrive, which a reset would not. The upstream cancels by stopping the stream.

mod answers;
mod code;
mod config;
mod connector;
mod follower;
mod link;
mod listener;
mod reader;
mod server;
mod sink;
mod socket;
mod speaker;

pub use code::Code;
pub use config::{ALPN, ListenerConfig, ResetSecret, Settings};
pub use connector::QuicConnector;
pub use link::QuicLink;
pub use listener::QuicListener;
pub use server::QuicServer;
pub use socket::LinkSocket;

use std::io;

use crate::tls::TlsError;

/// Why a listener or a connector could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    #[error("TLS could not be set up")]
    Tls(#[from] TlsError),
    #[error("socket {address} could not be opened")]
    Socket {
        address: std::net::SocketAddr,
        source: io::Error,
    },
    #[error("invalid transport setting: {0}")]
    Setting(String),
}
