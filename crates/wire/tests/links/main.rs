//! One suite on both kinds of link, and what only links over QUIC have.
#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not see as such

mod quic;
mod suite;
mod support;
