//! What becomes of requests whose replica was lost under them. Pure.

use mosec_types::spec::{Delivery, RouteIndex};
use mosec_types::{ErrorCode, PipelineSpec, StageIndex};
use tokio::time::Instant;

use crate::Request;

/// What was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The worker process died with the batch; the batch may be why.
    Worker,
    /// The way to the replica broke; whether it ran is not known.
    Link,
    /// The batch was turned away before it started.
    Refused,
}

/// A stage's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    pub delivery: Delivery,
    /// Most replicas that may be lost under one request.
    pub attempts: u32,
    /// By route: whether a stage after this one must never run twice. Whoever loses the way to this stage does not know how far
    /// its requests have come.
    pub once_later: Vec<bool>,
}

impl Rules {
    /// The rules of one stage of a pipeline, `None` if the pipeline has no such stage.
    pub fn of(spec: &PipelineSpec, stage: StageIndex) -> Option<Self> {
        let rules = spec.stage(stage)?;
        let is_once = |index: &StageIndex| {
            spec.stage(*index)
                .is_some_and(|stage| stage.delivery == Delivery::AtMostOnce)
        };
        let routes = spec.routes.iter().map(|route| {
            let mut later = route.stages.iter().skip_while(|&&index| index != stage).skip(1);
            later.any(is_once)
        });
        Some(Self {
            delivery: rules.delivery,
            attempts: rules.attempts,
            once_later: routes.collect(),
        })
    }

    /// Whether a request of this route may be sent again after such a loss, as far as delivery goes.
    fn allow_again(&self, loss: Loss, route: RouteIndex) -> bool {
        let once_later = || self.once_later.get(usize::from(route.0)) == Some(&true);
        match loss {
            Loss::Refused => true,
            Loss::Worker => self.delivery == Delivery::Retry,
            Loss::Link => self.delivery == Delivery::Retry && !once_later(),
        }
    }
}

/// The verdict on a lost batch.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Batches to send again, oldest first, before anything that is queued.
    pub retry: Vec<Vec<Request>>,
    /// Requests to fail now, and why.
    pub fail: Vec<(Request, ErrorCode)>,
}

/// Decides what becomes of `requests`, all of one lost batch.
///
/// After a worker's death each goes alone: the one that kills workers is found at the cost of one more worker, and its
/// neighbours are rid of it. A broken link says nothing about the batch, which stays together.
pub fn after_loss(requests: Vec<Request>, loss: Loss, rules: &Rules, now: Instant) -> Verdict {
    let mut verdict = Verdict::default();
    let mut together = Vec::new();
    for mut request in requests {
        if loss != Loss::Refused {
            request.losses = request.losses.saturating_add(1);
        }
        if let Some(code) = refusal(&request, loss, rules, now) {
            verdict.fail.push((request, code));
        } else if loss == Loss::Worker {
            verdict.retry.push(vec![request]);
        } else {
            together.push(request);
        }
    }
    if !together.is_empty() {
        verdict.retry.push(together);
    }
    verdict
}

fn refusal(request: &Request, loss: Loss, rules: &Rules, now: Instant) -> Option<ErrorCode> {
    if !request.reply.is_wanted() {
        return Some(ErrorCode::Cancelled);
    }
    if request.deadline <= now {
        return Some(ErrorCode::DeadlineExceeded);
    }
    // Events that have gone out cannot be taken back, and another run would repeat them.
    let started = request.stream.has_started();
    let final_code = match loss {
        Loss::Refused if !started => return None,
        Loss::Refused | Loss::Worker => ErrorCode::WorkerCrashed,
        Loss::Link => ErrorCode::ReplicaLost,
    };
    let spent = started || u32::from(request.losses) >= rules.attempts;
    (spent || !rules.allow_again(loss, request.route)).then_some(final_code)
}
