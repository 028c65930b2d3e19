//! Series of what comes and goes, read when they are asked for: nothing is counted on a request's way, and nothing is left
//! of what is gone.

use std::sync::Arc;

use mosec_telemetry::{Kind, Series};
use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{CounterVec, GaugeVec, Opts};

/// One thing's labels, and its values in the order of the families.
pub(crate) type Reading = (Vec<String>, Vec<f64>);

type Read = dyn Fn() -> Vec<Reading> + Send + Sync;

/// Name and help of one family.
pub(crate) type Named = (&'static str, &'static str);

/// Registers families with these labels, whose series are what `read` says whenever they are asked for.
pub(crate) fn register(
    series: &Series,
    kind: Kind,
    families: &[Named],
    labels: &[&str],
    read: impl Fn() -> Vec<Reading> + Send + Sync + 'static,
) -> prometheus::Result<()> {
    let read: Arc<Read> = Arc::new(read);
    let opts = families.iter().map(|&(name, help)| Opts::new(name, help));
    match kind {
        Kind::Counter => {
            let families = opts.map(|opts| CounterVec::new(opts, labels));
            series.add(kind, Scraped::new(families.collect::<Result<_, _>>()?, read))?;
        }
        _ => {
            let families = opts.map(|opts| GaugeVec::new(opts, labels));
            series.add(kind, Scraped::new(families.collect::<Result<_, _>>()?, read))?;
        }
    }
    Ok(())
}

#[derive(Clone)]
struct Scraped<F> {
    families: Arc<Mutex<Vec<F>>>,
    /// The same, for their descriptions.
    described: Vec<F>,
    read: Arc<Read>,
}

impl<F: Clone> Scraped<F> {
    fn new(families: Vec<F>, read: Arc<Read>) -> Self {
        Self {
            described: families.clone(),
            families: Arc::new(Mutex::new(families)),
            read,
        }
    }
}

trait Family: Collector {
    fn put(&self, labels: &[String], value: f64);
    fn clear(&self);
}

impl Family for GaugeVec {
    fn put(&self, labels: &[String], value: f64) {
        self.with_label_values(labels).set(value);
    }

    fn clear(&self) {
        self.reset();
    }
}

impl Family for CounterVec {
    fn put(&self, labels: &[String], value: f64) {
        self.with_label_values(labels).inc_by(value);
    }

    fn clear(&self) {
        self.reset();
    }
}

impl<F: Family> Collector for Scraped<F> {
    fn desc(&self) -> Vec<&Desc> {
        self.described.iter().flat_map(F::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Read first: whoever is asked may take its time. Of several scrapes at once each sees a whole reading.
        let readings = (self.read)();
        let families = self.families.lock();
        for (labels, values) in &readings {
            for (family, &value) in families.iter().zip(values) {
                family.put(labels, value);
            }
        }
        let collected = families.iter().flat_map(F::collect).collect();
        families.iter().for_each(F::clear);
        collected
    }
}
