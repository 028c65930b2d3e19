//! A whole gateway on a port of its own, with clients in front of it and a scripted target behind it.
#![allow(clippy::unwrap_used)] // in helpers too: whatever goes wrong here is the failure of a test

mod answers;
mod bench;
mod client;
mod compression;
mod drain;
mod limits;
mod pages;
mod queue;
mod raw;
mod reports;
mod series;
mod streams;
