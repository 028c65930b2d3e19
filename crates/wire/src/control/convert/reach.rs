//! Nodes that cannot be reached.

use mosec_types::Unreachable;

use super::{ConvertError, name};
use crate::control::proto;

impl From<&Unreachable> for proto::UnreachableNode {
    fn from(found: &Unreachable) -> Self {
        Self {
            node: found.node.to_string(),
            address: found.address.clone(),
            cause: found.cause.clone(),
        }
    }
}

impl TryFrom<proto::UnreachableNode> for Unreachable {
    type Error = ConvertError;

    /// Cuts texts that are too long, as they are for people.
    fn try_from(message: proto::UnreachableNode) -> Result<Self, ConvertError> {
        let node = name("node", message.node)?;
        Ok(Self::new(node, &message.address, &message.cause))
    }
}
