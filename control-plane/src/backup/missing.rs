//! Code that a backup lacks, and who would need it.

use std::collections::BTreeSet;
use std::fmt;

use mosec_types::{BundleId, PipelineName, Revision};

use crate::state::Model;

/// A bundle that no member could give when the backup was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    pub bundle: BundleId,
    /// What the leader said of it.
    pub why: String,
    /// The revisions that name it, and can be gone back to or run.
    pub revisions: BTreeSet<(PipelineName, Revision)>,
    /// Those of them that serve or are on their way: restored, they start no worker on a node that has not their code.
    pub needed_by: BTreeSet<(PipelineName, Revision)>,
}

impl Missing {
    pub(super) fn new(bundle: BundleId, why: String, model: &Model) -> Self {
        let remembered = model.histories.iter().flat_map(|(name, history)| {
            let records = history.records().iter();
            records.map(move |record| (name, record.revision, &*record.spec))
        });
        let rollouts = model.rollouts.values().map(|rollout| &rollout.deployment);
        let running = rollouts.clone().filter(|deployment| deployment.phase.runs());
        let of = |deployment: &mosec_types::topology::Deployment| {
            let names_it = deployment.spec.source.bundle == Some(bundle);
            names_it.then(|| (deployment.spec.name.clone(), deployment.revision))
        };
        let remembered = remembered
            .filter(|(_, _, spec)| spec.source.bundle == Some(bundle))
            .map(|(name, revision, _)| (name.clone(), revision));
        Self {
            bundle,
            why,
            revisions: remembered.chain(rollouts.filter_map(of)).collect(),
            needed_by: running.filter_map(of).collect(),
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the code of {} is missing", List(&self.revisions))?;
        if !self.needed_by.is_empty() {
            write!(f, ", which {} runs on", List(&self.needed_by))?;
        }
        write!(f, ": {}", self.why)
    }
}

/// Revisions by name and number.
struct List<'a>(&'a BTreeSet<(PipelineName, Revision)>);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, revision)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{name} {}", revision.0)?;
        }
        Ok(())
    }
}
