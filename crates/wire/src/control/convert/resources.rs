//! What replicas need and what nodes have.

use mosec_types::{Capacity, Gpu, Needs};

use crate::control::proto;

impl From<&Needs> for proto::Needs {
    fn from(needs: &Needs) -> Self {
        Self {
            gpus: needs.gpus,
            gpu_memory: needs.gpu_memory,
            cpus: needs.cpus,
            memory: needs.memory,
        }
    }
}

impl From<proto::Needs> for Needs {
    fn from(message: proto::Needs) -> Self {
        Self {
            gpus: message.gpus,
            gpu_memory: message.gpu_memory,
            cpus: message.cpus,
            memory: message.memory,
        }
    }
}

impl From<&Capacity> for proto::Capacity {
    fn from(capacity: &Capacity) -> Self {
        let gpu = |gpu: &Gpu| proto::Gpu {
            model: gpu.model.clone(),
            memory: gpu.memory,
        };
        Self {
            gpus: capacity.gpus.iter().map(gpu).collect(),
            cpus: capacity.cpus,
            memory: capacity.memory,
        }
    }
}

impl From<proto::Capacity> for Capacity {
    fn from(message: proto::Capacity) -> Self {
        let gpu = |gpu: proto::Gpu| Gpu {
            model: gpu.model,
            memory: gpu.memory,
        };
        Self {
            gpus: message.gpus.into_iter().map(gpu).collect(),
            cpus: message.cpus,
            memory: message.memory,
        }
    }
}
