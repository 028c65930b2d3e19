//! Values that the tests share.

use std::collections::BTreeMap;

use mosec_types::spec::{self, Delivery, PythonSource};
use mosec_types::{PipelineName, PipelineSpec, RouteSpec, StageIndex, StageSpec};

/// A pipeline of one stage.
pub fn pipeline() -> PipelineSpec {
    let stage = StageSpec {
        name: "Echo_1".into(),
        module: "__main__".into(),
        class: "Echo".into(),
        replicas: 1,
        max_batch_size: 1,
        max_wait: spec::DEFAULT_WAIT,
        batching: Default::default(),
        timeout: spec::DEFAULT_TIMEOUT,
        env: Vec::new(),
        node_labels: BTreeMap::new(),
        delivery: Delivery::Retry,
        attempts: spec::DEFAULT_ATTEMPTS,
        mime: spec::DEFAULT_MIME.into(),
        streaming: false,
        request_headers: Vec::new(),
        needs: Default::default(),
    };
    PipelineSpec {
        name: PipelineName::new("p").unwrap(),
        source: PythonSource {
            dir: "/srv".into(),
            ..Default::default()
        },
        stages: vec![stage],
        routes: vec![RouteSpec {
            path: "/p".into(),
            stages: vec![StageIndex(0)],
        }],
        timeout: spec::DEFAULT_TIMEOUT,
        capacity: spec::DEFAULT_CAPACITY,
        max_request_bytes: spec::DEFAULT_MAX_REQUEST_BYTES,
        openapi: None,
        rollout: Default::default(),
    }
}
