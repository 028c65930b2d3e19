//! MOSEC's series, as its dashboards know them: names, texts and buckets. The gateway has those of the whole service, and
//! whoever runs workers those of the stages.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntGauge};

use crate::{Counters, Histograms, Series};

/// Buckets of times where the service has no timeout of its own: up to nine minutes.
const DEFAULT_BUCKETS: usize = 20;
/// More than the largest timeout needs; bounds what an odd one makes.
const MAX_BUCKETS: usize = 40;
/// Buckets of the times to form a batch, up to four seconds, and of its sizes, up to 512.
const BATCH_TIME_BUCKETS: usize = 13;
const BATCH_SIZE_BUCKETS: usize = 10;

/// How a service's series are named and divided.
#[derive(Debug, Clone)]
pub struct ServiceSeries {
    /// Prefix of the names.
    pub namespace: String,
    /// The service's timeout, which the buckets of times reach; `None` where services with different ones share the series.
    pub timeout: Option<Duration>,
}

impl Default for ServiceSeries {
    fn default() -> Self {
        Self {
            namespace: "mosec_service".into(),
            timeout: None,
        }
    }
}

impl ServiceSeries {
    /// Answered requests.
    pub fn throughput(&self, series: &Series) -> prometheus::Result<Counters> {
        series.counters(
            &self.name("throughput_total"),
            "service inference endpoint throughput.",
            &["code", "endpoint"],
        )
    }

    /// Requests in progress.
    pub fn remaining(&self, series: &Series) -> prometheus::Result<IntGauge> {
        series.gauge(
            &self.name("remaining_task"),
            "remaining tasks for the whole service.",
        )
    }

    /// Times from a request to its answer.
    pub fn request_duration(&self, series: &Series) -> prometheus::Result<Histogram> {
        let opts = self.process_duration()?;
        series.histogram(
            opts.const_label("stage", "total")
                .const_label("connection", "total"),
        )
    }

    /// Times of batches, in the same family.
    pub fn batch_process_duration(&self, series: &Series) -> prometheus::Result<Histograms> {
        series.histograms(self.process_duration()?, &STAGE_LABELS)
    }

    fn process_duration(&self) -> prometheus::Result<HistogramOpts> {
        let buckets = seconds(self.timeout.map_or(DEFAULT_BUCKETS, bucket_count))?;
        Ok(self
            .opts(
                "process_duration_second",
                "process duration for each connection in each stage.",
            )
            .buckets(buckets))
    }

    /// Requests of a batch.
    pub fn batch_size(&self, series: &Series) -> prometheus::Result<Histograms> {
        let buckets = prometheus::exponential_buckets(1.0, 2.0, BATCH_SIZE_BUCKETS)?;
        let opts = self.opts("batch_size", "batch size for each connection in each stage.");
        series.histograms(opts.buckets(buckets), &STAGE_LABELS)
    }

    /// Times that batches waited for more requests.
    pub fn batch_duration(&self, series: &Series) -> prometheus::Result<Histograms> {
        let opts = self.opts(
            "batch_duration_second",
            "dynamic batching duration for each connection in each stage.",
        );
        series.histograms(opts.buckets(seconds(BATCH_TIME_BUCKETS)?), &STAGE_LABELS)
    }

    fn opts(&self, name: &str, help: &str) -> HistogramOpts {
        HistogramOpts::new(self.name(name), help)
    }

    fn name(&self, name: &str) -> String {
        format!("{}_{name}", self.namespace)
    }
}

/// A stage's name, and the number of its worker.
const STAGE_LABELS: [&str; 2] = ["stage", "connection"];

fn seconds(count: usize) -> prometheus::Result<Vec<f64>> {
    prometheus::exponential_buckets(0.001, 2.0, count)
}

/// Buckets from a millisecond on, each twice as large, so that one holds the timeout.
fn bucket_count(timeout: Duration) -> usize {
    let millis = timeout.as_millis().max(1) as f64;
    // At most 128, as there are no more bits.
    (millis.log2().ceil() as usize + 1).min(MAX_BUCKETS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bucket_holds_the_timeout() {
        for (millis, count, last) in [
            (1, 1, 0.001),
            (2, 2, 0.002),
            (3000, 13, 4.096),
            (4096, 13, 4.096),
            (4097, 14, 8.192),
            (8000, 14, 8.192),
        ] {
            let timeout = Duration::from_millis(millis);
            assert_eq!(bucket_count(timeout), count, "{millis}");
            let bounds = seconds(count).unwrap();
            assert!((bounds[count - 1] - last).abs() < 1e-9, "{millis}");
        }
        assert_eq!(bucket_count(Duration::MAX), MAX_BUCKETS);
        assert_eq!(bucket_count(Duration::ZERO), 1);
    }
}
