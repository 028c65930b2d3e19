//! Values that the tests share.

use mosec_types::rollout::CanarySpec;
use mosec_types::spec::PythonSource;
use mosec_types::{PipelineName, PipelineSpec, StageSpec};

/// A pipeline of one stage.
pub fn pipeline() -> PipelineSpec {
    let source = PythonSource {
        dir: "/srv".into(),
        ..Default::default()
    };
    let mut spec = PipelineSpec::new(
        PipelineName::new("p").unwrap(),
        source,
        vec![StageSpec::new("Echo_1", "__main__", "Echo")],
    );
    spec.routes[0].path = "/p".into();
    spec
}

/// The pipeline with updates that begin with a canary of this weight, which stays one until it is promoted.
pub fn with_canary(weight: u32) -> PipelineSpec {
    let mut spec = pipeline();
    spec.rollout.canary = Some(CanarySpec {
        replicas: 1,
        weight,
        header: None,
        auto_promote: false,
    });
    spec
}
