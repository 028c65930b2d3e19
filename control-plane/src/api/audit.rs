//! The call that gives the audit trail.

use mosec_wire::control::proto;
use tonic::{Request, Response, Status};

use super::{Api, forward};
use crate::state::AuditEntry;

pub(super) async fn audit(
    api: &Api,
    request: Request<proto::AuditRequest>,
) -> Result<Response<proto::AuditResponse>, Status> {
    let send = |mut client: forward::Client, request| async move { client.audit(request).await };
    let answer = |request: &proto::AuditRequest| {
        let model = api.model.borrow().clone();
        let entries = model.audit.entries();
        let surplus = match request.limit as usize {
            0 => 0,
            limit => entries.len().saturating_sub(limit),
        };
        let records = entries.skip(surplus).map(to_message).collect();
        Ok(proto::AuditResponse { records })
    };
    api.read(request, send, answer).await
}

fn to_message(entry: &AuditEntry) -> proto::AuditRecord {
    proto::AuditRecord {
        index: entry.index,
        at_unix_ms: entry.origin.at_unix_ms,
        by: entry.origin.by.clone(),
        action: entry.action.clone(),
        refusal: entry.refusal.clone().unwrap_or_default(),
    }
}
