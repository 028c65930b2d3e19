//! Makes what runs here agree with the topology.

mod apply;
mod plan;

pub(crate) use apply::follow;
