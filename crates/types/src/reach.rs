//! Nodes that cannot be reached, as those tell who send them requests.

use crate::NodeId;

/// Most nodes that one process names in a report. Beyond it there is one cause for all of them, and a few tell it.
pub const MAX_UNREACHABLE: usize = 64;

/// Longest address and longest cause in a report: names of hosts have at most 253 bytes, causes a line.
pub const MAX_TEXT_BYTES: usize = 512;

/// A node to which no link can be opened.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unreachable {
    pub node: NodeId,
    /// `host:port` that was tried.
    pub address: String,
    pub cause: String,
}

impl Unreachable {
    /// `address` and `cause` are cut where they are longer than a report takes.
    pub fn new(node: NodeId, address: &str, cause: &str) -> Self {
        Self {
            node,
            address: cut(address).to_owned(),
            cause: cut(cause).to_owned(),
        }
    }
}

/// The first [`MAX_TEXT_BYTES`], or a few less where a character would be cut.
fn cut(text: &str) -> &str {
    let end = (0..=text.len().min(MAX_TEXT_BYTES)).rfind(|&at| text.is_char_boundary(at));
    &text[..end.unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        let node = NodeId::new("a").unwrap();
        let long = format!("x{}", "é".repeat(MAX_TEXT_BYTES));
        let cut = Unreachable::new(node, "a:7443", &long);
        assert_eq!(cut.address, "a:7443");
        assert_eq!(cut.cause.len(), MAX_TEXT_BYTES - 1);
    }
}
