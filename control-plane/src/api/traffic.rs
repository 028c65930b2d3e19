//! Reports of gateways: that they are there, what they have seen of the revisions' requests, and which nodes they cannot reach.

use std::collections::BTreeMap;

use mosec_types::reach::MAX_UNREACHABLE;
use mosec_types::traffic::Counts;
use mosec_types::{Revision, Unreachable};
use mosec_wire::control::proto;
use tonic::{Request, Response, Status};

use super::{Api, forward, invalid};
use crate::access;
use crate::reconcile::GatewayReport;

/// Longest name of a gateway's run.
const MAX_NAME_BYTES: usize = 128;
/// Longest version of a gateway's build.
const MAX_BUILD_BYTES: usize = 64;
/// What of a run's name tells it from others, where its gateway has no name.
const SHOWN_OF_RUN: usize = 8;
/// Most revisions of one report: more than gateways route at a time.
const MAX_REVISIONS: usize = 16 * 1024;

pub(super) async fn report(
    api: &Api,
    mut request: Request<proto::TrafficReport>,
) -> Result<Response<proto::TrafficAck>, Status> {
    let name = access::asked_by(&request, &request.get_ref().name);
    request.get_mut().name.clone_from(&name);
    let message = request.get_ref();
    if !(1..=MAX_NAME_BYTES).contains(&message.gateway.len()) {
        let found = message.gateway.len();
        let problem = format!("expected 1 to {MAX_NAME_BYTES} bytes, found {found}");
        return Err(invalid("gateway", problem));
    }
    let build = message.build.as_deref().unwrap_or_default();
    if build.len() > MAX_BUILD_BYTES {
        let problem = format!("expected at most {MAX_BUILD_BYTES} bytes, found {}", build.len());
        return Err(invalid("build", problem));
    }
    if message.revisions.len() > MAX_REVISIONS {
        let found = message.revisions.len();
        return Err(invalid(
            "revisions",
            format!("expected at most {MAX_REVISIONS}, found {found}"),
        ));
    }
    // Nobody checks a name without certificates, and then there is none.
    let run = message.gateway.get(..SHOWN_OF_RUN).unwrap_or(&message.gateway);
    let name = Some(name.as_str()).filter(|name| !name.is_empty());
    let report = GatewayReport {
        run: message.gateway.clone(),
        name: name.unwrap_or(run).to_owned(),
        build: message.build.clone(),
        ends: message.ends,
        counts: counts(&message.revisions),
        unreachable: unreachable(&message.unreachable),
    };
    let leads = api.handle.leading_term().is_some();
    if leads && api.leadership.report(report) {
        return Ok(Response::new(proto::TrafficAck {}));
    }
    let send = |mut client: forward::Client, request| async move { client.report_traffic(request).await };
    api.forward(api.handle.leader(), request, send).await
}

fn counts(revisions: &[proto::RevisionTraffic]) -> BTreeMap<Revision, Counts> {
    let of_revision = |traffic: &proto::RevisionTraffic| {
        let counts = Counts {
            requests: traffic.requests,
            errors: traffic.errors,
            slow: traffic.slow,
        };
        (Revision(traffic.revision), counts)
    };
    revisions.iter().map(of_revision).collect()
}

/// The nodes that cannot be reached, of a gateway's report or an agent's heartbeat. What is beyond the bound or not understood is
/// left out: a lease or a rollout is worth more than it.
pub(super) fn unreachable(nodes: &[proto::UnreachableNode]) -> Vec<Unreachable> {
    let nodes = nodes.iter().take(MAX_UNREACHABLE).cloned();
    nodes
        .filter_map(|node| Unreachable::try_from(node).ok())
        .collect()
}
