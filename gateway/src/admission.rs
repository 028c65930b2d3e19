//! The one point where requests are let in: a permit for each in flight, none while draining.
//!
//! ```text
//! HTTP/1.1 ─┐
//!           ├─> request ──> admission ──> dispatcher (queue full, no replica) ──> replicas
//! HTTP/2  ──┘
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus::IntGauge;
use tokio::sync::watch;

/// Lets requests in until the gateway drains.
#[derive(Clone)]
pub(crate) struct Admission {
    draining: Arc<AtomicBool>,
    in_flight: watch::Sender<usize>,
    gauge: IntGauge,
}

/// The right of one request to be in flight. Dropping it gives it back.
pub(crate) struct Permit(Admission);

impl Admission {
    pub(crate) fn new(gauge: IntGauge) -> Self {
        Self {
            draining: Arc::default(),
            in_flight: watch::Sender::new(0),
            gauge,
        }
    }

    /// A permit, unless the gateway drains.
    pub(crate) fn admit(&self) -> Option<Permit> {
        // Counted first: a drain that begins in between waits for it, or it sees the drain.
        let permit = Permit::new(self.clone());
        (!self.is_draining()).then_some(permit)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Lets nobody in any more, and waits until everybody is out.
    pub(crate) async fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        let mut in_flight = self.in_flight.subscribe();
        // The sender lives as long as `self`.
        let _ = in_flight.wait_for(|&count| count == 0).await;
    }
}

impl Permit {
    fn new(admission: Admission) -> Self {
        admission.in_flight.send_modify(|count| *count += 1);
        admission.gauge.inc();
        Self(admission)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.in_flight.send_modify(|count| *count -= 1);
        self.0.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_those_inside_and_lets_nobody_in() {
        let admission = Admission::new(IntGauge::new("in_flight", "in flight").unwrap());
        let permit = admission.admit().unwrap();
        let drain = tokio::spawn({
            let admission = admission.clone();
            async move { admission.drain().await }
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(admission.admit().is_none());
        assert!(!drain.is_finished());
        drop(permit);
        drain.await.unwrap();
        assert_eq!(admission.gauge.get(), 0);
    }
}
