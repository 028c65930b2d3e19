//! The paths of a pipeline and the stages behind them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Problems;
use crate::StageIndex;

/// Position of a route in its pipeline, counted from zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RouteIndex(pub u16);

/// Paths the gateway answers itself.
pub const RESERVED_PATHS: &[&str] = &[
    "/",
    "/metrics",
    "/openapi",
    "/openapi/metadata.json",
    "/openapi/swagger",
    "/openapi/swagger/",
];

/// A path and the stages its requests go through, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    pub path: String,
    pub stages: Vec<StageIndex>,
}

impl RouteSpec {
    pub(super) fn validate(&self, at: &str, stages: usize, found: &mut Problems) {
        let place = format!("{at}.path");
        found.check(
            self.path.starts_with('/') && !self.path.contains(['?', '#', '{', '}']),
            &place,
            || {
                format!(
                    "expected a path that starts with '/' and has no '?', '#' or braces, found {:?}",
                    self.path
                )
            },
        );
        found.check(!RESERVED_PATHS.contains(&self.path.as_str()), &place, || {
            format!("'{}' is reserved, try another one", self.path)
        });
        let place = format!("{at}.stages");
        found.check(!self.stages.is_empty(), &place, || {
            "expected at least one stage".into()
        });
        let mut seen = BTreeSet::new();
        for stage in &self.stages {
            found.check(usize::from(stage.0) < stages, &place, || {
                format!("there is no stage {stage}; the pipeline has {stages}")
            });
            found.check(seen.insert(stage), &place, || {
                format!("stage {stage} comes twice")
            });
        }
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

#[cfg(test)]
mod tests {
    use super::*;

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
