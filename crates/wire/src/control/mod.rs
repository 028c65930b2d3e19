//! The control plane's protobuf API: generated code, conversions to the shared types, and the client.
//!
//! Gateways, agents and `mosectl` reach the control plane through [`ControlClient`]; the control plane itself serves
//! the traits in [`proto`] and [`raft`].

mod backup;
mod bundles;
mod changes;
mod client;
mod convert;
pub mod endpoint;
mod heartbeat;
mod join;
mod logs;
mod members;
mod people;
mod renew;
mod reports;
mod saved;
mod watch;

pub use backup::BackupStream;
pub use bundles::{BUNDLE_CALL_TIMEOUT, BUNDLE_TIMEOUT, bundle_chunks, collect_bundle};
pub use client::{ClientConfig, ControlClient, ControlError, explained};
pub use convert::ConvertError;
pub use endpoint::{EndpointError, parse_address, port_of};
pub use heartbeat::{HeartbeatError, Heartbeats, Registration};
pub use join::{JOIN_TRY_TIMEOUT, JoinError, JoinTarget, host_name, identity_in, identity_in_telling};
pub use logs::{Asked, MAX_CHUNK_BYTES, MAX_POSITIONS};
pub use people::TokenSpec;
pub use renew::keep_fresh;
pub use reports::GatewayReport;
pub use saved::{SavedError, SavedTopology};

/// Generated from `proto/control.proto`.
#[allow(clippy::all, unreachable_pub)]
pub mod proto {
    tonic::include_proto!("mosec.control.v1");
}

/// Generated from `proto/raft.proto`.
#[allow(clippy::all, unreachable_pub)]
pub mod raft {
    tonic::include_proto!("mosec.raft.v1");
}

/// Checksum of a topology, by which two of the same version are told to be the same.
pub fn fingerprint(topology: &mosec_types::Topology) -> u32 {
    use prost::Message as _;
    // Maps are written in order, so equal topologies have equal bytes.
    crc32fast::hash(&proto::Topology::from(topology).encode_to_vec())
}

/// The paths of all calls of the services above, as `/mosec.control.v1.ControlPlane/Deploy`.
pub const CALLS: &[&str] = include!(concat!(env!("OUT_DIR"), "/calls.rs"));
/// What TLS negotiates on the control plane's port.
pub const ALPN: &[u8] = b"h2";

/// Metadata with the leader's `host:port`, on errors that the leader would not give.
pub const LEADER_KEY: &str = "mosec-leader";
/// Metadata with the id of the node that forwarded a call; a call is forwarded once, so that none goes in circles.
pub const FORWARDED_KEY: &str = "mosec-forwarded-by";
/// Largest message of the API: a topology of some ten thousand replicas, or a thousand workers' tracebacks.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
