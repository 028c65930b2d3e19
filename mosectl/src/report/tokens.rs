//! Join tokens as `mosectl token list` gives them.

use mosec_wire::control::proto;
use serde::Serialize;

use super::history::date;
use super::table::{dash, table};
use crate::terminal::printable;

/// One token. Fields are only ever added: scripts read this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct TokenReport {
    pub(crate) id: String,
    /// `open`, `used up`, `expired` or `revoked`.
    pub(crate) state: String,
    pub(crate) role: String,
    /// The one name it is for; null for any.
    pub(crate) name: Option<String>,
    pub(crate) uses: u32,
    /// Names that have joined with it.
    pub(crate) used_by: Vec<String>,
    /// In UTC as RFC 3339 writes it.
    pub(crate) expires: String,
    pub(crate) created: String,
    pub(crate) created_by: Option<String>,
}

impl From<proto::TokenRecord> for TokenReport {
    fn from(record: proto::TokenRecord) -> Self {
        let given = |text: String| (!text.is_empty()).then_some(text);
        Self {
            id: record.id,
            state: record.state,
            role: record.role,
            name: given(record.name),
            uses: record.uses,
            used_by: record.used_by,
            expires: date(record.expires_at_unix_ms),
            created: date(record.created_at_unix_ms),
            created_by: given(record.created_by),
        }
    }
}

/// As a table.
pub(crate) fn render(tokens: &[TokenReport]) -> String {
    let mut table = table(&[
        "TOKEN", "STATE", "ROLE", "NAME", "USED", "EXPIRES", "BY", "USED BY",
    ]);
    for token in tokens {
        let used_by = match &token.used_by[..] {
            [] => dash(),
            [first] => printable(first),
            [first, others @ ..] => format!("{} and {} more", printable(first), others.len()),
        };
        table.add_row([
            printable(&token.id),
            printable(&token.state),
            printable(&token.role),
            token.name.as_deref().map_or_else(dash, printable),
            format!("{}/{}", token.used_by.len(), token.uses),
            token.expires.clone(),
            token.created_by.as_deref().map_or_else(dash, printable),
            used_by,
        ]);
    }
    format!("{}\n", table.trim_fmt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_line() {
        let token = TokenReport::from(proto::TokenRecord {
            id: "a1".into(),
            role: "agent".into(),
            uses: 3,
            used_by: vec!["gpu-1".into(), "gpu-2".into()],
            state: "open".into(),
            ..Default::default()
        });
        let text = render(&[token]);
        assert!(
            text.contains("2/3") && text.contains("gpu-1 and 1 more"),
            "{text}"
        );
    }
}
