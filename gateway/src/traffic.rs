//! Hot path. What becomes of each revision's requests, for the control plane to judge rollouts by.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mosec_types::traffic::Counts;
use mosec_types::{ErrorCode, PipelineSpec, Revision, Topology};

use crate::by_revision::ByRevision;

/// Counts of the revisions that take requests.
#[derive(Default)]
pub(crate) struct Traffic(ByRevision<Counter>);

#[derive(Default)]
struct Counter {
    requests: AtomicU64,
    errors: AtomicU64,
    slow: AtomicU64,
}

impl Traffic {
    /// Counts the revisions of a topology, and forgets all others.
    pub(crate) fn follow(&self, topology: &Topology) {
        self.0.follow(topology, |_| Counter::default());
    }

    /// Counts a request that was answered, unless it was refused for want of room: that says nothing of a revision, and
    /// beside many such its errors would be few. `took`: from its head to its answer, or to the first event of one that is
    /// a stream.
    pub(crate) fn note(&self, revision: Revision, spec: &PipelineSpec, code: ErrorCode, took: Duration) {
        if is_for_want_of_room(code) {
            return;
        }
        self.0.look(revision, |counter| {
            counter.requests.fetch_add(1, Ordering::Relaxed);
            if is_fault(code) {
                counter.errors.fetch_add(1, Ordering::Relaxed);
            }
            if spec.rollout.bounds.max_p99.is_some_and(|most| took > most) {
                counter.slow.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    /// All counts so far.
    pub(crate) fn counts(&self) -> Vec<(Revision, Counts)> {
        self.0.map(|revision, counter| {
            let counts = Counts {
                requests: counter.requests.load(Ordering::Relaxed),
                errors: counter.errors.load(Ordering::Relaxed),
                slow: counter.slow.load(Ordering::Relaxed),
            };
            (revision, counts)
        })
    }
}

fn is_for_want_of_room(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::QueueFull | ErrorCode::Draining | ErrorCode::BodyMemory
    )
}

/// Whether the service or the cluster is to blame, and not the client or the load.
fn is_fault(code: ErrorCode) -> bool {
    !is_for_want_of_room(code) && (code.http_status() >= 500 || code.http_status() == 408)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_and_load_are_not_held_against_a_revision() {
        let faults: Vec<_> = ErrorCode::all().filter(|&code| is_fault(code)).collect();
        for code in [
            ErrorCode::Inference,
            ErrorCode::Worker,
            ErrorCode::WorkerCrashed,
            ErrorCode::ForwardTimeout,
            ErrorCode::DeadlineExceeded,
            ErrorCode::NoReplica,
        ] {
            assert!(faults.contains(&code), "{code}");
        }
        for code in [
            ErrorCode::Ok,
            ErrorCode::Validation,
            ErrorCode::QueueFull,
            ErrorCode::Cancelled,
            ErrorCode::Draining,
        ] {
            assert!(!faults.contains(&code), "{code}");
        }
    }
}
