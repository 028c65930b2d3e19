//! A control plane in virtual time: real Raft members over a simulated network and disks, checked for linearizability.
//!
//! One seed makes one history. `SIM_SEED=7 cargo test -p mosec-control-plane --test sim replay -- --nocapture` shows
//! that of seed 7; `SIM_MEMBERS=5` among five members. FINDINGS.md says what was found, REPORT.md, FAILOVER.md and
//! LINEARIZABILITY.md what the long runs have last shown.
#![expect(
    unreachable_pub,
    reason = "nothing of a test is reachable; `pub` marks what the files share"
)]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod agent;
mod checker;
mod client;
mod directed;
mod disk;
mod durability;
mod failover;
mod faults;
mod fixtures;
mod member;
mod net;
mod processes;
mod ready;
mod real_time;
mod report;
mod run;
mod spec;
mod upgrade;
mod virtual_time;
