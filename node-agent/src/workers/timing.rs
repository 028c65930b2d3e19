//! Hot path. Where a request's time goes at a worker, and when it is over, as the worker counts.

use std::time::Duration;

use mosec_dispatch::Request;
use mosec_shm_ring::now_micros;
use mosec_types::{Span, SpanKind, StageIndex};
use tokio::time::Instant;

use crate::pool::Pool;

/// One moment on the two clocks: that of this process's deadlines, and that of shared memory.
pub(super) struct Clock {
    now: Instant,
    micros: u64,
}

impl Clock {
    pub(super) fn now() -> Self {
        Self {
            now: Instant::now(),
            micros: now_micros(),
        }
    }

    /// `deadline` as the worker reads it. One that has passed is not zero, which would mean none.
    pub(super) fn micros(&self, deadline: Instant) -> u64 {
        let left = deadline.saturating_duration_since(self.now).as_micros();
        self.micros
            .saturating_add(u64::try_from(left).unwrap_or(u64::MAX))
            .max(1)
    }
}

/// The times of one batch.
pub(super) struct Timing {
    pub(super) round_trip: Duration,
    pub(super) worker: Duration,
}

impl Timing {
    /// Notes them on a traced request.
    pub(super) fn note(&self, mut request: Request, pool: &Pool) -> Request {
        if request.traced {
            let stage = pool.stage.stage;
            let worker = self.worker.min(self.round_trip);
            request.spans.push(Span {
                kind: SpanKind::Shm,
                stage,
                micros: span_micros(self.round_trip - worker),
            });
            request.spans.push(Span {
                kind: SpanKind::Worker,
                stage,
                micros: span_micros(worker),
            });
        }
        request
    }
}

/// Notes the time between a batch's arrival in this process, or its last worker's ring, and its place in the ring.
pub(super) fn note_agent(mut request: Request, stage: StageIndex, now: Instant) -> Request {
    if request.traced {
        let waited = now.saturating_duration_since(request.arrived);
        request.spans.push(Span {
            kind: SpanKind::Agent,
            stage,
            micros: span_micros(waited),
        });
        // If it is lost, what it waits for from here on is noted after this.
        request.arrived = now;
    }
    request
}

fn span_micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}
