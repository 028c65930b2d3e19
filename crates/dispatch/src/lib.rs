//! Custody of requests between their arrival and their answer, for one stage at a time.
//!
//! The gateway uses this for a pipeline's first stage, node agents for the later ones. What is decided is pure
//! ([`batch`], [`pick`], [`credit`], [`custody`]) and takes the time as an argument; [`Dispatcher`] carries it out.
//!
//! A request's way: [`Dispatcher::submit`] queues it or refuses it; when a credit is in hand and the batch policy says
//! so, it leaves in a [`Dispatched`] batch to a [`Target`] (a [`LinkTarget`] or a node's own workers). Either its
//! [`Reply`] is used, or it comes back by [`Home::lost`] and is tried again. A reply that is dropped unused answers
//! with an internal error, so nothing hangs.

pub mod batch;
pub mod credit;
pub mod custody;
#[cfg(test)]
mod custody_tests;
mod dispatcher;
mod link_metrics;
mod link_target;
#[cfg(test)]
mod link_tests;
mod links;
mod metrics;
#[cfg(test)]
mod metrics_tests;
mod outage;
pub mod pick;
mod queue;
#[cfg(test)]
mod queue_tests;
mod registry;
mod request;
mod scrape;
mod stage;
#[cfg(test)]
mod stream_tests;
mod target;
#[cfg(test)]
mod tests;

pub use dispatcher::Dispatcher;
pub use link_target::LinkTarget;
pub use links::{Connect, Links};
pub use metrics::DispatchMetrics;
pub use mosec_wire::Window;
pub use outage::Outages;
pub use registry::Registry;
pub use request::{Lost, Outcome, Payload, Reply, Request, Respond, Stream};
pub use stage::StageConfig;
pub use target::{Credit, Dispatched, Home, Target, TargetId};
