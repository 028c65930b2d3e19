//! The topology's last changes, for watchers to be led on by them. One feed for all streams of a member: each change is
//! worked out once.

use std::collections::VecDeque;
use std::sync::Arc;

use mosec_types::Topology;
use mosec_wire::control::proto::topology_update::Change;
use mosec_wire::control::{fingerprint, proto};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;

use crate::state::Model;

/// Most changes kept: minutes of a large rollout.
const MAX_CHANGES: usize = 1024;
/// Most bytes of changes kept; a topology of ten thousand replicas has half a megabyte.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// The changes that lead to the newest topology.
#[derive(Default)]
pub(crate) struct Feed(Mutex<State>);

#[derive(Default)]
struct State {
    newest: Arc<Topology>,
    /// Oldest first; each starts where the one before it ends.
    changes: VecDeque<Arc<Kept>>,
    bytes: usize,
}

/// A change, and what it starts from.
struct Kept {
    from_version: u64,
    from_crc: u32,
    bytes: usize,
    update: proto::TopologyUpdate,
}

/// What a watcher has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Have {
    /// A version that this feed has sent it.
    Sent(u64),
    /// A version that it says to have, with its checksum; without one it wants all anew.
    Told { version: u64, crc: Option<u32> },
}

impl Have {
    pub(crate) fn version(self) -> u64 {
        match self {
            Self::Sent(version) | Self::Told { version, .. } => version,
        }
    }
}

impl Feed {
    /// Takes note of the state's newest version.
    pub(crate) fn update(&self, model: &Model) {
        let mut state = self.0.lock();
        if model.version <= state.newest.version {
            return;
        }
        let topology = Arc::new(model.topology());
        let delta = topology.since(&state.newest);
        let update = proto::TopologyUpdate {
            version: topology.version,
            change: Some(Change::Delta((&delta).into())),
            members: Vec::new(),
        };
        let kept = Kept {
            from_version: state.newest.version,
            from_crc: fingerprint(&state.newest),
            bytes: update.encoded_len(),
            update,
        };
        state.bytes += kept.bytes;
        state.changes.push_back(Arc::new(kept));
        state.newest = topology;
        while state.changes.len() > MAX_CHANGES || state.bytes > MAX_BYTES {
            let Some(oldest) = state.changes.pop_front() else {
                break;
            };
            state.bytes -= oldest.bytes;
        }
    }

    /// What leads a watcher on to the newest topology: the changes since, or where there is a gap all of it. Nothing
    /// where it has that already, or one that is newer.
    pub(crate) fn since(&self, have: Option<Have>) -> Vec<proto::TopologyUpdate> {
        let (newest, changes) = {
            let state = self.0.lock();
            if have.is_some_and(|have| have.version() >= state.newest.version) {
                return Vec::new();
            }
            let starts_there = |kept: &&Arc<Kept>| match have {
                Some(Have::Sent(version)) => kept.from_version == version,
                Some(Have::Told { version, crc }) => {
                    kept.from_version == version && crc == Some(kept.from_crc)
                }
                None => false,
            };
            let changes = state.changes.iter().skip_while(|kept| !starts_there(kept));
            (state.newest.clone(), changes.cloned().collect::<Vec<_>>())
        };
        if changes.is_empty() {
            return vec![whole(&newest)];
        }
        changes.iter().map(|kept| kept.update.clone()).collect()
    }

    /// Keeps up with the state until `stop`, so that the changes are there when a watcher comes from another member.
    pub(crate) async fn run(&self, mut model: Receiver<Arc<Model>>, stop: CancellationToken) {
        loop {
            let now = model.borrow_and_update().clone();
            self.update(&now);
            tokio::select! {
                changed = model.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
        }
    }

    /// All of the newest topology.
    pub(crate) fn whole(&self) -> proto::TopologyUpdate {
        whole(&self.0.lock().newest.clone())
    }
}

fn whole(topology: &Topology) -> proto::TopologyUpdate {
    proto::TopologyUpdate {
        version: topology.version,
        change: Some(Change::Full(topology.into())),
        members: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{model, up};

    fn after(versions: impl IntoIterator<Item = u64>) -> Feed {
        let feed = Feed::default();
        for version in versions {
            feed.update(&model(version, [up(&format!("n{version}"))], vec![]));
        }
        feed
    }

    fn have(version: u64) -> Option<Have> {
        let crc = Some(fingerprint(
            &model(version, [up(&format!("n{version}"))], vec![]).topology(),
        ));
        Some(Have::Told { version, crc })
    }

    fn kinds(updates: &[proto::TopologyUpdate]) -> Vec<(u64, bool)> {
        let kind =
            |update: &proto::TopologyUpdate| (update.version, matches!(update.change, Some(Change::Full(_))));
        updates.iter().map(kind).collect()
    }

    #[test]
    fn a_watcher_is_led_on_from_what_it_has() {
        let feed = after([3, 5, 9]);
        assert_eq!(kinds(&feed.since(have(3))), [(5, false), (9, false)]);
        assert_eq!(kinds(&feed.since(have(5))), [(9, false)]);
        assert_eq!(kinds(&feed.since(Some(Have::Sent(5)))), [(9, false)]);
        assert_eq!(kinds(&feed.since(have(9))), []);
        assert_eq!(kinds(&feed.since(have(10))), []);
        for gap in [
            None,
            have(4),
            Some(Have::Told {
                version: 3,
                crc: None,
            }),
        ] {
            assert_eq!(kinds(&feed.since(gap)), [(9, true)], "{gap:?}");
        }
        let of_another = Some(Have::Told {
            version: 3,
            crc: Some(0),
        });
        assert_eq!(
            kinds(&feed.since(of_another)),
            [(9, true)],
            "the same number in another cluster"
        );
    }

    #[test]
    fn old_changes_are_forgotten() {
        let feed = after(1..=MAX_CHANGES as u64 + 10);
        assert_eq!(feed.0.lock().changes.len(), MAX_CHANGES);
        let newest = MAX_CHANGES as u64 + 10;
        assert_eq!(kinds(&feed.since(have(5))), [(newest, true)]);
        assert_eq!(feed.since(have(10)).len(), MAX_CHANGES);
    }
}
