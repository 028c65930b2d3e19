//! One item's deadline and whether anybody waits for it, as a Python object.

use std::sync::atomic::{AtomicU64, Ordering};

use mosec_shm_ring::now_micros;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Follows one item until its batch has been answered.
#[pyclass(frozen, module = "mosec._native")]
pub(crate) struct Watch {
    inner: mosec_shm_ring::Watch,
    /// The deadline as it was seen last; zero: none.
    deadline: AtomicU64,
}

impl Watch {
    pub(crate) fn new(inner: mosec_shm_ring::Watch) -> Self {
        let deadline = AtomicU64::new(inner.deadline_micros().unwrap_or(0));
        Self { inner, deadline }
    }

    /// The deadline as it is now, or was last.
    fn micros(&self) -> u64 {
        match self.inner.deadline_micros() {
            Some(deadline) => {
                self.deadline.store(deadline, Ordering::Relaxed);
                deadline
            }
            None => self.deadline.load(Ordering::Relaxed),
        }
    }
}

#[pymethods]
impl Watch {
    /// The request's number.
    fn request(&self) -> u64 {
        self.inner.request()
    }

    /// The client's headers that the stage asks for: `name:value` in lines that end with a line feed.
    fn headers<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.inner.headers())
    }

    /// The deadline, as `time.monotonic` counts; infinite where there is none.
    fn deadline(&self) -> f64 {
        match self.micros() {
            0 => f64::INFINITY,
            micros => micros as f64 / 1e6,
        }
    }

    /// Whether the answer is of use to nobody: the deadline has passed, the client has left, or it has been answered.
    fn cancelled(&self) -> bool {
        if self.inner.is_cancelled() {
            return true;
        }
        let deadline = self.micros();
        deadline != 0 && deadline <= now_micros()
    }
}
