//! TCP ports that are taken before there is something to serve.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections the kernel keeps for us while we do not accept.
const BACKLOG: i32 = 1024;

/// A port that is taken and does not listen yet: clients are refused by the kernel until it does, and do not wait.
#[derive(Debug)]
pub struct Port {
    socket: Socket,
    address: SocketAddr,
}

impl Port {
    /// Takes `address`; port 0 takes any that is free.
    ///
    /// Errors: the port is in use, though nobody may listen there yet.
    pub fn take(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() && address.ip().is_unspecified() {
            // `::` means every address, IPv4's too, whatever the system's default.
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        match socket.bind(&address.into()) {
            // What is left of the connections of a process that has ended is in the way too, for a minute. Only what
            // listens stands against this: of two that start within that minute, the later one fails as it listens.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                socket.set_reuse_address(true)?;
                socket.bind(&address.into())?;
            }
            bound => bound?,
        }
        let address = socket
            .local_addr()?
            .as_socket()
            .ok_or_else(|| io::Error::other("the socket has no internet address"))?;
        Ok(Self { socket, address })
    }

    /// Where it is, the port filled in.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Opens the port.
    pub fn listen(self) -> io::Result<TcpListener> {
        // Not before: it would share the port with whoever else has not opened it yet. Connections have it from here, and
        // what is left of them does not keep the next start from the port.
        self.socket.set_reuse_address(true)?;
        self.socket.listen(BACKLOG)?;
        TcpListener::from_std(self.socket.into())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_port_is_one_s_before_it_listens() {
        let first = Port::take((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = first.local_addr();
        let second = Port::take(address).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        let refused = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let _listener = first.listen().unwrap();
        let third = Port::take(address).unwrap_err();
        assert_eq!(third.kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn what_is_left_of_connections_is_not_in_the_way() {
        let port = Port::take((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = port.local_addr();
        let listener = port.listen().unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        // Who closes first keeps the connection for a while.
        drop(listener.accept().await.unwrap());
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        drop((client, listener));
        let again = Port::take(address).unwrap();
        again.listen().unwrap();
    }
}
