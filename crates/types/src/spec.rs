//! A pipeline as a user deploys it: stages, their workers, and the routes that lead through them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{BundleId, Needs, PipelineName, RolloutSpec, StageIndex};

/// Position of a route in its pipeline, counted from zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RouteIndex(pub u16);

/// Most stages or routes of one pipeline: far beyond any seen, and small enough to bound a message.
pub const MAX_STAGES: usize = 256;
/// Most replicas of one stage.
pub const MAX_REPLICAS: u32 = 4096;
/// Largest batch; the item count of a frame is 16 bits wide.
pub const MAX_BATCH_SIZE: u32 = 65_535;

/// Most request headers that one stage may ask for.
pub const MAX_STAGE_HEADERS: usize = 64;
/// Most bytes of headers that go with a request: no more than a gateway takes as the whole head of one.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Largest OpenAPI document, in bytes: it travels with the pipeline through the log and to every node.
pub const MAX_OPENAPI_BYTES: usize = 1024 * 1024;

/// Paths the gateway answers itself.
pub const RESERVED_PATHS: &[&str] = &[
    "/",
    "/metrics",
    "/openapi",
    "/openapi/metadata.json",
    "/openapi/swagger",
    "/openapi/swagger/",
];

/// MOSEC's default `--timeout`.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(3000);
/// MOSEC's default `--capacity`: the length of each stage's queue.
pub const DEFAULT_CAPACITY: u32 = 1024;
/// MOSEC's default `--wait`, the batch window where a stage gives none.
pub const DEFAULT_WAIT: Duration = Duration::from_millis(10);
/// MOSEC's default `--max-request-size`.
pub const DEFAULT_MAX_REQUEST_BYTES: u64 = 10 * 1024 * 1024;

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

/// Where the Python code of a pipeline is, and how a worker process loads it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PythonSource {
    /// Folder that workers run in; it comes first on `sys.path`. An absolute path on each node, or, with a bundle, the
    /// path inside it: empty for the bundle's own folder.
    pub dir: String,
    /// Script whose module the classes of module `__main__` belong to, relative to `dir`. As in
    /// `multiprocessing`, a worker runs it under another name, so its `if __name__ == "__main__"` part stays out.
    #[serde(default)]
    pub main: Option<String>,
    /// `sys.argv[1:]` of the workers.
    #[serde(default)]
    pub argv: Vec<String>,
    /// Interpreter; the node's own default where absent.
    #[serde(default)]
    pub python: Option<String>,
    /// The code, where it travels to the nodes by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<BundleId>,
    /// What the code needs beyond what the interpreter has: lines of a requirements file, which each node installs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requirements: Vec<String>,
}

/// Most lines of requirements, and most bytes of one: far beyond a frozen environment of a large service, and small
/// enough for the log.
pub const MAX_REQUIREMENTS: usize = 512;
pub const MAX_REQUIREMENT_BYTES: usize = 512;

/// One stage: a worker class, how many processes of it, and how requests are batched for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageSpec {
    /// Unique in the pipeline. MOSEC's `Class_n` where the user gives none.
    pub name: String,
    /// Module of the worker class, `__main__` for the source's main script.
    pub module: String,
    /// Qualified name of the worker class.
    pub class: String,
    pub replicas: u32,
    pub max_batch_size: u32,
    /// Longest time a batch waits for more requests.
    #[serde(with = "millis")]
    pub max_wait: Duration,
    #[serde(default)]
    pub batching: Batching,
    /// Longest time of one `forward` call.
    #[serde(with = "millis")]
    pub timeout: Duration,
    /// Empty, or one set of variables for each replica.
    #[serde(default)]
    pub env: Vec<BTreeMap<String, String>>,
    /// Labels a node must have to run replicas of this stage. `node` is every node's own name.
    #[serde(default)]
    pub node_labels: BTreeMap<String, String>,
    #[serde(default)]
    pub delivery: Delivery,
    /// Most times a request is given to a replica of this stage when replicas are lost under it.
    pub attempts: u32,
    /// Content type of the answers, where this is a route's last stage.
    pub mime: String,
    /// Whether its class is an `SSEWorker`: where this is a route's last stage, answers are streams of events.
    #[serde(default)]
    pub streaming: bool,
    /// Names of the request headers, in lower case, that its workers are told of.
    #[serde(default)]
    pub request_headers: Vec<String>,
    /// What each replica needs of its node.
    #[serde(default)]
    pub needs: Needs,
}

/// When a batch that is not full leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Batching {
    /// After `max_wait`, to a replica that has nothing to do. MOSEC's way.
    #[default]
    Window,
    /// At once where a replica has nothing to do. Otherwise it waits for one, but no longer than `max_wait`, than a batch
    /// takes, and than its first deadline allows.
    Adaptive,
}

/// What may be done with a request whose replica was lost before it answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Give it to another replica, at most `attempts` times in all.
    #[default]
    Retry,
    /// Fail it: the stage must never run twice for one request.
    AtMostOnce,
}

/// Default of [`StageSpec::attempts`]: one try, and two more for two unlucky losses in a row.
pub const DEFAULT_ATTEMPTS: u32 = 3;
/// Most attempts: losses are counted in eight bits.
pub const MAX_ATTEMPTS: u32 = 255;
/// Content type of a MOSEC worker that sets none.
pub const DEFAULT_MIME: &str = "application/json";

/// A path and the stages its requests go through, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    pub path: String,
    pub stages: Vec<StageIndex>,
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

    /// Checks everything that can be checked without Python or a cluster.
    pub fn validate(&self) -> Result<(), InvalidSpec> {
        check((1..=MAX_STAGES).contains(&self.stages.len()), "stages", || {
            format!("expected 1 to {MAX_STAGES} stages, found {}", self.stages.len())
        })?;
        check((1..=MAX_STAGES).contains(&self.routes.len()), "routes", || {
            format!("expected 1 to {MAX_STAGES} routes, found {}", self.routes.len())
        })?;
        self.source.validate()?;
        check(!self.timeout.is_zero(), "timeout", || {
            "expected a time above zero".into()
        })?;
        check(self.capacity >= 1, "capacity", || "expected at least 1".into())?;
        check(self.max_request_bytes >= 1, "max_request_bytes", || {
            "expected at least 1".into()
        })?;
        let openapi_bytes = self.openapi.as_ref().map_or(0, String::len);
        check(openapi_bytes <= MAX_OPENAPI_BYTES, "openapi", || {
            format!("expected at most {MAX_OPENAPI_BYTES} bytes, found {openapi_bytes}")
        })?;
        self.rollout.validate()?;
        let mut names = BTreeSet::new();
        for (index, stage) in self.stages.iter().enumerate() {
            stage.validate(&format!("stages[{index}]"))?;
            check(
                names.insert(&stage.name),
                &format!("stages[{index}].name"),
                || format!("the name {:?} is taken by an earlier stage", stage.name),
            )?;
        }
        let mut paths = BTreeSet::new();
        for (index, route) in self.routes.iter().enumerate() {
            route.validate(&format!("routes[{index}]"), self.stages.len())?;
            check(
                paths.insert(&route.path),
                &format!("routes[{index}].path"),
                || format!("the path {:?} is taken by an earlier route", route.path),
            )?;
        }
        Ok(())
    }
}

impl PipelineSpec {
    /// Checks what [`validate`](Self::validate) does, and that requests may go over links.
    pub fn validate_for_cluster(&self) -> Result<(), InvalidSpec> {
        self.validate()?;
        let bytes = self.max_request_bytes;
        check(bytes <= MAX_LINK_REQUEST_BYTES, "max_request_bytes", || {
            let limit = MAX_LINK_REQUEST_BYTES >> 20;
            format!(
                "expected at most {limit} MiB, which is what a link of the cluster carries, found {bytes} bytes"
            )
        })
    }
}

impl PythonSource {
    fn validate(&self) -> Result<(), InvalidSpec> {
        let dir = &self.dir;
        if self.bundle.is_some() {
            let inside = !dir.starts_with('/') && dir.split('/').all(|part| part != "..");
            check(inside, "source.dir", || {
                format!("expected a path inside the bundle, found {dir:?}")
            })?;
        } else {
            check(dir.starts_with('/'), "source.dir", || {
                format!("expected an absolute path, found {dir:?}")
            })?;
        }
        let found = self.requirements.len();
        check(found <= MAX_REQUIREMENTS, "source.requirements", || {
            format!("expected at most {MAX_REQUIREMENTS} lines, found {found}")
        })?;
        for (index, line) in self.requirements.iter().enumerate() {
            check_requirement(line).map_err(|problem| InvalidSpec {
                place: format!("source.requirements[{index}]"),
                problem,
            })?;
        }
        Ok(())
    }
}

/// Whether a line of a requirements file means the same on every node: it names no file beside it.
pub fn check_requirement(line: &str) -> Result<(), String> {
    let is_one_line = !line.trim().is_empty() && !line.chars().any(char::is_control);
    if !is_one_line || line.len() > MAX_REQUIREMENT_BYTES {
        return Err(format!(
            "expected one line of at most {MAX_REQUIREMENT_BYTES} bytes, found {line:?}"
        ));
    }
    let option = |short: &str, long: &str| {
        let line = line.trim_start();
        line.starts_with(long) || (line.starts_with(short) && !line.starts_with("--"))
    };
    let names_a_file = option("-r", "--requirement")
        || option("-c", "--constraint")
        || option("-e", "--editable")
        || line.trim_start().starts_with(['.', '/'])
        || line.contains("file:");
    if names_a_file {
        return Err(format!(
            "expected a package that an index has, as numpy>=2, found {line:?}, which names a file"
        ));
    }
    Ok(())
}

impl StageSpec {
    /// The variables of one replica's process, beyond those of its node.
    ///
    /// `replica` counts from one, as `worker_id` does.
    pub fn env_of(&self, replica: crate::ReplicaId) -> Option<&BTreeMap<String, String>> {
        let own = self.env.get((replica.0 as usize).checked_sub(1)?);
        own.or_else(|| self.env.first().filter(|_| self.has_one_env()))
    }

    /// Whether its replicas all have the same variables, so that there can be any number of them.
    pub fn has_one_env(&self) -> bool {
        self.env.windows(2).all(|pair| pair[0] == pair[1])
    }

    fn validate(&self, at: &str) -> Result<(), InvalidSpec> {
        check(
            !self.name.is_empty() && self.name.len() <= 200,
            &format!("{at}.name"),
            || "expected a name of 1 to 200 bytes".into(),
        )?;
        check(!self.module.is_empty(), &format!("{at}.module"), || {
            "expected a module's name".into()
        })?;
        check(!self.class.is_empty(), &format!("{at}.class"), || {
            "expected a class's name".into()
        })?;
        check(
            (1..=MAX_REPLICAS).contains(&self.replicas),
            &format!("{at}.replicas"),
            || format!("expected 1 to {MAX_REPLICAS}, found {}", self.replicas),
        )?;
        check(
            (1..=MAX_BATCH_SIZE).contains(&self.max_batch_size),
            &format!("{at}.max_batch_size"),
            || format!("expected 1 to {MAX_BATCH_SIZE}, found {}", self.max_batch_size),
        )?;
        check(!self.timeout.is_zero(), &format!("{at}.timeout"), || {
            "expected a time above zero".into()
        })?;
        check(
            (1..=MAX_ATTEMPTS).contains(&self.attempts),
            &format!("{at}.attempts"),
            || format!("expected 1 to {MAX_ATTEMPTS}, found {}", self.attempts),
        )?;
        check(
            self.env.is_empty() || self.env.len() == self.replicas as usize,
            &format!("{at}.env"),
            || {
                format!(
                    "expected one set for each of the {} replicas, found {}",
                    self.replicas,
                    self.env.len()
                )
            },
        )?;
        self.needs.validate(at)?;
        self.validate_headers(&format!("{at}.request_headers"))
    }

    fn validate_headers(&self, at: &str) -> Result<(), InvalidSpec> {
        let names = &self.request_headers;
        check(names.len() <= MAX_STAGE_HEADERS, at, || {
            format!(
                "expected at most {MAX_STAGE_HEADERS} names, found {}",
                names.len()
            )
        })?;
        let wrong = names.iter().find(|name| !is_header_name(name));
        check(wrong.is_none(), at, || {
            format!(
                "expected names of headers in lower case, found {:?}",
                wrong.map_or("", String::as_str)
            )
        })
    }
}

/// Whether `name` is a field name of HTTP as it is compared: a token without capitals (RFC 9110, section 5.6.2).
pub(crate) fn is_header_name(name: &str) -> bool {
    let is_token =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte);
    (1..=256).contains(&name.len()) && name.bytes().all(is_token)
}

impl RouteSpec {
    fn validate(&self, at: &str, stages: usize) -> Result<(), InvalidSpec> {
        let place = format!("{at}.path");
        check(
            self.path.starts_with('/') && !self.path.contains(['?', '#', '{', '}']),
            &place,
            || {
                format!(
                    "expected a path that starts with '/' and has no '?', '#' or braces, found {:?}",
                    self.path
                )
            },
        )?;
        check(!RESERVED_PATHS.contains(&self.path.as_str()), &place, || {
            format!("'{}' is reserved, try another one", self.path)
        })?;
        let place = format!("{at}.stages");
        check(!self.stages.is_empty(), &place, || {
            "expected at least one stage".into()
        })?;
        let mut seen = BTreeSet::new();
        for stage in &self.stages {
            check(usize::from(stage.0) < stages, &place, || {
                format!("there is no stage {stage}; the pipeline has {stages}")
            })?;
            check(seen.insert(stage), &place, || {
                format!("stage {stage} comes twice")
            })?;
        }
        Ok(())
    }

    /// The stage after `stage` on this route, `None` where it is the last.
    pub fn next(&self, stage: StageIndex) -> Option<StageIndex> {
        let at = self.stages.iter().position(|&s| s == stage)?;
        self.stages.get(at + 1).copied()
    }

    /// The first stage. A validated route has one.
    pub fn first(&self) -> Option<StageIndex> {
        self.stages.first().copied()
    }

    /// The last stage. A validated route has one.
    pub fn last(&self) -> Option<StageIndex> {
        self.stages.last().copied()
    }
}

pub(crate) fn check(holds: bool, place: &str, problem: impl FnOnce() -> String) -> Result<(), InvalidSpec> {
    if holds {
        Ok(())
    } else {
        Err(InvalidSpec {
            place: place.to_owned(),
            problem: problem(),
        })
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
    use super::*;

    fn stage(name: &str) -> StageSpec {
        StageSpec {
            name: name.into(),
            module: "__main__".into(),
            class: "Echo".into(),
            replicas: 2,
            max_batch_size: 1,
            max_wait: DEFAULT_WAIT,
            batching: Batching::Window,
            timeout: DEFAULT_TIMEOUT,
            env: Vec::new(),
            node_labels: BTreeMap::new(),
            delivery: Delivery::Retry,
            attempts: DEFAULT_ATTEMPTS,
            mime: DEFAULT_MIME.into(),
            streaming: false,
            request_headers: Vec::new(),
            needs: Needs::default(),
        }
    }

    fn spec() -> PipelineSpec {
        PipelineSpec {
            name: PipelineName::new("echo").unwrap(),
            source: PythonSource {
                dir: "/srv/echo".into(),
                main: Some("server.py".into()),
                ..Default::default()
            },
            stages: vec![stage("A_1"), stage("B_2")],
            routes: vec![RouteSpec {
                path: "/inference".into(),
                stages: vec![StageIndex(0), StageIndex(1)],
            }],
            timeout: DEFAULT_TIMEOUT,
            capacity: DEFAULT_CAPACITY,
            max_request_bytes: DEFAULT_MAX_REQUEST_BYTES,
            openapi: None,
            rollout: RolloutSpec::default(),
        }
    }

    #[test]
    fn a_good_spec_passes_and_survives_json() {
        let spec = spec();
        assert_eq!(spec.validate(), Ok(()));
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<PipelineSpec>(&json).unwrap(), spec);
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
    fn a_bundles_folder_is_inside_it() {
        let with = |dir: &str| {
            let mut spec = spec();
            spec.source.bundle = Some(BundleId::from_digest([7; 32]));
            spec.source.dir = dir.into();
            spec.validate().map_err(|error| error.place)
        };
        for good in ["", "src", "src/service", "..hidden"] {
            assert_eq!(with(good), Ok(()), "{good}");
        }
        for bad in ["/srv/echo", "..", "src/../../x"] {
            assert_eq!(with(bad), Err("source.dir".into()), "{bad}");
        }
    }

    #[test]
    fn requirements_mean_the_same_everywhere() {
        for good in [
            "numpy",
            "torch>=2.5 ; python_version < '3.13'",
            "--extra-index-url=x",
            "--no-index",
            "a[b]==1 --hash=sha256:00",
        ] {
            assert_eq!(check_requirement(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            " ",
            "a\nb",
            "-r other.txt",
            "--requirement=x",
            "-e .",
            "-cx",
            "./x.whl",
            "/x.whl",
            "x @ file:///x",
        ] {
            assert!(check_requirement(bad).is_err(), "{bad:?} should be refused");
        }
        let mut spec = spec();
        spec.source.requirements = vec!["numpy".into(), "-e .".into()];
        assert_eq!(spec.validate().unwrap_err().place, "source.requirements[1]");
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

    #[test]
    fn a_route_knows_what_comes_next() {
        let route = RouteSpec {
            path: "/x".into(),
            stages: vec![StageIndex(2), StageIndex(0)],
        };
        assert_eq!(route.next(StageIndex(2)), Some(StageIndex(0)));
        assert_eq!(route.next(StageIndex(0)), None);
        assert_eq!(route.next(StageIndex(1)), None);
        assert_eq!(
            (route.first(), route.last()),
            (Some(StageIndex(2)), Some(StageIndex(0)))
        );
    }
}
