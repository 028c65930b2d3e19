//! What every process says of itself: its build, and what it takes of its host.

use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::{Counter, MetricFamily};
use prometheus::{IntGauge, Opts};
use rustix::time::{ClockId, clock_gettime};

use crate::identity::describe_identity;
use crate::series::{Described, Kind, Series};

/// Registers `mosec_build_info` and the usual `process_*`, which are read at each scrape. Once for each process; `process`
/// is what it is: `gateway`, `agent`, `control-plane` or `server`.
pub fn register_process(series: &Series, process: &str) -> prometheus::Result<()> {
    let build = Opts::new(
        "mosec_build_info",
        "Version of the build that this process runs, and what the process is; always 1.",
    )
    .const_label("version", env!("CARGO_PKG_VERSION"))
    .const_label("process", process);
    series.add(Kind::Gauge, IntGauge::with_opts(build)?)?.set(1);
    series.add_mixed(kind, Process(ProcessCollector::for_self()))
}

const CPU_SECONDS: &str = "process_cpu_seconds_total";

/// What `ProcessCollector` has, and parts of seconds: of whole ones `rate` shows only leaps where a process has little to do.
struct Process(ProcessCollector);

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.0.collect();
        let cpu = families.iter_mut().find(|family| family.name() == CPU_SECONDS);
        let metric = cpu.and_then(|family| family.mut_metric().first_mut());
        if let Some(metric) = metric {
            let mut counter = Counter::default();
            counter.set_value(cpu_seconds());
            metric.set_counter(counter);
        }
        families
    }
}

/// Time that processors have spent on this process since its start, in its code and in the kernel's on its behalf.
fn cpu_seconds() -> f64 {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}

/// What each family means that every process of a cluster has.
pub fn described_process() -> prometheus::Result<Vec<Described>> {
    let series = Series::default();
    register_process(&series, "gateway")?;
    describe_identity(&series)?;
    Ok(series.described())
}

fn kind(name: &str) -> Kind {
    match name.ends_with("_total") {
        true => Kind::Counter,
        false => Kind::Gauge,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render;

    #[test]
    fn a_process_says_what_it_is_and_takes() {
        let series = Series::default();
        register_process(&series, "agent").unwrap();
        let text = render(&[&series]);
        let build = concat!(
            "mosec_build_info{process=\"agent\",version=\"",
            env!("CARGO_PKG_VERSION"),
            "\"} 1\n"
        );
        assert!(text.contains(build), "{text}");
        let value = |name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.map(|value| value.parse::<f64>().unwrap())
        };
        for name in [
            "resident_memory_bytes",
            "open_fds",
            "max_fds",
            "start_time_seconds",
            "threads",
        ] {
            assert!(value(&format!("process_{name}")).unwrap() > 0.0, "{name}: {text}");
        }
        let spent = value(CPU_SECONDS).unwrap();
        assert!(spent > 0.0 && spent <= cpu_seconds(), "{text}");
    }

    #[test]
    fn all_that_is_shown_is_described_as_what_it_is() {
        let series = Series::default();
        register_process(&series, "agent").unwrap();
        let text = render(&[&series]);
        let described = series.described();
        assert_eq!(text.matches("# TYPE ").count(), described.len());
        for family in described {
            let (name, kind) = (family.name, family.kind.name());
            assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name} {text}");
        }
    }
}
