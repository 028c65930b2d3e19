//! Shared memory between a node agent and its Python workers: the one home of hand-written `unsafe`.
//!
//! Payloads lie in a node-wide [`Arena`] that only the agent allocates from. Each worker has a channel of its own: two
//! rings of 64-byte
//! descriptors, an eventfd per direction, and a control socket that carries file descriptors
//! and tells either side of the other's death. [`AgentChannel`] and [`WorkerChannel`] are the two halves. There are no
//! locks in shared memory, and whatever is read from it is checked before use.
#![allow(unsafe_code)]
#![deny(unsafe_op_in_unsafe_fn)]
#![cfg_attr(loom, allow(dead_code))] // the models use the ring alone

mod descriptor;
mod ring;
mod sync;

#[cfg(not(loom))]
mod agent;
#[cfg(not(loom))]
mod arena;
#[cfg(not(loom))]
mod buddy;
#[cfg(not(loom))]
mod clock;
#[cfg(not(loom))]
mod control;
#[cfg(not(loom))]
mod doorbell;
#[cfg(not(loom))]
mod layout;
#[cfg(not(loom))]
mod readable;
#[cfg(not(loom))]
mod segment;
#[cfg(not(loom))]
mod worker;

pub use self::ring::CorruptRing;
#[cfg(not(loom))]
pub use self::{
    agent::{
        AgentChannel, ChannelConfig, ChannelError, CreateError, ItemPayload, Misbehaviour, Prepared, Request,
        RequestError, RequestItem, Response, ResponseItem, WorkerEvent,
    },
    arena::{Arena, ArenaConfig, ArenaFull, ArenaStats, Extent, Slice},
    clock::{now_micros, now_nanos},
    control::ControlError,
    readable::Readable,
    segment::{OutOfBounds, SegmentError, ShmBackend, ShmConfig, sweep_stale},
    worker::{
        Answer, AttachError, Batch, BatchItem, Next, OnAgentLoss, Over, Payload, Progress, Reply,
        RespondError, View, Wake, Watch, WorkerChannel, WorkerError,
    },
};

/// Version of everything both halves must agree on: byte layouts, descriptors and control messages.
pub const PROTOCOL_VERSION: u32 = 3;

/// Item of a batch that came straight from a client: decode it with `deserialize`.
pub const ITEM_INGRESS: u32 = 1;
/// Item of a batch whose answer goes straight to a client: encode it with `serialize`.
pub const ITEM_EGRESS: u32 = 2;
