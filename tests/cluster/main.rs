//! Promises of the whole system, kept by real processes on loopback.

mod backup;
mod bad_deploys;
mod bad_input;
mod bundles;
mod claims;
mod custody;
mod embedded;
mod gateways;
mod identity;
mod leave;
mod logs;
mod members;
mod memory;
mod metrics;
mod reach;
mod rollout;
mod spread;
mod stability;
mod streams;
mod update;
