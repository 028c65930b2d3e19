//! Families of series that labels tell apart.
//!
//! The `prometheus` crate's own know a series by a hash of its values joined without anything between them: a stage `rerank2` with
//! connection 1 and a stage `rerank` with connection 21 are one to them, counted under the labels of whichever came first and
//! removed with either. These compare the values.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use prometheus::core::{Collector, Desc, Describer, Metric};
use prometheus::proto::{MetricFamily, MetricType};
use prometheus::{Counter, Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, Opts};

/// Counters of one family.
pub type Counters = Labelled<IntCounter>;
/// Gauges of one family.
pub type Gauges = Labelled<IntGauge>;
/// Histograms of one family.
pub type Histograms = Labelled<Histogram>;

/// A family whose series have values of the same labels. Clones share them.
pub struct Labelled<M: Measured>(Arc<Family<M>>);

struct Family<M: Measured> {
    opts: M::Opts,
    desc: Desc,
    /// In the order of their values. There are hundreds, and those that are asked for often are kept by who asks.
    series: RwLock<Vec<(Vec<String>, M)>>,
}

/// What a series may be.
pub trait Measured: Metric + 'static {
    type Opts: Describer + Clone + Send + Sync;
    const TYPE: MetricType;

    /// A series with these labels.
    fn measure(opts: Self::Opts, labels: HashMap<String, String>) -> prometheus::Result<Self>;

    /// The options of a family with these labels.
    fn family(opts: Self::Opts, labels: Vec<String>) -> Self::Opts;
}

macro_rules! measured {
    ($($metric:ty, $opts:ty, $kind:ident;)*) => {$(
        impl Measured for $metric {
            type Opts = $opts;
            const TYPE: MetricType = MetricType::$kind;

            fn measure(opts: $opts, labels: HashMap<String, String>) -> prometheus::Result<Self> {
                let labels = labels.into_iter();
                Self::with_opts(labels.fold(opts, |opts, (name, value)| opts.const_label(name, value)))
            }

            fn family(opts: $opts, labels: Vec<String>) -> $opts {
                opts.variable_labels(labels)
            }
        }
    )*};
}

measured! {
    IntCounter, Opts, COUNTER;
    Counter, Opts, COUNTER;
    IntGauge, Opts, GAUGE;
    Gauge, Opts, GAUGE;
    Histogram, HistogramOpts, HISTOGRAM;
}

impl<M: Measured> Labelled<M> {
    /// # Errors
    ///
    /// If one of the names is none, or comes twice.
    pub fn new(opts: M::Opts, labels: &[&str]) -> prometheus::Result<Self> {
        let labels = labels.iter().map(|&label| label.to_owned()).collect();
        let desc = M::family(opts.clone(), labels).describe()?;
        let family = Family {
            opts,
            desc,
            series: RwLock::default(),
        };
        Ok(Self(Arc::new(family)))
    }

    /// The series with these values, which is made where there is none.
    ///
    /// # Panics
    ///
    /// If there are not as many values as labels.
    pub fn with_label_values<V: AsRef<str>>(&self, values: &[V]) -> M {
        let family = &*self.0;
        assert_eq!(
            values.len(),
            family.desc.variable_labels.len(),
            "{} has the labels {:?}",
            family.desc.fq_name,
            family.desc.variable_labels
        );
        {
            let series = family.series.read();
            if let Ok(at) = position(&series, values) {
                return series[at].1.clone();
            }
        }
        let mut series = family.series.write();
        match position(&series, values) {
            Ok(at) => series[at].1.clone(),
            Err(at) => {
                let values: Vec<_> = values.iter().map(|value| value.as_ref().to_owned()).collect();
                let labels = family.desc.variable_labels.iter().cloned();
                let labels = labels.zip(values.iter().cloned()).collect();
                let made = M::measure(family.opts.clone(), labels).expect("the family has the same names");
                series.insert(at, (values, made.clone()));
                made
            }
        }
    }

    /// Removes the series with these values, if there is one. Who has it counts on where nobody looks.
    pub fn remove<V: AsRef<str>>(&self, values: &[V]) {
        let mut series = self.0.series.write();
        if let Ok(at) = position(&series, values) {
            series.remove(at);
        }
    }

    /// Removes all series.
    pub fn clear(&self) {
        self.0.series.write().clear();
    }
}

/// Where the series with these values is, or else would be.
fn position<M, V: AsRef<str>>(series: &[(Vec<String>, M)], values: &[V]) -> Result<usize, usize> {
    series.binary_search_by(|(known, _)| {
        let known = known.iter().map(String::as_str);
        known.cmp(values.iter().map(AsRef::as_ref))
    })
}

impl<M: Measured> Clone for Labelled<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: Measured> Collector for Labelled<M> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut family = MetricFamily::default();
        family.set_name(self.0.desc.fq_name.clone());
        family.set_help(self.0.desc.help.clone());
        family.set_field_type(M::TYPE);
        let series = self.0.series.read();
        family.set_metric(series.iter().map(|(_, series)| series.metric()).collect());
        vec![family]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Series, render};

    fn page(series: &Series) -> String {
        render(&[series])
    }

    #[test]
    fn values_that_join_alike_are_two_series() {
        let series = Series::default();
        let batches = series
            .counters("batches_total", "Batches.", &["stage", "connection"])
            .unwrap();
        batches.with_label_values(&["rerank", "21"]).inc_by(3);
        let other = batches.with_label_values(&["rerank2", "1"]);
        other.inc();
        let both = "batches_total{connection=\"1\",stage=\"rerank2\"} 1\n\
                    batches_total{connection=\"21\",stage=\"rerank\"} 3\n# EOF\n";
        assert!(page(&series).ends_with(both), "{}", page(&series));
        batches.remove(&["rerank", "21"]);
        batches.remove(&["rerank", "21"]);
        other.inc();
        let one = "counter\nbatches_total{connection=\"1\",stage=\"rerank2\"} 2\n# EOF\n";
        assert!(page(&series).ends_with(one), "{}", page(&series));
        batches.clear();
        assert_eq!(page(&series), "# EOF\n");
    }

    #[test]
    #[should_panic = "batches_total has the labels [\"stage\"]"]
    fn there_are_as_many_values_as_labels() {
        let batches = Counters::new(Opts::new("batches_total", "Batches."), &["stage"]).unwrap();
        batches.with_label_values(&["a", "b"]);
    }

    #[test]
    fn a_label_comes_once() {
        assert!(Counters::new(Opts::new("a_total", "As."), &["stage", "stage"]).is_err());
        assert!(Gauges::new(Opts::new("a", "As."), &["no label"]).is_err());
    }

    proptest! {
        /// Whatever comes and goes, each series counts what was counted with its own values since it was made.
        #[test]
        fn each_counts_its_own(steps in proptest::collection::vec(("[ab]{0,2}", "[ab]{0,2}", 0u64..4), 0..60)) {
            let family = Counters::new(Opts::new("a_total", "As."), &["one", "two"]).unwrap();
            let mut expected = std::collections::BTreeMap::new();
            for (one, two, by) in steps {
                if by == 0 {
                    family.remove(&[&one, &two]);
                    expected.remove(&(one, two));
                } else {
                    family.with_label_values(&[&one, &two]).inc_by(by);
                    *expected.entry((one, two)).or_insert(0) += by;
                }
            }
            let series = family.0.series.read();
            let found: Vec<_> = series.iter().map(|(values, one)| (values.clone(), one.get())).collect();
            let expected: Vec<_> = expected.into_iter().map(|((one, two), count)| (vec![one, two], count)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
