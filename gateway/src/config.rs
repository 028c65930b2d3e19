//! Settings of a gateway.

use std::path::PathBuf;
use std::time::Duration;

/// Settings of a gateway.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address or host name to listen on.
    pub address: String,
    /// Port to listen on; 0 takes any that is free.
    pub port: u16,
    /// Where the last topology is kept, for a start without the control plane. Nowhere where absent.
    pub state_dir: Option<PathBuf>,
    /// Prefix of MOSEC's metrics.
    pub namespace: String,
    /// Longest time a client may take to send its request's body: far above what a slow mobile link needs for the
    /// default size limit, and short enough that stalled clients do not pile up.
    pub body_timeout: Duration,
    /// Longest time in-flight requests are waited for at shutdown.
    pub drain_timeout: Duration,
    /// How long a stage may be without a ready replica before its requests are refused.
    pub replica_grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: "0.0.0.0".into(),
            port: 8000,
            state_dir: None,
            namespace: "mosec_service".into(),
            body_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(30),
            replica_grace: Duration::from_secs(5),
        }
    }
}
