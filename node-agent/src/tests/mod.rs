//! Pools and links against workers that live in the test: the real ring between them, and no process.

mod bench;
mod lost;
mod metrics;
mod next;
mod pool;
mod server;
mod stream;
mod told;
mod upstream;

pub(crate) use bench::topology;
