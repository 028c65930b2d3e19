//! Pipeline manifests: YAML to a [`PipelineSpec`]. `docs/manifest.md` describes every key.
//!
//! Parsing is pure and collects every mistake with its place; whether the Python classes exist is asked afterwards,
//! and answered about the same places with [`Manifest::refuse`].

mod draft;
mod problem;
mod read;
mod rollout;
mod yaml;

use std::path::Path;

use mosec_types::PipelineSpec;
use mosec_types::spec::InvalidSpec;

use self::draft::{Draft, KEYS};
use self::read::{FromNode as _, Reader};
use self::yaml::{Node, Value};

pub use self::problem::{ManifestError, Problem};

/// The JSON Schema of manifests.
pub(crate) const SCHEMA: &str = include_str!("../../../docs/manifest.schema.json");

/// A manifest and the specification it stands for.
#[derive(Debug)]
pub struct Manifest {
    /// Content types are the default until the workers have been looked at.
    pub spec: PipelineSpec,
    /// File with the requirements, relative to the source, which are not in the specification yet.
    pub requirements_file: Option<String>,
    file: String,
    tree: Node,
}

impl Manifest {
    /// Parses `text`, which is the content of `file`.
    ///
    /// `folder`: absolute; what relative paths in the manifest start from.
    pub fn parse(text: &str, file: &str, folder: &Path) -> Result<Self, ManifestError> {
        let tree =
            Node::parse(text).map_err(|error| ManifestError::one(file, "", error.place, error.message))?;
        if tree.value == Value::Null {
            return Err(ManifestError::one(
                file,
                "",
                None,
                format!("empty, expected the keys {}", KEYS.join(", ")),
            ));
        }
        let mut reader = Reader::default();
        let draft = Draft::read(&mut reader, "", &tree);
        let requirements_file = draft
            .as_ref()
            .and_then(Draft::requirements_file)
            .map(str::to_owned);
        let spec = draft.map(|draft| draft.into_spec(&mut reader, &tree, folder));
        let invalid = spec.as_ref().map(PipelineSpec::problems_for_cluster);
        for InvalidSpec { place, problem } in invalid.unwrap_or_default() {
            let key = manifest_key(&place);
            // Without stages no route has any.
            let has_none = spec.as_ref().is_some_and(|spec| spec.stages.is_empty());
            let follows = follows(&reader.problems, &key) || (has_none && key.ends_with("].stages"));
            if !follows {
                let place = tree.nearest(&key).place;
                reader.note(key, place, problem);
            }
        }
        match spec {
            Some(spec) if reader.problems.is_empty() => Ok(Self {
                spec,
                requirements_file,
                file: file.to_owned(),
                tree,
            }),
            _ => Err(ManifestError::new(file, reader.problems)),
        }
    }

    /// The `module:Class` of each stage.
    pub fn workers(&self) -> Vec<String> {
        self.spec
            .stages
            .iter()
            .map(|stage| format!("{}:{}", stage.module, stage.class))
            .collect()
    }

    /// An error about one key, as `stages[1].worker`.
    pub fn refuse(&self, key: &str, message: impl Into<String>) -> ManifestError {
        self.refuse_all([(key.to_owned(), message.into())])
    }

    /// As [`refuse`](Self::refuse), about several.
    pub fn refuse_all(&self, problems: impl IntoIterator<Item = (String, String)>) -> ManifestError {
        let problem = |(key, message): (String, String)| Problem {
            place: self.tree.nearest(&key).place,
            key,
            message,
        };
        ManifestError::new(&self.file, problems.into_iter().map(problem).collect())
    }
}

/// Whether what is wrong with a key of the specification may only follow from what is known to be wrong already: with
/// the key itself, with a part of it, or with one that it depends on.
fn follows(known: &[Problem], key: &str) -> bool {
    let depends_on = match key.rsplit_once('.') {
        Some((stage, "env")) => Some(format!("{stage}.replicas")),
        Some((stage, "gpu_memory")) => Some(format!("{stage}.gpus")),
        _ => None,
    };
    known.iter().any(|known| {
        let rest = known.key.strip_prefix(key);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            || depends_on.as_deref() == Some(known.key.as_str())
    })
}

/// The manifest's name of a key of the specification.
fn manifest_key(place: &str) -> String {
    let renamed: &[(&str, &str)] = &[
        ("max_request_bytes", "max_request_size"),
        ("source.dir", "source"),
        (".module", ".worker"),
        (".class", ".worker"),
        (".node_labels", ".labels"),
    ];
    // Of items too, as `source.requirements[1]`.
    if let Some(rest) = place.strip_prefix("source.requirements") {
        return format!("requirements{rest}");
    }
    let rename = |(from, to): &(&str, &str)| place.strip_suffix(from).map(|start| format!("{start}{to}"));
    renamed
        .iter()
        .find_map(rename)
        .unwrap_or_else(|| place.to_owned())
}

#[cfg(test)]
mod tests;
