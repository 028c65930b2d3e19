//! Calls that change what runs, and where, without a new revision.

use std::collections::BTreeMap;

use mosec_types::{NodeId, PipelineName, PipelineSpec};

use super::client::{ControlClient, ControlError, Service};
use super::proto;

impl ControlClient {
    /// Lets the canary of a pipeline take over. Gives the topology version that has the change, as all of these do.
    pub async fn promote(&self, pipeline: &PipelineName) -> Result<u64, ControlError> {
        let request = proto::PromoteRequest {
            pipeline: pipeline.to_string(),
            dedup: Some(self.next_dedup()),
            by: String::new(),
        };
        let send = |mut client: Service, request| async move { client.promote(request).await };
        Ok(self.call(request, send).await?.version)
    }

    /// Ends the rollout of a pipeline: the revision that serves takes all requests again.
    pub async fn abort(&self, pipeline: &PipelineName) -> Result<u64, ControlError> {
        let request = proto::AbortRequest {
            pipeline: pipeline.to_string(),
            dedup: Some(self.next_dedup()),
            by: String::new(),
        };
        let send = |mut client: Service, request| async move { client.abort(request).await };
        Ok(self.call(request, send).await?.version)
    }

    /// Sets how many replicas stages are to have, by their names; others stay as they are.
    pub async fn scale(
        &self,
        pipeline: &PipelineName,
        replicas: &BTreeMap<String, u32>,
    ) -> Result<u64, ControlError> {
        let request = proto::ScaleRequest {
            pipeline: pipeline.to_string(),
            replicas: replicas.clone(),
            dedup: Some(self.next_dedup()),
            by: String::new(),
        };
        let send = |mut client: Service, request| async move { client.scale(request).await };
        Ok(self.call(request, send).await?.version)
    }

    /// Sets the share of a pipeline's canary, in percent.
    pub async fn set_traffic(&self, pipeline: &PipelineName, weight: u32) -> Result<u64, ControlError> {
        let request = proto::SetTrafficRequest {
            pipeline: pipeline.to_string(),
            weight,
            dedup: Some(self.next_dedup()),
            by: String::new(),
        };
        let send = |mut client: Service, request| async move { client.set_traffic(request).await };
        Ok(self.call(request, send).await?.version)
    }

    /// Empties a node of replicas, or lets it have some again.
    pub async fn drain_node(&self, node: &NodeId, draining: bool) -> Result<u64, ControlError> {
        let request = proto::DrainNodeRequest {
            node: node.to_string(),
            draining,
            dedup: Some(self.next_dedup()),
            by: String::new(),
        };
        let send = |mut client: Service, request| async move { client.drain_node(request).await };
        Ok(self.call(request, send).await?.version)
    }

    /// Forgets a node that is gone.
    pub async fn remove_node(&self, node: &NodeId) -> Result<u64, ControlError> {
        let request = proto::RemoveNodeRequest {
            node: node.to_string(),
            dedup: Some(self.next_dedup()),
            by: String::new(),
        };
        let send = |mut client: Service, request| async move { client.remove_node(request).await };
        Ok(self.call(request, send).await?.version)
    }

    /// Where the replicas of a specification would go, without a change.
    pub async fn plan(&self, spec: &PipelineSpec) -> Result<proto::PlanResponse, ControlError> {
        let request = proto::PlanRequest {
            spec: Some(spec.into()),
        };
        let send = |mut client: Service, request| async move { client.plan(request).await };
        self.call(request, send).await
    }
}
