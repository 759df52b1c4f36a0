//! Sockets, as `files.img` has them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::msg::{InetSkEntry, NetlinkSkEntry, PacketSkEntry, SkOptsEntry, UnixSkEntry};
use crate::{At, Error};

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// An internet socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InetSocket {
    /// Its inode number at the dump.
    pub inode: u32,
    /// `SOCK_*`.
    pub kind: u32,
    /// `IPPROTO_*`.
    pub protocol: u32,
    /// The kernel's number of its state; [`state_name`] names it.
    pub state: u32,
    /// Its own address; `None` of a family that is not known here.
    pub source: Option<IpAddr>,
    /// Its own port.
    pub source_port: u16,
    /// The other end's address.
    pub destination: Option<IpAddr>,
    /// The other end's port; 0 if there is none.
    pub destination_port: u16,
    /// Its buffers.
    pub buffers: Buffers,
}

/// A unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixSocket {
    /// Its inode number at the dump.
    pub inode: u32,
    /// `SOCK_*`.
    pub kind: u32,
    /// The kernel's number of its state; [`state_name`] names it.
    pub state: u32,
    /// The inode number of the other end; 0 if there is none.
    pub peer: u32,
    /// Where it is bound: a path, or a name that begins with a zero byte; empty if nowhere.
    pub name: Vec<u8>,
    /// Its buffers.
    pub buffers: Buffers,
}

/// A packet socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketSocket {
    /// `SOCK_*`.
    pub kind: u32,
    /// `ETH_P_*`, as the kernel has it.
    pub protocol: u32,
    /// The number of the interface it is bound to; 0 for all.
    pub interface: u32,
    /// Its buffers.
    pub buffers: Buffers,
}

/// A netlink socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetlinkSocket {
    /// `NETLINK_*`.
    pub protocol: u32,
    /// The kernel's number of its state.
    pub state: u32,
    /// Its buffers.
    pub buffers: Buffers,
}

/// The sizes of a socket's buffers, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Buffers {
    /// For what is sent.
    pub send: u32,
    /// For what is received.
    pub receive: u32,
}

impl Buffers {
    fn from_wire(opts: Option<SkOptsEntry>, at: At<'_>) -> Result<Self, Error> {
        let opts = at.need(opts, "opts")?;
        Ok(Self {
            send: at.need(opts.so_sndbuf, "opts.so_sndbuf")?,
            receive: at.need(opts.so_rcvbuf, "opts.so_rcvbuf")?,
        })
    }
}

impl InetSocket {
    pub(crate) fn from_wire(wire: &InetSkEntry, at: At<'_>) -> Result<Self, Error> {
        let family = at.need(wire.family, "isk.family")?;
        let port = |value, field| {
            let port = at.need(value, field)?;
            u16::try_from(port).map_err(|_| at.bad_value(field, port))
        };
        Ok(Self {
            inode: at.need(wire.ino, "isk.ino")?,
            kind: at.need(wire.r#type, "isk.type")?,
            protocol: at.need(wire.proto, "isk.proto")?,
            state: at.need(wire.state, "isk.state")?,
            source: address(family, &wire.src_addr, at, "isk.src_addr")?,
            source_port: port(wire.src_port, "isk.src_port")?,
            destination: address(family, &wire.dst_addr, at, "isk.dst_addr")?,
            destination_port: port(wire.dst_port, "isk.dst_port")?,
            buffers: Buffers::from_wire(wire.opts, at)?,
        })
    }
}

/// The words are those of memory, whose bytes stand in the order of the network.
fn address(
    family: u32,
    words: &[u32],
    at: At<'_>,
    field: &'static str,
) -> Result<Option<IpAddr>, Error> {
    let wrong = || at.bad_value(field, format_args!("{} words", words.len()));
    match (family, words) {
        (AF_INET, [word]) => Ok(Some(Ipv4Addr::from(word.to_le_bytes()).into())),
        (AF_INET6, &[a, b, c, d]) => {
            let mut bytes = [0; 16];
            for (part, word) in bytes.chunks_exact_mut(4).zip([a, b, c, d]) {
                part.copy_from_slice(&word.to_le_bytes());
            }
            Ok(Some(Ipv6Addr::from(bytes).into()))
        }
        (AF_INET | AF_INET6, _) => Err(wrong()),
        _ => Ok(None),
    }
}

impl UnixSocket {
    pub(crate) fn from_wire(wire: UnixSkEntry, at: At<'_>) -> Result<Self, Error> {
        Ok(Self {
            inode: at.need(wire.ino, "usk.ino")?,
            kind: at.need(wire.r#type, "usk.type")?,
            state: at.need(wire.state, "usk.state")?,
            peer: at.need(wire.peer, "usk.peer")?,
            name: at.need(wire.name, "usk.name")?,
            buffers: Buffers::from_wire(wire.opts, at)?,
        })
    }
}

impl PacketSocket {
    pub(crate) fn from_wire(wire: &PacketSkEntry, at: At<'_>) -> Result<Self, Error> {
        Ok(Self {
            kind: at.need(wire.r#type, "psk.type")?,
            protocol: at.need(wire.protocol, "psk.protocol")?,
            interface: at.need(wire.ifindex, "psk.ifindex")?,
            buffers: Buffers::from_wire(wire.opts, at)?,
        })
    }
}

impl NetlinkSocket {
    pub(crate) fn from_wire(wire: &NetlinkSkEntry, at: At<'_>) -> Result<Self, Error> {
        Ok(Self {
            protocol: at.need(wire.protocol, "nlsk.protocol")?,
            state: at.need(wire.state, "nlsk.state")?,
            buffers: Buffers::from_wire(wire.opts, at)?,
        })
    }
}

/// The name of a state of TCP, which other sockets borrow; `None` for numbers that are none.
pub fn state_name(state: u32) -> Option<&'static str> {
    Some(match state {
        1 => "ESTABLISHED",
        2 => "SYN_SENT",
        3 => "SYN_RECEIVED",
        4 => "FIN_WAIT_1",
        5 => "FIN_WAIT_2",
        6 => "TIME_WAIT",
        7 => "CLOSE",
        8 => "CLOSE_WAIT",
        9 => "LAST_ACK",
        10 => "LISTEN",
        11 => "CLOSING",
        12 => "NEW_SYN_RECV",
        _ => return None,
    })
}

/// The name of `SOCK_*` without that prefix; `None` for numbers that are none.
pub fn kind_name(kind: u32) -> Option<&'static str> {
    Some(match kind {
        1 => "STREAM",
        2 => "DGRAM",
        3 => "RAW",
        4 => "RDM",
        5 => "SEQPACKET",
        10 => "PACKET",
        _ => return None,
    })
}

/// The name of `IPPROTO_*` without that prefix; `None` for those that have no name here.
pub fn protocol_name(protocol: u32) -> Option<&'static str> {
    Some(match protocol {
        1 => "ICMP",
        2 => "IGMP",
        6 => "TCP",
        17 => "UDP",
        58 => "ICMPV6",
        132 => "SCTP",
        136 => "UDPLITE",
        255 => "RAW",
        262 => "MPTCP",
        _ => return None,
    })
}
