//! Worker processes: starting, feeding, restarting and ending them.

mod backoff;
mod oom;
mod process;
mod supervisor;
mod timing;
mod worker;

pub(crate) use oom::Cgroups;
#[cfg(test)]
pub(crate) use supervisor::read_ring;
pub(crate) use supervisor::{Ending, Replica, supervise};
pub(crate) use worker::{Unsent, Worker};
