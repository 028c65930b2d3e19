//! Logs and the admin endpoint, the same for every process.

mod admin;
mod log;

pub use admin::{Admin, METRICS_TYPE, render};
pub use log::{LogFormat, init_logging};
