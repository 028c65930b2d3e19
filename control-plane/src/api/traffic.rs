//! Reports of gateways: what they have seen of the revisions' requests.

use std::collections::BTreeMap;

use mosec_types::Revision;
use mosec_types::traffic::Counts;
use mosec_wire::control::proto;
use tonic::{Request, Response, Status};

use super::{Api, forward, invalid};

/// Longest name of a gateway's run.
const MAX_NAME_BYTES: usize = 128;
/// Most revisions of one report: more than gateways route at a time.
const MAX_REVISIONS: usize = 16 * 1024;

pub(super) async fn report(
    api: &Api,
    request: Request<proto::TrafficReport>,
) -> Result<Response<proto::TrafficAck>, Status> {
    let message = request.get_ref();
    if !(1..=MAX_NAME_BYTES).contains(&message.gateway.len()) {
        let found = message.gateway.len();
        let problem = format!("expected 1 to {MAX_NAME_BYTES} bytes, found {found}");
        return Err(invalid("gateway", problem));
    }
    if message.revisions.len() > MAX_REVISIONS {
        let found = message.revisions.len();
        return Err(invalid(
            "revisions",
            format!("expected at most {MAX_REVISIONS}, found {found}"),
        ));
    }
    let leads = api.handle.leading_term().is_some();
    if leads
        && api
            .leadership
            .report(&message.gateway, counts(&message.revisions))
    {
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
