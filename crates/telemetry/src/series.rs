//! Where the parts of a process register what they measure. It keeps what each series means beside its values, so that
//! `docs/metrics.md` is written from the code.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Opts, Registry};

use crate::labelled::{Counters, Gauges, Histograms};

/// The series of a process. Clones share them.
#[derive(Clone, Default)]
pub struct Series {
    registry: Registry,
    described: Arc<Mutex<Vec<Described>>>,
}

/// What a family of series is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// As its samples are called, but for a histogram's suffixes.
    pub name: String,
    pub kind: Kind,
    pub help: String,
    /// Names of the labels, in the order of the alphabet where they never change, before those that do.
    pub labels: Vec<String>,
}

/// How the values of a family move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only up, from zero: at the start of its process; of a link, with each new one; of what has holders, as a revision
    /// or a stage, when it is there again after its last holder went.
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    /// As Prometheus calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Every method's error: a family of that name is there already, or a name is not one.
impl Series {
    pub fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.add(Kind::Counter, IntCounter::new(name, help)?)
    }

    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Counters> {
        self.add(Kind::Counter, Counters::new(Opts::new(name, help), labels)?)
    }

    pub fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.add(Kind::Gauge, IntGauge::new(name, help)?)
    }

    /// Registers a gauge whose value is what `read` says whenever it is asked for. `read` must not wait.
    pub fn gauge_read(
        &self,
        name: &str,
        help: &str,
        read: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> prometheus::Result<()> {
        let gauge = IntGauge::new(name, help)?;
        self.add_mixed(|_| Kind::Gauge, Read { gauge, read })
    }

    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Gauges> {
        self.add(Kind::Gauge, Gauges::new(Opts::new(name, help), labels)?)
    }

    pub fn histogram(&self, opts: HistogramOpts) -> prometheus::Result<Histogram> {
        self.add(Kind::Histogram, Histogram::with_opts(opts)?)
    }

    pub fn histograms(&self, opts: HistogramOpts, labels: &[&str]) -> prometheus::Result<Histograms> {
        self.add(Kind::Histogram, Histograms::new(opts, labels)?)
    }

    /// Registers a collector of families of one kind, and gives it back as a handle.
    pub fn add<C: Collector + Clone + 'static>(&self, kind: Kind, collector: C) -> prometheus::Result<C> {
        self.add_mixed(|_| kind, collector.clone())?;
        Ok(collector)
    }

    /// Registers a collector of families of several kinds. `kind`: of a family, by its name.
    pub fn add_mixed<C: Collector + 'static>(
        &self,
        kind: impl Fn(&str) -> Kind,
        collector: C,
    ) -> prometheus::Result<()> {
        let described = |desc: &Desc| {
            let constant = desc.const_label_pairs.iter().map(|label| label.name().to_owned());
            Described {
                name: desc.fq_name.clone(),
                kind: kind(&desc.fq_name),
                help: desc.help.clone(),
                labels: constant.chain(desc.variable_labels.iter().cloned()).collect(),
            }
        };
        let described: Vec<_> = collector.desc().into_iter().map(described).collect();
        self.registry.register(Box::new(collector))?;
        self.described.lock().extend(described);
        Ok(())
    }

    /// All families, those without a value yet among them, in the order in which they were registered.
    pub fn described(&self) -> Vec<Described> {
        self.described.lock().clone()
    }

    pub fn registry(&self) -> &Registry {
        &self.registry
    }
}

/// A gauge that is read when it is asked for.
struct Read<F> {
    gauge: IntGauge,
    read: F,
}

impl<F: Fn() -> i64 + Send + Sync> Collector for Read<F> {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.gauge.set((self.read)());
        self.gauge.collect()
    }
}

/// A size or a count as gauges have it.
pub fn whole(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_value_yet_is_described() {
        let series = Series::default();
        series.counters("a_total", "As.", &["pipeline", "stage"]).unwrap();
        let bounds = HistogramOpts::new("b_seconds", "Bs.").const_label("stage", "total");
        series.histogram(bounds).unwrap();
        let described = |name: &str, kind, help: &str, labels: &[&str]| Described {
            name: name.into(),
            kind,
            help: help.into(),
            labels: labels.iter().map(|&label| label.into()).collect(),
        };
        let expected = [
            described("a_total", Kind::Counter, "As.", &["pipeline", "stage"]),
            described("b_seconds", Kind::Histogram, "Bs.", &["stage"]),
        ];
        assert_eq!(series.described(), expected);
    }

    #[test]
    fn a_name_is_registered_once() {
        let series = Series::default();
        series.gauge("a", "As.").unwrap();
        assert!(series.gauge("a", "As.").is_err());
        assert_eq!(series.described().len(), 1);
    }
}
