//! Decides when queued requests become a batch. Pure.

use std::time::Duration;

use mosec_types::spec::{Batching, MAX_LINK_REQUEST_BYTES};
use tokio::time::Instant;

/// What the policy sees of a stage's queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueView {
    pub requests: usize,
    pub oldest_arrival: Option<Instant>,
    /// The first deadline of those who would be in a batch that is not full. `Adaptive` batching alone looks at it.
    pub nearest_deadline: Option<Instant>,
    /// How long the stage's batches take, `None` before the first.
    pub batch_time: Option<Duration>,
}

/// A stage's own limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub max_requests: usize,
    /// Most bytes of a batch of several requests. One that is larger by itself goes alone.
    pub max_bytes: usize,
    /// Longest time the oldest request waits for others.
    pub max_wait: Duration,
    pub batching: Batching,
}

/// Default of [`Limits::max_bytes`]: what a link's frame carries.
pub const DEFAULT_MAX_BYTES: usize = MAX_LINK_REQUEST_BYTES as usize;

/// How many requests of these sizes, oldest first, make the next batch.
pub fn fitting(sizes: impl IntoIterator<Item = usize>, limits: Limits) -> usize {
    let mut bytes = 0usize;
    let fits = |&(index, size): &(usize, usize)| {
        bytes = bytes.saturating_add(size);
        index == 0 || bytes <= limits.max_bytes
    };
    sizes
        .into_iter()
        .take(limits.max_requests)
        .enumerate()
        .take_while(fits)
        .count()
}

/// The best credit in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supply {
    /// None: every replica has all it may have.
    None,
    /// A batch sent now waits behind another at its replica.
    Prefetch,
    /// A replica would start on the batch at once.
    Idle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    Full,
    Waited,
    /// A replica would have nothing to do meanwhile.
    Unused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Close a batch of the oldest requests now.
    Close(CloseReason),
    /// Ask again at this time, or when a request or a credit arrives.
    WaitUntil(Instant),
    /// Ask again when a request or a credit arrives.
    Idle,
}

/// Decides whether a batch closes now.
///
/// A full batch takes any credit. One that is not full leaves for an idle replica: where it would wait behind another
/// batch, it had better wait here, where it still grows. `Adaptive` batching ends that too after a while.
pub fn decide(queue: QueueView, limits: Limits, supply: Supply, now: Instant) -> Decision {
    let Some(oldest) = queue.oldest_arrival else {
        return Decision::Idle;
    };
    if supply == Supply::None {
        return Decision::Idle;
    }
    if queue.requests >= limits.max_requests {
        return Decision::Close(CloseReason::Full);
    }
    let due = match (limits.batching, supply) {
        (Batching::Window, Supply::Idle) => oldest + limits.max_wait,
        (Batching::Window, _) => return Decision::Idle,
        (Batching::Adaptive, Supply::Idle) => return Decision::Close(CloseReason::Unused),
        (Batching::Adaptive, _) => patience(queue, limits, oldest),
    };
    if due <= now {
        Decision::Close(CloseReason::Waited)
    } else {
        Decision::WaitUntil(due)
    }
}

/// Until when a batch waits for an idle replica before it goes behind another one.
///
/// Within a batch's time some replica is done, so that waiting longer gains nothing; and by the nearest deadline its own
/// answers are to be there.
fn patience(queue: QueueView, limits: Limits, oldest: Instant) -> Instant {
    let wait = queue
        .batch_time
        .map_or(limits.max_wait, |time| time.min(limits.max_wait));
    let latest = queue.nearest_deadline.map(|deadline| {
        deadline
            .checked_sub(queue.batch_time.unwrap_or_default())
            .unwrap_or(oldest)
    });
    latest.map_or(oldest + wait, |latest| latest.min(oldest + wait))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_millis(10);

    #[test]
    fn the_table() {
        let start = Instant::now();
        let ms = |n| start + Duration::from_millis(n);
        let limits = Limits {
            max_requests: 4,
            max_bytes: 100,
            max_wait: WAIT,
            batching: Batching::Window,
        };
        let queue = |requests, oldest| QueueView {
            requests,
            oldest_arrival: oldest,
            ..QueueView::default()
        };
        let empty = queue(0, None);
        let some = queue(3, Some(ms(5)));
        let full = queue(4, Some(ms(5)));
        let cases = [
            (empty, Supply::Idle, 50, Decision::Idle),
            (some, Supply::None, 50, Decision::Idle),
            (full, Supply::None, 50, Decision::Idle),
            (full, Supply::Prefetch, 6, Decision::Close(CloseReason::Full)),
            (full, Supply::Idle, 6, Decision::Close(CloseReason::Full)),
            (
                queue(9, Some(ms(5))),
                Supply::Prefetch,
                6,
                Decision::Close(CloseReason::Full),
            ),
            (some, Supply::Prefetch, 50, Decision::Idle),
            (some, Supply::Idle, 6, Decision::WaitUntil(ms(15))),
            (some, Supply::Idle, 15, Decision::Close(CloseReason::Waited)),
            (some, Supply::Idle, 16, Decision::Close(CloseReason::Waited)),
        ];
        for (queue, supply, at, expected) in cases {
            assert_eq!(
                decide(queue, limits, supply, ms(at)),
                expected,
                "{queue:?} {supply:?} at {at}"
            );
        }
    }

    #[test]
    fn the_table_of_adaptive_batching() {
        let start = Instant::now();
        let ms = |n| start + Duration::from_millis(n);
        let limits = Limits {
            max_requests: 4,
            max_bytes: 100,
            max_wait: WAIT,
            batching: Batching::Adaptive,
        };
        // Three requests, the oldest of which came at 5 ms.
        let some = |batch_time: Option<u64>, deadline: Option<u64>| QueueView {
            requests: 3,
            oldest_arrival: Some(ms(5)),
            nearest_deadline: deadline.map(ms),
            batch_time: batch_time.map(Duration::from_millis),
        };
        let full = QueueView {
            requests: 4,
            ..some(Some(3), Some(900))
        };
        let (unused, waited) = (CloseReason::Unused, CloseReason::Waited);
        let cases = [
            (QueueView::default(), Supply::Idle, 50, Decision::Idle),
            (full, Supply::None, 6, Decision::Idle),
            (full, Supply::Prefetch, 6, Decision::Close(CloseReason::Full)),
            (some(Some(3), Some(900)), Supply::None, 50, Decision::Idle),
            // A replica has nothing to do: no window.
            (some(None, None), Supply::Idle, 5, Decision::Close(unused)),
            (some(Some(3), Some(900)), Supply::Idle, 5, Decision::Close(unused)),
            // All are busy: `max_wait`, where batches take longer or no time is known.
            (
                some(None, Some(900)),
                Supply::Prefetch,
                6,
                Decision::WaitUntil(ms(15)),
            ),
            (
                some(Some(80), Some(900)),
                Supply::Prefetch,
                6,
                Decision::WaitUntil(ms(15)),
            ),
            (
                some(Some(80), Some(900)),
                Supply::Prefetch,
                15,
                Decision::Close(waited),
            ),
            // The time of a batch, where that is shorter.
            (
                some(Some(3), Some(900)),
                Supply::Prefetch,
                6,
                Decision::WaitUntil(ms(8)),
            ),
            (
                some(Some(3), Some(900)),
                Supply::Prefetch,
                8,
                Decision::Close(waited),
            ),
            (
                some(Some(0), Some(900)),
                Supply::Prefetch,
                5,
                Decision::Close(waited),
            ),
            // A batch's time before the nearest deadline.
            (
                some(None, Some(12)),
                Supply::Prefetch,
                6,
                Decision::WaitUntil(ms(12)),
            ),
            (
                some(Some(9), Some(16)),
                Supply::Prefetch,
                6,
                Decision::WaitUntil(ms(7)),
            ),
            (
                some(Some(9), Some(16)),
                Supply::Prefetch,
                7,
                Decision::Close(waited),
            ),
            (
                some(Some(80), Some(16)),
                Supply::Prefetch,
                5,
                Decision::Close(waited),
            ),
        ];
        for (queue, supply, at, expected) in cases {
            assert_eq!(
                decide(queue, limits, supply, ms(at)),
                expected,
                "{queue:?} {supply:?} at {at}"
            );
        }
    }

    #[test]
    fn a_batch_is_bounded_by_requests_and_bytes() {
        let limits = Limits {
            max_requests: 3,
            max_bytes: 100,
            max_wait: WAIT,
            batching: Batching::Window,
        };
        for (sizes, expected) in [
            (&[][..], 0),
            (&[1, 1], 2),
            (&[1, 1, 1, 1], 3),
            (&[50, 50, 1], 2),
            (&[60, 50, 1], 1),
            (&[500, 1], 1),
            (&[usize::MAX, usize::MAX], 1),
        ] {
            assert_eq!(fitting(sizes.iter().copied(), limits), expected, "{sizes:?}");
        }
    }

    #[test]
    fn a_batch_of_one_never_waits() {
        let now = Instant::now();
        let limits = Limits {
            max_requests: 1,
            max_bytes: 100,
            max_wait: WAIT,
            batching: Batching::Window,
        };
        let queue = QueueView {
            requests: 1,
            oldest_arrival: Some(now),
            ..QueueView::default()
        };
        assert_eq!(
            decide(queue, limits, Supply::Prefetch, now),
            Decision::Close(CloseReason::Full)
        );
    }
}
