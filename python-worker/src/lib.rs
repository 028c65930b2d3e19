//! The extension `mosec._native`: a worker's channel, its JSON, the embedded server, and the commands of the wheel.
//!
//! Only conversions live here; what they convert to is in `mosec-shm-ring`, the gateway, the agent and `mosectl`.

mod channel;
mod commands;
mod embedded;
mod json;
mod json_text;
mod view;
mod watch;
mod watchdog;

use pyo3::prelude::*;

/// Native half of the package `mosec`.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::channel::Channel;
    #[pymodule_export]
    use super::commands::{command, serve};
    #[pymodule_export]
    use super::embedded::{DryRun, Stop};
    #[pymodule_export]
    use super::json::encode_json;
    #[pymodule_export]
    use super::watch::Watch;

    #[pymodule_init]
    fn init(module: &super::Bound<'_, super::PyModule>) -> super::PyResult<()> {
        use super::PyModuleMethods as _;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
