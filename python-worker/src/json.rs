//! Hot path. The bytes of `json.dumps(value, indent=2)`, for values made of built-in types alone.
//!
//! What only `json` itself can write or refuse is left to it as a whole: other types and subclasses of these, cycles, deep
//! nesting, very large integers, surrogates without their other half. No Python code runs in here, not even a
//! finalizer: until the answer is certain, nothing is made that the garbage collector knows. So no container changes
//! while it is read.

use pyo3::PyTypeInfo;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use crate::json_text::{write_float, write_text};

/// Containers within one another. Far below where `json` reaches the interpreter's own limit, and more than answers have.
const MAX_DEPTH: usize = 100;
const INDENT: usize = 2;
/// A comma, a line's end, and the indentation of the innermost container.
const LINE: [u8; 2 + INDENT * MAX_DEPTH] = {
    let mut line = [b' '; 2 + INDENT * MAX_DEPTH];
    line[0] = b',';
    line[1] = b'\n';
    line
};
/// Enough for a short answer, so that it is written without growing.
const FIRST_CAPACITY: usize = 256;

/// A value as indented JSON; `None` where only the standard library can tell.
#[pyfunction]
pub(crate) fn encode_json<'py>(value: &Bound<'py, PyAny>) -> Option<Bound<'py, PyBytes>> {
    let mut encoder = Encoder {
        out: Vec::with_capacity(FIRST_CAPACITY),
        open: Vec::new(),
    };
    encoder.value(value)?;
    Some(PyBytes::new(value.py(), &encoder.out))
}

/// Each method gives `None` for what it does not write.
struct Encoder {
    out: Vec<u8>,
    /// Addresses of the containers around the current value: one that comes again is a cycle.
    open: Vec<usize>,
}

impl Encoder {
    fn value(&mut self, value: &Bound<'_, PyAny>) -> Option<()> {
        if let Some(text) = exactly::<PyString>(value) {
            self.text(text)
        } else if let Some(dict) = exactly::<PyDict>(value) {
            self.dict(dict)
        } else if let Some(list) = exactly::<PyList>(value) {
            self.sequence(value, list.iter())
        } else if let Some(tuple) = exactly::<PyTuple>(value) {
            self.sequence(value, tuple.iter())
        } else {
            self.scalar(value)
        }
    }

    fn dict(&mut self, dict: &Bound<'_, PyDict>) -> Option<()> {
        if dict.is_empty() {
            self.out.extend_from_slice(b"{}");
            return Some(());
        }
        self.enter(dict, b'{')?;
        for (at, (key, value)) in dict.iter().enumerate() {
            self.line(at > 0);
            self.key(&key)?;
            self.out.extend_from_slice(b": ");
            self.value(&value)?;
        }
        self.leave(b'}');
        Some(())
    }

    fn sequence<'py>(
        &mut self,
        whole: &Bound<'py, PyAny>,
        items: impl ExactSizeIterator<Item = Bound<'py, PyAny>>,
    ) -> Option<()> {
        if items.len() == 0 {
            self.out.extend_from_slice(b"[]");
            return Some(());
        }
        self.enter(whole, b'[')?;
        for (at, item) in items.enumerate() {
            self.line(at > 0);
            self.value(&item)?;
        }
        self.leave(b']');
        Some(())
    }

    /// Keys that are no text are written as their value is, in quotes.
    fn key(&mut self, key: &Bound<'_, PyAny>) -> Option<()> {
        if let Some(text) = exactly::<PyString>(key) {
            return self.text(text);
        }
        self.out.push(b'"');
        self.scalar(key)?;
        self.out.push(b'"');
        Some(())
    }

    fn text(&mut self, text: &Bound<'_, PyString>) -> Option<()> {
        // Text beyond ASCII keeps its UTF-8 form as long as the object lives: the stable ABI shows no other.
        write_text(&mut self.out, text.to_str().ok()?);
        Some(())
    }

    fn scalar(&mut self, value: &Bound<'_, PyAny>) -> Option<()> {
        if let Some(int) = exactly::<PyInt>(value) {
            return self.int(int);
        }
        if let Some(float) = exactly::<PyFloat>(value) {
            write_float(&mut self.out, float.value());
        } else if let Some(truth) = exactly::<PyBool>(value) {
            self.out
                .extend_from_slice(if truth.is_true() { b"true" } else { b"false" });
        } else if value.is_none() {
            self.out.extend_from_slice(b"null");
        } else {
            return None;
        }
        Some(())
    }

    fn int(&mut self, int: &Bound<'_, PyInt>) -> Option<()> {
        // Rounded, but enough to tell the size: an attempt that overflows would make an exception.
        let size = int.extract::<f64>().ok()?.abs();
        let mut buffer = itoa::Buffer::new();
        let digits = if size < TWO_TO_63 {
            buffer.format(int.extract::<i64>().ok()?)
        } else if size < TWO_TO_127 {
            buffer.format(int.extract::<i128>().ok()?)
        } else {
            return None;
        };
        self.out.extend_from_slice(digits.as_bytes());
        Some(())
    }

    fn enter(&mut self, container: &Bound<'_, PyAny>, bracket: u8) -> Option<()> {
        let address = container.as_ptr().addr();
        if self.open.len() == MAX_DEPTH || self.open.contains(&address) {
            return None;
        }
        self.open.push(address);
        self.out.push(bracket);
        Some(())
    }

    fn leave(&mut self, bracket: u8) {
        self.open.pop();
        self.line(false);
        self.out.push(bracket);
    }

    fn line(&mut self, comma: bool) {
        let line = &LINE[usize::from(!comma)..2 + INDENT * self.open.len()];
        self.out.extend_from_slice(line);
    }
}

const TWO_TO_63: f64 = 9_223_372_036_854_775_808.0;
const TWO_TO_127: f64 = TWO_TO_63 * TWO_TO_63 * 2.0;

/// The object as a `T`, if its type is `T` and no subclass.
fn exactly<'a, 'py, T: PyTypeInfo>(value: &'a Bound<'py, PyAny>) -> Option<&'a Bound<'py, T>> {
    // The error of a cast that fails would count references.
    value
        .is_exact_instance_of::<T>()
        .then(|| value.cast_exact().ok())
        .flatten()
}
