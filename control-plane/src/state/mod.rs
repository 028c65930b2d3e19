//! The replicated state: what it is, the commands that change it, and how each is applied.
//!
//! Pure: no clock, no randomness, no I/O. Every node applies the same commands in the same order and must end with
//! the same state, so a change of behaviour here is a change of the log's meaning.

pub mod apply;
pub mod audit;
pub mod command;
pub mod format;
pub mod history;
pub mod model;
mod nodes;
mod revisions;
mod rollouts;
pub mod tokens;

pub use apply::apply;
pub use audit::{Audit, AuditEntry};
pub use command::{Command, Dedup, Origin, Places, Proposal, Refusal, Reply, Step};
pub use format::{Format, FormatError, Formats};
pub use history::{History, Outcome, Record};
pub use model::{Model, Rollout};
pub(crate) use revisions::check_routes;
pub use tokens::{NewToken, Peer, TokenProblem, Tokens, Usage};
