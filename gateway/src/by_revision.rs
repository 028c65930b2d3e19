//! Hot path. Something of each revision that takes requests, there for as long as its topology has the revision.

use std::collections::HashMap;

use mosec_types::topology::Deployment;
use mosec_types::{Revision, Topology};
use parking_lot::RwLock;

pub(crate) struct ByRevision<T>(RwLock<HashMap<Revision, T>>);

impl<T> Default for ByRevision<T> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<T> ByRevision<T> {
    /// Makes what revisions of the topology that take requests do not have yet, and drops what is of revisions that it does
    /// not have.
    pub(crate) fn follow(&self, topology: &Topology, make: impl Fn(&Deployment) -> T) {
        let mut known = self.0.write();
        let taking = |deployment: &&Deployment| deployment.phase.takes_requests();
        for deployment in topology.deployments.iter().filter(taking) {
            let missing = || make(deployment);
            known.entry(deployment.revision).or_insert_with(missing);
        }
        // Last: what a revision shares with the one that takes its place is held on to.
        known.retain(|&revision, _| topology.deployment(revision).is_some());
    }

    /// Looks at what a revision has; not where it is gone, whose last answers are not counted.
    pub(crate) fn look<R>(&self, revision: Revision, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.0.read().get(&revision).map(look)
    }

    pub(crate) fn map<R>(&self, each: impl Fn(Revision, &T) -> R) -> Vec<R> {
        let known = self.0.read();
        known
            .iter()
            .map(|(&revision, of_revision)| each(revision, of_revision))
            .collect()
    }
}
