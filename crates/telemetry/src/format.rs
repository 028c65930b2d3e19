//! How a log line is written: MOSEC's keys as JSON, or a line of text for people.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};

use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// `{"timestamp": ..., "level": "INFO", "target": "mosec_gateway::server:58", "fields": {"message": ..., ...}}`, with
/// every value a string, as the readers of MOSEC's log know it.
pub(crate) struct JsonLines;

/// `2026-01-31T12:00:00.000000Z   INFO mosec_gateway::server:58 message key=value`.
pub(crate) struct TextLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        out.write_str("{\"timestamp\":\"")?;
        SystemTime.format_time(&mut out)?;
        write!(out, "\",\"level\":\"{}\",\"target\":", metadata.level())?;
        write_json(&mut out, &place(metadata))?;
        out.write_str(",\"fields\":{")?;
        for (index, (key, value)) in fields.0.iter().enumerate() {
            if index > 0 {
                out.write_char(',')?;
            }
            write_json(&mut out, key)?;
            out.write_char(':')?;
            write_json(&mut out, value)?;
        }
        out.write_str("}}\n")
    }
}

impl<S, N> FormatEvent<S, N> for TextLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let message = fields.0.remove("message").unwrap_or_default();
        SystemTime.format_time(&mut out)?;
        write!(out, "  {:>5} {} {message}", metadata.level(), place(metadata))?;
        for (key, value) in &fields.0 {
            write!(out, " {key}={value:?}")?;
        }
        out.write_char('\n')
    }
}

/// The target with the line, as MOSEC has it.
fn place(metadata: &Metadata<'_>) -> String {
    match metadata.line() {
        Some(line) => format!("{}:{line}", metadata.target()),
        None => metadata.target().to_owned(),
    }
}

fn write_json(out: &mut Writer<'_>, text: &str) -> fmt::Result {
    let quoted = serde_json::to_string(text).map_err(|_| fmt::Error)?;
    out.write_str(&quoted)
}

/// What an event says, sorted by key.
#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.0.insert(field.name(), value.to_string());
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Sink {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    fn written<F>(format: F, log: impl FnOnce()) -> String
    where
        F: for<'a> FormatEvent<tracing_subscriber::Registry, tracing_subscriber::fmt::format::DefaultFields>
            + Send
            + Sync
            + 'static,
    {
        use tracing_subscriber::layer::SubscriberExt as _;
        let sink = Sink::default();
        let layer = tracing_subscriber::fmt::layer()
            .event_format(format)
            .with_writer(sink.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    fn log() {
        let count = 7;
        tracing::warn!(target: "mosec", count, name = "a \"b\"\n", shown = %1.5, "it is \\ running");
    }

    #[test]
    fn json_has_mosecs_keys_and_only_strings_as_values() {
        let text = written(JsonLines, log);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        assert!(line["target"].as_str().unwrap().starts_with("mosec:"));
        assert_eq!(line["level"], "WARN");
        let time = line["timestamp"].as_str().unwrap();
        assert!(
            time.len() == "2026-11-22T11:43:58.064737Z".len() && time.ends_with('Z'),
            "{time}"
        );
        let fields = serde_json::json!({
            "count": "7", "message": "it is \\ running", "name": "a \"b\"\n", "shown": "1.5"
        });
        assert_eq!(line["fields"], fields);
        assert_eq!(line.as_object().unwrap().len(), 4);
    }

    #[test]
    fn text_has_the_message_before_the_rest() {
        let text = written(TextLines, log);
        let (_, rest) = text.split_once("Z   WARN mosec:").unwrap();
        let (_, rest) = rest.split_once(' ').unwrap();
        assert_eq!(
            rest,
            "it is \\ running count=\"7\" name=\"a \\\"b\\\"\\n\" shown=\"1.5\"\n"
        );
    }
}
