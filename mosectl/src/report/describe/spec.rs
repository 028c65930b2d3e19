//! A pipeline's specification, for people and for programs.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use mosec_types::resources::{WHOLE_CPU, WHOLE_GPU};
use mosec_types::spec::{Batching, Delivery, Spread};
use mosec_types::{PipelineSpec, StageSpec};
use serde_json::Value;

use super::size;
use crate::report::StageReport;
use crate::report::table::{dash, table};
use crate::terminal::printable;

/// A specification as JSON. Variables may hold keys and passwords: their names are enough.
pub(super) fn without_secrets(spec: &PipelineSpec) -> Option<Value> {
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

/// All but the stages, a line for each part.
pub(super) fn header(spec: &PipelineSpec) -> String {
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
    if let Some(deadline) = rollout.progress_deadline {
        parts.push(format!("progress within {}", time(deadline)));
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

/// The stages as a table. `scaled`: as many replicas as they are to have by now, in the same order.
pub(super) fn stages(spec: &PipelineSpec, scaled: &[StageReport]) -> comfy_table::Table {
    let mut table = table(&[
        "STAGE", "WORKER", "REPLICAS", "BATCH", "TIMEOUT", "ATTEMPTS", "NEEDS", "ENV",
    ]);
    for (at, stage) in spec.stages.iter().enumerate() {
        let deployed = stage.replicas;
        let goal = scaled.get(at).map_or(deployed, |scaled| scaled.goal);
        table.add_row([
            stage.name.clone(),
            printable(&format!("{}:{}", stage.module, stage.class)),
            match goal == deployed {
                true => goal.to_string(),
                false => format!("{goal} (deployed with {deployed})"),
            },
            batch(stage),
            time(stage.timeout),
            match stage.delivery {
                Delivery::AtMostOnce => "at most once".to_owned(),
                Delivery::Retry => stage.attempts.to_string(),
            },
            needs(spec, stage),
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

/// What its replicas need of nodes, and where they may be.
fn needs(spec: &PipelineSpec, stage: &StageSpec) -> String {
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
    parts.extend(stage.spread.iter().map(|Spread { by, max }| match max {
        Some(max) => format!("spread={by}(max={max})"),
        None => format!("spread={by}"),
    }));
    let others = stage.anti_affinity.iter().filter_map(|&other| spec.stage(other));
    let others: Vec<_> = others.map(|other| other.name.as_str()).collect();
    if !others.is_empty() {
        parts.push(format!("anti_affinity={}", others.join(",")));
    }
    if parts.is_empty() {
        dash()
    } else {
        printable(&parts.join(" "))
    }
}

/// The names of its variables, in all replicas.
fn variables(stage: &StageSpec) -> String {
    let names: BTreeSet<_> = stage.env.iter().flat_map(|env| env.keys()).collect();
    let names: Vec<_> = names.into_iter().map(String::as_str).collect();
    if names.is_empty() {
        dash()
    } else {
        printable(&names.join(" "))
    }
}

fn time(duration: Duration) -> String {
    format!("{duration:?}")
}
