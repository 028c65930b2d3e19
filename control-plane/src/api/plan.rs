//! What a deployment would change, without one.

use std::collections::BTreeSet;
use std::sync::Arc;

use mosec_types::topology::{Deployment, Phase};
use mosec_types::{PipelineSpec, Revision};
use mosec_wire::control::proto;
use tonic::{Request, Response, Status};

use super::revisions::checked;
use super::{Api, forward, refused};
use crate::reconcile::rollout::plan_of;
use crate::state::{Model, Rollout, check_routes};

pub(super) async fn plan(
    api: &Api,
    request: Request<proto::PlanRequest>,
) -> Result<Response<proto::PlanResponse>, Status> {
    let spec = checked(request.get_ref().spec.clone())?;
    let send = |mut client: forward::Client, request| async move { client.plan(request).await };
    let answer = |_: &proto::PlanRequest| {
        let model = api.model.borrow().clone();
        // What a deployment would be refused for.
        check_routes(&model, &spec).map_err(|refusal| refused(&refusal))?;
        Ok(answer(&model, spec))
    };
    api.read(request, send, answer).await
}

/// Where the replicas would go, beside all that run now.
fn answer(model: &Model, spec: PipelineSpec) -> proto::PlanResponse {
    let serving = model.serving(&spec.name);
    let (revision, serving_spec) = match serving {
        Some(rollout) => {
            let Deployment { revision, spec, .. } = &rollout.deployment;
            (Some(revision.0), Some(spec.as_ref().into()))
        }
        None => (None, None),
    };
    // No revision has this number yet.
    let next = Revision(model.version.saturating_add(1));
    let deployment = Deployment::new(next, Arc::new(spec), Phase::Starting, Vec::new());
    let plan = plan_of(model, &Rollout::new(deployment, 0), &BTreeSet::new());
    proto::PlanResponse {
        placements: plan.placements.iter().map(Into::into).collect(),
        unplaced: plan.unplaced.iter().map(ToString::to_string).collect(),
        serving: revision,
        serving_spec,
    }
}
