//! Where one request's time went, as a `server-timing` header.

use std::fmt::Write as _;
use std::time::Duration;

use mosec_types::{PipelineSpec, Span, SpanKind};

use crate::routes::stage_name;

/// Request header that asks for the trace. Its value does not matter.
pub(crate) const TRACE_HEADER: &str = "mosec-trace";

/// Writes the spans, and the gateway's own part as what is left of `total`, so that all add up to it.
///
/// Durations are milliseconds. `queue-2;desc="Find_2";dur=0.120` is the time in the queue of stage 2, counted from one.
pub(crate) fn server_timing(spec: &PipelineSpec, spans: &[Span], total: Duration) -> String {
    let total_micros = u32::try_from(total.as_micros()).unwrap_or(u32::MAX);
    let accounted = spans
        .iter()
        .fold(0u32, |sum, span| sum.saturating_add(span.micros));
    let mut text = String::new();
    entry(&mut text, "total", None, total_micros);
    entry(
        &mut text,
        SpanKind::Gateway.name(),
        None,
        total_micros.saturating_sub(accounted),
    );
    for span in merged(spans) {
        let name = format!("{}-{}", span.kind.name(), span.stage.0 + 1);
        entry(&mut text, &name, Some(stage_name(spec, span.stage)), span.micros);
    }
    text
}

/// One span for each kind and stage, in the order of their first appearance.
fn merged(spans: &[Span]) -> Vec<Span> {
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged
            .iter_mut()
            .find(|other| other.kind == span.kind && other.stage == span.stage)
        {
            Some(other) => other.micros = other.micros.saturating_add(span.micros),
            None => merged.push(*span),
        }
    }
    merged
}

fn entry(text: &mut String, name: &str, description: Option<&str>, micros: u32) {
    if !text.is_empty() {
        text.push_str(", ");
    }
    text.push_str(name);
    if let Some(description) = description {
        let _ = write!(text, ";desc=\"{}\"", description.replace(['"', '\\'], ""));
    }
    let _ = write!(text, ";dur={}.{:03}", micros / 1000, micros % 1000);
}

#[cfg(test)]
mod tests {
    use mosec_types::StageIndex;

    use super::*;

    #[test]
    fn spans_of_a_kind_and_stage_are_one_entry() {
        let span = |kind, stage, micros| Span {
            kind,
            stage: StageIndex(stage),
            micros,
        };
        let spans = [
            span(SpanKind::Queue, 0, 5),
            span(SpanKind::Agent, 0, 1),
            span(SpanKind::Worker, 0, 7),
            span(SpanKind::Agent, 0, 2),
            span(SpanKind::Agent, 1, 4),
        ];
        let micros: Vec<_> = merged(&spans).iter().map(|span| span.micros).collect();
        assert_eq!(micros, [5, 3, 7, 4]);
    }

    #[test]
    fn the_gateways_part_is_what_is_left() {
        let spec: PipelineSpec = serde_json::from_value(serde_json::json!({
            "name": "p", "source": {"dir": "/srv"}, "routes": [], "timeout": 1, "capacity": 1,
            "max_request_bytes": 1, "stages": [{
                "name": "a \"quoted\" \\ name", "module": "m", "class": "C", "replicas": 1, "max_batch_size": 1,
                "max_wait": 1, "timeout": 1, "attempts": 1, "mime": "x",
            }],
        }))
        .unwrap();
        let span = |micros| Span {
            kind: SpanKind::Worker,
            stage: StageIndex(0),
            micros,
        };
        let worker = "worker-1;desc=\"a quoted  name\"";
        for (spans, micros, expected) in [
            (vec![], 1_234, "total;dur=1.234, gateway;dur=1.234".to_owned()),
            (
                vec![span(1_000)],
                1_234,
                format!("total;dur=1.234, gateway;dur=0.234, {worker};dur=1.000"),
            ),
            // Clocks are read at different moments; nothing goes below zero.
            (
                vec![span(2_000)],
                1_234,
                format!("total;dur=1.234, gateway;dur=0.000, {worker};dur=2.000"),
            ),
            (
                vec![span(u32::MAX), span(1)],
                5,
                format!("total;dur=0.005, gateway;dur=0.000, {worker};dur=4294967.295"),
            ),
        ] {
            assert_eq!(
                server_timing(&spec, &spans, Duration::from_micros(micros)),
                expected
            );
        }
    }
}
