//! Calls that make revisions, and the one that lists them.

use std::sync::Arc;

use mosec_types::{PipelineName, PipelineSpec, Revision};
use mosec_wire::control::proto;
use tonic::{Request, Response, Status};

use super::{Api, answer, bundles, dedup, forward, invalid, origin, unexpected};
use crate::access;
use crate::raft::handle::ProposeError;
use crate::state::model::MAX_PIPELINE_REPLICAS;
use crate::state::{Command, Origin, Outcome, Proposal, Record, Reply};

pub(super) async fn deploy(
    api: &Api,
    mut request: Request<proto::DeployRequest>,
) -> Result<Response<proto::DeployResponse>, Status> {
    let by = access::asked_by(&request, &request.get_ref().by);
    let proposal = deployment(api, request.get_ref().clone(), origin(&by))?;
    request.get_mut().by = by;
    let bundled = matches!(&proposal.command, Command::Deploy { spec, .. } if spec.source.bundle.is_some());
    let reply = match api.handle.leader() {
        // Nothing with a bundle is logged here unless it was looked for from here.
        leader
            if bundled
                && leader
                    .as_ref()
                    .is_none_or(|leader| leader.id != api.handle.member) =>
        {
            Err(ProposeError::NotLeader { leader })
        }
        _ => {
            bundles::check(api, &proposal.command).await?;
            api.handle.propose(proposal).await
        }
    };
    match reply {
        Err(ProposeError::NotLeader { leader }) => {
            let send = |mut client: forward::Client, request| async move { client.deploy(request).await };
            api.forward(leader, request, send).await
        }
        reply => deployed(reply),
    }
}

pub(super) async fn rollback(
    api: &Api,
    mut request: Request<proto::RollbackRequest>,
) -> Result<Response<proto::DeployResponse>, Status> {
    let by = access::asked_by(&request, &request.get_ref().by);
    let message = request.get_ref();
    let command = Command::Rollback {
        pipeline: pipeline(&message.pipeline)?,
        to: message.revision.map(Revision),
        healthy_deadline_ms: healthy_deadline(api, message.healthy_deadline_ms),
        origin: origin(&by),
        at_once: true,
    };
    let dedup = dedup(message.dedup.clone())?;
    request.get_mut().by = by;
    match api.handle.propose(Proposal { command, dedup }).await {
        Err(ProposeError::NotLeader { leader }) => {
            let send = |mut client: forward::Client, request| async move { client.rollback(request).await };
            api.forward(leader, request, send).await
        }
        reply => deployed(reply),
    }
}

pub(super) async fn history(
    api: &Api,
    request: Request<proto::HistoryRequest>,
) -> Result<Response<proto::HistoryResponse>, Status> {
    let pipeline = pipeline(&request.get_ref().pipeline)?;
    let send = |mut client: forward::Client, request| async move { client.history(request).await };
    let answer = |_: &proto::HistoryRequest| {
        let model = api.model.borrow().clone();
        let history = model.histories.get(&pipeline);
        let history = history.ok_or_else(|| Status::not_found(format!("there is no pipeline {pipeline}")))?;
        Ok(proto::HistoryResponse {
            revisions: history.records().iter().map(to_message).collect(),
        })
    };
    api.read(request, send, answer).await
}

fn deployed(reply: Result<Reply, ProposeError>) -> Result<Response<proto::DeployResponse>, Status> {
    match answer(reply)? {
        Reply::Deployed { revision } => {
            tracing::info!(%revision, "revision deployed");
            Ok(Response::new(proto::DeployResponse { revision: revision.0 }))
        }
        other => Err(unexpected(&other)),
    }
}

fn deployment(api: &Api, message: proto::DeployRequest, origin: Origin) -> Result<Proposal, Status> {
    let command = Command::Deploy {
        spec: Arc::new(checked(message.spec)?),
        healthy_deadline_ms: healthy_deadline(api, message.healthy_deadline_ms),
        origin,
    };
    Ok(Proposal {
        command,
        dedup: dedup(message.dedup)?,
    })
}

/// The specification of a request, valid for a cluster.
pub(super) fn checked(spec: Option<proto::PipelineSpec>) -> Result<PipelineSpec, Status> {
    let spec = spec.ok_or_else(|| invalid("spec", "is missing"))?;
    let spec = PipelineSpec::try_from(spec).map_err(|error| invalid("spec", error))?;
    spec.validate_for_cluster()
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let replicas: u64 = spec.stages.iter().map(|stage| u64::from(stage.replicas)).sum();
    if replicas > MAX_PIPELINE_REPLICAS {
        let problem = format!("expected at most {MAX_PIPELINE_REPLICAS} replicas in all, found {replicas}");
        return Err(invalid("stages", problem));
    }
    Ok(spec)
}

/// The deadline that was asked for, or the control plane's own.
fn healthy_deadline(api: &Api, asked_ms: u64) -> u64 {
    match asked_ms {
        0 => u64::try_from(api.healthy_deadline.as_millis()).unwrap_or(u64::MAX),
        asked => asked,
    }
}

pub(super) fn pipeline(name: &str) -> Result<PipelineName, Status> {
    PipelineName::new(name).map_err(|error| invalid("pipeline", error))
}

fn to_message(record: &Record) -> proto::RevisionRecord {
    let (replaced_by, reason) = match &record.outcome {
        Outcome::Replaced { by } | Outcome::Superseded { by } => (Some(by.0), String::new()),
        Outcome::Failed { reason } => (None, reason.clone()),
        Outcome::Starting | Outcome::Canary | Outcome::Rolling | Outcome::Serving => (None, String::new()),
    };
    proto::RevisionRecord {
        revision: record.revision.0,
        by: record.origin.by.clone(),
        at_unix_ms: record.origin.at_unix_ms,
        rollback_of: record.rollback_of.map(|revision| revision.0),
        outcome: record.outcome.name().into(),
        replaced_by,
        reason,
    }
}
