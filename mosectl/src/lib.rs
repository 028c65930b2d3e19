//! The command line of a cluster, and the whole cluster in one process.
//!
//! [`cli`] takes a line apart and hands it to one of the `commands`; [`system`] is what `mosectl up` runs. What the
//! commands decide is pure and apart from what they do: [`manifest`], `report`, [`context`].

mod bundle;
pub mod cli;
mod commands;
mod connect;
pub mod context;
mod difference;
mod failure;
mod follow;
mod login;
pub mod manifest;
mod nearest;
mod patience;
mod pipe;
mod pki;
mod report;
mod requirements;
mod script;
pub mod system;
mod terminal;
mod watch;
