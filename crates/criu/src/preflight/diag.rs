//! What the kernel tells of sockets: `sock_diag(7)`, asked in the container's network namespace.
//!
//! A netlink socket stays in the namespace that it was made in, so only the making happens
//! there: in a thread of its own that enters the namespace, makes the socket and ends. A
//! network namespace belongs to a thread and not to its process, and a thread that has ended
//! can run nothing else there; none of a pool is ever moved.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST | NLM_F_DUMP`
const DUMP: u16 = 0x1 | 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER_LEN: usize = 16;

const AF_UNIX: u8 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const AF_NETLINK: u8 = 16;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

/// How long the kernel may take for one answer, so that nothing waits for ever.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// The kernel's numbers of TCP states; those of CRIU's connected sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Connected,
    Listening,
    /// Not connected: a datagram socket, or one that is closed.
    Other,
}

impl State {
    fn of(number: u8) -> Self {
        match number {
            // ESTABLISHED, SYN_SENT, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING
            1 | 2 | 4 | 5 | 8 | 9 | 11 => Self::Connected,
            10 => Self::Listening,
            _ => Self::Other,
        }
    }
}

/// A TCP or UDP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inet {
    pub(super) inode: u64,
    pub(super) state: State,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    /// Bytes to be read; connections to be accepted of one that listens.
    pub(super) queued: u32,
}

/// A unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unix {
    pub(super) inode: u64,
    pub(super) datagram: bool,
    /// The inode of the other end, if it has one.
    pub(super) peer: Option<u64>,
    /// Connected, and nobody has accepted it yet.
    pub(super) pending: bool,
    /// The inodes of those that are connected to it and not accepted yet.
    pub(super) waiting: Vec<u64>,
    /// What it is bound to.
    pub(super) name: Option<String>,
}

/// A netlink socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Netlink {
    pub(super) inode: u64,
    /// Bytes of memory that what is to be read takes.
    pub(super) queued: u32,
}

/// Asks about the sockets of one network namespace.
#[derive(Debug)]
pub(super) struct Diag(OwnedFd);

impl Diag {
    /// Of the namespace that this file is.
    pub(super) fn open(namespace: OwnedFd) -> io::Result<Self> {
        let socket = std::thread::Builder::new()
            .name("preflight-netns".to_owned())
            .spawn(move || -> io::Result<OwnedFd> {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(rustix::net::socket_with(
                    AddressFamily::NETLINK,
                    SocketType::DGRAM,
                    SocketFlags::CLOEXEC,
                    Some(netlink::SOCK_DIAG),
                )?)
            })?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread for it panicked")))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_LIMIT))?;
        Ok(Self(socket))
    }

    /// All TCP sockets that are connected or listen.
    pub(super) fn tcp(&self) -> io::Result<Vec<Inet>> {
        // All states but CLOSE (7), TIME_WAIT (6) and SYN_RECV (3, 12).
        const STATES: u32 = 0b1111_0011_0110;
        self.inet(IPPROTO_TCP, STATES)
    }

    /// All UDP sockets.
    pub(super) fn udp(&self) -> io::Result<Vec<Inet>> {
        self.inet(IPPROTO_UDP, u32::MAX)
    }

    fn inet(&self, protocol: u8, states: u32) -> io::Result<Vec<Inet>> {
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            self.dump(&inet_request(family, protocol, states), |body| {
                found.extend(parse_inet(body));
            })?;
        }
        Ok(found)
    }

    /// All unix sockets.
    pub(super) fn unix(&self) -> io::Result<Vec<Unix>> {
        let mut found = Vec::new();
        self.dump(&unix_request(), |body| found.extend(parse_unix(body)))?;
        Ok(found)
    }

    /// All netlink sockets.
    pub(super) fn netlink(&self) -> io::Result<Vec<Netlink>> {
        let mut found = Vec::new();
        self.dump(&netlink_request(), |body| found.extend(parse_netlink(body)))?;
        Ok(found)
    }

    fn dump(&self, request: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
        rustix::net::send(&self.0, request, SendFlags::empty())?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let len = match rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty()) {
                Ok((len, _)) => len,
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            };
            let packet = buffer.get(..len).unwrap_or_default();
            if !messages(packet, &mut each)? {
                return Ok(());
            }
        }
    }
}

/// Hands over the bodies in a packet; whether more packets follow.
fn messages(mut packet: &[u8], each: &mut impl FnMut(&[u8])) -> io::Result<bool> {
    while let Some(len) = u32_at(packet, 0).map(|n| n as usize)
        && let Some(message) = packet.get(..len)
        && let Some(body) = message.get(HEADER_LEN..)
    {
        match u16_at(packet, 4) {
            Some(NLMSG_DONE) => return Ok(false),
            Some(NLMSG_ERROR) => {
                let code = u32_at(body, 0).unwrap_or_default().cast_signed();
                return match code {
                    0 => Ok(false),
                    _ => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
                };
            }
            Some(SOCK_DIAG_BY_FAMILY) => each(body),
            _ => {}
        }
        packet = packet.get(aligned(len)..).unwrap_or_default();
    }
    Ok(true)
}

fn request(body: &[u8]) -> Vec<u8> {
    let mut request = Vec::with_capacity(HEADER_LEN + body.len());
    let len = u32::try_from(HEADER_LEN + body.len()).unwrap_or_default();
    request.extend(len.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(DUMP.to_ne_bytes());
    // Sequence number and sender's port.
    request.extend([0; 8]);
    request.extend(body);
    request
}

/// `struct inet_diag_req_v2`
fn inet_request(family: u8, protocol: u8, states: u32) -> Vec<u8> {
    let mut body = vec![family, protocol, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend([0; 48]);
    request(&body)
}

/// `struct unix_diag_req`
fn unix_request() -> Vec<u8> {
    const SHOW_NAME_PEER_AND_WAITING: u32 = 0x1 | 0x4 | 0x8;
    let mut body = vec![AF_UNIX, 0, 0, 0];
    body.extend(u32::MAX.to_ne_bytes());
    body.extend([0; 4]);
    body.extend(SHOW_NAME_PEER_AND_WAITING.to_ne_bytes());
    body.extend([0; 8]);
    request(&body)
}

/// `struct netlink_diag_req`
fn netlink_request() -> Vec<u8> {
    const ALL_PROTOCOLS: u8 = 255;
    const SHOW_MEMORY: u32 = 0x1;
    let mut body = vec![AF_NETLINK, ALL_PROTOCOLS, 0, 0];
    body.extend([0; 4]);
    body.extend(SHOW_MEMORY.to_ne_bytes());
    body.extend([0; 8]);
    request(&body)
}

/// `struct inet_diag_msg`
fn parse_inet(body: &[u8]) -> Option<Inet> {
    let family = *body.first()?;
    Some(Inet {
        state: State::of(*body.get(1)?),
        local: SocketAddr::new(address(family, body.get(8..24)?)?, port(body.get(4..6)?)?),
        remote: SocketAddr::new(address(family, body.get(24..40)?)?, port(body.get(6..8)?)?),
        queued: u32_at(body, 56)?,
        inode: u32_at(body, 68)?.into(),
    })
}

fn port(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

fn address(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => {
            let v4: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
            Some(Ipv4Addr::from(v4).into())
        }
        AF_INET6 => {
            let v6: [u8; 16] = bytes.try_into().ok()?;
            Some(Ipv6Addr::from(v6).to_canonical())
        }
        _ => None,
    }
}

/// `struct unix_diag_msg`
fn parse_unix(body: &[u8]) -> Option<Unix> {
    const NAME: u16 = 0;
    const PEER: u16 = 2;
    const WAITING: u16 = 3;
    const SHUTDOWN: u16 = 6;
    const SOCK_DGRAM: u8 = 2;
    const ESTABLISHED: u8 = 1;
    const BOTH_WAYS: u8 = 3;
    let attributes = body.get(16..)?;
    let name = attribute(attributes, NAME).map(|name| {
        // An abstract name begins with a zero, a path may end with one.
        let text = String::from_utf8_lossy(name);
        match text.strip_prefix('\0') {
            Some(name) => format!("@{name}"),
            None => text.trim_end_matches('\0').to_owned(),
        }
    });
    let datagram = *body.get(1)? == SOCK_DGRAM;
    // 0: there is one, which no process has yet or has any more.
    let peer = attribute(attributes, PEER).and_then(|peer| u32_at(peer, 0));
    let ended = attribute(attributes, SHUTDOWN) == Some(&[BOTH_WAYS][..]);
    let waiting = attribute(attributes, WAITING).unwrap_or_default();
    Some(Unix {
        inode: u32_at(body, 4)?.into(),
        datagram,
        peer: peer.filter(|&peer| peer != 0).map(u64::from),
        pending: !datagram && *body.get(2)? == ESTABLISHED && peer == Some(0) && !ended,
        waiting: waiting
            .chunks_exact(4)
            .filter_map(|inode| u32_at(inode, 0).map(u64::from))
            .collect(),
        name,
    })
}

/// `struct netlink_diag_msg`
fn parse_netlink(body: &[u8]) -> Option<Netlink> {
    const MEMORY: u16 = 0;
    let memory = attribute(body.get(28..)?, MEMORY);
    Some(Netlink {
        inode: u32_at(body, 16)?.into(),
        queued: memory.and_then(|m| u32_at(m, 0)).unwrap_or_default(),
    })
}

/// The value of an attribute: `struct nlattr`s one after the other.
fn attribute(mut all: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16_at(all, 0)?);
        let kind = u16_at(all, 2)?;
        let value = all.get(4..len)?;
        if kind == wanted {
            return Some(value);
        }
        all = all.get(aligned(len)..)?;
    }
}

fn aligned(len: usize) -> usize {
    len.div_ceil(4) * 4
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let word = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(word.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::linux::fs::MetadataExt as _;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    fn own() -> Diag {
        Diag::open(std::fs::File::open("/proc/self/ns/net").unwrap().into()).unwrap()
    }

    fn inode(socket: &impl std::os::fd::AsRawFd) -> u64 {
        let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
        std::fs::metadata(path).unwrap().st_ino()
    }

    #[test]
    fn sockets_of_this_process_are_told() {
        // Entering a namespace, even one's own, is root's.
        if !rustix::process::geteuid().is_root() {
            println!("skipped: entering a network namespace needs root");
            return;
        }
        let diag = own();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = match TcpListener::bind(address) {
                Err(error) if address.starts_with('[') => {
                    println!("no IPv6 here: {error}");
                    continue;
                }
                listener => listener.unwrap(),
            };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let found = diag.tcp().unwrap();
            let of = |wanted| *found.iter().find(|s| s.inode == wanted).unwrap();
            let connected = of(inode(&client));
            assert_eq!(connected.state, State::Connected);
            assert_eq!(connected.local, client.local_addr().unwrap());
            assert_eq!(connected.remote, client.peer_addr().unwrap());
            let listening = of(inode(&listener));
            assert_eq!((listening.state, listening.queued), (State::Listening, 1));
        }
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.send_to(b"x", udp.local_addr().unwrap()).unwrap();
        let found = diag.udp().unwrap();
        let queued = found.iter().find(|s| s.inode == inode(&udp)).unwrap();
        assert!(queued.queued > 0, "{queued:?}");

        let (one, other) = UnixStream::pair().unwrap();
        let (datagram, _peer) = UnixDatagram::pair().unwrap();
        let found = diag.unix().unwrap();
        let of = |wanted| found.iter().find(|s| s.inode == wanted).unwrap().clone();
        let stream = of(inode(&one));
        assert_eq!((stream.datagram, stream.peer), (false, Some(inode(&other))));
        assert!(!stream.pending);
        assert!(of(inode(&datagram)).datagram);
        drop(other);
        let found = diag.unix().unwrap();
        let ended = found.iter().find(|s| s.inode == inode(&one)).unwrap();
        assert_eq!((ended.peer, ended.pending), (None, false));

        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let client = UnixStream::connect(dir.path().join("s")).unwrap();
        let found = diag.unix().unwrap();
        let of = |wanted| found.iter().find(|s| s.inode == wanted).unwrap();
        assert!(of(inode(&client)).pending);
        assert_eq!(of(inode(&listener)).waiting, [inode(&client)]);
        let netlink = diag.netlink().unwrap();
        let us = netlink.iter().find(|s| s.inode == inode(&diag.0));
        assert!(us.is_some(), "{netlink:?}");
    }

    #[test]
    fn damaged_answers_are_no_sockets() {
        let mut seen = 0;
        assert!(messages(&[], &mut |_: &[u8]| seen += 1).unwrap());
        assert!(messages(&[255; 64], &mut |_: &[u8]| seen += 1).unwrap());
        assert!(messages(&[0; 64], &mut |_: &[u8]| seen += 1).unwrap());
        assert_eq!(seen, 0);
        for len in 0..80 {
            let body = vec![AF_INET; len];
            let complete = parse_inet(&body).is_some();
            assert_eq!(complete, len >= 72, "{len}");
            parse_unix(&body);
            parse_netlink(&body);
            attribute(&body, 7);
        }
        // An attribute shorter than its own header.
        assert_eq!(attribute(&[0, 0, 1, 0, 0, 0, 0, 0], 7), None);
    }

    #[test]
    fn an_error_is_told() {
        let mut packet = 20u32.to_ne_bytes().to_vec();
        packet.extend(NLMSG_ERROR.to_ne_bytes());
        packet.extend([0; 10]);
        packet.extend((-2i32).to_ne_bytes());
        let error = messages(&packet, &mut |_: &[u8]| ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
