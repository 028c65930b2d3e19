//! Everything about one pipeline or one node, as `mosectl describe` gives it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use mosec_types::resources::{WHOLE_CPU, WHOLE_GPU};
use mosec_types::spec::{Batching, Delivery};
use mosec_types::topology::Deployment;
use mosec_types::{NodeId, PipelineName, PipelineSpec, StageSpec};
use mosec_wire::control::{ConvertError, proto};
use serde::Serialize;
use serde_json::Value;

use super::audit::{self, AuditReport};
use super::history::{self, RecordReport};
use super::table::{self, dash, table};
use super::{NodeReport, ReplicaReport, Report, RevisionReport, nodes, rollout};
use crate::terminal::printable;

/// Most events that are shown: what happened lately, without pushing the rest off the screen.
pub(crate) const MAX_EVENTS: usize = 10;

/// One pipeline. Fields are only ever added: scripts read this.
#[derive(Debug, Serialize)]
pub(crate) struct PipelineDescription {
    pub(crate) name: String,
    /// The revision whose specification is `spec`: the one that serves, else the newest.
    pub(crate) revision: Option<u64>,
    /// As the control plane has it, with the names of variables and without their values, which may be secret.
    pub(crate) spec: Option<Value>,
    pub(crate) revisions: Vec<RevisionReport>,
    /// What was deployed of it, the newest last.
    pub(crate) history: Vec<RecordReport>,
    /// What people did to it lately, the newest last.
    pub(crate) events: Vec<AuditReport>,
    #[serde(skip)]
    typed: Option<PipelineSpec>,
}

impl PipelineDescription {
    /// `None` where the status has nothing of such a pipeline.
    pub(crate) fn new(
        pipeline: &PipelineName,
        status: proto::StatusResponse,
        history: Vec<proto::RevisionRecord>,
        audit: Vec<proto::AuditRecord>,
    ) -> Result<Option<Self>, ConvertError> {
        let deployments = status
            .deployments
            .iter()
            .filter_map(|status| status.deployment.clone());
        let deployments: Vec<_> = deployments.map(Deployment::try_from).collect::<Result<_, _>>()?;
        let report = Report::try_from(status)?;
        let revisions: Vec<_> = report.revisions_of(pipeline).into_iter().cloned().collect();
        let serving = revisions.iter().find(|revision| revision.phase == "serving");
        let Some(shown) = serving.or(revisions.last()).map(|revision| revision.revision) else {
            return Ok(None);
        };
        let deployment = deployments
            .into_iter()
            .find(|deployment| deployment.revision.0 == shown);
        let typed = deployment.map(|deployment| (*deployment.spec).clone());
        Ok(Some(Self {
            name: pipeline.to_string(),
            revision: Some(shown),
            spec: typed.as_ref().and_then(without_secrets),
            revisions,
            history: history.into_iter().map(RecordReport::from).collect(),
            events: events(audit, pipeline.as_str()),
            typed,
        }))
    }

    pub(crate) fn render(&self) -> String {
        let mut text = format!("pipeline {}", self.name);
        if let Some(spec) = &self.typed {
            let revision = self.revision.unwrap_or_default();
            let _ = writeln!(text, "  specification of revision {revision}");
            text += &header(spec);
            let _ = writeln!(text, "\n{}", stages(spec).trim_fmt());
        } else {
            text.push('\n');
        }
        let _ = write!(text, "\n{}", rollout::render(&self.revisions));
        let replicas = table::replicas(&self.revisions);
        if !replicas.is_empty() {
            let _ = writeln!(text, "\n{}", replicas.trim_fmt());
        }
        for revision in &self.revisions {
            table::failed_starts(&mut text, revision);
        }
        if !self.history.is_empty() {
            let _ = write!(text, "\n{}", history::render(&self.history));
        }
        if !self.events.is_empty() {
            let _ = write!(text, "\n{}", audit::render(&self.events));
        }
        text
    }
}

/// One node. Fields are only ever added: scripts read this.
#[derive(Debug, Serialize)]
pub(crate) struct NodeDescription {
    pub(crate) node: NodeReport,
    pub(crate) replicas: Vec<PlacedReplica>,
    /// What people did to it lately, the newest last.
    pub(crate) events: Vec<AuditReport>,
    /// Bytes of memory of each GPU.
    pub(crate) gpu_memory: Vec<u64>,
}

/// A replica that is placed on the node.
#[derive(Debug, Serialize)]
pub(crate) struct PlacedReplica {
    pub(crate) pipeline: String,
    pub(crate) revision: u64,
    pub(crate) phase: &'static str,
    #[serde(flatten)]
    pub(crate) replica: ReplicaReport,
}

impl NodeDescription {
    /// `None` where there is no such node.
    pub(crate) fn new(
        node: &NodeId,
        status: proto::StatusResponse,
        audit: Vec<proto::AuditRecord>,
    ) -> Result<Option<Self>, ConvertError> {
        let capacity = status.nodes.iter().find_map(|status| {
            let found = status.node.as_ref()?;
            (found.id == node.as_str()).then(|| found.capacity.clone().unwrap_or_default())
        });
        let gpu_memory = capacity
            .unwrap_or_default()
            .gpus
            .iter()
            .map(|gpu| gpu.memory)
            .collect();
        let report = Report::try_from(status)?;
        let replicas = report.pipelines.iter().flat_map(|revision| {
            let here = revision.replicas.iter();
            let here = here.filter(|replica| replica.node == node.as_str());
            here.map(|replica| PlacedReplica {
                pipeline: revision.name.clone(),
                revision: revision.revision,
                phase: revision.phase,
                replica: replica.clone(),
            })
        });
        let replicas = replicas.collect();
        let found = report
            .nodes
            .into_iter()
            .find(|report| report.name == node.as_str());
        Ok(found.map(|found| Self {
            node: found,
            replicas,
            events: events(audit, node.as_str()),
            gpu_memory,
        }))
    }

    pub(crate) fn render(&self) -> String {
        let node = &self.node;
        let mut text = format!("node {}  {}", node.name, nodes::health(node));
        if let Some(silent) = node.silent_ms {
            let _ = write!(text, "  heard {:.1}s ago", silent as f64 / 1000.0);
        }
        let _ = writeln!(
            text,
            "\naddress {}  incarnation {}",
            node.address, node.incarnation
        );
        if !node.labels.is_empty() {
            let labels = node.labels.iter().map(|(key, value)| format!(" {key}={value}"));
            let _ = writeln!(text, "labels {}", printable(labels.collect::<String>().trim()));
        }
        if node.cpus > 0.0 || node.memory > 0 {
            let _ = writeln!(text, "cpus {}  memory {}", node.cpus, size(node.memory));
        }
        if node.leaving > 0 {
            let _ = writeln!(text, "{} workers finish what they have", node.leaving);
        }
        if !node.gpus.is_empty() {
            let _ = writeln!(text, "\n{}", self.gpus().trim_fmt());
        }
        let _ = writeln!(text, "\n{}", self.replicas());
        if !self.events.is_empty() {
            let _ = write!(text, "\n{}", audit::render(&self.events));
        }
        text
    }

    /// Each GPU with the replicas that may use it.
    fn gpus(&self) -> comfy_table::Table {
        let mut table = table(&["GPU", "MODEL", "MEMORY", "REPLICAS"]);
        for (number, model) in self.node.gpus.iter().enumerate() {
            let uses =
                |placed: &&PlacedReplica| placed.replica.gpus.iter().any(|&gpu| gpu as usize == number);
            let users = self.replicas.iter().filter(uses).map(|placed| {
                let ReplicaReport { stage, replica, .. } = &placed.replica;
                format!("{}/{stage}/{replica}", placed.pipeline)
            });
            let users: Vec<_> = users.collect();
            table.add_row([
                number.to_string(),
                printable(model),
                self.gpu_memory
                    .get(number)
                    .map_or_else(dash, |&bytes| size(bytes)),
                if users.is_empty() { dash() } else { users.join(" ") },
            ]);
        }
        table
    }

    fn replicas(&self) -> String {
        if self.replicas.is_empty() {
            return "no replicas".into();
        }
        let mut table = table(&[
            "PIPELINE",
            "REVISION",
            "PHASE",
            "STAGE",
            "REPLICA",
            "STATE",
            "PID",
            "RESTARTS",
            "LAST ERROR",
        ]);
        for placed in &self.replicas {
            let replica = &placed.replica;
            table.add_row([
                placed.pipeline.clone(),
                placed.revision.to_string(),
                placed.phase.to_owned(),
                replica.stage.clone(),
                replica.replica.to_string(),
                replica.state.to_owned(),
                replica.pid.map_or_else(dash, |pid| pid.to_string()),
                replica.restarts.to_string(),
                replica.last_error.as_deref().map_or_else(dash, table::gist),
            ]);
        }
        table.trim_fmt()
    }
}

/// The last entries of the trail that name something.
fn events(audit: Vec<proto::AuditRecord>, name: &str) -> Vec<AuditReport> {
    let names_it = |record: &proto::AuditRecord| {
        let by = record.by.split('/').any(|part| part == name);
        by || record.action.split_whitespace().any(|word| word == name)
    };
    let mut named: Vec<_> = audit
        .into_iter()
        .filter(names_it)
        .map(AuditReport::from)
        .collect();
    named.split_off(named.len().saturating_sub(MAX_EVENTS))
}

/// A specification as JSON. Variables may hold keys and passwords: their names are enough.
fn without_secrets(spec: &PipelineSpec) -> Option<Value> {
    let mut spec = serde_json::to_value(spec).ok()?;
    for stage in spec.get_mut("stages")?.as_array_mut()? {
        for variables in stage.get_mut("env")?.as_array_mut()? {
            let names = variables.as_object()?.keys().cloned().map(Value::String);
            *variables = Value::Array(names.collect());
        }
    }
    // A document of its own, which the gateway serves.
    spec.as_object_mut()?.remove("openapi");
    Some(spec)
}

fn header(spec: &PipelineSpec) -> String {
    let mut text = String::new();
    let source = &spec.source;
    let code = match &source.bundle {
        Some(bundle) => format!("bundle {}", bundle.short()),
        None => format!("folder {}", source.dir),
    };
    let main = source.main.as_ref().map(|main| format!("  script {main}"));
    let python = source.python.as_ref().map(|python| format!("  python {python}"));
    let requirements = match source.requirements.len() {
        0 => None,
        count => Some(format!("  requirements {count}")),
    };
    let more = [main, python, requirements]
        .into_iter()
        .flatten()
        .collect::<String>();
    let _ = writeln!(text, "code      {}", printable(&(code + &more)));
    for route in &spec.routes {
        let stages = route.stages.iter().map(|&index| {
            let stage = spec.stage(index);
            stage.map_or_else(|| index.to_string(), |stage| stage.name.clone())
        });
        let stages: Vec<_> = stages.collect();
        let _ = writeln!(
            text,
            "route     {}: {}",
            printable(&route.path),
            stages.join(" -> ")
        );
    }
    let (timeout, capacity, body) = (time(spec.timeout), spec.capacity, size(spec.max_request_bytes));
    let _ = writeln!(
        text,
        "requests  timeout {timeout}  capacity {capacity}  largest {body}"
    );
    let _ = writeln!(text, "rollout   {}", takeover(spec));
    text
}

/// How it replaces the revision before it, in words.
fn takeover(spec: &PipelineSpec) -> String {
    let rollout = &spec.rollout;
    let mut parts = vec![match rollout.max_parallel {
        0 => "all replicas at once".to_owned(),
        1 => "one replica of each stage at a time".to_owned(),
        count => format!("{count} replicas of each stage at a time"),
    }];
    if !rollout.min_healthy_time.is_zero() {
        parts.push(format!("healthy for {}", time(rollout.min_healthy_time)));
    }
    if let Some(canary) = &rollout.canary {
        let replicas = match canary.replicas {
            0 => "all replicas".to_owned(),
            count => format!("{count} of each stage"),
        };
        let promoted = if canary.auto_promote {
            "promotes itself"
        } else {
            "is promoted by hand"
        };
        parts.push(format!(
            "canary of {replicas} with {}%, {promoted}",
            canary.weight
        ));
    }
    if let Some(errors) = rollout.bounds.max_errors {
        parts.push(format!("errors up to {}%", f64::from(errors) / 100.0));
    }
    if let Some(p99) = rollout.bounds.max_p99 {
        parts.push(format!("p99 up to {}", time(p99)));
    }
    parts.join("; ")
}

fn stages(spec: &PipelineSpec) -> comfy_table::Table {
    let mut table = table(&[
        "STAGE", "WORKER", "REPLICAS", "BATCH", "TIMEOUT", "ATTEMPTS", "NEEDS", "ENV",
    ]);
    for stage in &spec.stages {
        table.add_row([
            stage.name.clone(),
            printable(&format!("{}:{}", stage.module, stage.class)),
            stage.replicas.to_string(),
            batch(stage),
            time(stage.timeout),
            match stage.delivery {
                Delivery::AtMostOnce => "at most once".to_owned(),
                Delivery::Retry => stage.attempts.to_string(),
            },
            needs(stage),
            variables(stage),
        ]);
    }
    table
}

fn batch(stage: &StageSpec) -> String {
    if stage.max_batch_size == 1 {
        return "1".into();
    }
    let how = match stage.batching {
        Batching::Window => String::new(),
        Batching::Adaptive => ", adaptive".to_owned(),
    };
    format!("{} in {}{how}", stage.max_batch_size, time(stage.max_wait))
}

fn needs(stage: &StageSpec) -> String {
    let needs = &stage.needs;
    let mut parts = Vec::new();
    if needs.gpus > 0 {
        parts.push(format!("gpus={}", f64::from(needs.gpus) / f64::from(WHOLE_GPU)));
    }
    if needs.gpu_memory > 0 {
        parts.push(format!("gpu_memory={}", size(needs.gpu_memory)));
    }
    if needs.cpus > 0 {
        parts.push(format!("cpus={}", f64::from(needs.cpus) / f64::from(WHOLE_CPU)));
    }
    if needs.memory > 0 {
        parts.push(format!("memory={}", size(needs.memory)));
    }
    let labels = stage.node_labels.iter();
    parts.extend(labels.map(|(key, value)| format!("{key}={value}")));
    if parts.is_empty() {
        dash()
    } else {
        printable(&parts.join(" "))
    }
}

/// The names of its variables, in all replicas.
fn variables(stage: &StageSpec) -> String {
    let names: BTreeMap<_, ()> = stage
        .env
        .iter()
        .flat_map(|env| env.keys().map(|name| (name, ())))
        .collect();
    let names: Vec<_> = names.into_keys().map(String::as_str).collect();
    if names.is_empty() {
        dash()
    } else {
        printable(&names.join(" "))
    }
}

fn time(duration: Duration) -> String {
    format!("{duration:?}")
}

/// In the largest unit that leaves it a number of few digits, as `80GiB`.
fn size(bytes: u64) -> String {
    for (unit, name) in [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes >= unit {
            let tenths = (bytes as f64 / unit as f64 * 10.0).round() / 10.0;
            return format!("{tenths}{name}");
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::response;

    fn record(index: u64, by: &str, action: &str) -> proto::AuditRecord {
        proto::AuditRecord {
            index,
            at_unix_ms: 1_795_628_100_123,
            by: by.into(),
            action: action.into(),
            refusal: String::new(),
        }
    }

    fn trail() -> Vec<proto::AuditRecord> {
        vec![
            record(3, "agent/a", "join with token 1"),
            record(5, "ann", "deploy asr (stages: 2, replicas: 3)"),
            record(9, "ann", "deploy ocr (stages: 2, replicas: 3)"),
            record(11, "ann", "drain node a"),
        ]
    }

    #[test]
    fn a_pipeline_is_told_on_one_screen() {
        let name = PipelineName::new("ocr").unwrap();
        let mut response = response();
        let spec = response.deployments[0]
            .deployment
            .as_mut()
            .unwrap()
            .spec
            .as_mut()
            .unwrap();
        spec.stages[1].env = vec![proto::Environment {
            variables: BTreeMap::from([("API_KEY".into(), "s3cret".into())]),
        }];
        spec.stages[1].max_batch_size = 8;
        spec.stages[1].max_wait_ms = 10;
        let found = PipelineDescription::new(&name, response, Vec::new(), trail())
            .unwrap()
            .unwrap();
        let text = found.render();
        for words in [
            "pipeline ocr  specification of revision 9\n",
            "code      folder /srv\n",
            "route     /ocr: decode -> find\n",
            "rollout   all replicas at once\n",
            "server:Stage",
            "8 in 10ms",
            "API_KEY",
            "back-off",
            "ValueError: no model",
            "revision 9: stage find replica 3 fits no node: b is suspect\n",
            "deploy ocr (stages: 2, replicas: 3)",
        ] {
            assert!(text.contains(words), "{words:?} is missing:\n{text}");
        }
        let json = serde_json::to_string(&found).unwrap();
        for words in ["s3cret", "asr"] {
            assert!(
                !text.contains(words) && !json.contains(words),
                "{words}\n{text}{json}"
            );
        }
        assert_eq!(found.events.len(), 1);
        let other = PipelineName::new("none").unwrap();
        let none = PipelineDescription::new(&other, super::super::tests::response(), vec![], vec![]);
        assert!(none.unwrap().is_none());
    }

    #[test]
    fn a_node_is_told_with_what_runs_there() {
        let mut response = response();
        let node = response.nodes[0].node.as_mut().unwrap();
        node.capacity = Some(proto::Capacity {
            gpus: vec![proto::Gpu {
                model: "H100".into(),
                memory: 80 << 30,
            }],
            cpus: 8000,
            memory: 3 << 29,
        });
        let placements = &mut response.deployments[0].deployment.as_mut().unwrap().placements;
        let here = placements
            .iter_mut()
            .find(|placement| placement.node == "a" && placement.stage == 1);
        here.unwrap().gpus = vec![0];
        let a = NodeId::new("a").unwrap();
        let found = NodeDescription::new(&a, response, trail()).unwrap().unwrap();
        let text = found.render();
        for words in [
            "node a  up  heard 0.4s ago\n",
            "labels gpu=h200\n",
            "cpus 8  memory 1.5GiB\n",
            "H100   80GiB   ocr/find/1",
            "ocr       9",
            "drain node a",
            "join with token 1",
        ] {
            assert!(text.contains(words), "{words:?} is missing:\n{text}");
        }
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(
            (&json["replicas"][0]["stage"], &json["node"]["name"]),
            (&"decode".into(), &"a".into())
        );
        let none = NodeDescription::new(
            &NodeId::new("z").unwrap(),
            super::super::tests::response(),
            vec![],
        );
        assert!(none.unwrap().is_none());
    }

    #[test]
    fn events_are_the_newest() {
        let many = (0..30)
            .map(|index| record(index, "ann", "scale ocr find=2"))
            .collect();
        let events = events(many, "ocr");
        assert_eq!((events.len(), events[9].entry), (MAX_EVENTS, 29));
    }

    #[test]
    fn sizes_have_few_digits() {
        let cases = [
            (0, "0B"),
            (1023, "1023B"),
            (10 << 20, "10MiB"),
            (85_520_809_984, "79.6GiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
    }
}
