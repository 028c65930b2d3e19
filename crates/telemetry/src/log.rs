//! Sets up `tracing` once for a process.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::format::{JsonLines, TextLines};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// One JSON object on each line, with MOSEC's keys.
    #[default]
    Json,
    /// One line of text each, as MOSEC writes them at level debug.
    Lines,
    /// For people at a terminal.
    Text,
}

/// Sends log lines of `level` (debug, info, warning, error, or a filter as `mosec=debug,quinn=warn`) and above to
/// standard error. A second call in a process changes nothing.
pub fn init_logging(level: &str, format: LogFormat) {
    let level = match level {
        "warning" => "warn",
        other => other,
    };
    // Libraries say at info what their authors care about; ours is what an operator reads.
    let filter = if level.contains(['=', ',']) {
        EnvFilter::try_new(level)
    } else {
        EnvFilter::try_new(format!(
            "{level},openraft=off,sled=warn,quinn=warn,rustls=warn,h2=warn,hyper=warn,tonic=warn"
        ))
    }
    .unwrap_or_else(|_| EnvFilter::new("info"));
    // Colours are for terminals, and for people who want them (https://no-color.org).
    let colours =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = fmt()
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_env_filter(filter);
    let result = match format {
        LogFormat::Json => builder.event_format(JsonLines).try_init(),
        LogFormat::Lines => builder.event_format(TextLines).try_init(),
        LogFormat::Text => builder.with_target(false).compact().try_init(),
    };
    if result.is_err() {
        tracing::debug!("logging was set up before");
    }
}
