//! How many batches a replica, a node and each of its upstreams may have outstanding. Pure.

use std::time::Duration;

use mosec_wire::Window;

/// Work that may wait in a replica's ring, as time: long enough to cover a round trip and a wake-up of the dispatcher
/// (about 0.1 ms on a busy machine) several times, so a replica does not run dry; short enough that a dying replica takes little with it.
const PREFETCH_TIME: Duration = Duration::from_micros(400);

/// Most batches outstanding at one replica; a quarter of its ring, so the ring never refuses.
pub const MAX_DEPTH: u32 = 16;

/// Batches that take longer are not prefetched: the way to the next one, a millisecond at most, costs a replica two in a
/// hundred, while what waits in the queue goes to whichever replica is free first, and in larger batches.
const PREFETCH_BELOW: Duration = Duration::from_millis(50);

/// Batches one replica may have outstanding: the running one, and what is prefetched for it.
///
/// `batch_time`: how long a batch takes there, `None` before the first. One batch is prefetched unless batches take long;
/// more only where they are so short that waking up for each would cost more than running it. Powers of two, so that
/// small changes of `batch_time` do not change the answer.
pub fn depth(batch_time: Option<Duration>) -> u32 {
    let Some(batch_time) = batch_time else { return 2 };
    if batch_time >= PREFETCH_BELOW {
        return 1;
    }
    let fits = PREFETCH_TIME.as_nanos() / batch_time.as_nanos().max(1);
    let fits = u32::try_from(fits).unwrap_or(u32::MAX).min(MAX_DEPTH);
    (fits + 1).next_power_of_two().clamp(2, MAX_DEPTH)
}

/// Least time that a batch has to have run before it counts as slow: below it, the work that waits is done soon anyway.
const LEAST_PATIENCE: Duration = Duration::from_millis(2);

/// The same where nothing is known of a replica's batches yet.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);

/// How long a batch may have run before nothing more is prefetched behind it: what would wait there goes to whichever
/// replica is free first. Four times as long as batches take on the whole, so that the common spread changes nothing.
pub fn patience(batch_time: Option<Duration>) -> Duration {
    batch_time.map_or(FIRST_PATIENCE, |time| (time * 4).max(LEAST_PATIENCE))
}

/// The share of a stage's capacity on a node that each of its upstreams gets.
///
/// `window`: the node's ready replicas and the sum of their depths. `upstreams`: how many may send to it. Everybody may
/// keep every replica busy only if alone; together they are granted no more than the capacity, rounded up so that each
/// has at least one credit. The node queues what that rounding lets through.
pub fn share(window: Window, upstreams: usize) -> Window {
    let upstreams = u32::try_from(upstreams.max(1)).unwrap_or(u32::MAX);
    Window {
        replicas: window.replicas.div_ceil(upstreams),
        limit: window.limit.div_ceil(upstreams),
    }
}

/// How long one batch took, of one that came back `elapsed` after it was sent behind `ahead` others to `replicas`.
pub fn time_of_one(elapsed: Duration, ahead: u32, replicas: u32) -> Duration {
    elapsed / (ahead / replicas.max(1)).saturating_add(1)
}

/// Running mean of a replica's batch time, weighted to the newest eight or so.
#[derive(Debug, Clone, Copy, Default)]
pub struct BatchTime(Option<Duration>);

impl BatchTime {
    pub fn observe(&mut self, sample: Duration) {
        self.0 = Some(match self.0 {
            None => sample,
            Some(mean) => (mean * 7 + sample) / 8,
        });
    }

    pub fn mean(self) -> Option<Duration> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_table() {
        for (micros, expected) in [
            (0, 16),
            (1, 16),
            (10, 16),
            (30, 16),
            (100, 8),
            (150, 4),
            (399, 2),
            (2_000, 2),
            (49_000, 2),
            (50_000, 1),
            (9_000_000, 1),
        ] {
            assert_eq!(
                depth(Some(Duration::from_micros(micros))),
                expected,
                "{micros} us"
            );
        }
        assert_eq!(depth(None), 2);
    }

    #[test]
    fn patience_table() {
        let micros = Duration::from_micros;
        for (time, expected) in [(None, 1_000_000), (Some(80), 2_000), (Some(30_000), 120_000)] {
            assert_eq!(patience(time.map(micros)), micros(expected), "{time:?}");
        }
    }

    #[test]
    fn share_table() {
        let window = |replicas, limit| Window { replicas, limit };
        for (all, upstreams, each) in [
            (window(0, 0), 0, window(0, 0)),
            (window(2, 4), 0, window(2, 4)),
            (window(2, 4), 1, window(2, 4)),
            (window(2, 4), 2, window(1, 2)),
            (window(2, 4), 3, window(1, 2)),
            (window(1, 2), 9, window(1, 1)),
        ] {
            assert_eq!(share(all, upstreams), each, "{all:?} among {upstreams}");
        }
    }

    #[test]
    fn time_of_one_table() {
        let ms = Duration::from_millis;
        for (elapsed, ahead, replicas, expected) in [
            (ms(12), 0, 1, ms(12)),
            (ms(12), 0, 0, ms(12)),
            (ms(12), 1, 1, ms(6)),
            (ms(12), 1, 2, ms(12)),
            (ms(12), 5, 2, ms(4)),
            (Duration::ZERO, u32::MAX, 0, Duration::ZERO),
        ] {
            let found = time_of_one(elapsed, ahead, replicas);
            assert_eq!(found, expected, "{elapsed:?} behind {ahead} for {replicas}");
        }
    }

    #[test]
    fn batch_time_follows() {
        let mut time = BatchTime::default();
        assert_eq!(time.mean(), None);
        time.observe(Duration::from_micros(80));
        assert_eq!(time.mean(), Some(Duration::from_micros(80)));
        time.observe(Duration::from_micros(160));
        assert_eq!(time.mean(), Some(Duration::from_micros(90)));
    }
}
