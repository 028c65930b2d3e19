//! Decides how long to wait before a worker is started again. Pure.

use std::time::Duration;

/// A run that was ready for this long counts as good: what ended it is news, not a loop.
const GOOD_RUN: Duration = Duration::from_secs(1);
/// Pause after the second failure in a row; doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause: an operator who has mended the cause does not wait long for the effect.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Counts a replica's failures in a row.
#[derive(Debug, Default)]
pub(crate) struct BackOff {
    failures: u32,
}

impl BackOff {
    /// The pause after a run that was ready for `ready_for`, `None` if it never was.
    ///
    /// The first failure after a good run costs nothing: requests wait for this replica.
    pub(crate) fn after(&mut self, ready_for: Option<Duration>) -> Duration {
        if ready_for.is_some_and(|time| time >= GOOD_RUN) {
            self.failures = 0;
        }
        let pause = match self.failures {
            0 => Duration::ZERO,
            n => FIRST_PAUSE
                .saturating_mul(1 << (n - 1).min(16))
                .min(LONGEST_PAUSE),
        };
        self.failures = self.failures.saturating_add(1);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_wait_longer_and_a_good_run_resets() {
        let mut backoff = BackOff::default();
        let pauses: Vec<_> = (0..5).map(|_| backoff.after(None).as_millis()).collect();
        assert_eq!(pauses, [0, 100, 200, 400, 800]);
        assert_eq!(backoff.after(Some(GOOD_RUN / 2)).as_millis(), 1600);
        assert_eq!(backoff.after(Some(GOOD_RUN)), Duration::ZERO);
        assert_eq!(backoff.after(Some(Duration::ZERO)).as_millis(), 100);
    }

    #[test]
    fn the_pause_is_bounded() {
        let mut backoff = BackOff::default();
        let longest = (0..100).map(|_| backoff.after(None)).max();
        assert_eq!(longest, Some(LONGEST_PAUSE));
    }
}
