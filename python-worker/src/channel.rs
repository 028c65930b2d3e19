//! Hot path. A worker's channel as a Python object.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mosec_shm_ring::{Answer, Batch, Next, Payload, Progress, Reply, Wake, WorkerChannel};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyList};

use crate::watchdog::Watchdog;

/// The worker's end of its channel to the node agent.
#[pyclass(frozen, module = "mosec._native")]
pub(crate) struct Channel {
    inner: WorkerChannel,
    watchdog: Watchdog,
    epoch: Instant,
    /// When the batch in work was taken, in nanoseconds after `epoch`. Only the thread that takes and answers uses it.
    taken: AtomicU64,
}

/// A batch as Python takes it: its id, and flags and payload of each item.
type PyBatch<'py> = (u64, Vec<(u32, Bound<'py, PyByteArray>)>);

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
                epoch: Instant::now(),
                taken: AtomicU64::new(0),
            },
            spec,
        ))
    }

    /// Says that the worker takes batches from now on.
    fn ready(&self) -> PyResult<()> {
        self.inner.ready().map_err(runtime_error)
    }

    /// Says why the worker cannot start.
    fn failed(&self, traceback: &str) -> PyResult<()> {
        self.inner.failed(traceback).map_err(runtime_error)
    }

    /// Waits for the next batch; `None` when the worker is to stop.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<PyBatch<'py>>> {
        // A batch that is there already costs no release of the interpreter.
        let mut found = self.inner.try_next().map_err(runtime_error)?;
        while found.is_none() {
            match py.detach(|| self.inner.next(None)).map_err(runtime_error)? {
                Next::Batch(batch) => found = Some(batch),
                Next::Stop => return Ok(None),
                Next::Interrupted => py.check_signals()?,
                Next::Timeout => {}
            }
        }
        let Some(batch) = found else { return Ok(None) };
        self.taken.store(self.now(), Ordering::Relaxed);
        to_python(py, &batch).map(Some)
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
        let answers: Vec<_> = (0u32..)
            .zip(&codes)
            .zip(&sources)
            .zip(&fills)
            .map(|(((item, &code), source), fill)| Answer {
                item,
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
        let nanos = self.now().saturating_sub(self.taken.load(Ordering::Relaxed));
        let mut reply = Reply::new(batch, &answers, nanos);
        while self.inner.step(&mut reply).map_err(runtime_error)? == Progress::Wait {
            if py.detach(|| self.inner.wait(None)).map_err(runtime_error)? == Wake::Interrupted {
                py.check_signals()?;
            }
        }
        Ok(())
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
    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
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
fn to_python<'py>(py: Python<'py>, batch: &Batch) -> PyResult<PyBatch<'py>> {
    let items = batch.items.iter().map(|item| {
        let payload = PyByteArray::new_with(py, item.len(), |target| {
            item.copy_to(target).map_err(runtime_error)
        })?;
        Ok((item.flags, payload))
    });
    Ok((batch.id, items.collect::<PyResult<_>>()?))
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

fn runtime_error(error: impl std::error::Error) -> PyErr {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    PyRuntimeError::new_err(text)
}
