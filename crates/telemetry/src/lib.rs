//! Start of a command, logs, series and the admin endpoint, the same for every process.

mod admin;
mod command;
mod counted;
mod format;
mod holders;
mod identity;
mod labelled;
mod log;
mod process;
mod render;
mod series;
mod service;
mod signals;

pub use admin::Admin;
pub use command::{parse_args, run_daemon};
pub use counted::Counted;
pub use holders::Holders;
pub use identity::register_identity;
pub use labelled::{Counters, Gauges, Histograms, Labelled, Measured};
pub use log::{LogFormat, init_logging};
pub use process::{described_process, register_process};
pub use render::{METRICS_TYPE, render};
pub use series::{Described, Kind, Series, whole};
pub use service::ServiceSeries;
pub use signals::stop_on_signal;
