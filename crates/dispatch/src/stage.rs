//! What a dispatcher needs to know of its stage.

use std::time::Duration;

use mosec_types::{PipelineName, PipelineSpec, StageKey};

use crate::batch::{self, Limits};
use crate::custody::Rules;

/// A stage as its dispatcher sees it.
#[derive(Debug, Clone)]
pub struct StageConfig {
    pub key: StageKey,
    /// For labels and logs, as the stage's own name.
    pub pipeline: PipelineName,
    pub name: String,
    pub limits: Limits,
    /// Length of the queue, in requests.
    pub capacity: usize,
    pub rules: Rules,
    /// How long the stage may be without a ready replica before requests are refused: a worker's restart and a broken
    /// link's detection take less, and clients need not see them.
    pub grace: Duration,
    /// Longest time from a request's arrival to the end of its answer, all stages together.
    pub longest: Duration,
}

impl StageConfig {
    /// A stage of a pipeline, `None` if the pipeline has no such stage.
    pub fn of(spec: &PipelineSpec, key: StageKey, grace: Duration) -> Option<Self> {
        let stage = spec.stage(key.stage)?;
        Some(Self {
            key,
            pipeline: spec.name.clone(),
            name: stage.name.clone(),
            limits: Limits {
                max_requests: stage.max_batch_size as usize,
                max_bytes: batch::DEFAULT_MAX_BYTES,
                max_wait: stage.max_wait,
                batching: stage.batching,
            },
            capacity: spec.capacity as usize,
            rules: Rules::of(spec, key.stage)?,
            grace,
            longest: spec.longest_request(),
        })
    }
}
