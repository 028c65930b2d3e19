//! The client's edge: HTTP in, requests dispatched to node agents, answers out.
//!
//! Tasks: one accepts connections, one for each connection, one follows the topology. A request's steps stand
//! in [`request`]; what a client sees of an error is decided in [`respond`] alone.

mod admission;
mod body;
mod by_revision;
pub mod cli;
mod coding;
mod config;
mod connection;
mod events;
mod headers;
mod metrics;
mod openapi;
mod pages;
mod port;
mod request;
mod respond;
mod revisions;
mod routes;
mod server;
mod service;
mod stall;
mod topology;
mod trace;
mod traffic;

pub use config::Config;
pub use metrics::described_series;
pub use port::Port;
pub use server::Gateway;
pub use service::Service;
