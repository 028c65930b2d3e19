//! Hot path. The upstream's end of a batch's stream.

use std::sync::Arc;

use futures_util::FutureExt;
use quinn::{Connection, SendStream};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::Code;
use super::link::Shared;
use super::reader::{FrameReader, StreamError};
use crate::frame::{self, Frame, FrameError, MAX_CANCELLED};
use crate::link::{Answer, Answers, BoxFuture, LinkError, Returned};

/// Answers handed over by one call; those beyond wait for the next.
const MAX_GROUP: usize = 4096;

/// Reads the answers of one batch. Dropping it before the end stops the stream, which the agent sees as cancelled.
pub(super) struct QuicAnswers {
    reader: FrameReader,
    /// The batch's way out: finished, kept to call back what has not left yet.
    batch: SendStream,
    connection: Connection,
    items: usize,
    /// Read together with the frame before it, and due next.
    ahead: Option<Result<Option<Frame>, StreamError>>,
    credit_returned: bool,
    end: Option<Result<(), LinkError>>,
    shared: Arc<Shared>,
    /// Tells the link that somebody still waits for answers. Goes at their end.
    outstanding: Option<TaskTrackerToken>,
}

impl QuicAnswers {
    pub(super) fn new(
        reader: FrameReader,
        (connection, batch): (Connection, SendStream),
        items: usize,
        shared: Arc<Shared>,
        outstanding: TaskTrackerToken,
    ) -> Self {
        Self {
            reader,
            batch,
            connection,
            items,
            ahead: None,
            credit_returned: false,
            end: None,
            shared,
            outstanding: Some(outstanding),
        }
    }

    /// What has come back; `None` at the end, whose reason is in `self.end` then. Cancel safe.
    async fn read(&mut self) -> Result<Option<Returned>, LinkError> {
        let frame = match self.ahead.take() {
            Some(frame) => frame,
            None => self.reader.next().await,
        };
        match self.judge(frame)? {
            Some(Frame::Answers(answers)) => Ok(Some(Returned::Answers(self.gather(answers)))),
            Some(Frame::Credit) => Ok(Some(Returned::Credit)),
            _ => Ok(None),
        }
    }

    /// Adds the answers that have arrived already, so that a busy caller is called less.
    fn gather(&mut self, mut answers: Vec<Answer>) -> Vec<Answer> {
        while answers.len() < MAX_GROUP {
            match self.reader.next().now_or_never() {
                Some(Ok(Some(Frame::Answers(more)))) if self.check_items(&more).is_ok() => {
                    answers.extend(more)
                }
                other => {
                    self.ahead = other;
                    break;
                }
            }
        }
        answers
    }

    /// Passes a frame that may come now; `None` is the proper end.
    fn judge(&mut self, frame: Result<Option<Frame>, StreamError>) -> Result<Option<Frame>, LinkError> {
        match frame {
            Ok(Some(Frame::Finish)) => Ok(None),
            Ok(Some(Frame::Credit)) if !self.credit_returned => {
                self.credit_returned = true;
                Ok(Some(Frame::Credit))
            }
            Ok(Some(Frame::Answers(answers))) => {
                self.check_items(&answers)?;
                Ok(Some(Frame::Answers(answers)))
            }
            Ok(Some(other)) => Err(FrameError::Misplaced(other.kind()).into()),
            // Without a `Finish`: the agent has dropped the batch.
            Ok(None) | Err(StreamError::CutOff | StreamError::Reset) => Err(LinkError::Reset),
            Err(StreamError::Frame(error)) => Err(error.into()),
            Err(StreamError::Lost(error)) => Err(self.shared.lost(&error)),
        }
    }

    fn check_items(&self, answers: &[Answer]) -> Result<(), FrameError> {
        match answers.iter().find(|answer| answer.item as usize >= self.items) {
            Some(answer) => Err(FrameError::UnknownItem {
                item: answer.item,
                items: self.items,
            }),
            None => Ok(()),
        }
    }
}

impl Answers for QuicAnswers {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Returned>, LinkError>> {
        Box::pin(async {
            if let Some(end) = &self.end {
                return end.clone().map(|()| None);
            }
            let result = self.read().await;
            if !matches!(result, Ok(Some(_))) {
                self.end = Some(result.clone().map(drop));
                self.outstanding = None;
            }
            result
        })
    }

    fn cancel(&mut self, items: &[u32]) {
        let stream = self.batch.id().index();
        for items in items.chunks(MAX_CANCELLED) {
            // One that does not leave is as good as lost, and will be said again.
            if let Err(error) = self.connection.send_datagram(frame::encode_cancel(stream, items)) {
                tracing::debug!(%error, "cancelled items were not told");
            }
        }
    }
}

impl Drop for QuicAnswers {
    fn drop(&mut self) {
        let code = match &self.end {
            Some(Ok(())) => return,
            Some(Err(LinkError::Protocol(_))) => Code::Protocol,
            _ => Code::Cancelled,
        };
        self.reader.stop(code);
        let _ = self.batch.reset(code.to_wire()); // no harm where all of it has arrived
    }
}
