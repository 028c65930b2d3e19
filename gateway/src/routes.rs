//! Which path leads to which stage of which revision. Pure.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderName;
use mosec_types::topology::{Deployment, Phase};
use mosec_types::{PipelineSpec, RouteIndex, RouteSpec, StageIndex, StageKey, Topology};

/// Where requests of one path go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) path: String,
    pub(crate) first: StageKey,
    pub(crate) index: RouteIndex,
    pub(crate) spec: Arc<PipelineSpec>,
    /// Content type of its answers: the last stage's.
    pub(crate) mime: String,
    /// Whether its answers are streams of events: the last stage's are.
    pub(crate) streams: bool,
    /// Headers of the request that its stages ask for.
    pub(crate) headers: Vec<HeaderName>,
}

/// All routes of a topology.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Table {
    paths: HashMap<String, Arc<Route>>,
    /// What serves, the oldest first.
    pipelines: Vec<Arc<PipelineSpec>>,
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
        for deployment in &serving {
            for (path, route) in routes_of(deployment) {
                paths.entry(path).or_insert_with(|| Arc::new(route));
            }
        }
        let pipelines = serving.iter().map(|deployment| deployment.spec.clone()).collect();
        Self { paths, pipelines }
    }

    pub(crate) fn find(&self, path: &str) -> Option<&Arc<Route>> {
        self.paths.get(path)
    }

    /// The first stages, each once.
    pub(crate) fn first_stages(&self) -> HashMap<StageKey, &Route> {
        let routes = self.paths.values();
        routes.map(|route| (route.first, route.as_ref())).collect()
    }

    /// The pipelines that serve, the oldest first.
    pub(crate) fn pipelines(&self) -> impl Iterator<Item = &PipelineSpec> {
        self.pipelines.iter().map(Arc::as_ref)
    }

    /// The longest a request on any of the routes may take, `None` without routes.
    pub(crate) fn longest_request(&self) -> Option<Duration> {
        self.paths
            .values()
            .map(|route| route.spec.longest_request())
            .max()
    }
}

fn routes_of(deployment: &Deployment) -> impl Iterator<Item = (String, Route)> + '_ {
    let spec = &deployment.spec;
    spec.routes.iter().enumerate().filter_map(move |(index, route)| {
        let last = spec.stage(route.last()?)?;
        let first = StageKey {
            revision: deployment.revision,
            stage: route.first()?,
        };
        let index = RouteIndex(u16::try_from(index).ok()?);
        Some((
            route.path.clone(),
            Route {
                path: route.path.clone(),
                first,
                index,
                spec: spec.clone(),
                mime: last.mime.clone(),
                streams: last.streaming,
                headers: headers_of(spec, route),
            },
        ))
    })
}

/// The headers that the stages of a route ask for. A validated specification has names only.
fn headers_of(spec: &PipelineSpec, route: &RouteSpec) -> Vec<HeaderName> {
    let names = spec.headers_of(route);
    names.into_iter().filter_map(|name| name.parse().ok()).collect()
}

/// The stage's index in its pipeline, for labels.
pub(crate) fn stage_name(spec: &PipelineSpec, stage: StageIndex) -> &str {
    spec.stage(stage).map_or("", |stage| stage.name.as_str())
}

#[cfg(test)]
mod tests {
    use mosec_types::spec::{Delivery, PythonSource};
    use mosec_types::{PipelineName, RouteSpec, StageSpec};

    use mosec_types::Revision;

    use super::*;

    fn spec(stages: &[&str], routes: &[(&str, &[u16])]) -> Arc<PipelineSpec> {
        let stage = |mime: &&str| StageSpec {
            name: format!("Stage_{mime}"),
            module: "workers".into(),
            class: "Echo".into(),
            replicas: 1,
            max_batch_size: 1,
            max_wait: Duration::ZERO,
            batching: Default::default(),
            timeout: Duration::from_secs(3),
            env: Vec::new(),
            node_labels: Default::default(),
            delivery: Delivery::Retry,
            attempts: 3,
            mime: (*mime).into(),
            streaming: false,
            request_headers: Vec::new(),
        };
        let route = |(path, stages): &(&str, &[u16])| RouteSpec {
            path: (*path).into(),
            stages: stages.iter().copied().map(StageIndex).collect(),
        };
        Arc::new(PipelineSpec {
            name: PipelineName::new("p").unwrap(),
            source: PythonSource::default(),
            stages: stages.iter().map(stage).collect(),
            routes: routes.iter().map(route).collect(),
            timeout: Duration::from_secs(3),
            capacity: 1,
            max_request_bytes: 1,
            openapi: None,
        })
    }

    fn table(deployments: &[(u64, Phase, Arc<PipelineSpec>)]) -> Table {
        let deployments = deployments
            .iter()
            .map(|(revision, phase, spec)| Deployment {
                revision: Revision(*revision),
                spec: spec.clone(),
                phase: phase.clone(),
                placements: Vec::new(),
            })
            .collect();
        Table::new(&Topology {
            version: 1,
            nodes: Vec::new(),
            deployments,
        })
    }

    fn key(revision: u64, stage: u16) -> StageKey {
        StageKey {
            revision: Revision(revision),
            stage: StageIndex(stage),
        }
    }

    #[test]
    fn each_route_has_its_own_first_stage_and_type() {
        let spec = spec(
            &["a", "b", "c"],
            &[("/one", &[0, 2]), ("/two", &[1, 2]), ("/three", &[2, 0])],
        );
        let table = table(&[(7, Phase::Serving, spec)]);
        for (path, first, index, mime) in [("/one", 0, 0, "c"), ("/two", 1, 1, "c"), ("/three", 2, 2, "a")] {
            let route = table.find(path).unwrap();
            assert_eq!(
                (route.first, route.index),
                (key(7, first), RouteIndex(index)),
                "{path}"
            );
            assert_eq!(route.mime, mime, "{path}");
        }
        for unknown in ["", "/", "one", "/one/", "/ONE"] {
            assert_eq!(table.find(unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn a_stage_that_begins_several_routes_is_one_first_stage() {
        let spec = spec(
            &["a", "b"],
            &[("/one", &[0]), ("/two", &[0, 1]), ("/three", &[1])],
        );
        let table = table(&[(1, Phase::Serving, spec)]);
        let mut first: Vec<_> = table.first_stages().into_keys().collect();
        first.sort();
        assert_eq!(first, [key(1, 0), key(1, 1)]);
    }

    #[test]
    fn only_what_serves_is_routed() {
        let spec = spec(&["a"], &[("/x", &[0])]);
        for phase in [
            Phase::Starting,
            Phase::Failed {
                reason: "no model".into(),
            },
        ] {
            let table = table(&[(1, phase.clone(), spec.clone())]);
            assert_eq!(table.find("/x"), None, "{phase:?}");
            assert!(table.first_stages().is_empty());
        }
        assert!(!table(&[(1, Phase::Serving, spec)]).first_stages().is_empty());
    }

    #[test]
    fn the_older_of_two_deployments_keeps_a_path() {
        let old = spec(&["old"], &[("/x", &[0]), ("/old", &[0])]);
        let new = spec(&["new"], &[("/new", &[0]), ("/x", &[0])]);
        let (serving, starting) = (Phase::Serving, Phase::Starting);
        // Whatever the order they are listed in.
        for deployments in [
            [
                (1, serving.clone(), old.clone()),
                (2, serving.clone(), new.clone()),
            ],
            [
                (2, serving.clone(), new.clone()),
                (1, serving.clone(), old.clone()),
            ],
        ] {
            let table = table(&deployments);
            assert_eq!(table.find("/x").map(|route| route.first), Some(key(1, 0)));
            assert_eq!(table.find("/old").map(|route| route.first), Some(key(1, 0)));
            assert_eq!(
                table.find("/new").map(|route| (route.first, route.index)),
                Some((key(2, 0), RouteIndex(0)))
            );
        }
        let table = table(&[(1, starting, old), (2, serving, new)]);
        assert_eq!(
            table.find("/x").map(|route| (route.first, route.index)),
            Some((key(2, 0), RouteIndex(1)))
        );
    }

    #[test]
    fn a_route_without_stages_leads_nowhere() {
        // The control plane refuses it; a gateway that is sent it all the same has to live on.
        let table = table(&[(
            1,
            Phase::Serving,
            spec(&["a"], &[("/none", &[]), ("/far", &[9]), ("/x", &[0])]),
        )]);
        assert_eq!((table.find("/none"), table.find("/far")), (None, None));
        assert!(table.find("/x").is_some());
    }
}
