//! Where an agent stands with the control plane, for its series and its health.

use std::time::Duration;

use mosec_telemetry::Series;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::service::HEARTBEAT;

/// An acknowledgement holds for so long: after as much silence the leader calls the node suspect.
const LEASE: Duration = HEARTBEAT.saturating_mul(3);

/// When a heartbeat was last acknowledged.
pub(crate) type Acknowledged = watch::Receiver<Option<Instant>>;

/// Registers `mosec_agent_lease_held`, which is looked up at each scrape.
pub(crate) fn register_lease(series: &Series, acknowledged: Acknowledged) -> prometheus::Result<()> {
    series.gauge_read(
        "mosec_agent_lease_held",
        "Whether the control plane's leader acknowledges this node's heartbeats: 1 while it does, 0 after three seconds \
         without; what is placed here runs on without it.",
        move || {
            let last = *acknowledged.borrow();
            holds(last, Instant::now()).into()
        },
    )
}

fn holds(acknowledged: Option<Instant>, now: Instant) -> bool {
    acknowledged.is_some_and(|last| now.saturating_duration_since(last) < LEASE)
}

/// Whether an agent works, as whoever looks after its process should see it.
///
/// A control plane that is away does not make it ill: it serves on, and a restart would only take its workers away. Nor
/// does it while the agent starts from what it knew in an earlier run.
pub(crate) fn health(registered: bool, knows_topology: bool, draining: bool) -> Result<(), String> {
    match (registered || knows_topology, draining) {
        (_, true) => Err("it drains: what it has is finished, and nothing new is taken".into()),
        (false, false) => Err("it has not registered with the control plane yet".into()),
        (true, false) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use mosec_telemetry::render;

    use super::*;

    #[test]
    fn an_agent_is_ill_before_it_serves_and_while_it_drains() {
        // Registered, knows a topology, drains.
        let cases = [
            (false, false, false, Some("has not registered")),
            (true, false, false, None),
            (false, true, false, None),
            (true, true, true, Some("drains")),
            (false, false, true, Some("drains")),
        ];
        for (registered, knows, drains, reason) in cases {
            let found = health(registered, knows, drains).err();
            let is_it = |found: &String| reason.is_some_and(|reason| found.contains(reason));
            assert_eq!(
                found.as_ref().map(is_it),
                reason.map(|_| true),
                "{registered} {knows} {drains}: {found:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_held_as_long_as_heartbeats_are_acknowledged() {
        let (acknowledge, acknowledged) = watch::channel(None);
        let series = Series::default();
        register_lease(&series, acknowledged).unwrap();
        let held = || render(&[&series]).contains("\nmosec_agent_lease_held 1\n");
        assert!(!held());
        acknowledge.send_replace(Some(Instant::now()));
        assert!(held());
        tokio::time::advance(LEASE - Duration::from_millis(1)).await;
        assert!(held(), "a leader may be replaced");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!held());
        acknowledge.send_replace(Some(Instant::now()));
        assert!(held());
    }
}
