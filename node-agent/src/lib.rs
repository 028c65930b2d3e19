//! One per host: runs the Python workers of the stages placed here, feeds them batches and passes their answers on.
//!
//! Who owns what:
//! - [`Agent`] owns the arena, one [`pool`] for each stage placed here, and one supervisor task for each replica.
//! - A supervisor owns one worker process at a time, and the task that reads the worker's answers.
//! - [`server`] has one task for each upstream's link and one for each batch that came over it.
//! - `output` keeps the last lines of what workers write, and answers members of the control plane that ask for it.
//! - `code` keeps the bundles and environments that workers run in, which supervisors ask for.
//! - [`reconcile`] makes the pools and supervisors agree with the topology.

mod agent;
mod claim;
pub mod cli;
mod code;
mod config;
mod deliver;
mod describe;
mod gpus;
pub mod host;
mod metrics;
mod output;
mod pool;
mod reconcile;
mod reply;
mod server;
mod service;
mod standing;
mod status;
#[cfg(test)]
mod tests;
mod waits;
mod windows;
mod workers;

pub use agent::Agent;
pub use claim::Claim;
pub use config::Config;
pub use describe::described_series;
pub use output::OutputLimits;
pub use server::{Upstream, serve_link};
pub use service::{Options, Service};
