//! What the series of an agent's process mean.

use mosec_dispatch::DispatchMetrics;
use mosec_telemetry::{Described, Series};
use mosec_types::NodeId;
use tokio::sync::watch;

use crate::Config;
use crate::gpus::GpuMetrics;
use crate::metrics::AgentMetrics;
use crate::standing::register_lease;

/// What each family of an agent's series means, but for those that every process has.
pub fn described_series() -> prometheus::Result<Vec<Described>> {
    let series = Series::default();
    register_lease(&series, watch::Sender::new(None).subscribe())?;
    DispatchMetrics::new(&series)?;
    let node = NodeId::new("any").map_err(|error| prometheus::Error::Msg(error.to_string()))?;
    AgentMetrics::new(&series, &Config::new(node))?;
    GpuMetrics::new(&series)?;
    Ok(series.described())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_series_is_described_by_sentences() {
        let described = described_series().unwrap();
        // MOSEC's texts are as they are.
        let own = |family: &&Described| !family.name.starts_with("mosec_service_");
        for family in described.iter().filter(own) {
            let starts = family.help.starts_with(char::is_uppercase);
            assert!(starts && family.help.ends_with('.'), "{family:?}");
        }
        for name in [
            "mosec_agent_lease_held",
            "mosec_agent_gpu_power_watts",
            "mosec_service_batch_size",
        ] {
            assert!(described.iter().any(|family| family.name == name), "{name}");
        }
    }
}
