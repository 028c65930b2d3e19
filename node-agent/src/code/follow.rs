//! Follows the topology: gets code ready ahead of the workers that will run it, and removes what is no longer needed.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use mosec_types::spec::PythonSource;
use mosec_types::topology::Deployment;
use mosec_types::{NodeId, Revision, Topology};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{Code, prepare};

/// Workers of a revision that goes are still there when the topology changes; what they hold is looked at a little later.
const SETTLE: Duration = Duration::from_secs(2);

/// Follows until `stop` or the end of the topology.
///
/// Where an update has no room for both, a worker of the old revision ends before one of the new starts: the less there is
/// to be fetched and installed in between, the better.
pub(crate) async fn follow(
    code: Code,
    node: NodeId,
    python: String,
    mut topology: watch::Receiver<Arc<Topology>>,
    stop: CancellationToken,
) {
    let look = async {
        let mut ahead: HashMap<Revision, AbortOnDropHandle<()>> = HashMap::new();
        loop {
            let now = topology.borrow_and_update().clone();
            // Before the first one is known, everything may be needed.
            if now.version > 0 {
                let wanted = ahead_of_workers(&now, &node);
                ahead.retain(|revision, _| wanted.contains_key(revision));
                for (revision, source) in wanted {
                    ahead
                        .entry(revision)
                        .or_insert_with(|| get_ready(&code, source, &python));
                }
                tokio::time::sleep(SETTLE).await;
                code.sweep(named(&now)).await;
            }
            if topology.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = look => {}
        () = stop.cancelled() => {}
    }
}

fn get_ready(code: &Code, source: PythonSource, python: &str) -> AbortOnDropHandle<()> {
    let (code, python) = (code.clone(), python.to_owned());
    AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = prepare(Some(&code), &source, &python).await {
            // Whoever needs it says so.
            tracing::debug!(%error, "code could not be got ready ahead");
        }
    }))
}

/// The sources of revisions that run here, or may soon: another revision of their pipeline does.
fn ahead_of_workers(topology: &Topology, node: &NodeId) -> HashMap<Revision, PythonSource> {
    let running = || {
        topology
            .deployments
            .iter()
            .filter(|deployment| deployment.phase.runs())
    };
    let is_here = |deployment: &&Deployment| deployment.placements.iter().any(|place| place.node == *node);
    let pipelines: BTreeSet<_> = running()
        .filter(is_here)
        .map(|deployment| &deployment.spec.name)
        .collect();
    running()
        .filter(|deployment| pipelines.contains(&deployment.spec.name))
        .map(|deployment| (deployment.revision, deployment.spec.source.clone()))
        .filter(|(_, source)| source.bundle.is_some() || !source.requirements.is_empty())
        .collect()
}

/// The bundles that the topology's revisions run.
pub(super) fn named(topology: &Topology) -> BTreeSet<String> {
    let running = topology
        .deployments
        .iter()
        .filter(|deployment| deployment.phase.runs());
    running
        .filter_map(|deployment| deployment.spec.source.bundle)
        .map(String::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use mosec_types::topology::{Phase, Placement};
    use mosec_types::{BundleId, ReplicaId, StageIndex};

    use super::*;

    #[test]
    fn a_node_gets_ready_what_runs_on_it_or_will_take_over_there() {
        let node = |name: &str| NodeId::new(name).unwrap();
        let topology = |phase: Phase, placed: &str| {
            let mut topology = crate::tests::topology(1, 1);
            let first = &mut topology.deployments[0];
            Arc::make_mut(&mut first.spec).source.bundle = Some(BundleId::from_digest([1; 32]));
            let mut second = first.clone();
            first.placements = vec![Placement {
                stage: StageIndex(0),
                replica: ReplicaId(1),
                node: node(placed),
                gpus: Vec::new(),
            }];
            second.revision = Revision(2);
            second.phase = phase;
            second.placements.clear();
            topology.deployments.push(second);
            topology
        };
        let found = |topology: &Topology| {
            let mut found: Vec<_> = ahead_of_workers(topology, &node("here")).into_keys().collect();
            found.sort();
            found
        };
        let starting = topology(Phase::Starting, "here");
        assert_eq!(found(&starting), [Revision(1), Revision(2)]);
        assert_eq!(named(&starting).len(), 1);
        let failed = Phase::Failed {
            reason: String::new(),
        };
        assert_eq!(found(&topology(failed, "here")), [Revision(1)]);
        assert_eq!(found(&topology(Phase::Starting, "there")), []);
    }
}
