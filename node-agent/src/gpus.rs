//! What the GPUs of this node do, for people who look at them.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use mosec_telemetry::{Kind, Labelled, Series};
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::{Device as NvmlDevice, Nvml};
use parking_lot::Mutex;
use prometheus::{Gauge, Opts};
use tokio::time::Instant;

use crate::agent::OBSERVE;
use crate::host::Device;

/// How old readings get before they are no longer shown, as the driver may hang: some looks, as it takes its time at others.
const STALE: Duration = OBSERVE.saturating_mul(10);

/// What a GPU does now. Absent is what it does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Reading {
    /// Part of the time in which something ran on it, 0 to 1.
    utilization: Option<f64>,
    memory_used_bytes: Option<f64>,
    memory_bytes: Option<f64>,
    temperature_celsius: Option<f64>,
    power_watts: Option<f64>,
}

/// Where readings come from.
pub(crate) trait Read {
    /// Reads the GPU that `CUDA_VISIBLE_DEVICES` calls `id`. May block.
    fn read(&self, id: &str) -> Reading;
}

impl Read for Nvml {
    fn read(&self, id: &str) -> Reading {
        let device = match id.parse() {
            Ok(number) => self.device_by_index(number),
            Err(_) => self.device_by_uuid(id),
        };
        device.map(|device| reading(&device)).unwrap_or_default()
    }
}

fn reading(device: &NvmlDevice<'_>) -> Reading {
    let memory = device.memory_info().ok();
    Reading {
        utilization: device
            .utilization_rates()
            .ok()
            .map(|rates| f64::from(rates.gpu) / 100.0),
        memory_used_bytes: memory.as_ref().map(|memory| memory.used as f64),
        memory_bytes: memory.map(|memory| memory.total as f64),
        temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
        power_watts: device
            .power_usage()
            .ok()
            .map(|milliwatts| f64::from(milliwatts) / 1000.0),
    }
}

/// Series of a node's GPUs.
#[derive(Clone)]
pub(crate) struct GpuMetrics {
    utilization: Labelled<Gauge>,
    memory_used: Labelled<Gauge>,
    memory: Labelled<Gauge>,
    temperature: Labelled<Gauge>,
    power: Labelled<Gauge>,
    /// When a GPU was read last; `None` where nothing is shown. One that hangs keeps the others from being read.
    read: Arc<Mutex<Option<Instant>>>,
}

impl GpuMetrics {
    pub(crate) fn new(series: &Series) -> prometheus::Result<Self> {
        let gauges = |name: &str, help: &str| {
            let opts = Opts::new(format!("mosec_agent_gpu_{name}"), help);
            series.add(Kind::Gauge, Labelled::new(opts, &["gpu"])?)
        };
        Ok(Self {
            utilization: gauges(
                "utilization_ratio",
                "Part of the last moment in which something ran on the GPU, 0 to 1.",
            )?,
            memory_used: gauges(
                "memory_used_bytes",
                "Memory of the GPU that is in use, by whatever process.",
            )?,
            memory: gauges("memory_bytes", "Memory of the GPU.")?,
            temperature: gauges(
                "temperature_celsius",
                "Temperature of the GPU in degrees Celsius.",
            )?,
            power: gauges("power_watts", "Power that the GPU draws in watts.")?,
            read: Arc::default(),
        })
    }

    /// Shows a reading, and no longer what it does not tell.
    fn show(&self, gpu: &str, reading: Reading) {
        let shown = [
            (&self.utilization, reading.utilization),
            (&self.memory_used, reading.memory_used_bytes),
            (&self.memory, reading.memory_bytes),
            (&self.temperature, reading.temperature_celsius),
            (&self.power, reading.power_watts),
        ];
        for (gauge, value) in shown {
            match value {
                Some(value) => gauge.with_label_values(&[gpu]).set(value),
                None => gauge.remove(&[gpu]),
            }
        }
    }

    fn observe(&self, devices: &[Device], source: &impl Read) {
        for (number, device) in devices.iter().enumerate() {
            self.show(&number.to_string(), source.read(&device.id));
            *self.read.lock() = Some(Instant::now());
        }
    }

    /// Shows nothing any more where the last reading is too old.
    pub(crate) fn forget_old(&self, now: Instant) {
        let mut read = self.read.lock();
        let is_old = |at: &mut Instant| now.saturating_duration_since(*at) > STALE;
        if read.take_if(is_old).is_none() {
            return;
        }
        for gauge in [
            &self.utilization,
            &self.memory_used,
            &self.memory,
            &self.temperature,
            &self.power,
        ] {
            gauge.clear();
        }
    }
}

/// Has the GPUs read until it is dropped.
pub(crate) struct Watching {
    /// The thread ends when this has gone. Nobody waits for it: the driver may hang with its GPU.
    _open: mpsc::Sender<()>,
}

/// Reads the GPUs on a thread of their own, as the driver blocks. `None` where there are none, or no driver.
pub(crate) fn watch(devices: &[Device], metrics: GpuMetrics) -> Option<Watching> {
    if devices.is_empty() {
        return None;
    }
    let (open, closed) = mpsc::channel();
    let devices = devices.to_vec();
    let look = move || {
        // Whether there is a driver, and what is wrong with it, was said when the GPUs were looked for.
        let Ok(nvml) = Nvml::init() else { return };
        loop {
            metrics.observe(&devices, &nvml);
            if closed.recv_timeout(OBSERVE) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("gpus".into()).spawn(look);
    match thread {
        Ok(_) => Some(Watching { _open: open }),
        Err(error) => {
            tracing::warn!(%error, "what the GPUs do is not shown: no thread could be started");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use mosec_telemetry::render;
    use mosec_types::Gpu;

    use super::*;
    use crate::host;

    /// What each GPU is to tell; one that is not there has left its bus.
    #[derive(Default)]
    struct Fake(HashMap<&'static str, Reading>);

    impl Read for Fake {
        fn read(&self, id: &str) -> Reading {
            self.0.get(id).copied().unwrap_or_default()
        }
    }

    fn two() -> Vec<Device> {
        let gpu = || Gpu {
            model: "H100".into(),
            memory: 80 << 30,
        };
        let device = |id: &str| Device {
            id: id.into(),
            gpu: gpu(),
        };
        vec![device("GPU-a"), device("GPU-b")]
    }

    fn shown(series: &Series) -> Vec<String> {
        let text = render(&[series]);
        let lines = text
            .lines()
            .filter_map(|line| line.strip_prefix("mosec_agent_gpu_"));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn each_gpu_shows_what_it_tells_and_nothing_old() {
        let series = Series::default();
        let metrics = GpuMetrics::new(&series).unwrap();
        let full = Reading {
            utilization: Some(0.25),
            memory_used_bytes: Some(1024.0),
            memory_bytes: Some(4096.0),
            temperature_celsius: Some(61.0),
            power_watts: Some(350.5),
        };
        let partly = Reading {
            power_watts: None,
            utilization: Some(0.0),
            ..full
        };
        let mut source = Fake(HashMap::from([("GPU-a", full), ("GPU-b", partly)]));
        metrics.observe(&two(), &source);
        let of_first = [
            "memory_bytes{gpu=\"0\"} 4096",
            "memory_bytes{gpu=\"1\"} 4096",
            "memory_used_bytes{gpu=\"0\"} 1024",
            "memory_used_bytes{gpu=\"1\"} 1024",
            "power_watts{gpu=\"0\"} 350.5",
            "temperature_celsius{gpu=\"0\"} 61",
            "temperature_celsius{gpu=\"1\"} 61",
            "utilization_ratio{gpu=\"0\"} 0.25",
            "utilization_ratio{gpu=\"1\"} 0",
        ];
        assert_eq!(shown(&series), of_first);
        source.0.remove("GPU-b");
        source.0.insert("GPU-a", partly);
        metrics.observe(&two(), &source);
        let left = shown(&series);
        assert!(left.iter().all(|line| line.contains("gpu=\"0\"")), "{left:?}");
        assert_eq!(left.len(), 4, "{left:?}");
        // The driver hangs.
        let read = Instant::now();
        metrics.forget_old(read + STALE / 2);
        assert_eq!(shown(&series), left);
        metrics.forget_old(read + STALE * 2);
        assert_eq!(shown(&series), Vec::<String>::new());
        metrics.observe(&two(), &source);
        assert_eq!(shown(&series), left, "it goes on");
    }

    /// Where there is a driver. What it tells of its own GPUs is as the fake's.
    #[test]
    fn the_driver_tells_of_its_gpus() {
        let (Ok(nvml), devices) = (Nvml::init(), host::devices()) else {
            return;
        };
        let series = Series::default();
        GpuMetrics::new(&series).unwrap().observe(&devices, &nvml);
        let shown = shown(&series);
        for (number, device) in devices.iter().enumerate() {
            let line = format!("memory_bytes{{gpu=\"{number}\"}} {}", device.gpu.memory);
            assert!(shown.contains(&line), "{line}: {shown:?}");
        }
        let unknown = nvml.read("GPU-00000000-0000-0000-0000-000000000000");
        assert_eq!(unknown, Reading::default());
    }

    #[test]
    fn a_node_without_gpus_has_no_series_of_them() {
        let series = Series::default();
        assert!(watch(&[], GpuMetrics::new(&series).unwrap()).is_none());
        assert_eq!(shown(&series), Vec::<String>::new());
        assert_eq!(series.described().len(), 5);
    }
}
