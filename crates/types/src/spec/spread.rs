//! What keeps the replicas of a stage apart.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Problems;
use super::stage::MAX_REPLICAS;

/// Most labels that one stage is spread by: a node, a rack, a zone, a region and a few more.
pub const MAX_SPREADS: usize = 8;
/// Longest name of a label.
const MAX_LABEL_BYTES: usize = 200;

/// A label by whose values the replicas of a stage are spread: nodes with the same value fail together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// The label's name; `node` is every node's own name.
    pub by: String,
    /// Most replicas of the stage on the nodes with one value, in each revision. Without it the spread is as even as
    /// room allows, and refuses no node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
}

pub(super) fn validate(spreads: &[Spread], at: &str, found: &mut Problems) {
    found.check(spreads.len() <= MAX_SPREADS, at, || {
        format!("expected at most {MAX_SPREADS} labels, found {}", spreads.len())
    });
    let mut seen = BTreeSet::new();
    for (index, Spread { by, max }) in spreads.iter().enumerate() {
        let at = format!("{at}[{index}]");
        found.check(
            (1..=MAX_LABEL_BYTES).contains(&by.len()),
            &format!("{at}.by"),
            || format!("expected the name of a label of 1 to {MAX_LABEL_BYTES} bytes"),
        );
        found.check(seen.insert(by), &format!("{at}.by"), || {
            format!("the label {by:?} comes twice")
        });
        found.check(
            max.is_none_or(|most| (1..=MAX_REPLICAS).contains(&most)),
            &format!("{at}.max"),
            || format!("expected 1 to {MAX_REPLICAS}, found {}", max.unwrap_or_default()),
        );
    }
}
