//! How long a revision is waited for. Pure: `now` is passed in.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::report::{Report, RevisionReport};

/// What the control plane is given beyond a deadline to say itself what was wrong.
const MARGIN: Duration = Duration::from_secs(3);
/// A canary that has had no request for so long has nobody who sends any. Gateways report every second.
const QUIET: Duration = Duration::from_secs(10);

/// Whether a revision is waited for any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patient {
    Waits,
    IsDone,
}

/// What makes a step of a rollout another one: its phase, the replicas that the revision has and those that it leaves to
/// the one that serves.
type Step = (&'static str, Vec<u32>, Vec<u32>);

/// The deadline of what a revision does now.
///
/// Each step of its rollout has the timeout to become ready, or with `progress_deadline` that time for each further replica,
/// and once it is, `min_healthy_time` and the timeout for what follows. A step that comes again has no time anew, so there
/// is an end whatever happens.
#[derive(Debug)]
pub(crate) struct Patience {
    timeout: Duration,
    deadline: Instant,
    /// All steps that were seen.
    steps: BTreeSet<Step>,
    /// Most replicas that were ready at once in this step.
    ready: u32,
    /// Whether all of them have been ready in this step.
    was_healthy: bool,
    /// Requests that the canary has had, and since when it has had no further one.
    requests: Option<(u64, Instant)>,
}

impl Patience {
    pub(crate) fn new(timeout: Duration, now: Instant) -> Self {
        Self {
            timeout,
            deadline: now + timeout + MARGIN,
            steps: BTreeSet::new(),
            ready: 0,
            was_healthy: false,
            requests: None,
        }
    }

    /// Whether there is time left, while nothing is known of the revision.
    pub(crate) fn lasts(&self, now: Instant) -> bool {
        now < self.deadline
    }

    /// Looks at a revision that has come to no end.
    pub(crate) fn look(&mut self, report: &Report, found: &RevisionReport, now: Instant) -> Patient {
        self.observe_step(report, found, now);
        let since = self.observe_requests(found, now);
        let is_quiet = found.waits_for_requests && now.saturating_duration_since(since) >= QUIET;
        if is_quiet || !self.lasts(now) {
            Patient::IsDone
        } else {
            Patient::Waits
        }
    }

    fn observe_step(&mut self, report: &Report, found: &RevisionReport, now: Instant) {
        let spec = &found.rollout;
        let limit = spec.progress_deadline.unwrap_or(self.timeout);
        if self.steps.insert(step(report, found)) {
            (self.ready, self.was_healthy) = (0, false);
            self.deadline = now + limit + MARGIN;
        }
        let ready = found.stages.iter().map(|stage| stage.ready).sum();
        if ready > self.ready {
            self.ready = ready;
            if spec.progress_deadline.is_some() {
                self.deadline = self.deadline.max(now + limit + MARGIN);
            }
        }
        let is_healthy = found.stages.iter().all(|stage| stage.ready >= stage.replicas);
        if is_healthy && !self.was_healthy {
            self.was_healthy = true;
            // A new leader counts the time anew, and what was ready may be missing again for a while.
            let healthy = now + spec.min_healthy_time + limit + MARGIN;
            self.deadline = self.deadline.max(healthy);
        }
    }

    /// Since when the canary has had no further request.
    fn observe_requests(&mut self, found: &RevisionReport, now: Instant) -> Instant {
        let requests = found.traffic.requests;
        let is_canary = found.phase == "canary";
        let (_, since) = match self.requests {
            // Fewer are those that a new leader has been told of.
            Some(known) if is_canary && known.0 == requests => known,
            _ => *self.requests.insert((requests, now)),
        };
        since
    }
}

fn step(report: &Report, found: &RevisionReport) -> Step {
    let counts = |of: &RevisionReport| of.stages.iter().map(|stage| stage.replicas).collect();
    let serving = report
        .pipelines
        .iter()
        .find(|other| other.name == found.name && other.phase == "serving");
    (
        found.phase,
        counts(found),
        serving.map(counts).unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::response;

    const TIMEOUT: Duration = Duration::from_secs(120);

    /// A rollout as it is seen second by second.
    struct Scene {
        report: Report,
        found: RevisionReport,
        patience: Patience,
        start: Instant,
    }

    impl Scene {
        fn new() -> Self {
            let report = Report::try_from(response()).unwrap();
            let mut found = report.revision(9).unwrap().clone();
            found.rollout.min_healthy_time = Duration::from_secs(10);
            let start = Instant::now();
            let patience = Patience::new(TIMEOUT, start);
            Self {
                report,
                found,
                patience,
                start,
            }
        }

        fn ready(&mut self, count: u32) {
            self.found.stages[1].ready = count;
        }

        fn look(&mut self, second: u64) -> Patient {
            let now = self.start + Duration::from_secs(second);
            self.patience.look(&self.report, &self.found, now)
        }

        /// The second in which the wait ends, each second from `from` on having a look; `change` is what happens before it.
        fn end(&mut self, from: u64, mut change: impl FnMut(&mut Self, u64)) -> u64 {
            (from..100_000)
                .find(|&second| {
                    change(self, second);
                    self.look(second) == Patient::IsDone
                })
                .expect("a wait has an end")
        }
    }

    #[test]
    fn a_step_has_the_timeout_to_become_ready() {
        assert_eq!(Scene::new().end(0, |_, _| {}), 123);
        // A further replica counts for nothing without progress_deadline.
        assert_eq!(
            Scene::new().end(0, |scene, second| scene.ready((second / 100) as u32)),
            123
        );
        // The next step has it anew.
        let mut scene = Scene::new();
        let next = |scene: &mut Scene, second| {
            scene.found.stages[1].replicas = if second < 50 { 2 } else { 4 };
        };
        assert_eq!(scene.end(0, next), 50 + 123);
    }

    #[test]
    fn a_further_replica_has_the_progress_deadline() {
        let mut scene = Scene::new();
        scene.found.rollout.progress_deadline = Some(Duration::from_secs(600));
        scene.found.stages[1].replicas = 9;
        let grows = |scene: &mut Scene, second| scene.ready(u32::from(second >= 500));
        assert_eq!(scene.end(0, grows), 500 + 603);
    }

    #[test]
    fn what_is_ready_has_the_time_to_prove_it() {
        let ready_at_100 = |scene: &mut Scene, second| scene.ready(if second < 100 { 0 } else { 2 });
        assert_eq!(Scene::new().end(0, ready_at_100), 100 + 10 + 123);
        let mut scene = Scene::new();
        scene.found.rollout.min_healthy_time = Duration::from_secs(3600);
        assert_eq!(scene.end(0, ready_at_100), 100 + 3600 + 123);
    }

    #[test]
    fn what_is_ready_again_and_again_has_no_time_anew() {
        let flaps = |scene: &mut Scene, second: u64| scene.ready(if second % 8 < 4 { 2 } else { 1 });
        assert_eq!(Scene::new().end(0, flaps), 10 + 123);
        let to_and_fro = |scene: &mut Scene, second: u64| {
            scene.ready(0);
            scene.found.stages[1].replicas = if second % 8 < 4 { 2 } else { 1 };
        };
        assert_eq!(Scene::new().end(0, to_and_fro), 4 + 123);
    }

    #[test]
    fn a_canary_that_nobody_asks_is_waited_for_no_longer_than_it_has_to_be_healthy() {
        let canary = |scene: &mut Scene, second: u64| {
            scene.ready(2);
            scene.found.phase = "canary";
            scene.found.waits_for_requests = second >= 10;
        };
        assert_eq!(Scene::new().end(0, canary), 10);
        // While requests come, it may be judged soon: but no longer than the timeout.
        let some = |scene: &mut Scene, second: u64| {
            canary(scene, second);
            scene.found.traffic.requests = second.min(40);
        };
        assert_eq!(Scene::new().end(0, some), 50);
        let slowly = |scene: &mut Scene, second: u64| {
            canary(scene, second);
            scene.found.traffic.requests = second;
        };
        assert_eq!(Scene::new().end(0, slowly), 10 + 123);
    }
}
