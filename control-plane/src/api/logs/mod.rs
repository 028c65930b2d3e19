//! Calls for the output of workers: of people who ask, and of agents that answer. [`crate::relay`] is where they meet.

mod answer;
mod ask;

pub(super) use answer::answer;
pub(super) use ask::ask;
