//! Series as text, in the dialect that MOSEC's scrapers have seen: Prometheus' format, with OpenMetrics' way to write
//! bounds and to end. Counters are declared under the names of their samples, which MOSEC does not do, and without which
//! Prometheus has neither their type nor their help.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use prometheus::proto::{Histogram, LabelPair, Metric, MetricFamily, MetricType};

use crate::Series;

/// Content type of [`render`]'s text.
pub const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All series of a process, whose parts may have registered some of one family each. Histograms without an observation
/// are left out, and so are families without a series.
pub fn render(parts: &[&Series]) -> String {
    let mut families: BTreeMap<String, Vec<MetricFamily>> = BTreeMap::new();
    for family in parts.iter().flat_map(|part| part.registry().gather()) {
        families.entry(family.name().to_owned()).or_default().push(family);
    }
    let mut text = String::new();
    for (name, parts) in families {
        // Writing to a string does not fail.
        let _ = write_family(&mut text, &name, &parts);
    }
    text.push_str("# EOF\n");
    text
}

fn write_family(out: &mut String, name: &str, parts: &[MetricFamily]) -> fmt::Result {
    let Some(family) = parts.first() else {
        return Ok(());
    };
    let kind = family.get_field_type();
    let has_data =
        |metric: &&Metric| kind != MetricType::HISTOGRAM || metric.get_histogram().get_sample_count() > 0;
    let metrics = parts.iter().flat_map(MetricFamily::get_metric);
    let metrics: Vec<_> = metrics.filter(has_data).collect();
    if metrics.is_empty() {
        return Ok(());
    }
    let kind_name = match kind {
        MetricType::COUNTER => "counter",
        MetricType::GAUGE => "gauge",
        MetricType::HISTOGRAM => "histogram",
        // The project has no others.
        _ => return Ok(()),
    };
    writeln!(out, "# HELP {name} {}", Escaped(family.help()))?;
    writeln!(out, "# TYPE {name} {kind_name}")?;
    for metric in metrics {
        let labels = metric.get_label();
        match kind {
            MetricType::COUNTER => {
                let value = metric.get_counter().get_value();
                writeln!(out, "{name}{} {value}", Labels(None, labels))?;
            }
            MetricType::GAUGE => {
                let value = metric.get_gauge().get_value();
                writeln!(out, "{name}{} {value}", Labels(None, labels))?;
            }
            _ => write_histogram(out, name, labels, metric.get_histogram())?,
        }
    }
    Ok(())
}

fn write_histogram(out: &mut String, name: &str, labels: &[LabelPair], histogram: &Histogram) -> fmt::Result {
    let (sum, count) = (histogram.get_sample_sum(), histogram.get_sample_count());
    writeln!(out, "{name}_sum{} {sum:?}", Labels(None, labels))?;
    writeln!(out, "{name}_count{} {count}", Labels(None, labels))?;
    for bucket in histogram.get_bucket() {
        // As `1.0`, not `1`.
        let bound = format!("{:?}", bucket.upper_bound());
        let reached = bucket.cumulative_count();
        writeln!(out, "{name}_bucket{} {reached}", Labels(Some(&bound), labels))?;
    }
    writeln!(out, "{name}_bucket{} {count}", Labels(Some("+Inf"), labels))
}

/// A series' labels, a bucket's bound before them.
struct Labels<'a>(Option<&'a str>, &'a [LabelPair]);

impl fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = self.0.map(|bound| ("le", bound));
        let labels = self.1.iter().map(|label| (label.name(), label.value()));
        for (index, (name, value)) in bound.into_iter().chain(labels).enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            write!(f, "{before}{name}=\"{}\"", Escaped(value))?;
        }
        match (self.0, self.1) {
            (None, []) => Ok(()),
            _ => f.write_char('}'),
        }
    }
}

struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ServiceSeries;
    use crate::series::Kind;

    /// A scrape of MOSEC 0.9.8, but for the order of families, series and labels, and the name by which the counter is
    /// declared.
    const SCRAPE: &str = r#"# HELP mosec_service_batch_size batch size for each connection in each stage.
# TYPE mosec_service_batch_size histogram
mosec_service_batch_size_sum{connection="2",stage="Bat_2"} 3.0
mosec_service_batch_size_count{connection="2",stage="Bat_2"} 3
mosec_service_batch_size_bucket{le="1.0",connection="2",stage="Bat_2"} 3
mosec_service_batch_size_bucket{le="2.0",connection="2",stage="Bat_2"} 3
mosec_service_batch_size_bucket{le="4.0",connection="2",stage="Bat_2"} 3
mosec_service_batch_size_bucket{le="8.0",connection="2",stage="Bat_2"} 3
mosec_service_batch_size_bucket{le="16.0",connection="2",stage="Bat_2"} 3
mosec_service_batch_size_bucket{le="32.0",connection="2",stage="Bat_2"} 3
mosec_service_batch_size_bucket{le="64.0",connection="2",stage="Bat_2"} 3
mosec_service_batch_size_bucket{le="128.0",connection="2",stage="Bat_2"} 3
mosec_service_batch_size_bucket{le="256.0",connection="2",stage="Bat_2"} 3
mosec_service_batch_size_bucket{le="512.0",connection="2",stage="Bat_2"} 3
mosec_service_batch_size_bucket{le="+Inf",connection="2",stage="Bat_2"} 3
# HELP mosec_service_process_duration_second process duration for each connection in each stage.
# TYPE mosec_service_process_duration_second histogram
mosec_service_process_duration_second_sum{connection="1",stage="Pre_1"} 0.25
mosec_service_process_duration_second_count{connection="1",stage="Pre_1"} 1
mosec_service_process_duration_second_bucket{le="0.001",connection="1",stage="Pre_1"} 0
mosec_service_process_duration_second_bucket{le="0.002",connection="1",stage="Pre_1"} 0
mosec_service_process_duration_second_bucket{le="0.004",connection="1",stage="Pre_1"} 0
mosec_service_process_duration_second_bucket{le="+Inf",connection="1",stage="Pre_1"} 1
mosec_service_process_duration_second_sum{connection="total",stage="total"} 0.5
mosec_service_process_duration_second_count{connection="total",stage="total"} 1
mosec_service_process_duration_second_bucket{le="0.001",connection="total",stage="total"} 0
mosec_service_process_duration_second_bucket{le="0.002",connection="total",stage="total"} 0
mosec_service_process_duration_second_bucket{le="0.004",connection="total",stage="total"} 0
mosec_service_process_duration_second_bucket{le="+Inf",connection="total",stage="total"} 1
# HELP mosec_service_remaining_task remaining tasks for the whole service.
# TYPE mosec_service_remaining_task gauge
mosec_service_remaining_task 0
# HELP mosec_service_throughput_total service inference endpoint throughput.
# TYPE mosec_service_throughput_total counter
mosec_service_throughput_total{code="200",endpoint="/inference"} 7
# EOF
"#;

    #[test]
    fn series_have_mosecs_text() {
        let service = ServiceSeries {
            timeout: Some(Duration::from_millis(4)),
            ..Default::default()
        };
        // The whole service's and the stages' are registered apart, by different parts of a process.
        let (whole, stages) = (Series::default(), Series::default());
        let total = service.request_duration(&whole).unwrap();
        let throughput = service.throughput(&whole).unwrap();
        service.remaining(&whole).unwrap();
        let durations = service.batch_process_duration(&stages).unwrap();
        let sizes = service.batch_size(&stages).unwrap();
        let times = service.batch_duration(&stages).unwrap();

        let idle = "# HELP mosec_service_remaining_task remaining tasks for the whole service.\n\
                    # TYPE mosec_service_remaining_task gauge\nmosec_service_remaining_task 0\n# EOF\n";
        let (first, second) = (["Pre_1", "1"], ["Bat_2", "2"]);
        let observed = durations.with_label_values(&first);
        let size = sizes.with_label_values(&second);
        let _never = times.with_label_values(&second);
        let both = [&stages, &whole];
        assert_eq!(render(&both), idle);

        observed.observe(0.25);
        total.observe(0.5);
        (0..3).for_each(|_| size.observe(1.0));
        throughput.with_label_values(&["200", "/inference"]).inc_by(7);
        assert_eq!(render(&both), SCRAPE);
    }

    #[test]
    fn names_and_values_of_any_kind_are_written() {
        let series = Series::default();
        series.counter("a_total", "line\nof \\ text").unwrap();
        let labelled = prometheus::Opts::new("b", "help").const_label("label", "a\"b\\c\nd");
        let gauge = prometheus::IntGauge::with_opts(labelled).unwrap();
        series.add(Kind::Gauge, gauge).unwrap();
        assert_eq!(
            render(&[&series]),
            "# HELP a_total line\\nof \\\\ text\n# TYPE a_total counter\na_total 0\n# HELP b help\n# TYPE b gauge\n\
             b{label=\"a\\\"b\\\\c\\nd\"} 0\n# EOF\n"
        );
    }
}
