//! The client's edge: HTTP in, requests dispatched to node agents, answers out.
//!
//! Tasks: one accepts connections, one for each connection (hyper's), one follows the topology. A request's steps stand
//! in [`request`]; what a client sees of an error is decided in [`respond`] alone.

mod admission;
pub mod cli;
mod config;
mod metrics;
mod request;
mod respond;
mod routes;
mod server;
mod service;
mod topology;
mod trace;

pub use config::Config;
pub use server::Gateway;
pub use service::Service;
