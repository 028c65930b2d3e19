//! A file descriptor of a channel in an async runtime.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use tokio::io::unix::AsyncFd;

/// Waits until a doorbell has been rung or a control socket has a message.
///
/// Edge-triggered: every ring and every message wakes it, also where the one before was not taken. So nothing has to be
/// read from a doorbell; whoever waits looks into the ring first, and waits only when there is nothing.
#[derive(Debug)]
pub struct Readable(AsyncFd<OwnedFd>);

impl Readable {
    /// Watches a duplicate of `fd`, so it stays good however long this lives.
    ///
    /// Errors: the process has no descriptors left. Panics outside a tokio runtime.
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let fd = fd.try_clone_to_owned()?;
        // SAFETY: the descriptor is owned by the `AsyncFd`, which gives out no way to close or replace it.
        let registered = unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) };
        Ok(Self(registered.map_err(io::Error::from)?))
    }

    /// Waits for the next edge. Cancel safe.
    pub async fn wait(&self) -> io::Result<()> {
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}
