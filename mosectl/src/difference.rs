//! What differs between two specifications, one line for each key.

use mosec_types::{Needs, PipelineSpec};
use serde_json::Value;

use crate::terminal::printable;

/// Longest value that is shown whole.
const SHOWN_CHARS: usize = 60;

/// The keys that differ, as `~ stages.decode.replicas: 2 -> 4`. Stages and routes go by their names.
pub(crate) fn of(before: &PipelineSpec, after: &PipelineSpec) -> serde_json::Result<Vec<String>> {
    let mut lines = Vec::new();
    let (before, after) = (as_written(before)?, as_written(after)?);
    compare("", &named(before), &named(after), &mut lines);
    Ok(lines)
}

/// The specification with what replicas need as manifests have it.
fn as_written(spec: &PipelineSpec) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(spec)?;
    let stages = value.get_mut("stages").and_then(Value::as_array_mut);
    for (written, stage) in stages.into_iter().flatten().zip(&spec.stages) {
        let Some(written) = written.as_object_mut() else {
            continue;
        };
        written.remove("needs");
        let Needs {
            gpus,
            gpu_memory,
            cpus,
            memory,
        } = stage.needs;
        let keys = [
            ("gpus", (gpus > 0).then(|| decimal(gpus, 100))),
            ("gpu_memory", (gpu_memory > 0).then(|| size(gpu_memory))),
            ("cpus", (cpus > 0).then(|| decimal(cpus, 1000))),
            ("memory", (memory > 0).then(|| size(memory))),
        ];
        let keys = keys
            .into_iter()
            .filter_map(|(key, needed)| Some((key.to_owned(), needed?)));
        written.extend(keys);
    }
    Ok(value)
}

/// A count of parts as a number of whole ones.
fn decimal(parts: u32, whole: u32) -> Value {
    match parts % whole {
        0 => Value::from(parts / whole),
        _ => Value::from(f64::from(parts) / f64::from(whole)),
    }
}

/// A number of bytes in the largest unit of which it is a whole number.
fn size(bytes: u64) -> Value {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = units.iter().find(|(_, unit)| bytes.is_multiple_of(*unit));
    unit.map_or_else(
        || Value::from(bytes),
        |(name, unit)| Value::from(format!("{}{name}", bytes / unit)),
    )
}

/// Lists of named things as maps by their names.
fn named(value: Value) -> Value {
    match value {
        Value::Array(items) => {
            let name = |item: &Value| {
                let name = item.get("name").or_else(|| item.get("path"))?;
                name.as_str().map(str::to_owned)
            };
            let names: Option<Vec<_>> = items.iter().map(name).collect();
            match names {
                Some(names) if !items.is_empty() => {
                    let entries = names.into_iter().zip(items.into_iter().map(named));
                    Value::Object(entries.collect())
                }
                _ => Value::Array(items),
            }
        }
        Value::Object(map) => {
            let entries = map.into_iter().map(|(key, value)| (key, named(value)));
            Value::Object(entries.collect())
        }
        other => other,
    }
}

fn compare(path: &str, before: &Value, after: &Value, lines: &mut Vec<String>) {
    match (before, after) {
        _ if before == after => {}
        (Value::Object(old), Value::Object(new)) => {
            let added = new.keys().filter(|key| !old.contains_key(*key));
            for key in old.keys().chain(added) {
                let path = match path {
                    "" => key.clone(),
                    path => format!("{path}.{key}"),
                };
                let nothing = &Value::Null;
                let (old, new) = (old.get(key).unwrap_or(nothing), new.get(key).unwrap_or(nothing));
                compare(&path, old, new, lines);
            }
        }
        (Value::Null, new) => lines.push(format!("+ {path}: {}", short(new))),
        (old, Value::Null) => lines.push(format!("- {path}: {}", short(old))),
        (old, new) => lines.push(format!("~ {path}: {} -> {}", short(old), short(new))),
    }
}

fn short(value: &Value) -> String {
    // A whole stage or route says enough by its name.
    if value.is_object() {
        return "...".into();
    }
    let text = printable(&value.to_string());
    if text.chars().count() <= SHOWN_CHARS {
        return text;
    }
    text.chars().take(SHOWN_CHARS - 3).chain("...".chars()).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::manifest::Manifest;

    fn spec(text: &str) -> PipelineSpec {
        let text = format!("pipeline: p\nroutes: [{{path: /x, stages: [a]}}]\nstages:\n{text}");
        Manifest::parse(&text, "p.yaml", Path::new("/srv")).unwrap().spec
    }

    #[test]
    fn each_key_that_differs_is_a_line() {
        let before = spec("  - {name: a, worker: 'm:A', replicas: 2}\n  - {name: b, worker: 'm:B'}\n");
        let after =
            spec("  - {name: a, worker: 'm:A', replicas: 4, gpus: 1}\n  - {name: c, worker: 'm:C'}\n");
        assert_eq!(of(&before, &before).unwrap(), [""; 0]);
        let lines = of(&before, &after).unwrap();
        let expected = [
            "~ stages.a.replicas: 2 -> 4",
            "+ stages.a.gpus: 1",
            "- stages.b: ...",
            "+ stages.c: ...",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn what_replicas_need_is_shown_as_it_is_written() {
        let before = spec("  - {name: a, worker: 'm:A', cpus: 0.5, gpus: 0.25, gpu_memory: 8GiB}\n");
        let after = spec("  - {name: a, worker: 'm:A', gpus: 0.5, gpu_memory: 512MiB, memory: 1000}\n");
        let expected = [
            "- stages.a.cpus: 0.5",
            "~ stages.a.gpu_memory: \"8GiB\" -> \"512MiB\"",
            "~ stages.a.gpus: 0.25 -> 0.5",
            "+ stages.a.memory: 1000",
        ];
        assert_eq!(of(&before, &after).unwrap(), expected);
    }
}
