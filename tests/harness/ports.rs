//! Which ports a process has open, as the kernel says.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context as _;

/// State of a TCP socket that listens, as `/proc/net/tcp` writes it.
const LISTENING: &str = "0A";
/// State of a UDP socket that is not connected to one peer, hence takes packets of any.
const UNCONNECTED: &str = "07";

/// A port on which others can reach a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    Tcp(SocketAddr),
    Udp(SocketAddr),
}

/// The ports that `pid` listens on. An address for all interfaces is given as loopback's.
pub fn open_ports(pid: u32) -> anyhow::Result<BTreeSet<Port>> {
    let own = sockets_of(pid)?;
    let mut ports = BTreeSet::new();
    for (file, state, port) in [
        ("tcp", LISTENING, Port::Tcp as fn(SocketAddr) -> Port),
        ("tcp6", LISTENING, Port::Tcp),
        ("udp", UNCONNECTED, Port::Udp),
        ("udp6", UNCONNECTED, Port::Udp),
    ] {
        let table = fs::read_to_string(format!("/proc/{pid}/net/{file}"))?;
        for line in table.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            let [_, local, _, found, _, _, _, _, _, inode, ..] = fields[..] else {
                continue;
            };
            if found == state && own.contains(inode) {
                ports.insert(port(address(local).with_context(|| format!("{file}: {line}"))?));
            }
        }
    }
    Ok(ports)
}

/// The inodes of a process's sockets.
fn sockets_of(pid: u32) -> anyhow::Result<BTreeSet<String>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))?;
    let links = entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok());
    let inode = |link: std::path::PathBuf| {
        let link = link.to_string_lossy().into_owned();
        Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
    };
    Ok(links.filter_map(inode).collect())
}

/// Reads `0100007F:1F90`, the words of the address in the host's order.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let words: Option<Vec<u8>> = (0..ip.len() / 8)
        .map(|word| u32::from_str_radix(ip.get(word * 8..word * 8 + 8)?, 16).ok())
        .collect::<Option<Vec<_>>>()
        .map(|words| words.into_iter().flat_map(u32::to_ne_bytes).collect());
    let ip = match <[u8; 4]>::try_from(words.as_deref()?) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(words.as_deref()?).ok()?).to_canonical(),
    };
    let ip = match ip {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() -> anyhow::Result<()> {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0")?;
        let udp = std::net::UdpSocket::bind("[::]:0")?;
        let ports = open_ports(std::process::id())?;
        assert!(ports.contains(&Port::Tcp(tcp.local_addr()?)), "{ports:?}");
        let expected = SocketAddr::from((Ipv6Addr::LOCALHOST, udp.local_addr()?.port()));
        assert!(ports.contains(&Port::Udp(expected)), "{ports:?}");
        Ok(())
    }
}
