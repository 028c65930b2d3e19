//! Series of what comes and goes, read when they are asked for: nothing is counted on a request's way, and nothing is left
//! of what is gone.

use std::sync::Arc;

use mosec_telemetry::{Kind, Labelled, Measured, Series};
use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, Opts};

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
    match kind {
        Kind::Counter => series.add_mixed(|_| kind, Scraped::<Counter>::new(families, labels, read)?),
        _ => series.add_mixed(|_| kind, Scraped::<Gauge>::new(families, labels, read)?),
    }
}

struct Scraped<M: Measured> {
    families: Vec<Labelled<M>>,
    /// For whoever fills and empties them.
    scrape: Mutex<()>,
    read: Arc<Read>,
}

impl<M: Measured<Opts = Opts>> Scraped<M> {
    fn new(families: &[Named], labels: &[&str], read: Arc<Read>) -> prometheus::Result<Self> {
        let families = families
            .iter()
            .map(|&(name, help)| Labelled::new(Opts::new(name, help), labels));
        Ok(Self {
            families: families.collect::<Result<_, _>>()?,
            scrape: Mutex::default(),
            read,
        })
    }
}

trait Put: Measured {
    /// Gives a series that has just been made its value.
    fn put(&self, value: f64);
}

impl Put for Gauge {
    fn put(&self, value: f64) {
        self.set(value);
    }
}

impl Put for Counter {
    fn put(&self, value: f64) {
        self.inc_by(value);
    }
}

impl<M: Put> Collector for Scraped<M> {
    fn desc(&self) -> Vec<&Desc> {
        self.families.iter().flat_map(Labelled::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Read first: whoever is asked may take its time. Of several scrapes at once each sees a whole reading.
        let readings = (self.read)();
        let _scrape = self.scrape.lock();
        for (labels, values) in &readings {
            for (family, &value) in self.families.iter().zip(values) {
                family.with_label_values(labels).put(value);
            }
        }
        let collected = self.families.iter().flat_map(Labelled::collect).collect();
        self.families.iter().for_each(Labelled::clear);
        collected
    }
}
