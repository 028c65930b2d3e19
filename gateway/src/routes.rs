//! Which path leads to which stage of which revision. Pure.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use mosec_types::spec::Delivery;
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

impl Route {
    /// Whether one of its stages must never run twice for a request.
    pub(crate) fn runs_once(&self) -> bool {
        let route = self.spec.routes.get(usize::from(self.index.0));
        let mut stages = route.into_iter().flat_map(|route| &route.stages);
        stages.any(|&stage| {
            let stage = self.spec.stage(stage);
            stage.is_some_and(|stage| stage.delivery == Delivery::AtMostOnce)
        })
    }
}

/// A route of one revision, and how it is chosen among those of others.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    route: Arc<Route>,
    /// Percent of the requests.
    weight: u32,
    /// A header of requests that are for this revision.
    header: Option<(HeaderName, HeaderValue)>,
}

/// The routes of one path: one, or while a revision takes over from another, one of each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Choice(Vec<Candidate>);

impl Choice {
    /// The route of a request. `turn`: grows with each request, so that shares are exact over every hundred of them.
    pub(crate) fn pick(&self, headers: &HeaderMap, turn: u64) -> Option<&Arc<Route>> {
        let asked_for = |candidate: &&Candidate| {
            let header = candidate.header.as_ref();
            header.is_some_and(|(name, value)| headers.get_all(name).iter().any(|found| found == value))
        };
        let candidates = &self.0;
        if let [only] = candidates.as_slice() {
            return Some(&only.route);
        }
        if let Some(candidate) = candidates.iter().find(asked_for) {
            return Some(&candidate.route);
        }
        // Without a common divisor with 100, so that the turns of a share are spread evenly.
        const STRIDE: u64 = 61;
        let point = (turn % 100) * STRIDE % 100;
        let mut below = 0;
        let chosen = candidates.iter().find(|candidate| {
            below += u64::from(candidate.weight);
            point < below
        });
        // Weights that leave something over are of a topology in between: the oldest is the safe choice.
        chosen.or(candidates.first()).map(|candidate| &candidate.route)
    }
}

/// All routes of a topology.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Table {
    paths: HashMap<String, Choice>,
    /// What serves, the oldest first.
    pipelines: Vec<Arc<PipelineSpec>>,
}

impl Table {
    /// The routes of every deployment that takes requests. Where two pipelines claim a path, the older deployment
    /// keeps it.
    pub(crate) fn new(topology: &Topology) -> Self {
        let taking = |deployment: &&Deployment| deployment.phase.takes_requests();
        let mut taking: Vec<_> = topology.deployments.iter().filter(taking).collect();
        taking.sort_by_key(|deployment| deployment.revision);
        let mut paths: HashMap<String, Choice> = HashMap::new();
        for deployment in &taking {
            let header = header_of(deployment);
            for (path, route) in routes_of(deployment) {
                let choice = paths.entry(path).or_default();
                let of_other = |first: &Candidate| first.route.spec.name != route.spec.name;
                if choice.0.first().is_some_and(of_other) {
                    continue;
                }
                choice.0.push(Candidate {
                    route: Arc::new(route),
                    weight: deployment.weight,
                    header: header.clone(),
                });
            }
        }
        // While one revision takes over from another, the older one's description still holds.
        let mut pipelines: Vec<Arc<PipelineSpec>> = Vec::new();
        for deployment in &taking {
            if !pipelines.iter().any(|known| known.name == deployment.spec.name) {
                pipelines.push(deployment.spec.clone());
            }
        }
        Self { paths, pipelines }
    }

    /// The routes of a path.
    pub(crate) fn find(&self, path: &str) -> Option<&Choice> {
        self.paths.get(path)
    }

    fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        let candidates = self.paths.values().flat_map(|choice| &choice.0);
        candidates.map(|candidate| &candidate.route)
    }

    /// The first stages, each once.
    pub(crate) fn first_stages(&self) -> HashMap<StageKey, &Route> {
        self.routes().map(|route| (route.first, route.as_ref())).collect()
    }

    /// First stages that `former` led to and this does not, where other revisions of the pipeline have all their paths.
    pub(crate) fn replaced(&self, former: &Self) -> Vec<StageKey> {
        let mine = self.first_stages();
        let has_successor = |route: &Arc<Route>| {
            let successor = self.find(&route.path).and_then(|choice| choice.0.first());
            successor.is_some_and(|successor| successor.route.spec.name == route.spec.name)
        };
        let has_successors = |key: StageKey| {
            let mut routes = former.routes().filter(|route| route.first == key);
            routes.all(has_successor)
        };
        let gone = former.first_stages().into_keys();
        gone.filter(|&key| !mine.contains_key(&key) && has_successors(key))
            .collect()
    }

    /// The pipelines that serve, the oldest first.
    pub(crate) fn pipelines(&self) -> impl Iterator<Item = &PipelineSpec> {
        self.pipelines.iter().map(Arc::as_ref)
    }

    /// The longest a request on any of the routes may take, `None` without routes.
    pub(crate) fn longest_request(&self) -> Option<Duration> {
        self.routes().map(|route| route.spec.longest_request()).max()
    }
}

/// The header by which requests ask for a canary. A validated specification has names and values only.
fn header_of(deployment: &Deployment) -> Option<(HeaderName, HeaderValue)> {
    if deployment.phase != Phase::Canary {
        return None;
    }
    let header = deployment.spec.rollout.canary.as_ref()?.header.as_ref()?;
    Some((header.name.parse().ok()?, header.value.parse().ok()?))
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
    use mosec_types::spec::PythonSource;
    use mosec_types::{PipelineName, RouteSpec, StageSpec};

    use mosec_types::Revision;

    use super::*;

    fn spec(stages: &[&str], routes: &[(&str, &[u16])]) -> Arc<PipelineSpec> {
        let stage = |mime: &&str| StageSpec {
            mime: (*mime).into(),
            ..StageSpec::new(format!("Stage_{mime}"), "workers", "Echo")
        };
        let route = |(path, stages): &(&str, &[u16])| RouteSpec {
            path: (*path).into(),
            stages: stages.iter().copied().map(StageIndex).collect(),
        };
        Arc::new(PipelineSpec {
            routes: routes.iter().map(route).collect(),
            ..PipelineSpec::new(
                PipelineName::new("p").unwrap(),
                PythonSource::default(),
                stages.iter().map(stage).collect(),
            )
        })
    }

    fn table(deployments: &[(u64, Phase, Arc<PipelineSpec>)]) -> Table {
        let deployments = deployments
            .iter()
            .map(|(revision, phase, spec)| {
                Deployment::new(Revision(*revision), spec.clone(), phase.clone(), Vec::new())
            })
            .collect();
        Table::new(&Topology {
            version: 1,
            nodes: Vec::new(),
            deployments,
        })
    }

    /// The route of a path that has one.
    fn route<'t>(table: &'t Table, path: &str) -> Option<&'t Arc<Route>> {
        table.find(path)?.pick(&HeaderMap::new(), 0)
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
            let route = route(&table, path).unwrap();
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
            assert_eq!(route(&table, "/x").map(|route| route.first), Some(key(1, 0)));
            assert_eq!(route(&table, "/old").map(|route| route.first), Some(key(1, 0)));
            assert_eq!(
                route(&table, "/new").map(|route| (route.first, route.index)),
                Some((key(2, 0), RouteIndex(0)))
            );
        }
        let table = table(&[(1, starting, old), (2, serving, new)]);
        assert_eq!(
            route(&table, "/x").map(|route| (route.first, route.index)),
            Some((key(2, 0), RouteIndex(1)))
        );
    }

    #[test]
    fn what_is_replaced_has_a_successor_for_each_of_its_paths() {
        let both = spec(&["a"], &[("/one", &[0]), ("/two", &[0])]);
        let one = spec(&["a"], &[("/one", &[0])]);
        let mut other = (*both).clone();
        other.name = PipelineName::new("other").unwrap();
        let former = table(&[(3, Phase::Serving, both.clone())]);
        for (now, expected) in [
            (vec![(3, Phase::Serving, both.clone())], vec![]),
            (
                vec![
                    (3, Phase::Rolling, both.clone()),
                    (4, Phase::Rolling, both.clone()),
                ],
                vec![],
            ),
            (vec![(4, Phase::Serving, both)], vec![key(3, 0)]),
            // A path is gone, the pipeline is, or another one has the paths.
            (vec![(4, Phase::Serving, one)], vec![]),
            (vec![], vec![]),
            (vec![(4, Phase::Serving, Arc::new(other))], vec![]),
        ] {
            assert_eq!(table(&now).replaced(&former), expected, "{now:?}");
        }
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

    fn shares(table: &Table, headers: &HeaderMap) -> Vec<(u64, usize)> {
        let mut counts = std::collections::BTreeMap::new();
        for turn in 0..1000 {
            let route = table.find("/x").unwrap().pick(headers, turn).unwrap();
            *counts.entry(route.first.revision.0).or_default() += 1;
        }
        counts.into_iter().collect()
    }

    #[test]
    fn a_canary_takes_its_share_and_what_asks_for_it() {
        let old = spec(&["a"], &[("/x", &[0]), ("/old", &[0])]);
        let mut new = spec(&["a"], &[("/x", &[0]), ("/new", &[0])]);
        Arc::make_mut(&mut new).rollout.canary = Some(mosec_types::rollout::CanarySpec {
            replicas: 1,
            weight: 7,
            header: Some(mosec_types::rollout::HeaderMatch {
                name: "x-canary".into(),
                value: "yes".into(),
            }),
            auto_promote: false,
        });
        let deployment = |revision, spec: &Arc<PipelineSpec>, phase, weight| Deployment {
            weight,
            ..Deployment::new(Revision(revision), spec.clone(), phase, Vec::new())
        };
        let both = |phase, weight| {
            Table::new(&Topology {
                version: 1,
                nodes: Vec::new(),
                deployments: vec![
                    deployment(2, &new, phase, weight),
                    deployment(1, &old, Phase::Serving, 100 - weight),
                ],
            })
        };
        let nothing = HeaderMap::new();
        let mut asks = HeaderMap::new();
        asks.insert("x-canary", HeaderValue::from_static("yes"));
        let canary = both(Phase::Canary, 7);
        assert_eq!(shares(&canary, &nothing), [(1, 930), (2, 70)]);
        assert_eq!(shares(&canary, &asks), [(2, 1000)]);
        asks.insert("x-canary", HeaderValue::from_static("no"));
        assert_eq!(shares(&canary, &asks), [(1, 930), (2, 70)]);
        assert_eq!(shares(&both(Phase::Canary, 0), &nothing), [(1, 1000)]);
        asks.insert("x-canary", HeaderValue::from_static("yes"));
        assert_eq!(
            shares(&both(Phase::Rolling, 50), &asks),
            [(1, 500), (2, 500)],
            "no canary any more"
        );
        // Paths that only one of them has are its own, whatever its share.
        for (path, revision) in [("/old", 1), ("/new", 2)] {
            assert_eq!(route(&canary, path).unwrap().first, key(revision, 0), "{path}");
        }
        assert_eq!(canary.first_stages().len(), 2);
        assert_eq!(canary.pipelines().count(), 1);
    }

    #[test]
    fn a_share_is_spread_over_the_turns() {
        let of = |weight: u32| {
            let spec = spec(&["a"], &[("/x", &[0])]);
            let candidate = |revision, weight| Candidate {
                route: Arc::new(Route {
                    first: key(revision, 0),
                    ..routes_of(&Deployment::new(
                        Revision(1),
                        spec.clone(),
                        Phase::Serving,
                        Vec::new(),
                    ))
                    .next()
                    .unwrap()
                    .1
                }),
                weight,
                header: None,
            };
            Choice(vec![candidate(1, 100 - weight), candidate(2, weight)])
        };
        let choice = of(10);
        let turns: Vec<_> = (0..200)
            .filter(|&turn| choice.pick(&HeaderMap::new(), turn).unwrap().first.revision.0 == 2)
            .collect();
        assert_eq!(turns.len(), 20);
        let longest = turns.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(longest <= Some(30), "{turns:?}");
    }
}
