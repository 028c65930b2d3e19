//! Answers over HTTP/2 whose client does not read: they end, as a connection of HTTP/1 does by the kernel's timeout.
//!
//! Hyper does not ask a body for more while its client reads nothing, so the body cannot end itself. The task that hyper
//! runs for each stream is ended instead, which resets the stream and nothing else of its connection.

use std::cell::Cell;
use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hyper::rt::Executor;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

tokio::task_local! {
    /// Where the body of the answer tells how it gets on.
    static WATCH: Cell<Option<oneshot::Sender<Weak<Progress>>>>;
}

/// Since when a client has had bytes to take.
#[derive(Default)]
pub(crate) struct Progress(Mutex<Option<Instant>>);

impl Progress {
    /// How the body of this task's answer gets on. `None` where nobody watches it.
    pub(crate) fn watched() -> Option<Arc<Self>> {
        let watch = WATCH.try_with(Cell::take).ok()??;
        let progress = Arc::new(Self::default());
        watch.send(Arc::downgrade(&progress)).ok()?;
        Some(progress)
    }

    pub(crate) fn handed(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    pub(crate) fn taken(&self) {
        *self.0.lock() = None;
    }
}

/// Runs the streams of a connection.
#[derive(Clone)]
pub(crate) struct Streams {
    /// How long bytes may stay untaken.
    pub(crate) write_timeout: Duration,
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let (tell, told) = oneshot::channel();
        let write_timeout = self.write_timeout;
        let stream = WATCH.scope(Cell::new(Some(tell)), stream);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                _ = stream => {}
                () = stalled(told, write_timeout) => tracing::debug!("a stream that is not read is reset"),
            }
        });
    }
}

/// Waits until bytes have stayed untaken for too long; for ever where there is nothing to watch.
async fn stalled(told: oneshot::Receiver<Weak<Progress>>, write_timeout: Duration) {
    if let Ok(progress) = told.await {
        let mut due = Instant::now() + write_timeout;
        loop {
            sleep_until(due).await;
            let Some(progress) = progress.upgrade() else {
                break;
            };
            let now = Instant::now();
            due = progress.0.lock().unwrap_or(now) + write_timeout;
            if due <= now {
                return;
            }
        }
    }
    std::future::pending().await
}
