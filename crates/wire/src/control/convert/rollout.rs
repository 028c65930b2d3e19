//! How revisions replace each other.

use std::time::Duration;

use mosec_types::RolloutSpec;
use mosec_types::rollout::{Bounds, CanarySpec, HeaderMatch};

use super::to_millis;
use crate::control::proto;

impl From<&RolloutSpec> for proto::RolloutSpec {
    fn from(spec: &RolloutSpec) -> Self {
        let bounds = proto::Bounds {
            max_errors: spec.bounds.max_errors,
            max_p99_ms: spec.bounds.max_p99.map(to_millis),
            min_requests: spec.bounds.min_requests,
        };
        Self {
            max_parallel: spec.max_parallel,
            min_healthy_time_ms: to_millis(spec.min_healthy_time),
            canary: spec.canary.as_ref().map(Into::into),
            bounds: Some(bounds),
            progress_deadline_ms: spec.progress_deadline.map(to_millis),
        }
    }
}

impl From<proto::RolloutSpec> for RolloutSpec {
    fn from(message: proto::RolloutSpec) -> Self {
        Self {
            max_parallel: message.max_parallel,
            min_healthy_time: Duration::from_millis(message.min_healthy_time_ms),
            progress_deadline: message.progress_deadline_ms.map(Duration::from_millis),
            canary: message.canary.map(Into::into),
            bounds: message.bounds.map(Into::into).unwrap_or_default(),
        }
    }
}

impl From<&CanarySpec> for proto::CanarySpec {
    fn from(canary: &CanarySpec) -> Self {
        let header = canary.header.as_ref().map(|header| proto::HeaderMatch {
            name: header.name.clone(),
            value: header.value.clone(),
        });
        Self {
            replicas: canary.replicas,
            weight: canary.weight,
            header,
            auto_promote: canary.auto_promote,
        }
    }
}

impl From<proto::CanarySpec> for CanarySpec {
    fn from(message: proto::CanarySpec) -> Self {
        let header = message.header.map(|header| HeaderMatch {
            name: header.name,
            value: header.value,
        });
        Self {
            replicas: message.replicas,
            weight: message.weight,
            header,
            auto_promote: message.auto_promote,
        }
    }
}

impl From<proto::Bounds> for Bounds {
    fn from(message: proto::Bounds) -> Self {
        Self {
            max_errors: message.max_errors,
            max_p99: message.max_p99_ms.map(Duration::from_millis),
            min_requests: message.min_requests,
        }
    }
}
