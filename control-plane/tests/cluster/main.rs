//! Whole control planes in one process, over gRPC on loopback.
#![expect(
    unreachable_pub,
    reason = "nothing of a test is reachable; `pub` marks what the files share"
)]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod agents;
mod availability;
mod backup;
mod bundles;
mod describe;
mod formats;
mod harness;
mod health;
mod joining;
mod logs;
mod members;
mod metrics;
mod processes;
mod reach;
mod security;
