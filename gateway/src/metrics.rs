//! MOSEC's series of the whole service.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry};

pub(crate) struct Metrics {
    throughput: IntCounterVec,
    duration: Histogram,
    pub(crate) remaining: IntGauge,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry, namespace: &str) -> prometheus::Result<Self> {
        let throughput = IntCounterVec::new(
            Opts::new(
                format!("{namespace}_throughput_total"),
                "service inference endpoint throughput.",
            ),
            &["code", "endpoint"],
        )?;
        let duration = Histogram::with_opts(
            HistogramOpts::new(
                format!("{namespace}_process_duration_second"),
                "process duration for each connection in each stage.",
            )
            .const_label("stage", "total")
            .const_label("connection", "total")
            .buckets(prometheus::exponential_buckets(0.001, 2.0, 13)?),
        )?;
        let remaining = IntGauge::new(
            format!("{namespace}_remaining_task"),
            "remaining tasks for the whole service.",
        )?;
        registry.register(Box::new(throughput.clone()))?;
        registry.register(Box::new(duration.clone()))?;
        registry.register(Box::new(remaining.clone()))?;
        Ok(Self {
            throughput,
            duration,
            remaining,
        })
    }

    /// Counts a finished request. `path` is a route's, so the label is bounded.
    pub(crate) fn finished(&self, status: u16, path: &str, took: Duration) {
        self.throughput
            .with_label_values(&[status.to_string().as_str(), path])
            .inc();
        if status == 200 {
            self.duration.observe(took.as_secs_f64());
        }
    }
}
