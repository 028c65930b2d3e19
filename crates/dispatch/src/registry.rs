//! The dispatchers of a process by stage, and the windows its targets have announced.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use mosec_types::{ErrorCode, StageKey};
use mosec_wire::Window;
use parking_lot::RwLock;
use tokio::time::Instant;

use crate::{DispatchMetrics, Dispatcher, StageConfig, Target, TargetId};

/// How long a dispatcher that is no longer wanted may take to finish what it has. Requests have deadlines, far shorter
/// as a rule.
const RETIRE_TIMEOUT: Duration = Duration::from_secs(60);
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

    pub fn dispatcher(&self, stage: StageKey) -> Option<Dispatcher> {
        self.inner.read().dispatchers.get(&stage).cloned()
    }

    /// The stage's dispatcher, made if there is none.
    pub fn ensure(&self, config: StageConfig) -> Dispatcher {
        let mut inner = self.inner.write();
        let key = config.key;
        if let Some(dispatcher) = inner.dispatchers.get(&key) {
            return dispatcher.clone();
        }
        let dispatcher = Dispatcher::new(config, &self.metrics);
        for (id, announced) in inner.windows.get(&key).into_iter().flatten() {
            dispatcher.set_target(id, &announced.target, announced.window);
        }
        inner.dispatchers.insert(key, dispatcher.clone());
        dispatcher
    }

    /// Lets go of the dispatchers that `keep` does not name, each as soon as it has nothing left to do.
    pub fn retire(&self, keep: impl Fn(StageKey) -> bool) {
        let gone: Vec<_> = self
            .inner
            .read()
            .dispatchers
            .keys()
            .copied()
            .filter(|&key| !keep(key))
            .collect();
        for key in gone {
            let registry = self.clone();
            // Ends within RETIRE_TIMEOUT.
            tokio::spawn(async move { registry.retire_one(key).await });
        }
    }

    async fn retire_one(&self, key: StageKey) {
        let Some(dispatcher) = self.dispatcher(key) else {
            return;
        };
        let end = Instant::now() + RETIRE_TIMEOUT;
        while Instant::now() < end && (dispatcher.queued() > 0 || dispatcher.outstanding() > 0) {
            tokio::time::sleep(RETIRE_LOOK).await;
        }
        self.inner.write().dispatchers.remove(&key);
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
