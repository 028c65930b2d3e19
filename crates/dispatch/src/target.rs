//! Hot path. The seam between a dispatcher and what its batches go to: a batch, its credit, and its way back.

use std::sync::Arc;
use std::time::Duration;

use mosec_types::StageKey;

use crate::Request;
use crate::custody::Loss;

/// Names a target within its dispatcher.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(pub String);

/// Somewhere batches can be sent.
pub trait Target: Send + Sync {
    /// Takes a batch. Must not block; must answer every request, or give it back to the batch's [`Home`].
    fn send(&self, batch: Dispatched);
}

/// A batch on its way.
pub struct Dispatched {
    pub stage: StageKey,
    pub requests: Vec<Request>,
    /// Where lost requests go.
    pub home: Arc<dyn Home>,
    /// Held until the stage has finished with the batch.
    pub credit: Credit,
    /// How long a replica's credit was in hand while the batch waited for more requests, where it was formed here.
    pub collected: Option<Duration>,
}

/// The right to have one batch outstanding at a replica. Dropping it gives it back to whoever granted it.
pub struct Credit(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Credit {
    /// A credit that calls `give_back` when it is dropped.
    pub fn new(give_back: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(give_back)))
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        if let Some(give_back) = self.0.take() {
            give_back();
        }
    }
}

/// Whoever has custody of a batch.
pub trait Home: Send + Sync {
    /// Takes back requests that were lost before they were answered.
    fn lost(&self, requests: Vec<Request>, loss: Loss);
}
