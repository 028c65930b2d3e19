//! Reads typed values from a YAML tree and collects every mistake on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mosec_types::spec::{Batching, Delivery};
use mosec_types::{PipelineName, units};

use super::problem::Problem;
use super::yaml::{Key, Node, Place, Scalar, ScalarKind, Value};
use crate::nearest::nearest;

/// Collects mistakes.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) problems: Vec<Problem>,
}

/// A map whose keys have been checked.
pub(super) struct Fields<'n> {
    path: String,
    place: Place,
    entries: &'n [(Key, Node)],
}

/// A type that can be read from a node.
pub(super) trait FromNode: Sized {
    /// `None` where a problem was noted.
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self>;
}

impl Reader {
    pub(super) fn note(&mut self, key: impl Into<String>, place: Place, message: impl Into<String>) {
        self.problems.push(Problem {
            place,
            key: key.into(),
            message: message.into(),
        });
    }

    /// Notes that `node` is not what it should be. Always `None`.
    fn refuse<T>(&mut self, path: &str, node: &Node, expected: &str) -> Option<T> {
        self.note(
            path,
            node.place,
            format!("expected {expected}, found {}", node.value.describe()),
        );
        None
    }

    /// The entries of a map; a key that is not `known` is a mistake.
    pub(super) fn fields<'n>(&mut self, path: &str, node: &'n Node, known: &[&str]) -> Option<Fields<'n>> {
        let Value::Map(entries) = &node.value else {
            let expected = format!("a map with the keys {}", known.join(", "));
            return self.refuse(path, node, &expected);
        };
        for (key, _) in entries
            .iter()
            .filter(|(key, _)| !known.contains(&key.text.as_str()))
        {
            let expected = format!("expected one of {}", known.join(", "));
            let message = match nearest(&key.text, known.iter().copied()) {
                Some(word) => format!("unknown key, did you mean {word:?}? ({expected})"),
                None => format!("unknown key, {expected}"),
            };
            self.note(join(path, &key.text), key.place, message);
        }
        self.refuse_repeated(path, entries);
        Some(Fields {
            path: path.to_owned(),
            place: node.place,
            entries,
        })
    }

    /// Notes keys that come twice. The first counts for what else is looked at.
    fn refuse_repeated(&mut self, path: &str, entries: &[(Key, Node)]) {
        let mut seen = BTreeSet::new();
        for (key, _) in entries {
            if !seen.insert(&key.text) {
                self.note(join(path, &key.text), key.place, "the key comes twice");
            }
        }
    }

    /// `expected`: what to write, for the case that the key is missing.
    pub(super) fn required<T: FromNode>(
        &mut self,
        fields: &Fields<'_>,
        key: &str,
        expected: &str,
    ) -> Option<T> {
        match fields.find(key) {
            Some(node) => T::read(self, &join(&fields.path, key), node),
            None => {
                self.note(
                    join(&fields.path, key),
                    fields.place,
                    format!("missing, expected {expected}"),
                );
                None
            }
        }
    }

    /// `None` where the key is absent, or a problem was noted.
    pub(super) fn optional<T: FromNode>(&mut self, fields: &Fields<'_>, key: &str) -> Option<T> {
        let node = fields.find(key)?;
        T::read(self, &join(&fields.path, key), node)
    }
}

impl Fields<'_> {
    fn find(&self, key: &str) -> Option<&Node> {
        self.entries
            .iter()
            .find(|(known, _)| known.text == key)
            .map(|(_, node)| node)
    }
}

fn join(path: &str, key: &str) -> String {
    // A key may hold anything; an error message is one line.
    let key: String = key
        .chars()
        .take(60)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if path.is_empty() {
        key
    } else {
        format!("{path}.{key}")
    }
}

impl FromNode for String {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        match &node.value {
            Value::Scalar(Scalar {
                text,
                kind: ScalarKind::Text,
            }) if !text.is_empty() => Some(text.clone()),
            Value::Scalar(Scalar {
                kind: ScalarKind::Text,
                ..
            }) => reader.refuse(path, node, "a text"),
            Value::Scalar(_) => reader.refuse(path, node, "a text (in quotes where it looks like a number)"),
            _ => reader.refuse(path, node, "a text"),
        }
    }
}

impl FromNode for u32 {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        match &node.value {
            Value::Scalar(Scalar {
                kind: ScalarKind::Number(number),
                ..
            }) => match u32::try_from(*number) {
                Ok(number) => Some(number),
                Err(_) => reader.refuse(path, node, "a whole number from 0 to 4294967295"),
            },
            _ => reader.refuse(path, node, "a whole number"),
        }
    }
}

impl FromNode for Duration {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        unit(
            reader,
            path,
            node,
            "a time as 10ms, 1.5s, 2m or 1h",
            units::parse_duration,
        )
    }
}

/// A number, counted in parts of one.
pub(super) struct Parts<const WHOLE: u32>(pub(super) u32);

impl<const WHOLE: u32> FromNode for Parts<WHOLE> {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        let parse = |text: &str| units::parse_parts(text, WHOLE.into());
        unit(reader, path, node, "a number, as 1 or 0.5", parse).map(Self)
    }
}

/// A share, in ten-thousandths.
pub(super) struct Share(pub(super) u32);

impl FromNode for Share {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        unit(reader, path, node, "a share as 10% or 0.5%", units::parse_share).map(Self)
    }
}

impl FromNode for bool {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        match &node.value {
            Value::Scalar(scalar) if scalar.kind == ScalarKind::Truth => {
                Some(scalar.text.eq_ignore_ascii_case("true"))
            }
            _ => reader.refuse(path, node, "true or false"),
        }
    }
}

/// A number of bytes.
pub(super) struct Size(pub(super) u64);

impl FromNode for Size {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        unit(reader, path, node, "a size as 512KiB or 10MiB", units::parse_size).map(Self)
    }
}

fn unit<T>(
    reader: &mut Reader,
    path: &str,
    node: &Node,
    expected: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    match &node.value {
        Value::Scalar(scalar) if scalar.kind != ScalarKind::Truth => match parse(&scalar.text) {
            Ok(value) => Some(value),
            Err(problem) => {
                reader.note(
                    path,
                    node.place,
                    format!("{problem}, found {}", node.value.describe()),
                );
                None
            }
        },
        _ => reader.refuse(path, node, expected),
    }
}

impl FromNode for PipelineName {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        match Self::new(String::read(reader, path, node)?) {
            Ok(name) => Some(name),
            Err(error) => {
                reader.note(path, node.place, error.to_string());
                None
            }
        }
    }
}

impl FromNode for Delivery {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        match &node.value {
            Value::Scalar(scalar) if scalar.text == "retry" => Some(Self::Retry),
            Value::Scalar(scalar) if scalar.text == "at_most_once" => Some(Self::AtMostOnce),
            _ => reader.refuse(path, node, "retry or at_most_once"),
        }
    }
}

impl FromNode for Batching {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        match &node.value {
            Value::Scalar(scalar) if scalar.text == "window" => Some(Self::Window),
            Value::Scalar(scalar) if scalar.text == "adaptive" => Some(Self::Adaptive),
            _ => reader.refuse(path, node, "window or adaptive"),
        }
    }
}

/// Variables or labels: what YAML takes for a number or a truth value is meant as its text.
impl FromNode for BTreeMap<String, String> {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            return reader.refuse(path, node, "a map of texts");
        };
        reader.refuse_repeated(path, entries);
        let mut map = Self::new();
        for (key, value) in entries {
            let at = join(path, &key.text);
            match &value.value {
                // The kernel knows no such variable.
                _ if key.text.is_empty() || key.text.contains(['=', '\0']) => {
                    reader.note(at, key.place, "expected a name without '='");
                }
                Value::Scalar(scalar) if !scalar.text.contains('\0') => {
                    map.insert(key.text.clone(), scalar.text.clone());
                }
                _ => reader.refuse::<()>(&at, value, "a text").unwrap_or_default(),
            }
        }
        Some(map)
    }
}

impl<T: FromNode> FromNode for Vec<T> {
    fn read(reader: &mut Reader, path: &str, node: &Node) -> Option<Self> {
        let Value::List(items) = &node.value else {
            return reader.refuse(path, node, "a list");
        };
        let read = |(index, item)| T::read(reader, &format!("{path}[{index}]"), item);
        // Every item is read even after a bad one, so that all mistakes show.
        let read: Vec<_> = items.iter().enumerate().map(read).collect();
        read.into_iter().collect()
    }
}
