//! The revisions of one pipeline as `mosectl rollout status` gives them.

use super::table::{dash, gist, indent, table};
use super::{RevisionReport, StageReport};
use crate::terminal::printable;

/// As a table, and below it what the newest one waits for.
pub(crate) fn render(revisions: &[RevisionReport]) -> String {
    let mut table = table(&[
        "REVISION", "PHASE", "WEIGHT", "READY", "REQUESTS", "ERRORS", "SLOW", "REASON",
    ]);
    for revision in revisions {
        let traffic = &revision.traffic;
        table.add_row([
            revision.revision.to_string(),
            revision.phase.to_owned(),
            format!("{}%", revision.weight),
            revision.progress(),
            traffic.requests.to_string(),
            traffic.errors.to_string(),
            traffic.slow.to_string(),
            revision.reason.as_deref().map_or_else(dash, gist),
        ]);
    }
    let mut text = format!("{}\n", table.trim_fmt());
    for revision in revisions {
        if let Some(waits_for) = &revision.waits_for {
            text += &format!(
                "\nrevision {} waits for {}\n",
                revision.revision,
                printable(waits_for)
            );
        }
        for line in &revision.unplaced {
            text += &format!("\nrevision {}: {}\n", revision.revision, printable(line));
        }
    }
    if let Some((revision, reason)) = revisions
        .last()
        .and_then(|last| Some((last.revision, last.reason.as_ref()?)))
    {
        text += &format!("\nrevision {revision} failed:\n{}\n", indent(reason));
    }
    text
}

impl RevisionReport {
    /// Ready replicas of each stage, of those there are to be now and in the end, as `decode 1/2 (of 4)`.
    pub(crate) fn progress(&self) -> String {
        let stage = |stage: &StageReport| {
            let StageReport {
                name,
                ready,
                replicas,
                goal,
            } = stage;
            if replicas == goal {
                format!("{name} {ready}/{replicas}")
            } else {
                format!("{name} {ready}/{replicas} (of {goal})")
            }
        };
        self.stages.iter().map(stage).collect::<Vec<_>>().join("  ")
    }
}
