//! The keys of a manifest's `rollout`.

use std::time::Duration;

use mosec_types::RolloutSpec;
use mosec_types::rollout::{
    Bounds, CanarySpec, DEFAULT_CANARY_TIME, DEFAULT_CANARY_WEIGHT, DEFAULT_MIN_REQUESTS, HeaderMatch, WHOLE,
};

use super::read::{FromNode, Parts, Reader, Share};
use super::yaml::{Node, Scalar, Value};

pub(super) const KEYS: &[&str] = &[
    "max_parallel",
    "min_healthy_time",
    "progress_deadline",
    "canary",
    "bounds",
];
pub(super) const CANARY_KEYS: &[&str] = &["replicas", "weight", "header", "auto_promote"];
pub(super) const HEADER_KEYS: &[&str] = &["name", "value"];
pub(super) const BOUNDS_KEYS: &[&str] = &["max_error_rate", "max_p99", "min_requests"];

/// Replicas of a stage, or all that there are.
struct Count(u32);

impl FromNode for Count {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        match &node.value {
            Value::Scalar(Scalar { text, .. }) if text == "all" => Some(Self(0)),
            Value::Scalar(_) => match u32::read(reader, path, node)? {
                0 => {
                    reader.note(path, node.place, "expected a whole number above 0, or all");
                    None
                }
                count => Some(Self(count)),
            },
            _ => {
                let found = node.value.describe();
                reader.note(
                    path,
                    node.place,
                    format!("expected a whole number, or all, found {found}"),
                );
                None
            }
        }
    }
}

impl FromNode for RolloutSpec {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        let fields = reader.fields(path, node, KEYS)?;
        let max_parallel: Option<Count> = reader.optional(&fields, "max_parallel");
        let canary: Option<CanarySpec> = reader.optional(&fields, "canary");
        let min_healthy_time: Option<Duration> = reader.optional(&fields, "min_healthy_time");
        let progress_deadline = reader.optional(&fields, "progress_deadline");
        let bounds: Option<Bounds> = reader.optional(&fields, "bounds");
        let default_time = if canary.is_some() {
            DEFAULT_CANARY_TIME
        } else {
            Duration::ZERO
        };
        Some(Self {
            max_parallel: max_parallel.map_or(0, |Count(count)| count),
            min_healthy_time: min_healthy_time.unwrap_or(default_time),
            progress_deadline,
            canary,
            bounds: bounds.unwrap_or_default(),
        })
    }
}

impl FromNode for CanarySpec {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        let fields = reader.fields(path, node, CANARY_KEYS)?;
        let replicas: Option<Count> = reader.optional(&fields, "replicas");
        let weight: Option<Share> = reader.optional(&fields, "weight");
        let header = reader.optional(&fields, "header");
        let auto_promote: Option<bool> = reader.optional(&fields, "auto_promote");
        // Gateways draw by whole percents.
        const PERCENT: u32 = WHOLE / 100;
        let weight = match weight {
            Some(Share(share)) if share % PERCENT != 0 => {
                reader.note(format!("{path}.weight"), node.place, "expected whole percents");
                return None;
            }
            Some(Share(share)) => share / PERCENT,
            None => DEFAULT_CANARY_WEIGHT,
        };
        Some(Self {
            replicas: replicas.map_or(1, |Count(count)| count),
            weight,
            header,
            auto_promote: auto_promote.unwrap_or_default(),
        })
    }
}

impl FromNode for HeaderMatch {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        let fields = reader.fields(path, node, HEADER_KEYS)?;
        let name: Option<String> = reader.required(&fields, "name", "the header's name, as x-canary");
        let value = reader.required(&fields, "value", "the header's value");
        Some(Self {
            name: name?.to_ascii_lowercase(),
            value: value?,
        })
    }
}

impl FromNode for Bounds {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        let fields = reader.fields(path, node, BOUNDS_KEYS)?;
        let max_errors: Option<Share> = reader.optional(&fields, "max_error_rate");
        let max_p99 = reader.optional(&fields, "max_p99");
        let min_requests: Option<u32> = reader.optional(&fields, "min_requests");
        Some(Self {
            max_errors: max_errors.map(|Share(share)| share),
            max_p99,
            min_requests: min_requests.unwrap_or(DEFAULT_MIN_REQUESTS),
        })
    }
}

/// Hundredths of a GPU.
pub(super) struct Gpus(pub(super) u32);

impl FromNode for Gpus {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        Parts::<{ mosec_types::resources::WHOLE_GPU }>::read(reader, path, node)
            .map(|Parts(parts)| Self(parts))
    }
}

/// Thousandths of a processor.
pub(super) struct Cpus(pub(super) u32);

impl FromNode for Cpus {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        Parts::<{ mosec_types::resources::WHOLE_CPU }>::read(reader, path, node)
            .map(|Parts(parts)| Self(parts))
    }
}
