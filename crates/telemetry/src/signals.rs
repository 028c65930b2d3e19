//! SIGTERM and SIGINT as a token.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by the first SIGTERM or SIGINT. A second signal ends the process at once.
///
/// Errors: the handlers could not be installed.
pub fn stop_on_signal() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if token.is_cancelled() {
                tracing::warn!("second signal: leaving at once");
                std::process::exit(130);
            }
            tracing::info!("signal received: draining");
            token.cancel();
        }
    });
    Ok(stop)
}
