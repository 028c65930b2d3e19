//! Which nodes gateways and agents cannot reach, in the leader's memory. Pure: `now` is passed in.
//!
//! Nothing is decided by it, as one that reports it may itself be what is cut off: it is there for people.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mosec_types::topology::Node;
use mosec_types::{NodeId, Unreachable};

/// How long a report is good. The next is due after a second, so five in a row are lost before it is forgotten.
pub const GOOD_FOR: Duration = Duration::from_secs(5);

/// Most of those that report whose reports are kept, with up to 64 nodes each. Beyond it one that is new is not heard: who
/// reads a thousand of them already knows.
pub const MAX_REPORTS: usize = 1024;

/// The last report of each that cannot reach all it needs.
#[derive(Debug, Default)]
pub struct Reach {
    /// By who reports: an agent's node, or one run of a gateway.
    reports: BTreeMap<String, Report>,
}

#[derive(Debug)]
struct Report {
    heard: Instant,
    /// Role and name, as people know it.
    from: String,
    nodes: Vec<Unreachable>,
}

/// A node that cannot be reached, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<'a> {
    pub from: &'a str,
    pub address: &'a str,
    pub cause: &'a str,
}

impl Reach {
    /// Takes a report, in place of the last one of the same `reporter`. Without nodes all is well there.
    pub fn report(&mut self, reporter: &str, from: &str, nodes: Vec<Unreachable>, now: Instant) {
        if nodes.is_empty() {
            self.reports.remove(reporter);
            return;
        }
        self.reports.retain(|_, report| report.is_good(now));
        if self.reports.len() >= MAX_REPORTS && !self.reports.contains_key(reporter) {
            return;
        }
        let report = Report {
            heard: now,
            from: from.to_owned(),
            nodes,
        };
        self.reports.insert(reporter.to_owned(), report);
    }

    /// What is known now, by node: of each that reports and each address, what it said last.
    ///
    /// A gateway that has just been started again is the same to people, though the report of its last run is still
    /// good; and a report may name a node many times.
    pub fn by_node(&self, now: Instant) -> BTreeMap<&NodeId, Vec<Found<'_>>> {
        let mut reports: Vec<_> = self
            .reports
            .values()
            .filter(|report| report.is_good(now))
            .collect();
        reports.sort_by_key(|report| report.heard);
        let mut nodes: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for report in reports {
            for found in &report.nodes {
                let from = (report.from.as_str(), found.address.as_str());
                nodes.entry(&found.node).or_default().insert(from, &*found.cause);
            }
        }
        let named = |((from, address), cause)| Found { from, address, cause };
        nodes
            .into_iter()
            .map(|(node, found)| (node, found.into_iter().map(named).collect()))
            .collect()
    }
}

impl Report {
    fn is_good(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard) < GOOD_FOR
    }
}

impl Found<'_> {
    /// Whether it is about where the node is now, and not about where it was when that was reported.
    pub fn is_about(&self, node: &Node) -> bool {
        self.address == node.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{node_id, up};

    fn found(node: &str) -> Vec<Unreachable> {
        vec![Unreachable::new(node_id(node), "a:7443", "no answer")]
    }

    fn from(reach: &Reach, node: &str, now: Instant) -> Vec<String> {
        let nodes = reach.by_node(now);
        let found = nodes.get(&node_id(node)).into_iter().flatten();
        found.map(|found| found.from.to_owned()).collect()
    }

    #[test]
    fn the_last_report_of_each_counts_while_it_is_good() {
        let (mut reach, start) = (Reach::default(), Instant::now());
        reach.report("1", "gateway/x", found("a"), start);
        reach.report("2", "gateway/y", found("a"), start + GOOD_FOR / 2);
        assert_eq!(
            from(&reach, "a", start + GOOD_FOR / 2),
            ["gateway/x", "gateway/y"]
        );
        assert_eq!(from(&reach, "a", start + GOOD_FOR), ["gateway/y"]);
        reach.report("2", "gateway/y", found("b"), start + GOOD_FOR);
        assert_eq!(from(&reach, "b", start + GOOD_FOR), ["gateway/y"]);
        assert_eq!(reach.reports.len(), 1, "what is no longer good takes no room");
        reach.report("2", "gateway/y", Vec::new(), start + GOOD_FOR);
        assert!(reach.reports.is_empty());
    }

    #[test]
    fn each_counts_once() {
        let (mut reach, start) = (Reach::default(), Instant::now());
        let caused = |cause: &str| Unreachable::new(node_id("a"), "a:7443", cause);
        // Its first run has the name that sorts last.
        reach.report("2", "gateway/x", vec![caused("no answer")], start);
        let restarted = vec![caused("refused"); 64];
        reach.report("1", "gateway/x", restarted, start + Duration::from_secs(1));
        let elsewhere = Unreachable::new(node_id("a"), "b:7443", "no answer");
        reach.report("3", "gateway/y", vec![caused("no answer"), elsewhere], start);
        let nodes = reach.by_node(start + Duration::from_secs(1));
        let found = nodes[&node_id("a")].iter();
        let found: Vec<_> = found
            .map(|found| (found.from, found.address, found.cause))
            .collect();
        assert_eq!(
            found,
            [
                ("gateway/x", "a:7443", "refused"),
                ("gateway/y", "a:7443", "no answer"),
                ("gateway/y", "b:7443", "no answer"),
            ]
        );
    }

    #[test]
    fn there_is_room_for_so_many() {
        let (mut reach, now) = (Reach::default(), Instant::now());
        for number in 0..=MAX_REPORTS {
            reach.report(&number.to_string(), "gateway/x", found("a"), now);
        }
        assert_eq!(reach.reports.len(), MAX_REPORTS);
        // One that is known is heard on.
        reach.report("0", "gateway/x", found("b"), now);
        assert_eq!(from(&reach, "b", now).len(), 1);
    }

    #[test]
    fn a_node_that_has_moved_is_not_meant() {
        let found = Found {
            from: "gateway/x",
            address: "elsewhere:7443",
            cause: "no answer",
        };
        assert!(!found.is_about(&up("a")));
        let found = Found {
            address: "a:7443",
            ..found
        };
        assert!(found.is_about(&up("a")));
    }
}
