//! Wakes a sleeping peer: an eventfd, which both `poll` and a runtime's reactor can wait for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;

#[derive(Debug)]
pub(crate) struct Doorbell(OwnedFd);

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rung {
    Bell,
    Timeout,
    /// A signal handler has run.
    Signal,
}

impl Doorbell {
    pub(crate) fn new() -> Result<Self, Errno> {
        rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Self)
    }

    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Rings. Fails only where the counter is full, and then the bell is ringing already.
    pub(crate) fn ring(&self) {
        let _ = rustix::io::retry_on_intr(|| rustix::io::write(&self.0, &1_u64.to_ne_bytes()));
    }

    /// Stops the ringing, so that the next wait waits.
    pub(crate) fn clear(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut count));
    }

    /// Sleeps until the bell rings, a signal comes or `timeout` passes.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Result<Rung, Errno> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        match rustix::event::poll(&mut [PollFd::new(&self.0, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) => Ok(Rung::Timeout),
            Ok(_) => {
                self.clear();
                Ok(Rung::Bell)
            }
            Err(Errno::INTR) => Ok(Rung::Signal),
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_rings_wake_once() {
        let bell = Doorbell::new().unwrap();
        assert_eq!(bell.wait(Some(Duration::ZERO)), Ok(Rung::Timeout));
        bell.ring();
        bell.ring();
        assert_eq!(bell.wait(None), Ok(Rung::Bell));
        assert_eq!(bell.wait(Some(Duration::from_millis(1))), Ok(Rung::Timeout));
    }
}
