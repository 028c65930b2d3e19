//! What this host has for workers: GPUs, processors, memory.

use std::path::Path;

use mosec_types::resources::WHOLE_CPU;
use mosec_types::{Capacity, Gpu, units};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

/// Where a container sees its limit, by the version of the kernel's cgroups. Without a limit the second version says `max`,
/// and the first a number that no machine has.
const CONTAINER_LIMITS: [&str; 2] = [
    "sys/fs/cgroup/memory.max",
    "sys/fs/cgroup/memory/memory.limit_in_bytes",
];

/// A GPU of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// What `CUDA_VISIBLE_DEVICES` calls it: its UUID, or its number.
    pub id: String,
    pub gpu: Gpu,
}

/// The GPUs that the NVIDIA driver tells of; none where there is no driver.
pub fn devices() -> Vec<Device> {
    match probe() {
        Ok(devices) => devices,
        Err(NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound | NvmlError::DriverNotLoaded) => {
            Vec::new()
        }
        Err(error) => {
            tracing::warn!(%error, "the NVIDIA driver does not answer: this node has no GPUs to give");
            Vec::new()
        }
    }
}

fn probe() -> Result<Vec<Device>, NvmlError> {
    let nvml = Nvml::init()?;
    let device = |number| {
        let device = nvml.device_by_index(number)?;
        let gpu = Gpu {
            model: device.name()?,
            memory: device.memory_info()?.total,
        };
        let id = device.uuid()?;
        Ok(Device { id, gpu })
    };
    (0..nvml.device_count()?).map(device).collect()
}

/// Reads GPUs as they are declared: `MODEL:MEMORY`, as `H100:80GiB`. The first is number 0.
///
/// Errors: what was expected.
pub fn parse_device(text: &str) -> Result<Gpu, String> {
    let expected = || format!("expected MODEL:MEMORY, as H100:80GiB, found {text:?}");
    let (model, memory) = text.rsplit_once(':').ok_or_else(expected)?;
    if model.is_empty() {
        return Err(expected());
    }
    Ok(Gpu {
        model: model.to_owned(),
        memory: units::parse_size(memory)?,
    })
}

/// Declared GPUs as devices, numbered in their order.
pub fn declared(gpus: Vec<Gpu>) -> Vec<Device> {
    let device = |(number, gpu): (usize, Gpu)| Device {
        id: number.to_string(),
        gpu,
    };
    gpus.into_iter().enumerate().map(device).collect()
}

/// What a node with these devices has for replicas: those, and all of this host's processors and memory.
pub fn capacity(devices: &[Device]) -> Capacity {
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let cpus = u32::try_from(processors).unwrap_or(0).saturating_mul(WHOLE_CPU);
    Capacity {
        gpus: devices.iter().map(|device| device.gpu.clone()).collect(),
        cpus,
        memory: memory_bytes() as u64,
    }
}

/// The memory of this machine, or of its container where that has less; zero where neither tells.
pub fn memory_bytes() -> usize {
    memory_below(Path::new("/"))
}

/// As [`memory_bytes`], by the files below this folder.
fn memory_below(root: &Path) -> usize {
    let read = |name: &str| std::fs::read_to_string(root.join(name)).ok();
    let of_machine = || {
        let text = read("proc/meminfo")?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    };
    let of_container = |limit: &str| read(limit)?.trim().parse().ok();
    let limits = CONTAINER_LIMITS.map(of_container);
    let known = limits.into_iter().chain([of_machine()]);
    known.flatten().min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_declared_by_model_and_memory() {
        let gpu = |model: &str, memory| Gpu {
            model: model.into(),
            memory,
        };
        assert_eq!(parse_device("H100:80GiB"), Ok(gpu("H100", 80 << 30)));
        assert_eq!(parse_device("a:b:1KiB"), Ok(gpu("a:b", 1024)));
        for wrong in ["", "H100", ":80GiB", "H100:much"] {
            assert!(
                parse_device(wrong).is_err_and(|error| error.contains("expected")),
                "{wrong}"
            );
        }
        let devices = declared(vec![gpu("a", 1), gpu("b", 2)]);
        assert_eq!(devices[1].id, "1");
        let capacity = capacity(&devices);
        assert_eq!(capacity.gpus.len(), 2);
        assert!(capacity.cpus >= WHOLE_CPU && capacity.memory > 0);
    }

    #[test]
    fn a_container_has_what_it_is_limited_to() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let memory = || memory_below(root.path());
        assert_eq!(memory(), 0);
        write("proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\n");
        assert_eq!(memory(), 16 << 30);
        let [second, first] = CONTAINER_LIMITS;
        write(first, "9223372036854771712\n");
        assert_eq!(memory(), 16 << 30);
        write(first, "8589934592\n");
        assert_eq!(memory(), 8 << 30);
        write(second, "max\n");
        assert_eq!(memory(), 8 << 30);
        write(second, "4294967296\n");
        assert_eq!(memory(), 4 << 30);
    }
}
