//! The leader's view of the cluster, for people and for `mosectl`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mosec_types::topology::{Node, Phase, Placement};
use mosec_wire::control::proto;

use super::Api;
use crate::reconcile::gateways::Gateway;
use crate::reconcile::lease::Leases;
use crate::reconcile::reach::Found;
use crate::reconcile::rollout::{is_placed, plan_of};
use crate::reconcile::{Awaited, Tenure};
use crate::state::{Model, Rollout};

/// Most of those that cannot reach a node that are named with it: a few show whether they have the same cause.
const MAX_FROM: usize = 8;

/// Builds the answer from the state, the leases and Raft's metrics. The caller has seen to it that the state is fresh.
pub(super) fn build(api: &Api) -> proto::StatusResponse {
    let model = api.model.borrow().clone();
    let nodes = |tenure: Option<&Tenure>| {
        let unreachable = tenure.map(|tenure| tenure.reach.by_node(Instant::now()));
        let unreachable = unreachable.unwrap_or_default();
        let status = |node: &Node| {
            let found = unreachable.get(&node.id).map(Vec::as_slice);
            node_status(
                node,
                tenure.map(|tenure| &tenure.leases),
                found.unwrap_or_default(),
            )
        };
        model.nodes.values().map(status).collect()
    };
    let metrics = api.handle.raft.metrics();
    let metrics = metrics.borrow();
    let matched = |id: &u64| metrics.replication.as_ref()?.get(id)?.map(|log_id| log_id.index);
    let member = |(id, node): (&u64, &openraft::BasicNode)| {
        // Only the leader's own messages count: those of an earlier time here are long ago.
        let is_followed = metrics.current_leader == Some(metrics.id) && *id != metrics.id;
        let contact = is_followed.then(|| api.handle.peers.contact(*id));
        let heard = contact.and_then(|contact| contact.heard);
        proto::MemberStatus {
            id: *id,
            address: api.handle.peers.address(*id, &node.addr).to_owned(),
            matched: matched(id),
            silent_ms: heard.map(silence_ms),
            is_lost: contact.is_some_and(|contact| contact.is_lost),
        }
    };
    proto::StatusResponse {
        nodes: api
            .leadership
            .with(|tenure| nodes(Some(tenure)))
            .unwrap_or_else(|| nodes(None)),
        deployments: model
            .rollouts
            .values()
            .map(|rollout| {
                api.leadership
                    .with(|tenure| deployment_status(&model, rollout, Some(tenure)))
                    .unwrap_or_else(|| deployment_status(&model, rollout, None))
            })
            .collect(),
        members: metrics.membership_config.nodes().map(member).collect(),
        leader: metrics.current_leader.unwrap_or_default(),
        term: metrics.current_term,
        version: model.version,
        cluster_id: api.cluster_id.clone(),
        gateways: api
            .leadership
            .with(|tenure| tenure.gateways.list(Instant::now()).map(gateway_status).collect())
            .unwrap_or_default(),
    }
}

fn silence_ms(heard: Instant) -> u64 {
    millis(Instant::now().saturating_duration_since(heard))
}

fn millis(silence: Duration) -> u64 {
    silence.as_millis().try_into().unwrap_or(u64::MAX)
}

fn gateway_status(gateway: Gateway<'_>) -> proto::GatewayStatus {
    proto::GatewayStatus {
        name: gateway.name.to_owned(),
        build: gateway.build.to_owned(),
        silent_ms: millis(gateway.silent),
        is_lost: gateway.is_lost(),
    }
}

fn node_status(node: &Node, leases: Option<&Leases>, unreachable: &[Found<'_>]) -> proto::NodeStatus {
    let lease = leases.and_then(|leases| leases.of(node));
    let heard = lease.and_then(|lease| lease.heard);
    let current = || unreachable.iter().filter(|found| found.is_about(node));
    let from = |found: &Found<'_>| proto::UnreachableFrom {
        from: found.from.to_owned(),
        address: found.address.to_owned(),
        cause: found.cause.to_owned(),
    };
    proto::NodeStatus {
        unreachable: current().take(MAX_FROM).map(from).collect(),
        unreachable_from: current().count().try_into().unwrap_or(u32::MAX),
        node: Some(node.into()),
        silent_ms: heard.map(silence_ms),
        workers: lease
            .map(|lease| lease.workers.iter().map(Into::into).collect())
            .unwrap_or_default(),
    }
}

fn promotes_itself(rollout: &Rollout) -> bool {
    let canary = rollout.deployment.spec.rollout.canary.as_ref();
    canary.is_some_and(|canary| canary.auto_promote)
}

fn deployment_status(model: &Model, rollout: &Rollout, tenure: Option<&Tenure>) -> proto::DeploymentStatus {
    let revision = rollout.deployment.revision;
    let traffic = tenure
        .map(|tenure| tenure.traffic.of(revision))
        .unwrap_or_default();
    let awaited = tenure.and_then(|tenure| tenure.waits_for(model, rollout, Instant::now()));
    let deployment = &rollout.deployment;
    let to_move = |placement: &Placement| model.nodes.get(&placement.node).is_some_and(|node| node.draining);
    let is_settled = is_placed(deployment) && !deployment.placements.iter().any(to_move);
    let unplaced = if !deployment.phase.runs() || is_settled {
        Vec::new()
    } else {
        let plan = plan_of(model, rollout, &BTreeSet::new());
        plan.unplaced.iter().map(ToString::to_string).collect()
    };
    proto::DeploymentStatus {
        deployment: Some((&rollout.deployment).into()),
        unplaced,
        goal: rollout.goal(),
        traffic: Some(proto::RevisionTraffic {
            revision: revision.0,
            requests: traffic.requests,
            errors: traffic.errors,
            slow: traffic.slow,
        }),
        waits_for_promotion: rollout.deployment.phase == Phase::Canary
            && !rollout.promoted
            && !promotes_itself(rollout),
        waits_for_requests: matches!(awaited, Some(Awaited::Requests { .. })),
        waits_for: awaited.map(|awaited| awaited.to_string()).unwrap_or_default(),
    }
}
