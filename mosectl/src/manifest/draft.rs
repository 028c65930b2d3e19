//! The keys of a manifest as they are written, and the specification made of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use mosec_types::spec::{
    Batching, DEFAULT_ATTEMPTS, DEFAULT_CAPACITY, DEFAULT_MAX_REQUEST_BYTES, DEFAULT_MIME, DEFAULT_ROUTE,
    DEFAULT_TIMEOUT, DEFAULT_WAIT, Delivery, MAX_REPLICAS, PythonSource, RouteSpec, Spread,
};
use mosec_types::{Needs, PipelineName, PipelineSpec, RolloutSpec, StageIndex, StageSpec};

use super::read::{FromNode, Reader, Size};
use super::rollout::{Cpus, Gpus};
use super::yaml::{Node, Value};
use crate::nearest::nearest;

pub(super) const KEYS: &[&str] = &[
    "pipeline",
    "source",
    "python",
    "requirements",
    "stages",
    "routes",
    "timeout",
    "capacity",
    "max_request_size",
    "rollout",
];
pub(super) const STAGE_KEYS: &[&str] = &[
    "name",
    "worker",
    "replicas",
    "max_batch_size",
    "max_wait",
    "batching",
    "timeout",
    "env",
    "labels",
    "delivery",
    "attempts",
    "gpus",
    "gpu_memory",
    "cpus",
    "memory",
    "spread",
    "anti_affinity",
];
pub(super) const SPREAD_KEYS: &[&str] = &["by", "max"];
pub(super) const ROUTE_KEYS: &[&str] = &["path", "stages"];

/// The manifest's keys as written. What has to be there and is not is `None`, and noted: the rest is looked at all the same.
pub(super) struct Draft {
    pipeline: Option<PipelineName>,
    source: Option<String>,
    python: Option<String>,
    requirements: Option<Requirements>,
    stages: Option<Vec<Stage>>,
    routes: Option<Vec<Route>>,
    timeout: Option<Duration>,
    capacity: Option<u32>,
    max_request_size: Option<Size>,
    rollout: Option<RolloutSpec>,
}

enum Requirements {
    /// A file below the source.
    File(String),
    Lines(Vec<String>),
}

struct Stage {
    name: Option<String>,
    worker: Option<WorkerClass>,
    replicas: Option<u32>,
    max_batch_size: Option<u32>,
    max_wait: Option<Duration>,
    batching: Option<Batching>,
    timeout: Option<Duration>,
    env: Option<Env>,
    labels: Option<BTreeMap<String, String>>,
    delivery: Option<Delivery>,
    attempts: Option<u32>,
    needs: Needs,
    spread: Option<Spreads>,
    anti_affinity: Option<Vec<String>>,
}

/// One label, or several.
struct Spreads(Vec<Spread>);

struct WorkerClass {
    module: String,
    class: String,
}

enum Env {
    /// For all replicas alike.
    Same(BTreeMap<String, String>),
    Each(Vec<BTreeMap<String, String>>),
}

struct Route {
    path: Option<String>,
    stages: Option<Vec<String>>,
}

impl FromNode for Draft {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        let fields = reader.fields(path, node, KEYS)?;
        let pipeline = reader.required(&fields, "pipeline", "the pipeline's name");
        let stages = reader.required(&fields, "stages", "a list of stages");
        let source = reader.optional(&fields, "source");
        let python = reader.optional(&fields, "python");
        let requirements = reader.optional(&fields, "requirements");
        let routes = reader.optional(&fields, "routes");
        let timeout = reader.optional(&fields, "timeout");
        let capacity = reader.optional(&fields, "capacity");
        let max_request_size = reader.optional(&fields, "max_request_size");
        let rollout = reader.optional(&fields, "rollout");
        Some(Self {
            pipeline,
            source,
            python,
            requirements,
            stages,
            routes,
            timeout,
            capacity,
            max_request_size,
            rollout,
        })
    }
}

impl FromNode for Requirements {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        match &node.value {
            Value::List(_) => Vec::read(reader, path, node).map(Self::Lines),
            Value::Scalar(_) => String::read(reader, path, node).map(Self::File),
            other => {
                let found = other.describe();
                let expected = "expected a file as requirements.txt, or a list of requirements as numpy>=2";
                reader.note(path, node.place, format!("{expected}, found {found}"));
                None
            }
        }
    }
}

impl FromNode for Stage {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        let fields = reader.fields(path, node, STAGE_KEYS)?;
        let name = reader.required(&fields, "name", "the stage's name");
        let worker = reader.required(&fields, "worker", "module:Class");
        let replicas = reader.optional(&fields, "replicas");
        let max_batch_size = reader.optional(&fields, "max_batch_size");
        let max_wait = reader.optional(&fields, "max_wait");
        let batching = reader.optional(&fields, "batching");
        let timeout = reader.optional(&fields, "timeout");
        let env = reader.optional(&fields, "env");
        let labels = reader.optional(&fields, "labels");
        let delivery = reader.optional(&fields, "delivery");
        let attempts = reader.optional(&fields, "attempts");
        let gpus = reader.optional(&fields, "gpus");
        let gpu_memory = reader.optional(&fields, "gpu_memory");
        let cpus = reader.optional(&fields, "cpus");
        let memory = reader.optional(&fields, "memory");
        let spread = reader.optional(&fields, "spread");
        let anti_affinity = reader.optional(&fields, "anti_affinity");
        let needs = Needs {
            gpus: gpus.map_or(0, |Gpus(parts)| parts),
            gpu_memory: gpu_memory.map_or(0, |Size(bytes)| bytes),
            cpus: cpus.map_or(0, |Cpus(parts)| parts),
            memory: memory.map_or(0, |Size(bytes)| bytes),
        };
        Some(Self {
            name,
            worker,
            replicas,
            max_batch_size,
            max_wait,
            batching,
            timeout,
            env,
            labels,
            delivery,
            attempts,
            needs,
            spread,
            anti_affinity,
        })
    }
}

impl FromNode for WorkerClass {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        let text = String::read(reader, path, node)?;
        match text.split_once(':') {
            Some((module, class)) if !module.is_empty() && !class.is_empty() && !class.contains(':') => {
                Some(Self {
                    module: module.to_owned(),
                    class: class.to_owned(),
                })
            }
            _ => {
                let found = node.value.describe();
                reader.note(
                    path,
                    node.place,
                    format!("expected module:Class, as server:Preprocess, found {found}"),
                );
                None
            }
        }
    }
}

impl FromNode for Env {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        match &node.value {
            Value::Map(_) => BTreeMap::read(reader, path, node).map(Self::Same),
            Value::List(_) => Vec::read(reader, path, node).map(Self::Each),
            other => {
                let found = other.describe();
                let expected = "expected a map of variables, or a list with one map for each replica";
                reader.note(path, node.place, format!("{expected}, found {found}"));
                None
            }
        }
    }
}

impl FromNode for Spreads {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        match &node.value {
            Value::Map(_) => Spread::read(reader, path, node).map(|spread| Self(vec![spread])),
            Value::List(_) => Vec::read(reader, path, node).map(Self),
            other => {
                let found = other.describe();
                let expected = "expected a map as {by: zone}, or a list of them";
                reader.note(path, node.place, format!("{expected}, found {found}"));
                None
            }
        }
    }
}

impl FromNode for Spread {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        let fields = reader.fields(path, node, SPREAD_KEYS)?;
        let by = reader.required(
            &fields,
            "by",
            "a label of nodes, as zone, or node for their names",
        );
        let max = reader.optional(&fields, "max");
        Some(Self { by: by?, max })
    }
}

impl FromNode for Route {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        let fields = reader.fields(path, node, ROUTE_KEYS)?;
        let route = reader.required(&fields, "path", "the path, as /inference");
        let stages = reader.optional(&fields, "stages");
        Some(Self { path: route, stages })
    }
}

impl Draft {
    /// The file that the requirements are in, where they are not in the manifest itself.
    pub(super) fn requirements_file(&self) -> Option<&str> {
        match &self.requirements {
            Some(Requirements::File(file)) => Some(file),
            _ => None,
        }
    }

    /// The specification. With problems noted it is one to look for further ones in, and no more.
    pub(super) fn into_spec(self, reader: &mut Reader, tree: &Node, folder: &Path) -> PipelineSpec {
        let stages = self.stages.unwrap_or_default();
        let names: Vec<_> = stages.iter().map(|stage| stage.name.as_deref()).collect();
        let all = || {
            (0u16..)
                .map(StageIndex)
                .zip(&names)
                .map(|(index, _)| index)
                .collect()
        };
        let routes = match &self.routes {
            None => vec![RouteSpec {
                path: DEFAULT_ROUTE.into(),
                stages: all(),
            }],
            Some(routes) => routes
                .iter()
                .enumerate()
                .map(|(index, route)| RouteSpec {
                    path: route
                        .path
                        .clone()
                        .unwrap_or_else(|| format!("/{}", stand_in(index))),
                    stages: match &route.stages {
                        None => all(),
                        Some(stages) => {
                            let at = format!("routes[{index}].stages");
                            resolve(reader, tree, &at, stages, &names)
                        }
                    },
                })
                .collect(),
        };
        let mut anti_affinity = Vec::new();
        for (index, stage) in stages.iter().enumerate() {
            let at = format!("stages[{index}].anti_affinity");
            let others = stage.anti_affinity.as_deref().unwrap_or_default();
            anti_affinity.push(resolve(reader, tree, &at, others, &names));
        }
        let stages = stages.into_iter().zip(anti_affinity).enumerate();
        let stages = stages
            .map(|(index, (stage, others))| stage.into_spec(index, others))
            .collect();
        let dir = self
            .source
            .map_or_else(|| folder.to_owned(), |source| folder.join(source));
        // A bare name is looked up on each node's PATH; anything else is a file, which no worker finds from its folder.
        let python = self.python.map(|python| match python.contains('/') {
            true => folder.join(python).to_string_lossy().into_owned(),
            false => python,
        });
        PipelineSpec {
            name: self.pipeline.unwrap_or_else(unnamed),
            source: PythonSource {
                dir: dir.to_string_lossy().into_owned(),
                python,
                requirements: match self.requirements {
                    Some(Requirements::Lines(lines)) => lines,
                    _ => Vec::new(),
                },
                ..Default::default()
            },
            stages,
            routes,
            timeout: self.timeout.unwrap_or(DEFAULT_TIMEOUT),
            capacity: self.capacity.unwrap_or(DEFAULT_CAPACITY),
            max_request_bytes: self
                .max_request_size
                .map_or(DEFAULT_MAX_REQUEST_BYTES, |Size(bytes)| bytes),
            openapi: None,
            rollout: self.rollout.unwrap_or_default(),
        }
    }
}

impl Stage {
    /// `anti_affinity`: the positions of the stages that it names.
    fn into_spec(self, index: usize, anti_affinity: Vec<StageIndex>) -> StageSpec {
        let replicas = self.replicas.unwrap_or(1);
        let worker = self.worker.unwrap_or_else(|| WorkerClass {
            module: stand_in(index),
            class: stand_in(index),
        });
        StageSpec {
            name: self.name.unwrap_or_else(|| stand_in(index)),
            module: worker.module,
            class: worker.class,
            replicas,
            max_batch_size: self.max_batch_size.unwrap_or(1),
            max_wait: self.max_wait.unwrap_or(DEFAULT_WAIT),
            batching: self.batching.unwrap_or_default(),
            timeout: self.timeout.unwrap_or(DEFAULT_TIMEOUT),
            env: match self.env {
                None => Vec::new(),
                // Too many replicas are refused later, and need no copies until then.
                Some(Env::Same(map)) => vec![map; replicas.min(MAX_REPLICAS) as usize],
                Some(Env::Each(maps)) => maps,
            },
            node_labels: self.labels.unwrap_or_default(),
            delivery: self.delivery.unwrap_or_default(),
            attempts: self.attempts.unwrap_or(DEFAULT_ATTEMPTS),
            mime: DEFAULT_MIME.into(),
            streaming: false,
            request_headers: Vec::new(),
            needs: self.needs,
            spread: self.spread.map(|Spreads(spreads)| spreads).unwrap_or_default(),
            anti_affinity,
        }
    }
}

/// In the place of a name that is missing: nothing else has it, so it makes no mistake of its own.
fn stand_in(index: usize) -> String {
    format!("\u{1}{index}")
}

fn unnamed() -> PipelineName {
    PipelineName::new("unnamed").expect("a name by its own rules")
}

/// The positions of the stages with these names.
fn resolve(
    reader: &mut Reader,
    tree: &Node,
    at: &str,
    wanted: &[String],
    names: &[Option<&str>],
) -> Vec<StageIndex> {
    let mut found = Vec::new();
    // Where some are not known, nothing can be said about one that is not among the others.
    let are_known = !names.is_empty() && names.iter().all(Option::is_some);
    for (index, wanted) in wanted.iter().enumerate() {
        match (0u16..).zip(names).find(|(_, name)| **name == Some(wanted)) {
            Some((stage, _)) if found.contains(&StageIndex(stage)) => {
                let key = format!("{at}[{index}]");
                reader.note(
                    key.as_str(),
                    tree.nearest(&key).place,
                    format!("the stage {wanted:?} comes twice"),
                );
            }
            Some((stage, _)) => found.push(StageIndex(stage)),
            None if !are_known => {}
            None => {
                let key = format!("{at}[{index}]");
                let known: Vec<_> = names.iter().flatten().copied().collect();
                let known = known.join(", ");
                let message = match nearest(wanted, names.iter().flatten().copied()) {
                    Some(name) => {
                        format!("no stage {wanted:?}, did you mean {name:?}? (the stages are {known})")
                    }
                    None => format!("no stage {wanted:?}, expected one of {known}"),
                };
                reader.note(key.as_str(), tree.nearest(&key).place, message);
            }
        }
    }
    found
}
