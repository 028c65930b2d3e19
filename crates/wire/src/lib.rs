//! Contracts between processes: the data plane's frames and links, and the control plane's protobuf API.

mod cancelled;
pub mod control;
pub mod frame;
pub mod link;
pub mod memory;
mod outbox;
pub mod port;
pub mod quic;
pub mod tls;

pub use link::{
    Answer, AnswerSink, Answers, Batch, Cancelled, Custody, Incoming, Item, Link, LinkError, LinkEvent,
    LinkServer, LinkStats, Returned, Window,
};
