//! The socket beside the rings: first words, file descriptors, the end of either side.
//!
//! A `SOCK_SEQPACKET` pair, one JSON object per datagram, file descriptors by `SCM_RIGHTS`. The agent's first message is
//! a hello with the protocol's version; segments follow as the arena grows. The end of the stream means that the other
//! process is gone, however it went.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Largest datagram; well below a socket's default buffer.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Most file descriptors of one message: a hello has four.
const MAX_FDS: usize = 4;

/// Why the control socket cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    #[error("control socket failed")]
    Socket(#[source] io::Error),
    #[error("peer has closed the control socket")]
    Closed,
    #[error("peer does not read its control socket")]
    Stuck,
    #[error("message of {0} bytes is longer than {MAX_MESSAGE_BYTES}")]
    TooLong(usize),
    #[error("message was cut short, of {MAX_MESSAGE_BYTES} bytes and {MAX_FDS} file descriptors at most")]
    Truncated,
    #[error("message was not understood")]
    NotUnderstood(#[from] serde_json::Error),
    #[error("hello has not been sent")]
    NoHello,
}

impl From<Errno> for ControlError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::PIPE | Errno::CONNRESET => Self::Closed,
            Errno::AGAIN => Self::Stuck,
            errno => Self::Socket(errno.into()),
        }
    }
}

/// What an agent tells a worker.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum AgentMessage {
    /// With the channel's segment, the request bell, the response bell, and a file with the specification.
    Hello {
        version: u32,
        generation: u32,
        slots: u32,
        spec_bytes: u64,
    },
    /// With the file descriptor of segment `index` of the arena.
    Segment { index: u32, bytes: u64 },
    /// Finish what is in the ring, then leave.
    Stop,
}

/// The part of a hello that is the same in all versions.
#[derive(Debug, Deserialize)]
pub(crate) struct HelloVersion {
    pub(crate) version: u32,
}

/// What a worker tells its agent.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum WorkerMessage {
    Ready,
    Failed { traceback: String },
}

/// One end of the socket.
#[derive(Debug)]
pub(crate) struct ControlSocket(OwnedFd);

/// A datagram as it came.
#[derive(Debug)]
pub(crate) struct Datagram {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Datagram {
    pub(crate) fn message<M: DeserializeOwned>(&self) -> Result<M, ControlError> {
        Ok(serde_json::from_slice(&self.bytes)?)
    }
}

impl ControlSocket {
    /// Both ends: the agent's, and the worker's as a bare file descriptor.
    pub(crate) fn pair() -> Result<(Self, OwnedFd), Errno> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        // The flag belongs to each end. The agent must never wait for a worker; the worker's watcher does wait.
        rustix::io::ioctl_fionbio(&theirs, false)?;
        Ok((Self(ours), theirs))
    }

    /// Takes an end that another process has made; `None` where it is no such socket.
    pub(crate) fn from_fd(fd: OwnedFd) -> Option<Self> {
        let kind = rustix::net::sockopt::socket_type(&fd).ok()?;
        (kind == SocketType::SEQPACKET).then_some(Self(fd))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(crate) fn send<M: Serialize>(&self, message: &M, fds: &[BorrowedFd<'_>]) -> Result<(), ControlError> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_MESSAGE_BYTES {
            return Err(ControlError::TooLong(bytes.len()));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        rustix::io::retry_on_intr(|| {
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(Errno::INVAL);
            }
            rustix::net::sendmsg(
                &self.0,
                &[IoSlice::new(&bytes)],
                &mut ancillary,
                SendFlags::NOSIGNAL,
            )
        })?;
        Ok(())
    }

    /// The next datagram. On the agent's end `Stuck` means that there is none yet.
    pub(crate) fn recv(&self) -> Result<Datagram, ControlError> {
        let mut bytes = vec![0; MAX_MESSAGE_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            let mut buffers = [IoSliceMut::new(&mut bytes)];
            rustix::net::recvmsg(&self.0, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        })?;
        let mut fds = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(ControlError::Truncated);
        }
        if received.bytes == 0 {
            return Err(ControlError::Closed);
        }
        bytes.truncate(received.bytes);
        Ok(Datagram { bytes, fds })
    }

    /// Ends the socket for every holder of this end, so that a thread that waits in [`ControlSocket::recv`] returns.
    pub(crate) fn shut_down(&self) {
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_in_order() {
        let (agent, worker) = ControlSocket::pair().unwrap();
        let worker = ControlSocket::from_fd(worker).unwrap();
        let segment = AgentMessage::Segment {
            index: 3,
            bytes: 4096,
        };
        agent.send(&segment, &[agent.fd()]).unwrap();
        agent.send(&AgentMessage::Stop, &[]).unwrap();
        let first = worker.recv().unwrap();
        assert_eq!(first.message::<AgentMessage>().unwrap(), segment);
        assert_eq!(first.fds.len(), 1);
        assert_eq!(
            worker.recv().unwrap().message::<AgentMessage>().unwrap(),
            AgentMessage::Stop
        );
    }

    #[test]
    fn the_end_of_the_other_side_is_seen() {
        let (agent, worker) = ControlSocket::pair().unwrap();
        assert!(
            matches!(agent.recv(), Err(ControlError::Stuck)),
            "nothing there yet"
        );
        drop(worker);
        assert!(matches!(agent.recv(), Err(ControlError::Closed)));
        assert!(matches!(
            agent.send(&AgentMessage::Stop, &[]),
            Err(ControlError::Closed)
        ));
    }

    #[test]
    fn a_peer_that_does_not_read_is_no_wait() {
        let (agent, _worker) = ControlSocket::pair().unwrap();
        let error = std::iter::repeat_with(|| agent.send(&AgentMessage::Stop, &[])).find_map(Result::err);
        assert!(matches!(error, Some(ControlError::Stuck)), "{error:?}");
    }

    #[test]
    fn other_text_and_other_sockets_are_refused() {
        let (agent, worker) = ControlSocket::pair().unwrap();
        rustix::io::write(&worker, b"{\"type\":\"dance\"}").unwrap();
        let datagram = agent.recv().unwrap();
        assert!(matches!(
            datagram.message::<WorkerMessage>(),
            Err(ControlError::NotUnderstood(_))
        ));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(ControlSocket::from_fd(file.into()).is_none());
    }

    #[test]
    fn a_message_that_is_too_long_is_refused() {
        let (agent, _worker) = ControlSocket::pair().unwrap();
        let message = WorkerMessage::Failed {
            traceback: "x".repeat(MAX_MESSAGE_BYTES),
        };
        assert!(matches!(agent.send(&message, &[]), Err(ControlError::TooLong(_))));
    }
}
