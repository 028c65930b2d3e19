//! UDP sockets with room for bursts.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};
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
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_recv_buffer_size(BUFFER_BYTES)?;
    socket.set_send_buffer_size(BUFFER_BYTES)?;
    warn_if_less("SO_RCVBUF", socket.recv_buffer_size()?, "net.core.rmem_max");
    warn_if_less("SO_SNDBUF", socket.send_buffer_size()?, "net.core.wmem_max");
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn warn_if_less(option: &str, reported_bytes: usize, setting: &str) {
    // Linux reports twice what it grants: the other half is for its own bookkeeping.
    let granted_bytes = if cfg!(target_os = "linux") {
        reported_bytes / 2
    } else {
        reported_bytes
    };
    if granted_bytes < BUFFER_BYTES {
        warn!(
            option,
            granted_bytes,
            wanted_bytes = BUFFER_BYTES,
            setting,
            "small UDP buffer: packets may be lost"
        );
    }
}
