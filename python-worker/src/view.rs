//! A payload in shared memory as a Python object that others read in place.
//!
//! The one `unsafe` outside of `shm-ring`: Python's buffer protocol hands out a pointer, which no safe interface offers
//! (docs/adr/0007). What makes the pointer good for as long as Python uses it is `mosec_shm_ring::View`.
#![allow(unsafe_code)]

use std::ffi::c_int;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;

/// Payload bytes, read-only. Python makes a `memoryview` of it, an array, or whatever takes a buffer.
#[pyclass(frozen, module = "mosec._native")]
pub(crate) struct View(mosec_shm_ring::View);

impl View {
    /// A `memoryview` of the payload, which keeps it in place.
    pub(crate) fn memoryview(
        py: Python<'_>,
        view: mosec_shm_ring::View,
    ) -> PyResult<Bound<'_, PyMemoryView>> {
        PyMemoryView::from(Bound::new(py, Self(view))?.as_any())
    }
}

#[pymethods]
impl View {
    /// Fills in a buffer of flat bytes; an error where a writable one is asked for.
    ///
    /// # Safety
    /// For Python to call: `buffer` is null or a `Py_buffer` to fill in.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, buffer: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let view = &slf.get().0;
        let bytes = ffi::Py_ssize_t::try_from(view.len())?;
        // SAFETY: the bytes are mapped and stay as they are while the view lives. The buffer takes a reference to this
        // object, which owns the view and never changes it. They are lent read-only, so nobody writes through the pointer.
        let status = unsafe {
            ffi::PyBuffer_FillInfo(
                buffer,
                slf.as_ptr(),
                view.as_ptr().cast_mut().cast(),
                bytes,
                1,
                flags,
            )
        };
        if status == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(slf.py()))
        }
    }
}
