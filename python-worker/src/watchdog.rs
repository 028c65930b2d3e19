//! Interrupts a `forward` that overruns its limit, at no cost for those that do not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid, kill_process};

/// No `forward` runs.
const IDLE: u64 = 0;

/// Knows when the running `forward` began.
pub(crate) struct Watchdog {
    epoch: Instant,
    /// Nanoseconds after `epoch` at which `forward` began, or [`IDLE`]. Nothing else is published by it.
    started: Arc<AtomicU64>,
}

impl Watchdog {
    /// Watches from a thread of its own, which ends with the process.
    ///
    /// On an overrun the process gets SIGALRM, once. The kernel gives a process's signals to its main thread, where `forward` runs.
    pub(crate) fn start(limit: Duration) -> std::io::Result<Self> {
        let watchdog = Self {
            epoch: Instant::now(),
            started: Arc::new(AtomicU64::new(IDLE)),
        };
        let (epoch, started) = (watchdog.epoch, watchdog.started.clone());
        std::thread::Builder::new()
            .name("mosec-watchdog".into())
            .spawn(move || watch(epoch, &started, limit))?;
        Ok(watchdog)
    }

    pub(crate) fn forward_started(&self) {
        let nanos = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.started.store(nanos.max(1), Ordering::Relaxed);
    }

    pub(crate) fn forward_ended(&self) {
        self.started.store(IDLE, Ordering::Relaxed);
    }
}

/// Sleeps until the earliest moment at which an overrun is possible, and looks again.
fn watch(epoch: Instant, started: &AtomicU64, limit: Duration) {
    let mut alarmed = IDLE;
    loop {
        let began = started.load(Ordering::Relaxed);
        let pause = if began == IDLE || began == alarmed {
            // One that begins right now cannot overrun before this.
            limit
        } else {
            (Duration::from_nanos(began) + limit).saturating_sub(epoch.elapsed())
        };
        if pause.is_zero() {
            alarmed = began;
            if let Err(error) = kill_process(getpid(), Signal::ALARM) {
                tracing::error!(%error, "a forward that overruns could not be interrupted");
            }
        } else {
            std::thread::sleep(pause);
        }
    }
}
