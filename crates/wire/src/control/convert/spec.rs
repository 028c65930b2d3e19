//! Pipelines.

use std::time::Duration;

use mosec_types::spec::{Batching, Delivery, PythonSource, Spread};
use mosec_types::{PipelineSpec, RouteSpec, StageSpec};

use super::{ConvertError, each, name, stage_index, to_millis};
use crate::control::proto;

impl From<&PipelineSpec> for proto::PipelineSpec {
    fn from(spec: &PipelineSpec) -> Self {
        Self {
            name: spec.name.to_string(),
            source: Some((&spec.source).into()),
            stages: spec.stages.iter().map(Into::into).collect(),
            routes: spec.routes.iter().map(Into::into).collect(),
            timeout_ms: to_millis(spec.timeout),
            capacity: spec.capacity,
            max_request_bytes: spec.max_request_bytes,
            openapi: spec.openapi.clone(),
            rollout: Some((&spec.rollout).into()),
        }
    }
}

impl TryFrom<proto::PipelineSpec> for PipelineSpec {
    type Error = ConvertError;

    fn try_from(message: proto::PipelineSpec) -> Result<Self, ConvertError> {
        Ok(Self {
            name: name("name", message.name)?,
            source: message
                .source
                .ok_or_else(|| ConvertError::missing("source"))?
                .try_into()
                .map_err(|error: ConvertError| error.within("source"))?,
            stages: each("stages", message.stages)?,
            routes: each("routes", message.routes)?,
            timeout: Duration::from_millis(message.timeout_ms),
            capacity: message.capacity,
            max_request_bytes: message.max_request_bytes,
            openapi: message.openapi,
            rollout: message.rollout.map(Into::into).unwrap_or_default(),
        })
    }
}

impl From<&PythonSource> for proto::PythonSource {
    fn from(source: &PythonSource) -> Self {
        let PythonSource {
            dir,
            main,
            argv,
            python,
            bundle,
            requirements,
        } = source.clone();
        Self {
            dir,
            main,
            argv,
            python,
            bundle: bundle.map(String::from),
            requirements,
        }
    }
}

impl TryFrom<proto::PythonSource> for PythonSource {
    type Error = ConvertError;

    fn try_from(message: proto::PythonSource) -> Result<Self, ConvertError> {
        let proto::PythonSource {
            dir,
            main,
            argv,
            python,
            bundle,
            requirements,
        } = message;
        Ok(Self {
            dir,
            main,
            argv,
            python,
            bundle: bundle.map(|id| name("bundle", id)).transpose()?,
            requirements,
        })
    }
}

impl From<&StageSpec> for proto::StageSpec {
    fn from(stage: &StageSpec) -> Self {
        let delivery = match stage.delivery {
            Delivery::Retry => proto::Delivery::Retry,
            Delivery::AtMostOnce => proto::Delivery::AtMostOnce,
        };
        let batching = match stage.batching {
            Batching::Window => proto::Batching::Window,
            Batching::Adaptive => proto::Batching::Adaptive,
        };
        let env = |variables: &std::collections::BTreeMap<_, _>| proto::Environment {
            variables: variables.clone(),
        };
        Self {
            name: stage.name.clone(),
            module: stage.module.clone(),
            class: stage.class.clone(),
            replicas: stage.replicas,
            max_batch_size: stage.max_batch_size,
            max_wait_ms: to_millis(stage.max_wait),
            timeout_ms: to_millis(stage.timeout),
            env: stage.env.iter().map(env).collect(),
            node_labels: stage.node_labels.clone(),
            delivery: delivery.into(),
            attempts: stage.attempts,
            mime: stage.mime.clone(),
            streaming: stage.streaming,
            request_headers: stage.request_headers.clone(),
            needs: Some((&stage.needs).into()),
            batching: batching.into(),
            spread: stage.spread.iter().map(Into::into).collect(),
            anti_affinity: stage.anti_affinity.iter().map(|stage| stage.0.into()).collect(),
        }
    }
}

impl TryFrom<proto::StageSpec> for StageSpec {
    type Error = ConvertError;

    fn try_from(message: proto::StageSpec) -> Result<Self, ConvertError> {
        let delivery = match proto::Delivery::try_from(message.delivery) {
            Ok(proto::Delivery::Retry) => Delivery::Retry,
            Ok(proto::Delivery::AtMostOnce) => Delivery::AtMostOnce,
            Ok(proto::Delivery::Unspecified) => return Err(ConvertError::missing("delivery")),
            Err(_) => return Err(ConvertError::unknown("delivery", message.delivery)),
        };
        let batching = match proto::Batching::try_from(message.batching) {
            Ok(proto::Batching::Window | proto::Batching::Unspecified) => Batching::Window,
            Ok(proto::Batching::Adaptive) => Batching::Adaptive,
            Err(_) => return Err(ConvertError::unknown("batching", message.batching)),
        };
        let apart = message.anti_affinity.into_iter();
        let apart = apart.map(|number| stage_index("anti_affinity", number));
        Ok(Self {
            name: message.name,
            module: message.module,
            class: message.class,
            replicas: message.replicas,
            max_batch_size: message.max_batch_size,
            max_wait: Duration::from_millis(message.max_wait_ms),
            timeout: Duration::from_millis(message.timeout_ms),
            env: message.env.into_iter().map(|env| env.variables).collect(),
            node_labels: message.node_labels,
            delivery,
            attempts: message.attempts,
            mime: message.mime,
            streaming: message.streaming,
            request_headers: message.request_headers,
            needs: message.needs.map(Into::into).unwrap_or_default(),
            batching,
            spread: message.spread.into_iter().map(Into::into).collect(),
            anti_affinity: apart.collect::<Result<_, _>>()?,
        })
    }
}

impl From<&Spread> for proto::Spread {
    fn from(spread: &Spread) -> Self {
        Self {
            by: spread.by.clone(),
            max: spread.max,
        }
    }
}

impl From<proto::Spread> for Spread {
    fn from(proto::Spread { by, max }: proto::Spread) -> Self {
        Self { by, max }
    }
}

impl From<&RouteSpec> for proto::RouteSpec {
    fn from(route: &RouteSpec) -> Self {
        Self {
            path: route.path.clone(),
            stages: route.stages.iter().map(|stage| stage.0.into()).collect(),
        }
    }
}

impl TryFrom<proto::RouteSpec> for RouteSpec {
    type Error = ConvertError;

    fn try_from(message: proto::RouteSpec) -> Result<Self, ConvertError> {
        let stages = message
            .stages
            .into_iter()
            .map(|number| stage_index("stages", number))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            path: message.path,
            stages,
        })
    }
}
