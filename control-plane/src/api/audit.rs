//! The call that gives the audit trail.

use mosec_wire::control::proto;
use tonic::{Request, Response, Status};

use super::{Api, forward};
use crate::raft::handle::ProposeError;
use crate::state::AuditEntry;

pub(super) async fn audit(
    api: &Api,
    request: Request<proto::AuditRequest>,
) -> Result<Response<proto::AuditResponse>, Status> {
    match api.handle.read_barrier().await {
        Err(ProposeError::NotLeader { leader }) => {
            let send = |mut client: forward::Client, request| async move { client.audit(request).await };
            api.forward(leader, request, send).await
        }
        Err(error) => Err(forward::failure(error)),
        Ok(()) => {
            let model = api.model.borrow().clone();
            let entries = model.audit.entries();
            let surplus = match request.get_ref().limit as usize {
                0 => 0,
                limit => entries.len().saturating_sub(limit),
            };
            let records = entries.skip(surplus).map(to_message).collect();
            Ok(Response::new(proto::AuditResponse { records }))
        }
    }
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
