//! What a long run has shown, in words and tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::faults::Faults;
use crate::spec::History;

/// Sums over many histories.
#[derive(Default)]
pub struct Tally {
    pub histories: u64,
    /// Calls by kind and outcome.
    calls: BTreeMap<(&'static str, &'static str), u64>,
    faults: Faults,
    longest: usize,
    pub failures: Vec<String>,
}

impl Tally {
    pub fn add(&mut self, name: &str, history: &History, faults: &Faults, verdict: &Result<(), String>) {
        self.histories += 1;
        self.longest = self.longest.max(history.len());
        for call in history {
            *self
                .calls
                .entry((call.op.act.kind(), call.op.outcome.kind()))
                .or_default() += 1;
        }
        for (fault, times) in faults {
            *self.faults.entry(fault).or_default() += times;
        }
        if let Err(problem) = verdict {
            self.failures.push(format!("{name}: {problem}"));
        }
    }

    /// Tables of calls and faults, and what failed.
    pub fn tables(&self) -> String {
        let mut text = String::from("| call | ok | refused | unknown |\n|---|---|---|---|\n");
        let kinds: std::collections::BTreeSet<_> = self.calls.keys().map(|(kind, _)| *kind).collect();
        for kind in kinds {
            let count = |outcome| self.calls.get(&(kind, outcome)).copied().unwrap_or(0);
            let (ok, refused, unknown) = (count("ok"), count("refused"), count("unknown"));
            writeln!(text, "| {kind} | {ok} | {refused} | {unknown} |").unwrap();
        }
        writeln!(
            text,
            "\nThe longest history has {} calls.\n\n| fault | times |\n|---|---|",
            self.longest
        )
        .unwrap();
        for (fault, times) in &self.faults {
            writeln!(text, "| {fault} | {times} |").unwrap();
        }
        match self.failures.as_slice() {
            [] => text += "\nNo history was wrong.\n",
            failures => {
                writeln!(text, "\n{} histories were wrong:\n", failures.len()).unwrap();
                for failure in failures {
                    writeln!(text, "```\n{failure}\n```").unwrap();
                }
            }
        }
        text
    }
}

/// Writes a report into this directory.
pub fn write(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/sim")
        .join(file);
    std::fs::write(path, text).unwrap();
}

/// Today, as year, month and day.
pub fn today() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    date(since)
}

/// The day of the Gregorian calendar, from the days since 1970.
///
/// Source: Hinnant, "chrono-Compatible Low-Level Date Algorithms".
fn date(since_1970: Duration) -> String {
    let days = since_1970.as_secs() / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

#[test]
fn days_have_their_dates() {
    let day = |days: u64| date(Duration::from_secs(days * 86_400));
    assert_eq!(
        [day(0), day(11_016), day(20_782)],
        ["1970-01-01", "2000-02-29", "2026-11-25"]
    );
}
