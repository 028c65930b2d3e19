//! YAML as a tree whose every node knows its place in the file.
//!
//! Mistakes are reported with line, column and the way to the key, many at once; a derived deserializer gives up at
//! the first one and does not know the way.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Location, Spanned, UserMessageFormatter};

/// Line and column, both from one. `None` where the parser knows no place.
pub(super) type Place = Option<(u64, u64)>;

/// A value and where it is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Scalar(Scalar),
    List(Vec<Node>),
    /// A key may come twice.
    Map(Vec<(Key, Node)>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Key {
    pub(super) place: Place,
    pub(super) text: String,
}

/// A single value: its text as written in the file, and what YAML takes it for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scalar {
    pub(super) text: String,
    pub(super) kind: ScalarKind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum ScalarKind {
    Text,
    /// A whole number.
    Number(i128),
    Fraction,
    Truth,
}

/// Why a text is no YAML.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Syntax {
    pub(super) place: Place,
    pub(super) message: String,
}

impl Node {
    /// Parses one document.
    pub(super) fn parse(source: &str) -> Result<Self, Syntax> {
        let options = serde_saphyr::options! {
            with_snippet: false,
            // `yes`, `no`, `on` and `off` are words; only `true` and `false` are not.
            strict_booleans: true,
            // A key that comes twice is one mistake among others, and no end.
            duplicate_keys: DuplicateKeyPolicy::PassThrough,
        };
        match serde_saphyr::from_str_with_options::<Spanned<Raw>>(source, options) {
            Ok(raw) => Ok(Self::build(raw, source)),
            Err(error) => Err(Syntax {
                place: error.location().and_then(|location| place(&location)),
                message: message(&error),
            }),
        }
    }

    /// The node at a path as `stages[1].name`, or the nearest one above it that is there.
    pub(super) fn nearest(&self, path: &str) -> &Self {
        let mut node = self;
        for step in path.split(['.', '[', ']']).filter(|step| !step.is_empty()) {
            let next = match &node.value {
                Value::Map(entries) => entries
                    .iter()
                    .find(|(key, _)| key.text == step)
                    .map(|(_, value)| value),
                Value::List(items) => step.parse().ok().and_then(|index: usize| items.get(index)),
                Value::Null | Value::Scalar(_) => None,
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node
    }

    fn build(raw: Spanned<Raw>, source: &str) -> Self {
        let value = match raw.value {
            Raw::Null => Value::Null,
            Raw::Text(text) => Value::Scalar(Scalar {
                text,
                kind: ScalarKind::Text,
            }),
            Raw::Other(kind, text) => {
                let text = written(&raw.defined, source).map_or(text, str::to_owned);
                Value::Scalar(Scalar { text, kind })
            }
            Raw::List(items) => {
                Value::List(items.into_iter().map(|item| Self::build(item, source)).collect())
            }
            Raw::Map(entries) => {
                let entry = |(key, value): (Spanned<String>, _)| {
                    (
                        Key {
                            place: place(&key.referenced),
                            text: key.value,
                        },
                        Self::build(value, source),
                    )
                };
                Value::Map(entries.into_iter().map(entry).collect())
            }
        };
        Self {
            place: place(&raw.referenced),
            value,
        }
    }
}

impl Value {
    /// What the value is, for an error message.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Null => "nothing".into(),
            Self::List(_) => "a list".into(),
            Self::Map(_) => "a map".into(),
            Self::Scalar(Scalar { text, kind }) => {
                let shown: String = text.chars().take(60).collect();
                match kind {
                    ScalarKind::Text => format!("{shown:?}"),
                    ScalarKind::Number(_) | ScalarKind::Fraction => format!("the number {shown}"),
                    ScalarKind::Truth => format!("the truth value {shown}"),
                }
            }
        }
    }
}

/// The text of a plain scalar: `0010` is a number, and yet an environment variable is to get all its digits.
fn written<'s>(location: &Location, source: &'s str) -> Option<&'s str> {
    let start = usize::try_from(location.span().byte_offset()?).ok()?;
    let length = usize::try_from(location.span().byte_len()?).ok()?;
    source
        .get(start..start.checked_add(length)?)
        .map(str::trim)
        .filter(|text| !text.is_empty())
}

fn place(location: &Location) -> Place {
    (location.line() > 0).then(|| (location.line(), location.column()))
}

fn message(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::MessageFormatter as _;
    let text = UserMessageFormatter.format_message(error.without_snippet());
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// The tree as the parser hands it over.
enum Raw {
    Null,
    Text(String),
    Other(ScalarKind, String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Other(ScalarKind::Truth, value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Other(ScalarKind::Number(value.into()), value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Other(ScalarKind::Number(value.into()), value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Other(ScalarKind::Number(value), value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Other(ScalarKind::Fraction, value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_its_place_and_its_text() {
        let tree =
            Node::parse("a: 0010\nb:\n  - yes\n  - true # a comment\n  - 1.50\n  - ~\n  - 'x y'\n").unwrap();
        let at = |path: &str| {
            let node = tree.nearest(path);
            (node.place.unwrap(), node.value.describe())
        };
        assert_eq!(at("a"), ((1, 4), "the number 0010".into()));
        assert_eq!(at("b"), ((3, 3), "a list".into()));
        assert_eq!(at("b[0]"), ((3, 5), "\"yes\"".into()));
        assert_eq!(at("b[1]"), ((4, 5), "the truth value true".into()));
        assert_eq!(at("b[2]"), ((5, 5), "the number 1.50".into()));
        assert_eq!(at("b[3]"), ((6, 5), "nothing".into()));
        assert_eq!(at("b[4]"), ((7, 5), "\"x y\"".into()));
        assert_eq!(at("b[9].c"), at("b"));
    }

    #[test]
    fn anchors_and_merges_work() {
        let tree = Node::parse("base: &base\n  n: 1\nuse:\n  <<: *base\n  m: 2\n").unwrap();
        assert_eq!(tree.nearest("use.n").value.describe(), "the number 1");
        assert_eq!(tree.nearest("use.m").value.describe(), "the number 2");
    }

    #[test]
    fn a_key_that_comes_twice_is_there_twice() {
        let keys = |source: &str| match Node::parse(source).unwrap().nearest("use").value.clone() {
            Value::Map(entries) => entries.into_iter().map(|(key, _)| key.text).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(keys("use:\n  n: 1\n  n: 2\n"), ["n", "n"]);
        // What is merged gives way to what is written, and comes once.
        assert_eq!(keys("base: &base {n: 1}\nuse:\n  <<: *base\n  n: 2\n"), ["n"]);
        assert_eq!(keys("base: &base {n: 1}\nuse:\n  n: 2\n  <<: *base\n"), ["n"]);
    }

    #[test]
    fn what_is_no_yaml_has_a_place() {
        for (source, line) in [("a: [1, 2\nb: 3\n", 2), ("a: 'x\n", 1), ("a: &b [*b]\n", 1)] {
            let error = Node::parse(source).unwrap_err();
            assert!(
                error.place.is_some_and(|(at, _)| at >= line),
                "{source:?}: {error:?}"
            );
            assert!(
                !error.message.is_empty() && !error.message.contains('\n'),
                "{error:?}"
            );
        }
    }

    #[test]
    fn an_empty_file_is_nothing() {
        assert_eq!(Node::parse("# only a comment\n").unwrap().value, Value::Null);
    }
}
