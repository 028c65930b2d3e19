//! Which path leads to which stage of which revision. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use mosec_types::topology::{Deployment, Phase};
use mosec_types::{PipelineSpec, Revision, RouteIndex, StageIndex, StageKey, Topology};

/// Where requests of one path go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) first: StageKey,
    pub(crate) index: RouteIndex,
    pub(crate) spec: Arc<PipelineSpec>,
    /// Content type of its answers: the last stage's.
    pub(crate) mime: String,
}

/// All routes of a topology.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Table {
    paths: HashMap<String, Route>,
}

impl Table {
    /// The routes of every deployment that serves. Where two claim a path, the older deployment keeps it.
    pub(crate) fn new(topology: &Topology) -> Self {
        let mut serving: Vec<_> = topology
            .deployments
            .iter()
            .filter(|deployment| deployment.phase == Phase::Serving)
            .collect();
        serving.sort_by_key(|deployment| deployment.revision);
        let mut paths = HashMap::new();
        for deployment in serving {
            for (path, route) in routes_of(deployment) {
                paths.entry(path).or_insert(route);
            }
        }
        Self { paths }
    }

    pub(crate) fn find(&self, path: &str) -> Option<&Route> {
        self.paths.get(path)
    }

    /// The first stages, each once.
    pub(crate) fn first_stages(&self) -> HashMap<StageKey, &Route> {
        self.paths.values().map(|route| (route.first, route)).collect()
    }

    pub(crate) fn has_revision(&self, revision: Revision) -> bool {
        self.paths.values().any(|route| route.first.revision == revision)
    }
}

fn routes_of(deployment: &Deployment) -> impl Iterator<Item = (String, Route)> + '_ {
    let spec = &deployment.spec;
    spec.routes.iter().enumerate().filter_map(move |(index, route)| {
        let mime = spec.stage(route.last()?)?.mime.clone();
        let first = StageKey {
            revision: deployment.revision,
            stage: route.first()?,
        };
        let index = RouteIndex(u16::try_from(index).ok()?);
        Some((
            route.path.clone(),
            Route {
                first,
                index,
                spec: spec.clone(),
                mime,
            },
        ))
    })
}

/// The stage's index in its pipeline, for labels.
pub(crate) fn stage_name(spec: &PipelineSpec, stage: StageIndex) -> &str {
    spec.stage(stage).map_or("", |stage| stage.name.as_str())
}
