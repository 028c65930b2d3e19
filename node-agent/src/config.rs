//! Settings of a node agent.

use std::time::Duration;

use mosec_shm_ring::ArenaConfig;
use mosec_telemetry::ServiceSeries;
use mosec_types::NodeId;

use crate::OutputLimits;
use crate::host::Device;

/// Settings of a node agent.
#[derive(Debug, Clone)]
pub struct Config {
    pub node: NodeId,
    /// Interpreter for pipelines that name none.
    pub python: String,
    /// How MOSEC's series of the stages are named and divided.
    pub series: ServiceSeries,
    /// GPUs that replicas are given, by their numbers in the order here.
    pub devices: Vec<Device>,
    /// Shared memory for payloads.
    pub arena: ArenaConfig,
    /// How long a stage may be without a ready replica before its requests are refused.
    pub replica_grace: Duration,
    /// Longest time a replica that is to stop may take to finish what it has.
    pub drain_timeout: Duration,
    /// How long a stage must have had no batch before its replicas stop: longer than the news of a changed topology
    /// takes to reach every upstream. Zero where the upstreams are known to be gone.
    pub quiet: Duration,
    /// What is kept of the output of workers, for those who ask the control plane. Where absent, workers write straight to
    /// where this process does.
    pub output: Option<OutputLimits>,
}

impl Config {
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            python: "python3".into(),
            series: ServiceSeries::default(),
            devices: Vec::new(),
            arena: ArenaConfig::default(),
            replica_grace: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(30),
            quiet: Duration::from_millis(500),
            output: None,
        }
    }
}
