//! Which gateways there are, in the leader's memory, by their reports. Pure: `now` is passed in.
//!
//! Nothing is decided by it: it is there for people. A leader that has just begun knows those that report to it, and none that
//! was lost before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a gateway may be silent. It reports each second, so three reports in a row are lost before it is.
pub const LOST_AFTER: Duration = Duration::from_secs(3);

/// How long one that is lost is shown: who looks after an incident still sees it, and one that will not come back goes.
pub const SHOWN_FOR: Duration = Duration::from_secs(60 * 60);

/// Most gateways of which anything is kept; beyond it, those that were silent for longest are forgotten.
pub const MAX_GATEWAYS: usize = 1024;

/// The gateways that have reported, and have not said that they end.
#[derive(Debug, Default)]
pub struct Gateways {
    /// By name: one that is started again is the same to people.
    known: BTreeMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    /// Names one run of it.
    run: String,
    build: String,
    heard: Instant,
}

/// A gateway as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gateway<'a> {
    pub name: &'a str,
    /// Version of the build that it runs.
    pub build: &'a str,
    /// Since its last report.
    pub silent: Duration,
}

impl Gateways {
    /// Takes note of a report by a `run` of the gateway `name`.
    pub fn heard(&mut self, name: &str, run: &str, build: &str, now: Instant) {
        self.known
            .retain(|_, known| now.saturating_duration_since(known.heard) < SHOWN_FOR);
        let known = Known {
            run: run.to_owned(),
            build: build.to_owned(),
            heard: now,
        };
        self.known.insert(name.to_owned(), known);
        bound(&mut self.known, |known| known.heard);
    }

    /// Forgets a gateway of which a `run` has said that it ends, unless another one has begun.
    pub fn ended(&mut self, name: &str, run: &str) {
        if self.known.get(name).is_some_and(|known| known.run == run) {
            self.known.remove(name);
        }
    }

    /// Those that are to be shown, by name.
    pub fn list(&self, now: Instant) -> impl Iterator<Item = Gateway<'_>> {
        let gateways = self.known.iter().map(move |(name, known)| Gateway {
            name,
            build: &known.build,
            silent: now.saturating_duration_since(known.heard),
        });
        gateways.filter(|gateway| gateway.silent < SHOWN_FOR)
    }
}

/// Forgets what is beyond [`MAX_GATEWAYS`], after one was added. `heard`: when a gateway reported last.
pub(super) fn bound<T>(gateways: &mut BTreeMap<String, T>, heard: impl Fn(&T) -> Instant) {
    if gateways.len() > MAX_GATEWAYS {
        let silent = gateways.iter().min_by_key(|(_, gateway)| heard(gateway));
        let silent = silent.map(|(name, _)| name.clone());
        silent.and_then(|name| gateways.remove(&name));
    }
}

impl Gateway<'_> {
    pub fn is_lost(&self) -> bool {
        self.silent >= LOST_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Names, and whether they are lost.
    fn listed(gateways: &Gateways, now: Instant) -> Vec<(&str, bool)> {
        let gateways = gateways.list(now);
        gateways
            .map(|gateway| (gateway.name, gateway.is_lost()))
            .collect()
    }

    #[test]
    fn a_silent_gateway_is_lost_and_then_forgotten() {
        let (mut gateways, start) = (Gateways::default(), Instant::now());
        gateways.heard("x", "1", "0.1.0", start);
        gateways.heard("y", "2", "0.1.0", start + 2 * SECOND);
        assert_eq!(listed(&gateways, start + LOST_AFTER), [("x", true), ("y", false)]);
        assert_eq!(listed(&gateways, start + SHOWN_FOR), [("y", true)]);
        gateways.heard("y", "2", "0.1.0", start + SHOWN_FOR);
        assert_eq!(gateways.known.len(), 1, "what is no longer shown takes no room");
    }

    #[test]
    fn a_gateway_that_is_started_again_is_the_same() {
        let (mut gateways, start) = (Gateways::default(), Instant::now());
        gateways.heard("x", "1", "0.1.0", start);
        gateways.heard("x", "2", "0.2.0", start + 9 * SECOND);
        let found: Vec<_> = gateways.list(start + 10 * SECOND).collect();
        let expected = Gateway {
            name: "x",
            build: "0.2.0",
            silent: SECOND,
        };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn one_that_ends_is_not_lost() {
        let (mut gateways, start) = (Gateways::default(), Instant::now());
        gateways.heard("x", "1", "0.1.0", start);
        gateways.heard("x", "2", "0.1.0", start);
        gateways.ended("x", "1");
        assert_eq!(listed(&gateways, start), [("x", false)], "the next run is there");
        gateways.ended("x", "2");
        gateways.ended("x", "2");
        assert!(listed(&gateways, start).is_empty());
    }

    #[test]
    fn the_most_silent_gateway_is_forgotten_first() {
        let (mut gateways, start) = (Gateways::default(), Instant::now());
        for number in 0..=MAX_GATEWAYS {
            let at = start + Duration::from_millis(number as u64);
            gateways.heard(&number.to_string(), "1", "0.1.0", at);
        }
        assert_eq!(gateways.known.len(), MAX_GATEWAYS);
        assert!(!gateways.known.contains_key("0"));
    }
}
