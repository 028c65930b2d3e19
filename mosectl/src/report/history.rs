//! The revisions of a pipeline as `mosectl history` gives them.

use chrono::{DateTime, SecondsFormat};
use mosec_wire::control::proto;
use serde::Serialize;

use super::table::{dash, gist, table};
use crate::terminal::printable;

/// One revision. Fields are only ever added: scripts read this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct RecordReport {
    pub(crate) revision: u64,
    /// `starting`, `canary`, `rolling`, `serving`, `replaced`, `superseded` or `failed`.
    pub(crate) outcome: String,
    /// The revision that replaced or superseded it.
    pub(crate) replaced_by: Option<u64>,
    /// Why it failed.
    pub(crate) reason: Option<String>,
    /// The revision whose specification it took.
    pub(crate) rollback_of: Option<u64>,
    /// Name in the certificate of who deployed it; null where that is not known.
    pub(crate) by: Option<String>,
    /// When, in UTC as RFC 3339 writes it.
    pub(crate) at: String,
}

impl From<proto::RevisionRecord> for RecordReport {
    fn from(record: proto::RevisionRecord) -> Self {
        let given = |text: String| (!text.is_empty()).then_some(text);
        Self {
            revision: record.revision,
            outcome: record.outcome,
            replaced_by: record.replaced_by,
            reason: given(record.reason),
            rollback_of: record.rollback_of,
            by: given(record.by),
            at: date(record.at_unix_ms),
        }
    }
}

/// To the second. Empty where the number is no date.
pub(crate) fn date(unix_ms: u64) -> String {
    let date = i64::try_from(unix_ms)
        .ok()
        .and_then(DateTime::from_timestamp_millis);
    date.map_or_else(String::new, |date| {
        date.to_rfc3339_opts(SecondsFormat::Secs, true)
    })
}

/// As a table, the newest revision last.
pub(crate) fn render(records: &[RecordReport]) -> String {
    let mut table = table(&["REVISION", "OUTCOME", "DEPLOYED", "BY", "ROLLBACK OF", "REASON"]);
    for record in records {
        let outcome = match record.replaced_by {
            Some(by) => format!("{} by {by}", record.outcome),
            None => record.outcome.clone(),
        };
        table.add_row([
            record.revision.to_string(),
            printable(&outcome),
            record.at.clone(),
            record.by.as_deref().map_or_else(dash, printable),
            record.rollback_of.map_or_else(dash, |of| of.to_string()),
            record.reason.as_deref().map_or_else(dash, gist),
        ]);
    }
    format!("{}\n", table.trim_fmt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_a_line_for_people_and_an_object_for_programs() {
        let record = proto::RevisionRecord {
            revision: 9,
            by: "ann".into(),
            at_unix_ms: 1_795_628_100_123,
            rollback_of: Some(4),
            outcome: "replaced".into(),
            replaced_by: Some(12),
            reason: String::new(),
        };
        let unknown = proto::RevisionRecord {
            revision: 12,
            outcome: "failed".into(),
            reason: "not healthy within 9s: no node\nmore".into(),
            at_unix_ms: u64::MAX,
            ..Default::default()
        };
        let superseded = proto::RevisionRecord {
            revision: 11,
            outcome: "superseded".into(),
            replaced_by: Some(12),
            ..Default::default()
        };
        let records: Vec<_> = [record, superseded, unknown]
            .into_iter()
            .map(RecordReport::from)
            .collect();
        let lines = render(&records);
        let rows: Vec<Vec<&str>> = lines
            .lines()
            .map(|line| {
                line.split("  ")
                    .map(str::trim)
                    .filter(|cell| !cell.is_empty())
                    .collect()
            })
            .collect();
        assert_eq!(
            rows[0],
            ["REVISION", "OUTCOME", "DEPLOYED", "BY", "ROLLBACK OF", "REASON"]
        );
        assert_eq!(
            rows[1],
            ["9", "replaced by 12", "2026-11-25T17:35:00Z", "ann", "4", "-"]
        );
        assert_eq!(rows[2][..2], ["11", "superseded by 12"]);
        assert_eq!(rows[3][..2], ["12", "failed"]);
        assert!(lines.contains("not healthy within 9s: no node") && !lines.contains("more"));
        let json = serde_json::to_value(&records[0]).unwrap();
        assert_eq!(
            (&json["by"], &json["reason"]),
            (&"ann".into(), &serde_json::Value::Null)
        );
    }
}
