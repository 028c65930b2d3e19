//! What gateways report of the revisions' requests, in the leader's memory. Pure: `now` is passed in.

use std::collections::BTreeMap;
use std::time::Instant;

use mosec_types::Revision;
use mosec_types::traffic::Counts;

use super::gateways;

/// The last report of each gateway. Counts grow from the gateway's start, so a leader that has just begun is told
/// all there is to know by the next reports.
#[derive(Debug, Default)]
pub struct Traffic {
    gateways: BTreeMap<String, Report>,
}

#[derive(Debug)]
struct Report {
    heard: Instant,
    counts: BTreeMap<Revision, Counts>,
}

impl Traffic {
    /// Takes a gateway's report. `gateway` names one run of it, as counts begin anew with each.
    pub fn report(&mut self, gateway: &str, counts: BTreeMap<Revision, Counts>, now: Instant) {
        let report = Report { heard: now, counts };
        self.gateways.insert(gateway.to_owned(), report);
        gateways::bound(&mut self.gateways, |report| report.heard);
    }

    /// All requests of a revision.
    pub fn of(&self, revision: Revision) -> Counts {
        let mut sum = Counts::default();
        for report in self.gateways.values() {
            sum += report.counts.get(&revision).copied().unwrap_or_default();
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::reconcile::gateways::MAX_GATEWAYS;

    fn counts(requests: u64) -> BTreeMap<Revision, Counts> {
        let counts = Counts {
            requests,
            ..Default::default()
        };
        BTreeMap::from([(Revision(5), counts)])
    }

    #[test]
    fn the_last_report_of_each_gateway_counts() {
        let (mut traffic, now) = (Traffic::default(), Instant::now());
        for (gateway, requests) in [("a", 10), ("b", 5), ("a", 12)] {
            traffic.report(gateway, counts(requests), now);
        }
        assert_eq!(traffic.of(Revision(5)).requests, 17);
        assert_eq!(traffic.of(Revision(6)), Counts::default());
    }

    #[test]
    fn the_most_silent_gateway_is_forgotten_first() {
        let (mut traffic, start) = (Traffic::default(), Instant::now());
        for number in 0..=MAX_GATEWAYS as u64 {
            traffic.report(
                &number.to_string(),
                counts(1),
                start + Duration::from_secs(number),
            );
        }
        assert_eq!(traffic.of(Revision(5)).requests, MAX_GATEWAYS as u64);
        assert!(!traffic.gateways.contains_key("0"));
    }
}
