//! What workers write to standard output and error: passed on to the agent's own, and kept for whoever asks.
//!
//! Two tasks for each worker process read its pipes ([`Capture`]); one task for each question sends what is kept to the
//! member that asked ([`mod@answer`]). They meet in [`store`], where writers never wait for readers.

mod answer;
mod line;
mod store;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mosec_types::PipelineName;
use mosec_wire::control::proto::{self, OutputStream};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::process::{ChildStderr, ChildStdout};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub(crate) use self::answer::answer;
use self::line::{Line, Splitter, WholeLines};
pub use self::store::OutputLimits;
pub(crate) use self::store::Slot;
use self::store::{Reader, Store};

/// What one read takes from a pipe, which holds 64 KiB.
const READ_BYTES: usize = 8 * 1024;
/// How long the pipes are read after their process has ended: what it left in them is there at once, and a process that it
/// left behind may keep them open for ever.
const AFTER_THE_END: Duration = Duration::from_secs(1);

/// The output of this node's workers. Clones share it.
#[derive(Clone)]
pub(crate) struct Output(Arc<Inner>);

struct Inner {
    store: Mutex<Store>,
    news: watch::Sender<()>,
    /// The agent's own. One writer at a time: the others wait, and with them their workers, as they would for a pipe of
    /// their own.
    stdout: tokio::sync::Mutex<tokio::io::Stdout>,
    stderr: tokio::sync::Mutex<tokio::io::Stderr>,
}

impl Output {
    pub(crate) fn new(limits: OutputLimits) -> Self {
        Self(Arc::new(Inner {
            store: Mutex::new(Store::new(limits)),
            news: watch::Sender::new(()),
            stdout: tokio::sync::Mutex::new(tokio::io::stdout()),
            stderr: tokio::sync::Mutex::new(tokio::io::stderr()),
        }))
    }

    /// The output of one worker, until the value is dropped: from then on it is kept for a while.
    pub(crate) fn of_worker(&self, slot: Slot, pipeline: &PipelineName, stage: &str) -> WorkerOutput {
        self.0.store.lock().open(slot, pipeline, stage);
        self.0.news.send_replace(());
        WorkerOutput {
            output: self.clone(),
            slot,
        }
    }

    /// Forgets what has been kept long enough.
    pub(crate) fn expire(&self) {
        self.0.store.lock().expire(Instant::now());
    }

    /// Bytes that are kept.
    pub(crate) fn bytes(&self) -> usize {
        self.0.store.lock().bytes()
    }

    fn push(&self, slot: Slot, stream: OutputStream, text: Box<str>, cut_bytes: u32) {
        let line = Line {
            at_unix_ms: unix_ms(),
            stream,
            text,
            cut_bytes,
        };
        self.0.store.lock().push(slot, line);
        self.0.news.send_replace(());
    }

    fn read(&self, reader: &mut Reader, max_bytes: usize) -> Vec<proto::WorkerOutput> {
        reader.read(&self.0.store.lock(), max_bytes)
    }
}

/// The output of one worker, through its restarts.
pub(crate) struct WorkerOutput {
    output: Output,
    slot: Slot,
}

impl WorkerOutput {
    /// Notes what the agent has to say about the worker.
    pub(crate) fn remark(&self, text: &str) {
        let mut splitter = Splitter::new(self.output.0.store.lock().limits().line_bytes);
        let mut keep = |text, cut_bytes| self.output.push(self.slot, OutputStream::Agent, text, cut_bytes);
        splitter.take(text.as_bytes(), &mut keep);
        splitter.finish(&mut keep);
    }

    /// Reads the pipes of a process that was started.
    pub(crate) fn capture(&self, stdout: Option<ChildStdout>, stderr: Option<ChildStderr>) -> Capture {
        let mut tasks = JoinSet::new();
        if let Some(pipe) = stdout {
            let (output, slot) = (self.output.clone(), self.slot);
            tasks.spawn(async move {
                let own = &output.0.stdout;
                output.follow(slot, OutputStream::Stdout, pipe, own).await;
            });
        }
        if let Some(pipe) = stderr {
            let (output, slot) = (self.output.clone(), self.slot);
            tasks.spawn(async move {
                let own = &output.0.stderr;
                output.follow(slot, OutputStream::Stderr, pipe, own).await;
            });
        }
        Capture(tasks)
    }
}

impl Drop for WorkerOutput {
    fn drop(&mut self) {
        self.output.0.store.lock().close(self.slot, Instant::now());
    }
}

impl Output {
    /// Keeps and passes on what comes out of a pipe until its end. It is passed on line by line, so that lines of several
    /// workers do not get into each other; of those that are longer than what is kept, parts may.
    async fn follow(
        &self,
        slot: Slot,
        stream: OutputStream,
        mut pipe: impl AsyncRead + Unpin,
        own: &tokio::sync::Mutex<impl AsyncWrite + Unpin>,
    ) {
        let line_bytes = self.0.store.lock().limits().line_bytes;
        let mut splitter = Splitter::new(line_bytes);
        let mut lines = WholeLines::new(line_bytes);
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let bytes = match pipe.read(&mut buffer).await {
                Ok(0) => break,
                Ok(length) => &buffer[..length],
                Err(error) => {
                    tracing::debug!(stage = %slot.0, replica = %slot.1, %error, "worker's output cannot be read");
                    break;
                }
            };
            splitter.take(bytes, |text, cut_bytes| self.push(slot, stream, text, cut_bytes));
            pass_on(&lines.take(bytes), own).await;
        }
        splitter.finish(|text, cut_bytes| self.push(slot, stream, text, cut_bytes));
        pass_on(&lines.finish(), own).await;
    }
}

/// Writes to the agent's own output.
async fn pass_on(bytes: &[u8], own: &tokio::sync::Mutex<impl AsyncWrite + Unpin>) {
    if bytes.is_empty() {
        return;
    }
    let mut own = own.lock().await;
    // Whoever started the agent may have closed it; what is kept is none the worse for it.
    let _ = own.write_all(bytes).await;
    let _ = own.flush().await;
}

/// The tasks that read one process's pipes. Dropping it ends them.
pub(crate) struct Capture(JoinSet<()>);

impl Capture {
    /// Waits until a process that has ended is read to its end.
    pub(crate) async fn finish(mut self) {
        let all = async { while self.0.join_next().await.is_some() {} };
        if tokio::time::timeout(AFTER_THE_END, all).await.is_err() {
            tracing::debug!("a process that outlives its worker keeps the worker's output open");
        }
    }
}

/// Milliseconds since 1970; zero for a clock before that.
fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "output_tests.rs"]
mod tests;
