//! What replicas need and what nodes have.

use serde::{Deserialize, Serialize};

use crate::spec::Problems;

/// A whole GPU, where shares of one are counted in hundredths.
pub const WHOLE_GPU: u32 = 100;
/// A whole processor, where shares of one are counted in thousandths.
pub const WHOLE_CPU: u32 = 1000;
/// Most GPUs of one node or replica: twice what the largest hosts have.
pub const MAX_GPUS: usize = 32;

/// What one replica of a stage needs of its node. Zero of anything is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Needs {
    /// Hundredths of a GPU: 100 for one of its own, 250 is not possible, below 100 it shares one.
    pub gpus: u32,
    /// Bytes of memory of each of its GPUs.
    pub gpu_memory: u64,
    /// Thousandths of a processor.
    pub cpus: u32,
    /// Bytes.
    pub memory: u64,
}

/// What a node has for replicas.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Capacity {
    /// In the order in which CUDA numbers them.
    pub gpus: Vec<Gpu>,
    /// Thousandths of a processor; zero where the node does not say, and then it does not limit.
    pub cpus: u32,
    /// Bytes; zero as for `cpus`.
    pub memory: u64,
}

/// One GPU of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gpu {
    /// As the driver names it, `NVIDIA H100 80GB HBM3`.
    pub model: String,
    /// Bytes.
    pub memory: u64,
}

impl Needs {
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn validate(&self, at: &str, found: &mut Problems) {
        let most = MAX_GPUS as u32 * WHOLE_GPU;
        let is_sharable = self.gpus < WHOLE_GPU || self.gpus.is_multiple_of(WHOLE_GPU);
        found.check(is_sharable && self.gpus <= most, &format!("{at}.gpus"), || {
            let gpus = f64::from(self.gpus) / f64::from(WHOLE_GPU);
            format!("expected a part of one GPU, as 0.25, or 1 to {MAX_GPUS} whole ones, found {gpus}")
        });
        found.check(
            self.gpu_memory == 0 || self.gpus > 0,
            &format!("{at}.gpu_memory"),
            || "expected gpus, too".into(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_shared_or_whole() {
        let place = |gpus, gpu_memory| {
            let needs = Needs {
                gpus,
                gpu_memory,
                ..Default::default()
            };
            let mut found = Problems::up_to(1);
            needs.validate("s", &mut found);
            found.into_result().map_err(|error| error.place)
        };
        for gpus in [0, 1, 99, 100, 800, 3200] {
            assert_eq!(place(gpus, 0), Ok(()), "{gpus}");
        }
        for gpus in [101, 250, 3300] {
            assert_eq!(place(gpus, 0), Err("s.gpus".into()), "{gpus}");
        }
        assert_eq!(place(0, 1), Err("s.gpu_memory".into()));
        assert_eq!(place(50, 1), Ok(()));
    }
}
