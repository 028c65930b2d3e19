//! What is done about members without being asked.

use std::collections::BTreeMap;
use std::time::Duration;

use openraft::ChangeMembers;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::describe::{Ask, describe_all};
use super::super::elector::Heard;
use super::super::handle::Handle;
use super::policy::is_removed;

/// How long a change of voters that its leader left in the middle is left to whoever asked for it.
const FINISH_AFTER: Duration = Duration::from_secs(2);
/// How often the leader looks for one.
const FINISH_EVERY: Duration = Duration::from_millis(500);

/// Ends a change of voters that a leader did not live to end, wherever this member leads, until `stop`.
///
/// Until then both sets of voters must agree to everything.
pub async fn finish_changes(handle: Handle, stop: CancellationToken) {
    let mut metrics = handle.raft.metrics();
    let mut since = None::<Instant>;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(FINISH_EVERY) => {}
        }
        let goal = {
            let metrics = metrics.borrow_and_update();
            let sets = metrics.membership_config.membership().get_joint_config();
            (sets.len() > 1).then(|| sets.last().cloned()).flatten()
        };
        let Some(goal) = goal.filter(|_| handle.leading_term().is_some()) else {
            since = None;
            continue;
        };
        if since.get_or_insert_with(Instant::now).elapsed() < FINISH_AFTER {
            continue;
        }
        match handle.change_members(ChangeMembers::ReplaceAllVoters(goal)).await {
            Ok(()) => tracing::info!("ended a change of members that another leader began"),
            Err(error) => tracing::debug!(%error, "a change of members cannot be ended yet"),
        }
        since = None;
    }
}

/// Returns when this member has been removed. Asks the others whenever it has not heard of a leader for longer than the
/// election of a new one takes.
pub async fn until_removed<A: Ask>(handle: &Handle, cluster_id: &str, asker: &A, heard: &Heard) {
    let silence = handle.lease * 5;
    loop {
        tokio::time::sleep(silence / 2).await;
        if heard.silence() < silence || handle.leading_term().is_some() {
            continue;
        }
        let told = describe_all(asker, cluster_id, handle.peers.others(handle.member)).await;
        let positions: BTreeMap<_, _> = told
            .into_iter()
            .filter_map(|(member, told)| Some((member, told.ok()?.position)))
            .collect();
        let known = *handle.raft.metrics().borrow().membership_config.log_id();
        if is_removed(handle.member, known, &positions) {
            return;
        }
    }
}
