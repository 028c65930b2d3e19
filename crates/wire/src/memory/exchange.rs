//! Hot path. The answers of one batch inside one process.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Shared, Side};
use crate::cancelled::CancelledItems;
use crate::link::{Answer, AnswerSink, Answers, BoxFuture, Cancelled, LinkError, Returned};

/// Bytes of answers that wait for a slow upstream, beyond which the sink waits: a QUIC stream's window.
const MAX_WAITING_BYTES: usize = 2 * 1024 * 1024;
/// What an answer counts beyond its payload, so that many empty ones are bounded too.
const ANSWER_OVERHEAD_BYTES: usize = size_of::<Answer>();

/// The two ends of a batch of `items`.
pub(super) fn pair(link: Arc<Shared>, items: usize) -> (MemoryAnswers, MemorySink) {
    let exchange = Arc::new(Exchange {
        state: Mutex::default(),
        to_upstream: Notify::new(),
        to_sink: Notify::new(),
        cancelled: CancelledItems::new(items),
        link,
    });
    (MemoryAnswers(Arc::clone(&exchange)), MemorySink(exchange))
}

struct Exchange {
    state: Mutex<State>,
    /// There are answers, or the end of them. One waiter.
    to_upstream: Notify,
    /// There is room, or nobody to read. One waiter.
    to_sink: Notify,
    cancelled: CancelledItems,
    link: Arc<Shared>,
}

#[derive(Default)]
struct State {
    answers: Vec<Answer>,
    bytes: usize,
    /// Whether the credit has been returned, and whether the upstream has been told.
    credit: Credit,
    finished: bool,
    sink_gone: bool,
    upstream_gone: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Credit {
    #[default]
    Out,
    Returned,
    Told,
}

pub(super) struct MemoryAnswers(Arc<Exchange>);

pub(super) struct MemorySink(Arc<Exchange>);

impl Exchange {
    /// What the upstream gets now; `None` if it has to wait. What has arrived comes before the end.
    fn take(&self) -> Option<Result<Option<Returned>, LinkError>> {
        let mut state = self.state.lock();
        if state.credit == Credit::Returned {
            state.credit = Credit::Told;
            return Some(Ok(Some(Returned::Credit)));
        }
        if !state.answers.is_empty() {
            state.bytes = 0;
            let answers = std::mem::take(&mut state.answers);
            drop(state);
            self.to_sink.notify_one();
            return Some(Ok(Some(Returned::Answers(answers))));
        }
        if state.finished {
            return Some(Ok(None));
        }
        if state.sink_gone {
            return Some(Err(self.link.ended(Side::Upstream).unwrap_or(LinkError::Reset)));
        }
        self.link.ended(Side::Upstream).map(Err)
    }

    /// Puts answers if there is room, or gives them back.
    fn put(&self, answers: Vec<Answer>) -> Result<Option<Vec<Answer>>, LinkError> {
        let mut state = self.state.lock();
        self.check_wanted(&state)?;
        if state.bytes >= MAX_WAITING_BYTES {
            return Ok(Some(answers));
        }
        state.bytes += answers
            .iter()
            .map(|answer| ANSWER_OVERHEAD_BYTES + answer.payload.len())
            .sum::<usize>();
        if state.answers.is_empty() {
            state.answers = answers; // the usual case moves the vector
        } else {
            state.answers.extend(answers);
        }
        drop(state);
        self.to_upstream.notify_one();
        Ok(None)
    }

    fn check_wanted(&self, state: &State) -> Result<(), LinkError> {
        match self.link.ended(Side::Agent) {
            Some(error) => Err(error),
            None if state.upstream_gone => Err(LinkError::Cancelled),
            None => Ok(()),
        }
    }

    fn return_credit(&self) -> Result<(), LinkError> {
        self.change(|state| {
            if state.credit == Credit::Out {
                state.credit = Credit::Returned;
            }
        })
    }

    fn finish(&self) -> Result<(), LinkError> {
        self.change(|state| state.finished = true)
    }

    fn change(&self, change: impl FnOnce(&mut State)) -> Result<(), LinkError> {
        let mut state = self.state.lock();
        self.check_wanted(&state)?;
        change(&mut state);
        drop(state);
        self.to_upstream.notify_one();
        Ok(())
    }

    /// Waits for `changed` or the end of the link. The caller looks at the state before and after.
    async fn wait(&self, changed: &Notify) {
        tokio::select! {
            () = changed.notified() => {}
            () = self.link.closed.cancelled() => {}
        }
    }
}

impl Answers for MemoryAnswers {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Returned>, LinkError>> {
        Box::pin(async {
            loop {
                if let Some(result) = self.0.take() {
                    return result;
                }
                self.0.wait(&self.0.to_upstream).await;
            }
        })
    }

    fn cancel(&mut self, items: &[u32]) {
        self.0.cancelled.add(items);
    }
}

impl AnswerSink for MemorySink {
    fn send(&mut self, answers: Vec<Answer>) -> BoxFuture<'_, Result<(), LinkError>> {
        Box::pin(async move {
            if answers.is_empty() {
                return Ok(());
            }
            let mut left = answers;
            while let Some(back) = self.0.put(left)? {
                left = back;
                self.0.wait(&self.0.to_sink).await;
            }
            Ok(())
        })
    }

    fn return_credit(&mut self) -> BoxFuture<'_, Result<(), LinkError>> {
        Box::pin(async { self.0.return_credit() })
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<(), LinkError>> {
        Box::pin(async move { self.0.finish() })
    }

    fn cancelled(&mut self) -> BoxFuture<'_, Cancelled> {
        Box::pin(async {
            let gone = async {
                while !self.0.state.lock().upstream_gone && !self.0.link.closed.is_cancelled() {
                    self.0.wait(&self.0.to_sink).await;
                }
            };
            tokio::select! {
                biased; // of a batch that is given up, single items are of no interest
                () = gone => Cancelled::Batch,
                items = self.0.cancelled.next() => Cancelled::Items(items),
            }
        })
    }
}

impl Drop for MemoryAnswers {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.upstream_gone = true;
        state.answers = Vec::new();
        drop(state);
        self.0.to_sink.notify_one();
    }
}

impl Drop for MemorySink {
    fn drop(&mut self) {
        self.0.state.lock().sink_gone = true;
        self.0.to_upstream.notify_one();
    }
}
