//! Whole programs as functions: they run outside of the interpreter until they are done.

use std::ffi::OsString;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::embedded::{self, Stop};

/// Runs the server that `Server.run` has described, until a signal or `stop`. The process's exit code.
#[pyfunction]
pub(crate) fn serve(py: Python<'_>, config: &str, stop: Py<Stop>) -> PyResult<i32> {
    let signal = py.import("signal")?;
    let numbers = [signal.getattr("SIGTERM")?, signal.getattr("SIGINT")?];
    let before = numbers
        .each_ref()
        .map(|number| signal.call_method1("getsignal", (number,)));
    // Python's own handler would turn ^C into an exception that is raised long after the drain.
    signal.call_method1("signal", (&numbers[1], signal.getattr("SIG_IGN")?))?;
    let result = py.detach(|| embedded::serve(config, stop.get()));
    // The server's handlers stay with the process and do nothing any more: the script gets its own back.
    for (number, handler) in numbers.iter().zip(before) {
        let handler = handler?;
        // `None` is a handler that Python did not install and cannot put back.
        if !handler.is_none() {
            signal.call_method1("signal", (number, handler))?;
        }
    }
    match result {
        Ok(()) => Ok(0),
        Err(error) => {
            tracing::error!(target: "mosec", error = format!("{error:#}"), "server failed");
            Ok(1)
        }
    }
}

/// Runs one of the wheel's programs. Its exit code.
#[pyfunction]
pub(crate) fn command(py: Python<'_>, name: &str, args: Vec<OsString>) -> PyResult<u8> {
    type Main = fn(Vec<OsString>) -> u8;
    let main: Main = match name {
        "mosectl" => |args| mosectl::cli::main(args),
        "mosec-gateway" => |args| mosec_gateway::cli::main(args),
        "mosec-node-agent" => |args| mosec_node_agent::cli::main(args),
        "mosec-control-plane" => |args| mosec_control_plane::cli::main(args),
        _ => return Err(PyValueError::new_err(format!("no program is called {name:?}"))),
    };
    let args = std::iter::once(OsString::from(name)).chain(args).collect();
    Ok(py.detach(|| main(args)))
}
