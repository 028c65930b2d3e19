//! UDP sockets with room for bursts.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Once;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tracing::warn;

use super::SetupError;

/// The system's default of 208 KiB drops packets even on loopback.
const BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// A socket that is taken before there is an identity to listen with.
#[derive(Debug)]
pub struct LinkSocket {
    socket: UdpSocket,
    address: SocketAddr,
}

impl LinkSocket {
    /// Takes `address`; port 0 takes any that is free.
    pub fn take(address: SocketAddr) -> Result<Self, SetupError> {
        let socket = open(address)?;
        let address = socket
            .local_addr()
            .map_err(|source| SetupError::Socket { address, source })?;
        Ok(Self { socket, address })
    }

    /// Where the socket is, its port filled in.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn into_socket(self) -> UdpSocket {
        self.socket
    }
}

/// Opens a socket at `address`.
pub(super) fn open(address: SocketAddr) -> Result<UdpSocket, SetupError> {
    try_open(address).map_err(|source| SetupError::Socket { address, source })
}

/// Opens a socket that reaches peers of both address families where the host has IPv6.
pub(super) fn open_any() -> Result<UdpSocket, SetupError> {
    open((Ipv6Addr::UNSPECIFIED, 0).into()).or_else(|_| open((Ipv4Addr::UNSPECIFIED, 0).into()))
}

fn try_open(address: SocketAddr) -> io::Result<UdpSocket> {
    // Every socket of a process has the same fate.
    static RECEIVE: Once = Once::new();
    static SEND: Once = Once::new();
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_recv_buffer_size(BUFFER_BYTES)?;
    socket.set_send_buffer_size(BUFFER_BYTES)?;
    let (receive, send) = (socket.recv_buffer_size()?, socket.send_buffer_size()?);
    warn_if_less(&RECEIVE, "SO_RCVBUF", granted(receive), "net.core.rmem_max");
    warn_if_less(&SEND, "SO_SNDBUF", granted(send), "net.core.wmem_max");
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Bytes that the system keeps of what has arrived at `socket` and is not read.
pub(super) fn receive_buffer_bytes(socket: &UdpSocket) -> io::Result<usize> {
    SockRef::from(socket).recv_buffer_size().map(granted)
}

fn granted(reported_bytes: usize) -> usize {
    // Linux reports twice what it grants: the other half is for its own bookkeeping.
    if cfg!(target_os = "linux") {
        reported_bytes / 2
    } else {
        reported_bytes
    }
}

fn warn_if_less(said: &Once, option: &str, granted_bytes: usize, setting: &str) {
    if granted_bytes < BUFFER_BYTES {
        said.call_once(|| {
            warn!(
                option,
                granted_bytes,
                wanted_bytes = BUFFER_BYTES,
                setting,
                "small UDP buffer: packets may be lost unless the setting is raised"
            );
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_is_what_was_asked_for_or_what_the_system_grants() {
        let socket = open_any().unwrap();
        let bytes = receive_buffer_bytes(&socket).unwrap();
        let most = std::fs::read_to_string("/proc/sys/net/core/rmem_max");
        // Not there in every container.
        if let Some(most) = most.ok().and_then(|text| text.trim().parse::<usize>().ok()) {
            assert_eq!(bytes, most.min(BUFFER_BYTES));
        }
        assert!((1..=BUFFER_BYTES).contains(&bytes), "{bytes}");
    }
}
