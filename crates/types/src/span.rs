//! Where a request's time went, for the trace a client may ask for.

use serde::{Deserialize, Serialize};

use crate::StageIndex;

/// The part of the system a span of time was spent in. The numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum SpanKind {
    /// Reading, routing, answering at the gateway.
    Gateway = 0,
    /// Waiting in a stage's queue for a replica, at whoever dispatches the stage.
    Queue = 1,
    /// Between two hosts: sent and answered, less what the far side accounts for.
    Link = 2,
    /// Inside the node agent.
    Agent = 3,
    /// In the rings between agent and worker, both ways, a prefetched batch's wait included.
    Shm = 4,
    /// In the Python worker: decode, `forward`, encode.
    Worker = 5,
    /// Waiting in a stage's queue for more requests of its batch, although a replica was free for it.
    Batch = 6,
}

impl SpanKind {
    pub const ALL: [Self; 7] = [
        Self::Gateway,
        Self::Queue,
        Self::Link,
        Self::Agent,
        Self::Shm,
        Self::Worker,
        Self::Batch,
    ];

    /// The number by which it goes to a peer. A batch's wait goes as a part of the queue's, which it was before it had a name:
    /// a peer breaks a link on which a number comes that it does not know, and links say nothing of what each end knows.
    pub fn to_wire(self) -> u8 {
        match self {
            Self::Batch => Self::Queue as u8,
            other => other as u8,
        }
    }

    pub fn from_wire(number: u8) -> Option<Self> {
        let kind = Self::ALL.get(usize::from(number)).copied();
        kind.filter(|kind| kind.to_wire() == number)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Queue => "queue",
            Self::Link => "link",
            Self::Agent => "agent",
            Self::Shm => "shm",
            Self::Worker => "worker",
            Self::Batch => "batch",
        }
    }
}

/// Time one request spent in one part of the system for one stage.
///
/// The spans of an answer are disjoint, so they add up to the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    pub kind: SpanKind,
    pub stage: StageIndex,
    /// Microseconds.
    pub micros: u32,
}
