//! Decides when queued requests become a batch. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// What the policy sees of a stage's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueView {
    pub requests: usize,
    pub oldest_arrival: Option<Instant>,
}

/// A stage's own limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub max_requests: usize,
    /// Most bytes of a batch of several requests. One that is larger by itself goes alone.
    pub max_bytes: usize,
    /// Longest time the oldest request waits for others.
    pub max_wait: Duration,
}

/// Default of [`Limits::max_bytes`]: what a link's frame carries, less its tables.
pub const DEFAULT_MAX_BYTES: usize = 60 << 20;

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
/// A full batch takes any credit. One that is not full leaves only for an idle replica: where it would wait behind
/// another batch, it had better wait here, where it still grows.
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
    if supply != Supply::Idle {
        return Decision::Idle;
    }
    match oldest + limits.max_wait {
        due if due <= now => Decision::Close(CloseReason::Waited),
        due => Decision::WaitUntil(due),
    }
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
        };
        let queue = |requests, oldest| QueueView {
            requests,
            oldest_arrival: oldest,
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
    fn a_batch_is_bounded_by_requests_and_bytes() {
        let limits = Limits {
            max_requests: 3,
            max_bytes: 100,
            max_wait: WAIT,
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
        };
        let queue = QueueView {
            requests: 1,
            oldest_arrival: Some(now),
        };
        assert_eq!(
            decide(queue, limits, Supply::Prefetch, now),
            Decision::Close(CloseReason::Full)
        );
    }
}
