//! What becomes of requests whose replica was lost under them. Pure.

use mosec_types::{ErrorCode, spec::Delivery};
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    pub delivery: Delivery,
    /// Most replicas that may be lost under one request.
    pub attempts: u32,
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
pub fn after_loss(requests: Vec<Request>, loss: Loss, rules: Rules, now: Instant) -> Verdict {
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

fn refusal(request: &Request, loss: Loss, rules: Rules, now: Instant) -> Option<ErrorCode> {
    if !request.reply.is_wanted() {
        return Some(ErrorCode::Cancelled);
    }
    if request.deadline <= now {
        return Some(ErrorCode::DeadlineExceeded);
    }
    let final_code = match loss {
        Loss::Refused => return None,
        Loss::Worker => ErrorCode::WorkerCrashed,
        Loss::Link => ErrorCode::ReplicaLost,
    };
    let spent = rules.delivery == Delivery::AtMostOnce || u32::from(request.losses) >= rules.attempts;
    spent.then_some(final_code)
}
