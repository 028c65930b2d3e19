//! What was deployed of each pipeline, by whom, and what became of it: what a rollback chooses from.

use std::sync::Arc;

use mosec_types::topology::Phase;
use mosec_types::{PipelineSpec, Revision};
use serde::{Deserialize, Serialize};

use super::command::Origin;

/// Most revisions remembered of a pipeline: enough to go back over a bad day, and a bound on what their
/// specifications take.
pub const MAX_REMEMBERED: usize = 10;

/// One revision of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub revision: Revision,
    pub spec: Arc<PipelineSpec>,
    pub origin: Origin,
    /// The revision whose specification it took, where it is a rollback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_of: Option<Revision>,
    pub outcome: Outcome,
}

/// What has become of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Starting,
    Canary,
    Rolling,
    Serving,
    /// It served, and then another did.
    Replaced {
        by: Revision,
    },
    /// A newer revision was deployed while it was on its way to serve. Of format 2: earlier ones have it as failed.
    Superseded {
        by: Revision,
    },
    Failed {
        reason: String,
    },
}

impl Outcome {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Canary => "canary",
            Self::Rolling => "rolling",
            Self::Serving => "serving",
            Self::Replaced { .. } => "replaced",
            Self::Superseded { .. } => "superseded",
            Self::Failed { .. } => "failed",
        }
    }
}

/// The revisions of one pipeline, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History(Vec<Record>);

impl History {
    pub fn records(&self) -> &[Record] {
        &self.0
    }

    pub fn find(&self, revision: Revision) -> Option<&Record> {
        self.0.iter().find(|record| record.revision == revision)
    }

    /// The revision that served last before the one that does now.
    pub fn previous(&self) -> Option<&Record> {
        let served = |record: &&Record| matches!(record.outcome, Outcome::Replaced { .. });
        self.0.iter().rev().find(served)
    }

    /// Adds a revision that starts. Beyond the bound the oldest goes that does not serve.
    pub(super) fn begin(&mut self, record: Record) {
        self.0.push(record);
        if self.0.len() > MAX_REMEMBERED {
            let oldest = self
                .0
                .iter()
                .position(|record| record.outcome != Outcome::Serving);
            self.0.remove(oldest.unwrap_or(0));
        }
    }

    /// Takes note that a newer revision has taken the place of one that was on its way.
    pub(super) fn supersede(&mut self, revision: Revision, by: Revision) {
        if let Some(record) = self.0.iter_mut().find(|record| record.revision == revision) {
            record.outcome = Outcome::Superseded { by };
        }
    }

    /// Takes note of a revision's phase; one that serves replaces the one that did.
    pub(super) fn note(&mut self, revision: Revision, phase: &Phase) {
        for record in &mut self.0 {
            record.outcome = match (phase, &record.outcome) {
                (Phase::Failed { reason }, _) if record.revision == revision => Outcome::Failed {
                    reason: reason.clone(),
                },
                (Phase::Serving, _) if record.revision == revision => Outcome::Serving,
                (Phase::Canary, _) if record.revision == revision => Outcome::Canary,
                (Phase::Rolling, _) if record.revision == revision => Outcome::Rolling,
                (Phase::Serving, Outcome::Serving) => Outcome::Replaced { by: revision },
                _ => continue,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{pipeline, stage};

    fn record(revision: u64) -> Record {
        Record {
            revision: Revision(revision),
            spec: Arc::new(pipeline("p", vec![stage("A", 1)])),
            origin: Origin::default(),
            rollback_of: None,
            outcome: Outcome::Starting,
        }
    }

    fn failed() -> Phase {
        Phase::Failed { reason: "why".into() }
    }

    fn outcomes(history: &History) -> Vec<(u64, &'static str)> {
        let row = |record: &Record| (record.revision.0, record.outcome.name());
        history.records().iter().map(row).collect()
    }

    #[test]
    fn one_serves_and_the_one_before_it_can_be_gone_back_to() {
        let mut history = History::default();
        assert_eq!(history.previous(), None);
        for (revision, phase) in [
            (3, Phase::Serving),
            (5, failed()),
            (8, Phase::Serving),
            (9, failed()),
        ] {
            history.begin(record(revision));
            history.note(Revision(revision), &phase);
        }
        let expected = [(3, "replaced"), (5, "failed"), (8, "serving"), (9, "failed")];
        assert_eq!(outcomes(&history), expected);
        assert_eq!(
            history.records()[0].outcome,
            Outcome::Replaced { by: Revision(8) }
        );
        assert_eq!(
            history.previous().map(|record| record.revision),
            Some(Revision(3))
        );
        assert!(history.find(Revision(5)).is_some() && history.find(Revision(4)).is_none());
    }

    #[test]
    fn it_is_bounded_and_keeps_what_serves() {
        let mut history = History::default();
        for revision in 1..=30 {
            history.begin(record(revision));
            let phase = if revision == 2 { Phase::Serving } else { failed() };
            history.note(Revision(revision), &phase);
        }
        assert_eq!(history.records().len(), MAX_REMEMBERED);
        let first = history.find(Revision(2)).expect("it serves");
        assert_eq!(first.outcome, Outcome::Serving);
        assert_eq!(outcomes(&history)[1].0, 22, "the newest of the others");
    }
}
