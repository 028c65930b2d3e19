//! The agent's writer of the control stream: greets, tells events, gives signs of life, says goodbye.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, SendStream, WriteError};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::code::{Code, close};
use super::config::Settings;
use crate::frame;
use crate::outbox::Outbox;

/// How long a frame of the control stream may wait for the upstream to read earlier ones: megabytes of them.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Speaker {
    pub(super) stream: SendStream,
    pub(super) connection: Connection,
    pub(super) outbox: Arc<Outbox>,
    pub(super) closing: CancellationToken,
    pub(super) settings: Settings,
}

impl Speaker {
    /// Runs until the connection has ended, which it brings about when the agent closes the link.
    pub(super) async fn run(mut self) {
        if let Err(error) = self.speak().await {
            debug!(%error, address = %self.connection.remote_address(), "control stream ended");
            close(&self.connection, Code::Protocol);
            return;
        }
        // The upstream closes the connection once it has the answers that are still on their way. It has a grace of
        // its own for that; twice as long leaves it the first say.
        let _ = timeout(self.settings.close_grace * 2, self.connection.closed()).await;
        close(&self.connection, Code::Closed);
    }

    /// Speaks until the agent closes the link.
    async fn speak(&mut self) -> Result<(), SpeakError> {
        let mut heartbeat = interval(self.settings.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        heartbeat.tick().await; // the first is at once, and the greeting serves as well
        loop {
            let frame = tokio::select! {
                biased; // events first: they too are signs of life
                event = self.outbox.next() => frame::encode_event(&event),
                () = self.closing.cancelled() => break,
                _ = heartbeat.tick() => frame::encode_heartbeat(),
                error = self.connection.closed() => return Err(WriteError::ConnectionLost(error).into()),
            };
            self.write(frame).await?;
            heartbeat.reset();
        }
        while let Some(event) = self.outbox.pop() {
            self.write(frame::encode_event(&event)).await?;
        }
        let _ = self.stream.finish(); // fails only where the connection has
        Ok(())
    }

    async fn write(&mut self, frame: bytes::Bytes) -> Result<(), SpeakError> {
        match timeout(PATIENCE, self.stream.write_chunk(frame)).await {
            Ok(written) => Ok(written?),
            Err(_) => Err(SpeakError::Unread),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum SpeakError {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("the upstream does not read it")]
    Unread,
}
