//! The dispatchers of a process by stage, and the windows its targets have announced.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use mosec_types::{ErrorCode, StageKey};
use mosec_wire::Window;
use parking_lot::RwLock;
use tokio::time::Instant;

use crate::{DispatchMetrics, Dispatcher, StageConfig, Target, TargetId};

/// What a dispatcher that is no longer wanted gets beyond its pipeline's longest request, within which everything it has is answered:
/// for answers that are on their way.
const RETIRE_MARGIN: Duration = Duration::from_secs(5);
const RETIRE_LOOK: Duration = Duration::from_millis(100);

/// Dispatchers and targets, matched by stage. Clones share it.
///
/// Either side may come first: a node announces a stage's window before this process has heard of the stage, or after.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<RwLock<Inner>>,
    metrics: DispatchMetrics,
}

#[derive(Default)]
struct Inner {
    dispatchers: HashMap<StageKey, Dispatcher>,
    windows: HashMap<StageKey, HashMap<TargetId, Announced>>,
    /// Dispatchers that are no longer wanted, each with the number of the task that waits for its end.
    retiring: HashMap<StageKey, u64>,
    /// Number of the last such task.
    waiters: u64,
}

#[derive(Clone)]
struct Announced {
    target: Arc<dyn Target>,
    window: Window,
}

impl Registry {
    pub fn new(metrics: DispatchMetrics) -> Self {
        Self {
            inner: Arc::default(),
            metrics,
        }
    }

    pub(crate) fn metrics(&self) -> &DispatchMetrics {
        &self.metrics
    }

    pub fn dispatcher(&self, stage: StageKey) -> Option<Dispatcher> {
        self.inner.read().dispatchers.get(&stage).cloned()
    }

    /// The stage's dispatcher, made if there is none. One that was about to retire stays.
    pub fn ensure(&self, config: StageConfig) -> Dispatcher {
        let mut inner = self.inner.write();
        let key = config.key;
        inner.retiring.remove(&key);
        if let Some(dispatcher) = inner.dispatchers.get(&key) {
            dispatcher.reinstate();
            return dispatcher.clone();
        }
        let dispatcher = Dispatcher::new(config, &self.metrics);
        for (id, announced) in inner.windows.get(&key).into_iter().flatten() {
            dispatcher.set_target(id, &announced.target, announced.window);
        }
        inner.dispatchers.insert(key, dispatcher.clone());
        dispatcher
    }

    /// Lets go of the dispatchers that `keep` does not name, each as soon as it has nothing left to do. One that is named
    /// again before that stays.
    pub fn retire(&self, keep: impl Fn(StageKey) -> bool) {
        let mut inner = self.inner.write();
        inner.retiring.retain(|&key, _| !keep(key));
        let gone = inner.dispatchers.keys().copied().filter(|&key| !keep(key));
        for key in gone.collect::<Vec<_>>() {
            if inner.retiring.contains_key(&key) {
                continue;
            }
            inner.waiters += 1;
            let number = inner.waiters;
            inner.retiring.insert(key, number);
            let registry = self.clone();
            // Ends with the dispatcher, which its pipeline's longest request bounds.
            tokio::spawn(async move { registry.retire_one(key, number).await });
        }
    }

    /// Gives back what waits for this stage and can be sent elsewhere, as another revision has taken its place.
    pub fn hand_back(&self, stage: StageKey) {
        // The lock is released first: who gets a request back asks for another dispatcher.
        if let Some(dispatcher) = self.dispatcher(stage) {
            dispatcher.hand_back();
        }
    }

    async fn retire_one(&self, key: StageKey, number: u64) {
        let Some(dispatcher) = self.dispatcher(key) else {
            return;
        };
        let end = Instant::now() + dispatcher.config().longest + RETIRE_MARGIN;
        loop {
            // A stage's credits return before its requests are answered, as later stages still work on them.
            let busy = dispatcher.queued() > 0 || dispatcher.has_custody();
            if !busy || Instant::now() >= end {
                break;
            }
            tokio::time::sleep(RETIRE_LOOK).await;
        }
        {
            let mut inner = self.inner.write();
            // It may be wanted again, and even have been let go of again since.
            if inner.retiring.get(&key) != Some(&number) {
                return;
            }
            inner.retiring.remove(&key);
            inner.dispatchers.remove(&key);
        }
        dispatcher.close(ErrorCode::Draining);
    }

    /// Takes note of a target's window for one stage.
    pub fn set_window(&self, stage: StageKey, id: &TargetId, target: &Arc<dyn Target>, window: Window) {
        let dispatcher = {
            let mut inner = self.inner.write();
            let windows = inner.windows.entry(stage).or_default();
            if window == Window::default() {
                windows.remove(id);
            } else {
                windows.insert(
                    id.clone(),
                    Announced {
                        target: target.clone(),
                        window,
                    },
                );
            }
            inner.dispatchers.get(&stage).cloned()
        };
        if let Some(dispatcher) = dispatcher {
            dispatcher.set_target(id, target, window);
        }
    }

    /// Longest time from a request's arrival to the end of its answer, of all stages here.
    pub(crate) fn longest_request(&self) -> Duration {
        let inner = self.inner.read();
        let timeouts = inner
            .dispatchers
            .values()
            .map(|dispatcher| dispatcher.config().longest);
        timeouts.max().unwrap_or_default()
    }

    /// Whether a dispatcher that may use the target has anything to do: requests that may go there, or batches that
    /// are there.
    pub(crate) fn is_busy(&self, id: &TargetId) -> bool {
        self.inner
            .read()
            .dispatchers
            .values()
            .any(|dispatcher| dispatcher.is_busy_with(id))
    }

    /// Sends nothing more to a target. What is out there stays.
    pub(crate) fn close_windows(&self, id: &TargetId) {
        let dispatchers: Vec<_> = {
            let mut inner = self.inner.write();
            inner.windows.retain(|_, windows| {
                windows.remove(id);
                !windows.is_empty()
            });
            inner.dispatchers.values().cloned().collect()
        };
        for dispatcher in dispatchers {
            dispatcher.close_window(id);
        }
    }

    /// Forgets a target with all its windows.
    pub fn remove_target(&self, id: &TargetId) {
        self.close_windows(id);
        let dispatchers: Vec<_> = self.inner.read().dispatchers.values().cloned().collect();
        for dispatcher in dispatchers {
            dispatcher.remove_target(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use tokio::runtime::Handle;
    use tokio::sync::oneshot;

    use super::*;
    use crate::tests::{DEADLINE, GRACE, request, spec};
    use crate::{Dispatched, Outcome, Request};

    /// Keeps the batches it is sent.
    #[derive(Default)]
    struct Kept(Mutex<Vec<Dispatched>>);

    impl Target for Kept {
        fn send(&self, batch: Dispatched) {
            self.0.lock().push(batch);
        }
    }

    struct Bench {
        registry: Registry,
        config: StageConfig,
        kept: Arc<Kept>,
        outcome: Option<oneshot::Receiver<Outcome>>,
    }

    impl Bench {
        /// A registry with one dispatcher, which has one batch out.
        fn busy(timeout: Duration) -> Self {
            let metrics = DispatchMetrics::new(&mosec_telemetry::Series::default()).unwrap();
            let key = StageKey {
                revision: Default::default(),
                stage: Default::default(),
            };
            let mut config = StageConfig::of(&spec(1, &[], &[&[0]]), key, GRACE).unwrap();
            config.longest = timeout;
            let mut bench = Self {
                registry: Registry::new(metrics),
                config,
                kept: Arc::default(),
                outcome: None,
            };
            let dispatcher = bench.registry.ensure(bench.config.clone());
            let target: Arc<dyn Target> = bench.kept.clone();
            let window = Window {
                replicas: 1,
                limit: 1,
            };
            bench
                .registry
                .set_window(bench.config.key, &TargetId("a".into()), &target, window);
            let (reply, outcome) = oneshot::channel();
            bench.outcome = Some(outcome);
            dispatcher.submit(Request {
                deadline: Instant::now() + timeout,
                ..request(1, reply)
            });
            bench
        }

        fn is_there(&self) -> bool {
            self.registry.dispatcher(self.config.key).is_some()
        }

        fn answer(&self) {
            for batch in std::mem::take(&mut *self.kept.0.lock()) {
                batch
                    .requests
                    .into_iter()
                    .for_each(|request| request.fail(ErrorCode::Ok));
            }
        }
    }

    async fn moment() {
        tokio::time::sleep(RETIRE_LOOK * 2).await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_task_waits_for_a_dispatcher_however_often_it_is_let_go() {
        let bench = Bench::busy(DEADLINE);
        let before = Handle::current().metrics().num_alive_tasks();
        for _ in 0..10 {
            bench.registry.retire(|_| false);
        }
        assert_eq!(Handle::current().metrics().num_alive_tasks(), before + 1);
        moment().await;
        assert!(bench.is_there(), "a batch is out");
        bench.answer();
        moment().await;
        assert!(!bench.is_there());
    }

    #[tokio::test(start_paused = true)]
    async fn a_dispatcher_may_finish_what_its_pipeline_gives_it_time_for() {
        let timeout = Duration::from_secs(600);
        let bench = Bench::busy(timeout);
        bench.registry.retire(|_| false);
        tokio::time::sleep(timeout - Duration::from_secs(1)).await;
        assert!(bench.is_there());
        // Whatever becomes of it.
        tokio::time::sleep(Duration::from_secs(1) + RETIRE_MARGIN + RETIRE_LOOK).await;
        assert!(!bench.is_there());
        bench.answer();
    }

    #[tokio::test(start_paused = true)]
    async fn a_dispatcher_takes_back_what_is_lost_at_later_stages() {
        let bench = Bench::busy(DEADLINE);
        // Its own stage is done: later ones, elsewhere, still work on the requests.
        let batch = bench.kept.0.lock().pop().unwrap();
        drop(batch.credit);
        bench.registry.retire(|_| false);
        moment().await;
        assert!(bench.is_there(), "they may come back");
        batch.home.lost(batch.requests, crate::custody::Loss::Link);
        drop(batch.home);
        assert_eq!(bench.kept.0.lock().len(), 1, "and are sent again");
        bench.answer();
        moment().await;
        assert!(!bench.is_there());
    }

    #[tokio::test(start_paused = true)]
    async fn a_dispatcher_that_is_wanted_again_stays() {
        for again in [
            (|bench: &Bench| bench.registry.retire(|_| true)) as fn(&Bench),
            |bench| drop(bench.registry.ensure(bench.config.clone())),
        ] {
            let bench = Bench::busy(DEADLINE);
            bench.registry.retire(|_| false);
            again(&bench);
            bench.answer();
            moment().await;
            assert!(bench.is_there());
            bench.registry.retire(|_| false);
            moment().await;
            assert!(!bench.is_there());
        }
    }
}
