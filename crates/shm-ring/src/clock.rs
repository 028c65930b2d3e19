//! The clock that deadlines in shared memory are of: the machine's monotonic one, the same in every process.
//!
//! Python reads it as `time.monotonic()`.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds on the clock.
pub fn now_nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Since the machine's start, so neither part is negative nor large.
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Microseconds on the clock, as deadlines are written.
pub fn now_micros() -> u64 {
    now_nanos() / 1000
}
