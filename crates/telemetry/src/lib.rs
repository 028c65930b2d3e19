//! Start of a command, logs and the admin endpoint, the same for every process.

mod admin;
mod command;
mod format;
mod log;
mod signals;

pub use admin::{Admin, METRICS_TYPE, render};
pub use command::{parse_args, run_daemon};
pub use log::{LogFormat, init_logging};
pub use signals::stop_on_signal;
