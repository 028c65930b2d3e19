//! The audit trail as `mosectl audit` gives it.

use mosec_wire::control::proto;
use serde::Serialize;

use super::history::date;
use super::table::{dash, gist, table};
use crate::terminal::printable;

/// One thing that somebody asked for. Fields are only ever added: scripts read this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct AuditReport {
    /// Number of the log entry; of a deployment it is the revision's.
    pub(crate) entry: u64,
    /// When, in UTC as RFC 3339 writes it.
    pub(crate) at: String,
    /// Name in the certificate of who asked; null where that is not known.
    pub(crate) by: Option<String>,
    pub(crate) action: String,
    /// Why it was not done; null where it was.
    pub(crate) refusal: Option<String>,
}

impl From<proto::AuditRecord> for AuditReport {
    fn from(record: proto::AuditRecord) -> Self {
        let given = |text: String| (!text.is_empty()).then_some(text);
        Self {
            entry: record.index,
            at: date(record.at_unix_ms),
            by: given(record.by),
            action: record.action,
            refusal: given(record.refusal),
        }
    }
}

/// As a table, the newest last.
pub(crate) fn render(records: &[AuditReport]) -> String {
    let mut table = table(&["ENTRY", "AT", "BY", "ACTION", "REFUSED"]);
    for record in records {
        table.add_row([
            record.entry.to_string(),
            record.at.clone(),
            record.by.as_deref().map_or_else(dash, printable),
            printable(&record.action),
            record.refusal.as_deref().map_or_else(dash, gist),
        ]);
    }
    format!("{}\n", table.trim_fmt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_line_for_people_and_an_object_for_programs() {
        let record = proto::AuditRecord {
            index: 9,
            at_unix_ms: 1_795_628_100_123,
            by: "ann".into(),
            action: "delete echo".into(),
            refusal: "there is no pipeline echo".into(),
        };
        let records = [AuditReport::from(record)];
        let text = render(&records);
        let row: Vec<_> = text
            .lines()
            .nth(1)
            .unwrap()
            .split("  ")
            .filter(|cell| !cell.is_empty())
            .collect();
        assert_eq!(
            row,
            [
                "9",
                "2026-11-25T17:35:00Z",
                "ann",
                "delete echo",
                "there is no pipeline echo"
            ]
            .map(|cell| cell)
        );
        let json = serde_json::to_value(&records[0]).unwrap();
        assert_eq!((&json["entry"], &json["by"]), (&9.into(), &"ann".into()));
    }
}
