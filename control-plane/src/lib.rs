//! The replicated desired state of a cluster: which pipelines run in which revision, on which nodes.
//!
//! [`state`] is what the members agree on, [`raft`] how; [`planner`] and [`reconcile`] derive on the leader what must
//! change; `bundles` keeps the code that is deployed, beside the log; `relay` passes on
//! what workers write; [`api`](mod@api) is the gRPC service that gateways, agents and `mosectl` use. [`server`] puts it together.

mod access;
mod api;
mod authority;
pub mod backup;
mod bundles;
mod census;
pub mod cli;
pub mod config;
mod feed;
#[cfg(test)]
mod fixtures;
mod health;
mod incoming;
mod metrics;
mod monitor;
pub mod peers;
pub mod planner;
pub mod raft;
pub mod reconcile;
mod relay;
pub mod server;
pub mod state;

pub use authority::{Authority, DEFAULT_CERT_TTL};
pub use bundles::BundleLimits;
pub use bundles::store::StoreError as BundleStoreError;
pub use config::{Config, ConfigError, RaftTiming, Security};
pub use metrics::described_series;
pub use reconcile::lease::LeaseTiming;
pub use server::{BuildError, ControlPlane, RunError};
