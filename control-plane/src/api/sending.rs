//! Long replies to readers that may have fallen asleep.
//!
//! A body is not polled while its stream's window is shut, so whatever ends it on poll does not end it then. A task of its
//! own has what is sent, and gives it up in time.

use std::future::Future;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use super::ReplyStream;

/// How long a reader may take nothing: far longer than a chunk takes on any link, or a disk that it is written to.
const UNREAD: Duration = Duration::from_secs(60);
/// Messages made before they are asked for: the next is read while one is sent.
const AHEAD: usize = 1;

/// Sends what `messages` makes until it ends, nobody takes anything for [`UNREAD`], or `over`, which says why.
///
/// What `messages` holds is let go then, though the reader still has its stream: it finds an error at its end.
pub(super) fn send<T: Send + 'static>(
    messages: impl Stream<Item = Result<T, Status>> + Send + 'static,
    over: impl Future<Output = Status> + Send + 'static,
) -> ReplyStream<T> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let (end, ended) = oneshot::channel();
    let task = tokio::spawn(async move {
        let outcome = tokio::select! {
            outcome = pass_on(messages, sender) => outcome,
            status = over => Err(status),
        };
        // Nobody is left to be told where the stream is gone.
        let _ = end.send(outcome);
    });
    let reading = Reading {
        receiver,
        ended: Some(ended),
        _task: AbortOnDropHandle::new(task),
    };
    Box::pin(stream::unfold(reading, |mut reading| async {
        let message = reading.next().await?;
        Some((message, reading))
    }))
}

async fn pass_on<T>(
    messages: impl Stream<Item = Result<T, Status>>,
    sender: mpsc::Sender<T>,
) -> Result<(), Status> {
    let mut messages = std::pin::pin!(messages);
    while let Some(message) = messages.next().await {
        match timeout(UNREAD, sender.send(message?)).await {
            Ok(Ok(())) => {}
            // It has left.
            Ok(Err(_)) => return Ok(()),
            Err(_) => {
                return Err(Status::aborted(format!(
                    "nothing was read for {UNREAD:?}: the transfer is given up"
                )));
            }
        }
    }
    Ok(())
}

/// The reader's end.
struct Reading<T> {
    receiver: mpsc::Receiver<T>,
    /// How the task has ended; taken when it has been told.
    ended: Option<oneshot::Receiver<Result<(), Status>>>,
    _task: AbortOnDropHandle<()>,
}

impl<T> Reading<T> {
    async fn next(&mut self) -> Option<Result<T, Status>> {
        if let Some(message) = self.receiver.recv().await {
            return Some(Ok(message));
        }
        let outcome = self.ended.take()?.await;
        let lost = |_| Err(Status::internal("the transfer broke off"));
        outcome.unwrap_or_else(lost).err().map(Err)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Endless messages that hold something.
    fn endless(held: Arc<()>) -> impl Stream<Item = Result<u64, Status>> {
        stream::unfold((0, held), |(number, held)| async move {
            Some((Ok(number), (number + 1, held)))
        })
    }

    async fn until_free(held: &Arc<()>) -> Duration {
        let began = tokio::time::Instant::now();
        while Arc::strong_count(held) > 1 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        began.elapsed()
    }

    async fn rest(mut replies: ReplyStream<u64>) -> (Vec<u64>, Option<Status>) {
        let mut found = Vec::new();
        while let Some(reply) = replies.next().await {
            match reply {
                Ok(number) => found.push(number),
                Err(status) => return (found, Some(status)),
            }
        }
        (found, None)
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_sleeps_holds_nothing_for_long() {
        let held = Arc::new(());
        let mut replies = send(endless(held.clone()), std::future::pending());
        assert_eq!(replies.next().await.unwrap().unwrap(), 0);
        // It is not polled from here on, and not dropped.
        let waited = until_free(&held).await;
        assert!(waited >= UNREAD && waited < 2 * UNREAD, "{waited:?}");
        let (found, status) = rest(replies).await;
        assert_eq!(found, [1]);
        assert!(status.unwrap().message().starts_with("nothing was read for 60s"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_is_slow_reads_on_until_the_whole_is_late() {
        let held = Arc::new(());
        let over = async {
            tokio::time::sleep(Duration::from_secs(600)).await;
            Status::deadline_exceeded("too late")
        };
        let mut replies = send(endless(held.clone()), over);
        let mut last = Ok(0);
        while let Ok(number) = last {
            assert!(number < 20);
            tokio::time::sleep(Duration::from_secs(40)).await;
            last = replies.next().await.unwrap();
        }
        assert_eq!(last.unwrap_err().message(), "too late");
        assert_eq!(until_free(&held).await, Duration::ZERO);
        assert!(replies.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn all_comes_in_its_order_or_with_its_error() {
        let of = |messages: Vec<Result<u64, Status>>| send(stream::iter(messages), std::future::pending());
        let (found, status) = rest(of((0..9).map(Ok).collect())).await;
        assert_eq!((found, status.is_none()), ((0..9).collect(), true));
        let (found, status) = rest(of(vec![Ok(1), Err(Status::not_found("no")), Ok(2)])).await;
        assert_eq!((found, status.unwrap().message()), (vec![1], "no"));
        // Whoever leaves takes everything along.
        let held = Arc::new(());
        drop(send(endless(held.clone()), std::future::pending()));
        until_free(&held).await;
    }
}
