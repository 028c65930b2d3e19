//! Whole programs as functions: they run outside of the interpreter until they are done.

use std::ffi::OsString;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::embedded::{self, Stop};

/// How often signals are looked for that Python handles.
const LOOK: Duration = Duration::from_millis(100);

/// Runs the server that `Server.run` has described, until a signal or `stop`. The process's exit code.
///
/// Meanwhile the script's own signal handlers run, as they are the main thread's. What one raises ends the server, and is
/// raised when it has ended.
#[pyfunction]
pub(crate) fn serve(py: Python<'_>, config: String, stop: Py<Stop>) -> PyResult<i32> {
    let ending = stop.get().ending();
    let (ended, end) = mpsc::channel::<()>();
    let server = thread::Builder::new()
        .name("mosec-server".into())
        .spawn(move || {
            let result = embedded::serve(&config, &ending);
            // Dropped, and so heard, when a panic ends the thread, too.
            drop(ended);
            result
        })?;
    let end = Mutex::new(end); // by which another thread could wait, as whoever lets go of the interpreter has to allow
    let wait = || {
        let end = end.lock().unwrap_or_else(PoisonError::into_inner);
        end.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout)
    };
    let mut raised = None;
    while py.detach(wait) {
        if let (Err(error), None) = (py.check_signals(), &raised) {
            stop.get().fail(format!("a signal handler has raised {error}"));
            raised = Some(error);
        }
    }
    let result = py
        .detach(|| server.join())
        .unwrap_or_else(|_| Err(anyhow::anyhow!("the server has panicked")));
    if let Some(error) = raised {
        return Err(error);
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
