//! Hot path. The agent's end of a batch's stream.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use quinn::{SendStream, WriteError};
use tokio_util::sync::CancellationToken;

use super::code::lost;
use crate::cancelled::CancelledItems;
use crate::frame::{self, Cancel, FrameError, MAX_ITEMS};
use crate::link::{Answer, AnswerSink, BoxFuture, Cancelled, LinkError};

/// The batches of a connection that are being answered, by the numbers of their streams.
#[derive(Debug, Default)]
pub(super) struct Open(Mutex<HashMap<u64, Arc<CancelledItems>>>);

impl Open {
    /// Tells a batch's sink of items that its upstream has given up. Of a batch that is not open, nobody.
    pub(super) fn cancel(&self, Cancel { stream, items }: &Cancel) {
        let cancelled = self.0.lock().get(stream).cloned();
        if let Some(cancelled) = cancelled {
            cancelled.add(items);
        }
    }
}

/// A batch's entry among those that are open. Dropping it takes it out.
struct Entry {
    open: Arc<Open>,
    stream: u64,
    cancelled: Arc<CancelledItems>,
}

impl Entry {
    fn new(open: Arc<Open>, stream: u64, items: usize) -> Self {
        let cancelled = Arc::new(CancelledItems::new(items));
        open.0.lock().insert(stream, Arc::clone(&cancelled));
        Self {
            open,
            stream,
            cancelled,
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.open.0.lock().remove(&self.stream);
    }
}

/// Writes the answers of one batch.
///
/// Dropping it finishes the stream without a `Finish` frame, as quinn does by itself: the upstream gets the answers
/// so far, then knows that the others are lost. A reset would throw away what has not arrived.
pub(super) struct QuicSink {
    stream: SendStream,
    closing: CancellationToken,
    max_body_bytes: usize,
    items: usize,
    entry: Entry,
    credit_returned: bool,
    /// Why nothing can be written any more. Set while a frame is being written: one left half-way is the end, too.
    end: Option<LinkError>,
}

impl QuicSink {
    pub(super) fn new(
        stream: SendStream,
        closing: CancellationToken,
        max_body_bytes: usize,
        items: usize,
        open: Arc<Open>,
    ) -> Self {
        let entry = Entry::new(open, stream.id().index(), items);
        Self {
            stream,
            closing,
            max_body_bytes,
            items,
            entry,
            credit_returned: false,
            end: None,
        }
    }

    async fn send_answers(&mut self, answers: &[Answer]) -> Result<(), LinkError> {
        self.check(answers)?;
        let mut rest = answers;
        while !rest.is_empty() {
            let (group, others) = rest.split_at(group_len(rest, self.max_body_bytes));
            let chunks = frame::encode_answers(group, self.max_body_bytes)?;
            self.write(chunks).await?;
            rest = others;
        }
        Ok(())
    }

    /// Refuses what cannot be sent before any of it is.
    fn check(&self, answers: &[Answer]) -> Result<(), FrameError> {
        for answer in answers {
            let bytes = frame::body_bytes_of(answer);
            if answer.item as usize >= self.items {
                return Err(FrameError::UnknownItem {
                    item: answer.item,
                    items: self.items,
                });
            }
            if bytes > self.max_body_bytes {
                return Err(FrameError::TooLarge {
                    bytes: bytes as u64,
                    limit: self.max_body_bytes,
                });
            }
        }
        Ok(())
    }

    async fn write(&mut self, mut chunks: Vec<bytes::Bytes>) -> Result<(), LinkError> {
        if self.closing.is_cancelled() {
            return Err(LinkError::Closed);
        }
        if let Some(end) = &self.end {
            return Err(end.clone());
        }
        self.end = Some(LinkError::Closed);
        let written = self
            .stream
            .write_all_chunks(&mut chunks)
            .await
            .map_err(write_error);
        self.end = written.clone().err();
        written
    }
}

/// How many of `answers` go into the next frame, at least one.
fn group_len(answers: &[Answer], max_body_bytes: usize) -> usize {
    let mut bytes = 0;
    let fits = |answer: &&Answer| {
        bytes += frame::body_bytes_of(answer);
        bytes <= max_body_bytes
    };
    answers.iter().take(MAX_ITEMS).take_while(fits).count().max(1)
}

fn write_error(error: WriteError) -> LinkError {
    match error {
        WriteError::Stopped(_) => LinkError::Cancelled,
        WriteError::ConnectionLost(error) => lost(&error),
        WriteError::ClosedStream | WriteError::ZeroRttRejected => LinkError::Closed,
    }
}

impl AnswerSink for QuicSink {
    fn send(&mut self, answers: Vec<Answer>) -> BoxFuture<'_, Result<(), LinkError>> {
        Box::pin(async move { self.send_answers(&answers).await })
    }

    fn return_credit(&mut self) -> BoxFuture<'_, Result<(), LinkError>> {
        Box::pin(async {
            if self.credit_returned {
                return Ok(());
            }
            self.credit_returned = true;
            self.write(vec![frame::encode_credit()]).await
        })
    }

    fn finish(mut self: Box<Self>) -> BoxFuture<'static, Result<(), LinkError>> {
        Box::pin(async move {
            self.write(vec![frame::encode_finish()]).await?;
            let _ = self.stream.finish(); // fails only where the upstream has just stopped it
            Ok(())
        })
    }

    fn cancelled(&mut self) -> BoxFuture<'_, Cancelled> {
        Box::pin(async {
            tokio::select! {
                biased; // of a batch that is given up, single items are of no interest
                _ = self.stream.stopped() => Cancelled::Batch,
                () = self.closing.cancelled() => Cancelled::Batch,
                items = self.entry.cancelled.next() => Cancelled::Items(items),
            }
        })
    }
}
