//! What each stage of this node grants, and the share of it that each upstream is told.

use std::collections::BTreeMap;
use std::sync::Arc;

use mosec_dispatch::{Window, credit};
use mosec_types::{PipelineSpec, StageIndex, StageKey};
use tokio::sync::watch;

/// Who sends batches to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Upstream {
    /// Sends to first stages.
    Gateway,
    /// Sends to later stages.
    Agent,
    /// The dispatchers of this process; send to the stages they have.
    Local,
}

/// The windows of all stages, and how many there are to share them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Granted {
    stages: BTreeMap<StageKey, Stage>,
    gateways: usize,
    agents: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stage {
    window: Window,
    place: Place,
}

/// Where a stage stands on the routes through it, which may be at different places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Some route begins with it: gateways send to it.
    pub(crate) first: bool,
    /// Some route comes to it from another stage: agents send to it.
    pub(crate) later: bool,
}

impl Place {
    pub(crate) fn of(spec: &PipelineSpec, stage: StageIndex) -> Self {
        let through = || spec.routes.iter().filter(|route| route.stages.contains(&stage));
        Self {
            first: through().any(|route| route.first() == Some(stage)),
            later: through().any(|route| route.first() != Some(stage)),
        }
    }
}

impl Granted {
    /// What one upstream of this kind may have outstanding, by stage.
    pub(crate) fn shares(&self, upstream: Upstream) -> BTreeMap<StageKey, Window> {
        self.stages
            .iter()
            .map(|(key, stage)| (*key, self.share(*stage, upstream)))
            .collect()
    }

    fn share(&self, stage: Stage, upstream: Upstream) -> Window {
        let Place { first, later } = stage.place;
        let gateways = if first { self.gateways } else { 0 };
        // This process's own dispatchers count as one more agent, or, in an embedded server, as the only gateway.
        let agents = if later { 1 + self.agents } else { 0 };
        let senders = match upstream {
            Upstream::Gateway if first => gateways + agents,
            Upstream::Agent if later => gateways + agents,
            Upstream::Local => (gateways + agents).max(1),
            Upstream::Gateway | Upstream::Agent => return Window::default(),
        };
        credit::share(stage.window, senders)
    }
}

/// The windows of this node, as they change. Clones share them.
#[derive(Clone)]
pub(crate) struct Windows(Arc<watch::Sender<Granted>>);

/// An upstream's presence; dropping it takes it away.
pub(crate) struct Present {
    windows: Windows,
    upstream: Upstream,
}

impl Windows {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Granted::default())))
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Granted> {
        self.0.subscribe()
    }

    pub(crate) fn set(&self, key: StageKey, place: Place, window: Window) {
        let stage = Stage { window, place };
        self.0
            .send_if_modified(|granted| granted.stages.insert(key, stage) != Some(stage));
    }

    pub(crate) fn remove(&self, key: StageKey) {
        self.0
            .send_if_modified(|granted| granted.stages.remove(&key).is_some());
    }

    pub(crate) fn enter(&self, upstream: Upstream) -> Present {
        self.count(upstream, 1);
        Present {
            windows: self.clone(),
            upstream,
        }
    }

    fn count(&self, upstream: Upstream, by: isize) {
        self.0.send_modify(|granted| match upstream {
            Upstream::Gateway => granted.gateways = granted.gateways.saturating_add_signed(by),
            Upstream::Agent => granted.agents = granted.agents.saturating_add_signed(by),
            Upstream::Local => {}
        });
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.windows.count(self.upstream, -1);
    }
}

/// What has changed between two sets of shares; a stage that is gone has a window of zero.
pub(crate) fn changes(
    old: &BTreeMap<StageKey, Window>,
    new: &BTreeMap<StageKey, Window>,
) -> Vec<(StageKey, Window)> {
    let gone = old
        .keys()
        .filter(|key| !new.contains_key(key))
        .map(|key| (*key, Window::default()));
    let changed = new
        .iter()
        .filter(|(key, window)| old.get(key) != Some(window))
        .map(|(key, window)| (*key, *window));
    gone.chain(changed).collect()
}

#[cfg(test)]
mod tests {
    use mosec_types::{Revision, StageIndex};

    use super::*;

    fn key(stage: u16) -> StageKey {
        StageKey {
            revision: Revision(1),
            stage: StageIndex(stage),
        }
    }

    const FIRST: Place = Place {
        first: true,
        later: false,
    };
    const LATER: Place = Place {
        first: false,
        later: true,
    };

    #[test]
    fn a_stage_that_is_first_and_later_is_open_to_all() {
        let windows = Windows::new();
        let place = Place {
            first: true,
            later: true,
        };
        windows.set(
            key(0),
            place,
            Window {
                replicas: 3,
                limit: 6,
            },
        );
        let _present = [windows.enter(Upstream::Gateway), windows.enter(Upstream::Agent)];
        let granted = windows.subscribe().borrow().clone();
        for upstream in [Upstream::Gateway, Upstream::Agent, Upstream::Local] {
            assert_eq!(
                granted.shares(upstream)[&key(0)],
                Window {
                    replicas: 1,
                    limit: 2
                },
                "{upstream:?}"
            );
        }
    }

    #[test]
    fn gateways_share_first_stages_and_agents_the_later_ones() {
        let windows = Windows::new();
        let window = Window {
            replicas: 2,
            limit: 4,
        };
        windows.set(key(0), FIRST, window);
        windows.set(key(1), LATER, window);
        let _present = [
            windows.enter(Upstream::Gateway),
            windows.enter(Upstream::Gateway),
            windows.enter(Upstream::Agent),
        ];
        let granted = windows.subscribe().borrow().clone();
        let half = Window {
            replicas: 1,
            limit: 2,
        };
        assert_eq!(
            granted.shares(Upstream::Gateway),
            BTreeMap::from([(key(0), half), (key(1), Window::default())])
        );
        assert_eq!(
            granted.shares(Upstream::Agent),
            BTreeMap::from([(key(0), Window::default()), (key(1), half)])
        );
        assert_eq!(granted.shares(Upstream::Local)[&key(1)], half);
    }

    #[test]
    fn an_upstream_that_leaves_is_not_counted() {
        let windows = Windows::new();
        windows.set(
            key(0),
            FIRST,
            Window {
                replicas: 1,
                limit: 4,
            },
        );
        let first = windows.enter(Upstream::Gateway);
        let second = windows.enter(Upstream::Gateway);
        drop(first);
        let granted = windows.subscribe().borrow().clone();
        assert_eq!(granted.shares(Upstream::Gateway)[&key(0)].limit, 4);
        drop(second);
    }

    #[test]
    fn only_changes_are_told() {
        let window = |limit| Window { replicas: 1, limit };
        let old = BTreeMap::from([(key(0), window(2)), (key(1), window(2))]);
        let new = BTreeMap::from([(key(1), window(4)), (key(2), window(2))]);
        assert_eq!(
            changes(&old, &new),
            [
                (key(0), Window::default()),
                (key(1), window(4)),
                (key(2), window(2))
            ]
        );
        assert_eq!(changes(&new, &new), []);
    }
}
