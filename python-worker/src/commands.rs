//! Whole programs as functions: they run outside of the interpreter until they are done.

use std::ffi::OsString;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::embedded;

/// Runs the server that `Server.run` has described, until a signal. The process's exit code.
#[pyfunction]
pub(crate) fn serve(py: Python<'_>, config: &str) -> PyResult<i32> {
    // Python's own handler would turn ^C into an exception that is raised long after the drain.
    let signal = py.import("signal")?;
    let interrupt = signal.getattr("SIGINT")?;
    let before = signal.call_method1("signal", (&interrupt, signal.getattr("SIG_IGN")?))?;
    let result = py.detach(|| embedded::serve(config));
    signal.call_method1("signal", (&interrupt, before))?;
    match result {
        Ok(code) => Ok(code),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "server failed");
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
