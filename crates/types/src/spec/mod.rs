//! A pipeline as a user deploys it: stages, their workers, and the routes that lead through them.

mod route;
mod source;
mod spread;
mod stage;

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::route::{RESERVED_PATHS, RouteIndex, RouteSpec};
pub use self::source::{MAX_REQUIREMENT_BYTES, MAX_REQUIREMENTS, PythonSource, check_requirement};
pub use self::spread::{MAX_SPREADS, Spread};
pub(crate) use self::stage::is_header_name;
pub use self::stage::{
    Batching, DEFAULT_ATTEMPTS, DEFAULT_MIME, DEFAULT_TIMEOUT, DEFAULT_WAIT, Delivery, MAX_ATTEMPTS,
    MAX_BATCH_SIZE, MAX_REPLICAS, MAX_STAGE_HEADERS, StageSpec,
};
use crate::{PipelineName, RolloutSpec, StageIndex};

/// Most stages or routes of one pipeline: far beyond any seen, and small enough to bound a message.
pub const MAX_STAGES: usize = 256;

/// Most bytes of headers that go with a request: no more than a gateway takes as the whole head of one.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Largest OpenAPI document, in bytes: it travels with the pipeline through the log and to every node.
pub const MAX_OPENAPI_BYTES: usize = 1024 * 1024;

/// MOSEC's default `--capacity`: the length of each stage's queue.
pub const DEFAULT_CAPACITY: u32 = 1024;
/// MOSEC's default `--max-request-size`.
pub const DEFAULT_MAX_REQUEST_BYTES: u64 = 10 * 1024 * 1024;
/// MOSEC's path for a server without routes of its own.
pub const DEFAULT_ROUTE: &str = "/inference";

/// Largest request, or result of one stage for the next, that goes from one process to another: the limit of
/// [`PipelineSpec::max_request_bytes`] on a cluster. What bounds it is the memory that an agent gives to one link.
pub const MAX_LINK_REQUEST_BYTES: u64 = 64 * 1024 * 1024;

/// What one revision of a pipeline consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineSpec {
    pub name: PipelineName,
    pub source: PythonSource,
    pub stages: Vec<StageSpec>,
    pub routes: Vec<RouteSpec>,
    /// Longest time from a request's arrival to its answer.
    #[serde(with = "millis")]
    pub timeout: Duration,
    /// Length of each stage's queue, in requests.
    pub capacity: u32,
    pub max_request_bytes: u64,
    /// The service's OpenAPI document, as JSON text; the gateway makes one of the routes where absent.
    #[serde(default)]
    pub openapi: Option<String>,
    /// How it replaces the revision before it.
    #[serde(default)]
    pub rollout: RolloutSpec,
}

/// Why a pipeline cannot be deployed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct InvalidSpec {
    /// The key at fault, as `stages[1].replicas`.
    pub place: String,
    pub problem: String,
}

impl PipelineSpec {
    /// A pipeline with MOSEC's defaults and one route, `/inference`, through all stages.
    pub fn new(name: PipelineName, source: PythonSource, stages: Vec<StageSpec>) -> Self {
        let all = (0u16..).map(StageIndex).take(stages.len()).collect();
        Self {
            name,
            source,
            stages,
            routes: vec![RouteSpec {
                path: DEFAULT_ROUTE.into(),
                stages: all,
            }],
            timeout: DEFAULT_TIMEOUT,
            capacity: DEFAULT_CAPACITY,
            max_request_bytes: DEFAULT_MAX_REQUEST_BYTES,
            openapi: None,
            rollout: RolloutSpec::default(),
        }
    }

    pub fn stage(&self, index: StageIndex) -> Option<&StageSpec> {
        self.stages.get(usize::from(index.0))
    }

    pub fn route(&self, index: RouteIndex) -> Option<&RouteSpec> {
        self.routes.get(usize::from(index.0))
    }

    /// The request headers that the stages of a route ask for, each once.
    pub fn headers_of(&self, route: &RouteSpec) -> BTreeSet<&str> {
        let stages = route.stages.iter().filter_map(|&stage| self.stage(stage));
        stages
            .flat_map(|stage| stage.request_headers.iter().map(String::as_str))
            .collect()
    }

    /// Longest time from a request's arrival to the end of its answer: a stream, which only has to go on within
    /// `timeout`, may take as long as one `forward` of its stage besides.
    pub fn longest_request(&self) -> Duration {
        let last_stages = self.routes.iter().filter_map(|route| self.stage(route.last()?));
        let streams = last_stages.filter(|stage| stage.streaming);
        let longest = streams.map(|stage| stage.timeout).max();
        self.timeout + longest.unwrap_or_default()
    }

    /// Checks everything that can be checked without Python or a cluster; the first mistake.
    pub fn validate(&self) -> Result<(), InvalidSpec> {
        let mut found = Problems::up_to(1);
        self.look_through(&mut found);
        found.into_result()
    }

    /// Checks what [`validate`](Self::validate) does, and that requests may go over links.
    pub fn validate_for_cluster(&self) -> Result<(), InvalidSpec> {
        let mut found = Problems::up_to(1);
        self.look_through_for_cluster(&mut found);
        found.into_result()
    }

    /// All mistakes of which [`validate_for_cluster`](Self::validate_for_cluster) gives the first.
    pub fn problems_for_cluster(&self) -> Vec<InvalidSpec> {
        let mut found = Problems::up_to(usize::MAX);
        self.look_through_for_cluster(&mut found);
        found.found
    }

    fn look_through(&self, found: &mut Problems) {
        found.check((1..=MAX_STAGES).contains(&self.stages.len()), "stages", || {
            format!("expected 1 to {MAX_STAGES} stages, found {}", self.stages.len())
        });
        found.check((1..=MAX_STAGES).contains(&self.routes.len()), "routes", || {
            format!("expected 1 to {MAX_STAGES} routes, found {}", self.routes.len())
        });
        self.source.validate(found);
        found.check(!self.timeout.is_zero(), "timeout", || {
            "expected a time above zero".into()
        });
        found.check(self.capacity >= 1, "capacity", || "expected at least 1".into());
        found.check(self.max_request_bytes >= 1, "max_request_bytes", || {
            "expected at least 1".into()
        });
        let openapi_bytes = self.openapi.as_ref().map_or(0, String::len);
        found.check(openapi_bytes <= MAX_OPENAPI_BYTES, "openapi", || {
            format!("expected at most {MAX_OPENAPI_BYTES} bytes, found {openapi_bytes}")
        });
        self.rollout.validate(found);
        let mut names = BTreeSet::new();
        for (index, stage) in self.stages.iter().enumerate() {
            stage.validate(&format!("stages[{index}]"), found);
            found.check(
                names.insert(&stage.name),
                &format!("stages[{index}].name"),
                || format!("the name {:?} is taken by an earlier stage", stage.name),
            );
            self.validate_anti_affinity(index, stage, found);
        }
        let mut paths = BTreeSet::new();
        for (index, route) in self.routes.iter().enumerate() {
            route.validate(&format!("routes[{index}]"), self.stages.len(), found);
            found.check(
                paths.insert(&route.path),
                &format!("routes[{index}].path"),
                || format!("the path {:?} is taken by an earlier route", route.path),
            );
        }
    }

    fn validate_anti_affinity(&self, own: usize, stage: &StageSpec, found: &mut Problems) {
        let at = format!("stages[{own}].anti_affinity");
        let mut seen = BTreeSet::new();
        for other in &stage.anti_affinity {
            found.check(usize::from(other.0) < self.stages.len(), &at, || {
                format!(
                    "there is no stage {other}; the pipeline has {}",
                    self.stages.len()
                )
            });
            found.check(usize::from(other.0) != own, &at, || {
                "expected other stages; `spread: {by: node, max: 1}` keeps its own replicas on different nodes".into()
            });
            found.check(seen.insert(other), &at, || format!("stage {other} comes twice"));
        }
    }

    fn look_through_for_cluster(&self, found: &mut Problems) {
        self.look_through(found);
        let bytes = self.max_request_bytes;
        found.check(bytes <= MAX_LINK_REQUEST_BYTES, "max_request_bytes", || {
            let limit = MAX_LINK_REQUEST_BYTES >> 20;
            format!(
                "expected at most {limit} MiB, which is what a link of the cluster carries, found {bytes} bytes"
            )
        });
    }
}

/// Collects mistakes. What comes over the network may have any number of them: its check asks for one.
pub(crate) struct Problems {
    found: Vec<InvalidSpec>,
    most: usize,
}

impl Problems {
    pub(crate) fn up_to(most: usize) -> Self {
        let found = Vec::new();
        Self { found, most }
    }

    /// Notes a problem at `place`, unless this `holds`.
    pub(crate) fn check(&mut self, holds: bool, place: &str, problem: impl FnOnce() -> String) {
        if !holds && self.found.len() < self.most {
            self.found.push(InvalidSpec {
                place: place.to_owned(),
                problem: problem(),
            });
        }
    }

    pub(crate) fn into_result(self) -> Result<(), InvalidSpec> {
        self.found.into_iter().next().map_or(Ok(()), Err)
    }
}

/// Durations as whole milliseconds.
pub(crate) mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(value.as_millis().try_into().unwrap_or(u64::MAX))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Two stages on one route.
    pub(super) fn spec() -> PipelineSpec {
        let source = PythonSource {
            dir: "/srv/echo".into(),
            main: Some("server.py".into()),
            ..Default::default()
        };
        let stage = |name| StageSpec {
            replicas: 2,
            ..StageSpec::new(name, "__main__", "Echo")
        };
        let name = PipelineName::new("echo").unwrap();
        PipelineSpec::new(name, source, vec![stage("A_1"), stage("B_2")])
    }

    #[test]
    fn a_good_spec_passes_and_survives_json() {
        let spec = spec();
        assert_eq!(spec.validate(), Ok(()));
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<PipelineSpec>(&json).unwrap(), spec);
    }

    fn by(label: &str, max: Option<u32>) -> Spread {
        Spread {
            by: label.into(),
            max,
        }
    }

    #[test]
    fn each_bad_key_is_named() {
        type Edit = fn(&mut PipelineSpec);
        let cases: &[(&str, Edit)] = &[
            ("stages", |s| s.stages.clear()),
            ("routes", |s| s.routes.clear()),
            ("source.dir", |s| s.source.dir = "here".into()),
            ("timeout", |s| s.timeout = Duration::ZERO),
            ("capacity", |s| s.capacity = 0),
            ("openapi", |s| s.openapi = Some("x".repeat(MAX_OPENAPI_BYTES + 1))),
            ("stages[0].replicas", |s| s.stages[0].replicas = 0),
            ("stages[1].max_batch_size", |s| {
                s.stages[1].max_batch_size = 70_000
            }),
            ("stages[1].name", |s| s.stages[1].name = "A_1".into()),
            ("stages[0].env", |s| s.stages[0].env = vec![BTreeMap::new()]),
            ("stages[0].attempts", |s| s.stages[0].attempts = 0),
            ("stages[0].spread[0].by", |s| {
                s.stages[0].spread = vec![by("", None)]
            }),
            ("stages[0].spread[1].by", |s| {
                s.stages[0].spread = vec![by("zone", None); 2]
            }),
            ("stages[0].spread[0].max", |s| {
                s.stages[0].spread = vec![by("zone", Some(0))]
            }),
            ("stages[0].spread", |s| {
                s.stages[0].spread = vec![by("zone", None); 9]
            }),
            ("stages[0].anti_affinity", |s| {
                s.stages[0].anti_affinity = vec![StageIndex(0)]
            }),
            ("stages[1].anti_affinity", |s| {
                s.stages[1].anti_affinity = vec![StageIndex(2)]
            }),
            ("stages[1].anti_affinity", |s| {
                s.stages[1].anti_affinity = vec![StageIndex(0); 2]
            }),
            ("routes[0].path", |s| s.routes[0].path = "inference".into()),
            ("routes[0].path", |s| s.routes[0].path = "/metrics".into()),
            ("routes[0].stages", |s| s.routes[0].stages = vec![StageIndex(2)]),
            ("routes[0].stages", |s| {
                s.routes[0].stages = vec![StageIndex(1), StageIndex(1)]
            }),
            ("routes[1].path", |s| s.routes.push(s.routes[0].clone())),
        ];
        for (place, edit) in cases {
            let mut spec = spec();
            edit(&mut spec);
            assert_eq!(spec.validate().map_err(|e| e.place), Err((*place).to_owned()));
        }
    }

    #[test]
    fn all_mistakes_are_found_where_all_are_wanted() {
        let mut spec = spec();
        spec.capacity = 0;
        spec.max_request_bytes = MAX_LINK_REQUEST_BYTES + 1;
        spec.stages[0].replicas = 0;
        spec.stages[1].name = "A_1".into();
        spec.stages[1].timeout = Duration::ZERO;
        let problems = spec.problems_for_cluster();
        let places: Vec<_> = problems.iter().map(|problem| problem.place.as_str()).collect();
        let expected = [
            "capacity",
            "stages[0].replicas",
            "stages[1].timeout",
            "stages[1].name",
            "max_request_bytes",
        ];
        assert_eq!(places, expected);
        assert_eq!(spec.validate(), Err(problems[0].clone()));
    }

    #[test]
    fn a_cluster_limits_requests_to_what_its_links_carry() {
        let with = |bytes| PipelineSpec {
            max_request_bytes: bytes,
            ..spec()
        };
        assert_eq!(with(MAX_LINK_REQUEST_BYTES).validate_for_cluster(), Ok(()));
        let beyond = with(MAX_LINK_REQUEST_BYTES + 1);
        assert_eq!(beyond.validate(), Ok(()), "without links there is no such limit");
        let error = beyond.validate_for_cluster().unwrap_err().to_string();
        let expected = "max_request_bytes: expected at most 64 MiB, which is what a link of the cluster carries, found 67108865 bytes";
        assert_eq!(error, expected);
        let invalid = PipelineSpec {
            capacity: 0,
            ..spec()
        };
        assert_eq!(invalid.validate_for_cluster().unwrap_err().place, "capacity");
    }

    #[test]
    fn a_stream_may_take_longer_than_the_timeout() {
        let mut spec = spec();
        spec.stages[1].timeout = Duration::from_secs(300);
        assert_eq!(spec.longest_request(), spec.timeout);
        spec.stages[0].streaming = true;
        assert_eq!(spec.longest_request(), spec.timeout, "its events go nowhere");
        spec.stages[1].streaming = true;
        assert_eq!(spec.longest_request(), spec.timeout + Duration::from_secs(300));
    }
}
