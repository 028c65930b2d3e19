//! Words every crate shares: identifiers, errors, deadlines, pipelines and topology.
//!
//! No I/O, no clock and no runtime: whatever needs the time takes it as an argument.

pub mod delta;
pub mod error;
pub mod id;
pub mod reach;
pub mod resources;
pub mod rollout;
pub mod span;
pub mod spec;
pub mod topology;
pub mod traffic;
pub mod units;
pub mod worker;

pub use delta::Delta;
pub use error::ErrorCode;
pub use id::{
    BundleId, Generation, Incarnation, NodeId, PipelineName, ReplicaId, RequestId, Revision, StageIndex,
    StageKey,
};
pub use reach::Unreachable;
pub use resources::{Capacity, Gpu, Needs};
pub use rollout::RolloutSpec;
pub use span::{Span, SpanKind};
pub use spec::{PipelineSpec, RouteIndex, RouteSpec, StageSpec};
pub use topology::Topology;
pub use worker::{WorkerState, WorkerStatus};
