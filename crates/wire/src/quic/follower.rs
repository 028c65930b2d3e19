//! The upstream's reader of the control stream: takes events in, and notices that the agent has fallen silent.

use std::sync::Arc;

use quinn::Connection;
use tokio::time::timeout;

use super::code::{Code, close};
use super::config::Settings;
use super::link::Shared;
use super::reader::{FrameReader, StreamError};
use crate::frame::{Frame, FrameError};
use crate::link::{LinkError, LinkEvent};

/// Silence is counted in parts of the time allowed. A process that was itself stopped for long finds one part late
/// instead of all of it, and gets to see what has arrived meanwhile.
const PARTS: u32 = 4;

pub(super) struct Follower {
    pub(super) reader: FrameReader,
    pub(super) connection: Connection,
    pub(super) shared: Arc<Shared>,
    pub(super) settings: Settings,
}

impl Follower {
    /// Runs until the connection has ended, which it brings about where the agent says so or breaks the rules.
    pub(super) async fn run(mut self) {
        let (code, reason) = match self.follow().await {
            Ok(()) => {
                self.wait_for_answers().await;
                (Code::Closed, LinkError::Lost("closed by the peer: closed".into()))
            }
            Err(error @ LinkError::Silent(_)) => (Code::Silent, error),
            Err(error @ LinkError::Protocol(_)) => (Code::Protocol, error),
            Err(error) => (Code::Closed, error),
        };
        // Known before anyone learns of the end. Without effect where the connection has ended by itself.
        let _ = self.shared.reason.set(reason);
        close(&self.connection, code);
    }

    /// Takes events in until the agent closes the control stream.
    async fn follow(&mut self) -> Result<(), LinkError> {
        loop {
            match self.listen().await? {
                Ok(Some(Frame::Heartbeat)) => {}
                Ok(Some(Frame::Event(event))) if !matches!(event, LinkEvent::Hello { .. }) => {
                    self.shared.inbox.push(event);
                }
                Ok(Some(other)) => return Err(FrameError::Misplaced(other.kind()).into()),
                Ok(None) => return Ok(()),
                Err(StreamError::Frame(error)) => return Err(error.into()),
                Err(StreamError::CutOff | StreamError::Reset) => {
                    return Err(LinkError::Lost("the control stream broke".into()));
                }
                Err(StreamError::Lost(error)) => return Err(self.shared.lost(&error)),
            }
        }
    }

    /// The next frame, in time.
    async fn listen(&mut self) -> Result<Result<Option<Frame>, StreamError>, LinkError> {
        let silent_after = self.settings.silent_after;
        for _ in 0..PARTS {
            if let Ok(frame) = timeout(silent_after / PARTS, self.reader.next()).await {
                return Ok(frame);
            }
        }
        Err(LinkError::Silent(silent_after))
    }

    /// The agent has said all it will. What it has finished may still be on its way.
    async fn wait_for_answers(&self) {
        self.shared.ending.cancel();
        self.shared.outstanding.close();
        let _ = timeout(self.settings.close_grace, self.shared.outstanding.wait()).await;
    }
}
