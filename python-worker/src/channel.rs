//! Hot path. A worker's channel as a Python object.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use mosec_shm_ring::{
    Answer, Batch, BatchItem, Next, Over, Payload, Progress, Reply, RespondError, Wake, WorkerChannel,
    now_nanos,
};
use mosec_types::ErrorCode;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyIndexError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyList, PyMemoryView};

use crate::view::View;
use crate::watch::Watch;
use crate::watchdog::Watchdog;

/// The worker's end of its channel to the node agent.
#[pyclass(frozen, module = "mosec._native")]
pub(crate) struct Channel {
    inner: WorkerChannel,
    watchdog: Watchdog,
    /// When the batch in work was taken, in nanoseconds. Only the thread that takes and answers uses it.
    taken: AtomicU64,
    /// What of the batch in work Python does not see.
    over: Mutex<Over>,
    /// Held while answers or events are sent: two that wait for room at the same doorbell would miss rings.
    sending: Mutex<()>,
    /// Whether payloads are given as views.
    views: AtomicBool,
}

/// A batch as Python takes it: its id, and flags and payload of each item.
type PyBatch<'py> = (u64, Vec<(u32, Bound<'py, PyAny>)>);

/// Payloads from this size on are looked at in place. To copy a smaller one costs less than to tell the agent of a view
/// that lives on.
const VIEW_BYTES: usize = 64 * 1024;

#[pymethods]
impl Channel {
    /// Takes the channel over from standard input. With the worker's specification, as JSON.
    #[staticmethod]
    fn attach() -> PyResult<(Self, String)> {
        let (inner, spec) = WorkerChannel::attach_stdin().map_err(runtime_error)?;
        let watchdog = Watchdog::start(forward_limit(&spec)?)?;
        Ok((
            Self {
                inner,
                watchdog,
                taken: AtomicU64::new(0),
                over: Mutex::default(),
                sending: Mutex::default(),
                views: AtomicBool::new(false),
            },
            spec,
        ))
    }

    /// Says that the worker takes batches from now on.
    fn ready(&self) -> PyResult<()> {
        self.inner.ready().map_err(runtime_error)
    }

    /// Gives payloads as `memoryview`s from now on, large ones of the shared memory itself.
    fn give_views(&self) {
        self.views.store(true, Ordering::Relaxed);
    }

    /// Says why the worker cannot start.
    fn failed(&self, traceback: &str) -> PyResult<()> {
        self.inner.failed(traceback).map_err(runtime_error)
    }

    /// Waits for the next batch; `None` when the worker is to stop.
    ///
    /// Items whose deadline has passed, or whose client has left, are not among its items: they are answered with it.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<PyBatch<'py>>> {
        while let Some(batch) = self.take(py)? {
            let now = now_nanos();
            self.taken.store(now, Ordering::Relaxed);
            let over = Over::of(&batch, now / 1000);
            if over.is_empty() {
                return self.to_python(py, &batch, |_| true).map(Some);
            }
            if over.is_all_of(&batch) {
                self.send(py, batch.id, over.answers())?;
                continue;
            }
            let taken = self.to_python(py, &batch, |item| !over.has(item));
            *self.over() = over;
            return taken.map(Some);
        }
        Ok(None)
    }

    /// Answers every item of a batch, in order: `ErrorCode` numbers, and results or errors as any kind of buffer.
    fn answer(
        &self,
        py: Python<'_>,
        batch: u64,
        codes: Vec<u16>,
        payloads: &Bound<'_, PyList>,
    ) -> PyResult<()> {
        if codes.len() != payloads.len() {
            let (codes, payloads) = (codes.len(), payloads.len());
            return Err(PyValueError::new_err(format!(
                "{codes} codes for {payloads} payloads"
            )));
        }
        let sources = payloads.iter().map(Source::new).collect::<PyResult<Vec<_>>>()?;
        // The one copy into shared memory is made from the objects' own memory.
        let fills: Vec<_> = sources
            .iter()
            .map(|source| move |target: &mut [u8]| source.copy_to(py, target))
            .collect();
        // Left in place: a thread may be about to send an event.
        let over = self.over().of_batch(batch);
        let mut answers: Vec<_> = (0..)
            .zip(&codes)
            .zip(&sources)
            .zip(&fills)
            .map(|(((index, &code), source), fill)| Answer {
                item: over.item(batch, index),
                code,
                last: true,
                payload: match source {
                    Source::Bytes(bytes) => Payload::Bytes(bytes.as_bytes()),
                    Source::Buffer(buffer) => Payload::Fill {
                        len: buffer.len_bytes(),
                        fill,
                    },
                },
            })
            .collect();
        answers.extend(over.answers());
        self.send(py, batch, answers)
    }

    /// Sends an event of one item, which goes nowhere if nobody waits for the item any more.
    fn send_event(&self, py: Python<'_>, batch: u64, index: u32, text: &str) -> PyResult<()> {
        let item = self.over().item(batch, index);
        if self.inner.is_over(batch, item) {
            return Ok(());
        }
        let event = Answer {
            item,
            code: ErrorCode::Ok.to_wire(),
            last: false,
            payload: Payload::Bytes(text.as_bytes()),
        };
        self.send(py, batch, vec![event])
    }

    /// Follows one item of a batch.
    fn watch(&self, batch: u64, index: u32) -> PyResult<Watch> {
        let item = self.over().item(batch, index);
        let watch = self.inner.watch(batch, item);
        let watch =
            watch.ok_or_else(|| PyIndexError::new_err(format!("batch {batch} has no open item {index}")))?;
        Ok(Watch::new(watch))
    }

    /// Starts the clock of the stage's time limit.
    fn forward_started(&self) {
        self.watchdog.forward_started();
    }

    /// Stops the clock of the stage's time limit.
    fn forward_ended(&self) {
        self.watchdog.forward_ended();
    }
}

impl Channel {
    fn take(&self, py: Python<'_>) -> PyResult<Option<Batch>> {
        // A batch that is there already costs no release of the interpreter.
        let mut found = self.inner.try_next().map_err(runtime_error)?;
        while found.is_none() {
            match py.detach(|| self.inner.next(None)).map_err(runtime_error)? {
                Next::Batch(batch) => found = Some(batch),
                Next::Stop => break,
                Next::Interrupted => py.check_signals()?,
                Next::Timeout => {}
            }
        }
        Ok(found)
    }

    /// Sends answers or events. What has been answered meanwhile, by the end of its stream, takes none.
    fn send(&self, py: Python<'_>, batch: u64, answers: Vec<Answer<'_>>) -> PyResult<()> {
        let _alone = self.alone(py);
        let nanos = now_nanos().saturating_sub(self.taken.load(Ordering::Relaxed));
        let mut reply = Reply::new(batch, &answers, nanos);
        loop {
            match self.inner.step(&mut reply) {
                Ok(Progress::Sent) => return Ok(()),
                Ok(Progress::Wait) => {}
                Err(RespondError::UnknownBatch(_) | RespondError::NotAwaited { .. })
                    if is_event(&answers) =>
                {
                    return Ok(());
                }
                Err(error) => return Err(runtime_error(error)),
            }
            if py.detach(|| self.inner.wait(None)).map_err(runtime_error)? == Wake::Interrupted {
                py.check_signals()?;
            }
        }
    }

    /// Waits without the interpreter, as whoever sends may need it to go on.
    fn alone(&self, py: Python<'_>) -> MutexGuard<'_, ()> {
        loop {
            match self.sending.try_lock() {
                Ok(alone) => return alone,
                Err(TryLockError::Poisoned(error)) => return error.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
            let sending = &self.sending;
            py.detach(|| drop(sending.lock()));
        }
    }

    fn to_python<'py>(
        &self,
        py: Python<'py>,
        batch: &Batch,
        takes: impl Fn(usize) -> bool,
    ) -> PyResult<PyBatch<'py>> {
        let views = self.views.load(Ordering::Relaxed);
        let items = batch.items.iter().enumerate().filter(|(index, _)| takes(*index));
        let items = items.map(|(index, item)| {
            let payload = if views {
                self.view(py, batch, index)?.into_any()
            } else {
                copied(py, item)?.into_any()
            };
            Ok((item.flags, payload))
        });
        Ok((batch.id, items.collect::<PyResult<_>>()?))
    }

    /// A payload to look at: in place where it is large, and the worker does not keep too many.
    fn view<'py>(&self, py: Python<'py>, batch: &Batch, index: usize) -> PyResult<Bound<'py, PyMemoryView>> {
        let item = &batch.items[index];
        let in_place = (item.len() >= VIEW_BYTES).then(|| self.inner.view(batch, index));
        if let Some(view) = in_place.flatten() {
            return View::memoryview(py, view);
        }
        let copy = PyBytes::new_with(py, item.len(), |target| {
            item.copy_to(target).map_err(runtime_error)
        })?;
        PyMemoryView::from(copy.as_any())
    }

    fn over(&self) -> MutexGuard<'_, Over> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_event(answers: &[Answer<'_>]) -> bool {
    answers.iter().all(|answer| !answer.last)
}

/// Bytes of a Python object.
enum Source<'py> {
    /// Cannot change, so it is read in place.
    Bytes(Bound<'py, PyBytes>),
    Buffer(PyBuffer<u8>),
}

impl<'py> Source<'py> {
    fn new(object: Bound<'py, PyAny>) -> PyResult<Self> {
        match object.cast_into::<PyBytes>() {
            Ok(bytes) => Ok(Self::Bytes(bytes)),
            Err(error) => Ok(Self::Buffer(PyBuffer::get(&error.into_inner())?)),
        }
    }

    fn copy_to(&self, py: Python<'_>, target: &mut [u8]) -> bool {
        match self {
            Self::Bytes(bytes) => {
                target.copy_from_slice(bytes.as_bytes());
                true
            }
            Self::Buffer(buffer) => buffer.copy_to_slice(py, target).is_ok(),
        }
    }
}

/// MOSEC's workers get bytearrays: writable, and with all the methods that `json`, `pickle` and users call.
fn copied<'py>(py: Python<'py>, item: &BatchItem) -> PyResult<Bound<'py, PyByteArray>> {
    PyByteArray::new_with(py, item.len(), |target| {
        item.copy_to(target).map_err(runtime_error)
    })
}

/// The stage's `timeout`, in the specification the node agent sends.
fn forward_limit(spec: &str) -> PyResult<Duration> {
    let spec: serde_json::Value =
        serde_json::from_str(spec).map_err(|error| PyValueError::new_err(error.to_string()))?;
    let millis = spec["stage"]["timeout"].as_u64();
    let millis =
        millis.ok_or_else(|| PyValueError::new_err("the worker's specification has no stage.timeout"))?;
    Ok(Duration::from_millis(millis.max(1)))
}

pub(crate) fn runtime_error(error: impl std::error::Error) -> PyErr {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    PyRuntimeError::new_err(text)
}
