//! Whether a socket is in the way. Pure: what the kernel tells of it is given.

use std::collections::{HashMap, HashSet};

use super::Allowed;
use super::diag::{Inet, Netlink, State, Unix};
use super::problem::Problem;

/// What kind of socket it is, by the name of its protocol (`system.sockprotoname`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Protocol {
    Tcp,
    Udp,
    Unix,
    Netlink,
    Mptcp,
    /// One that needs no look.
    Fine,
    Unknown,
}

impl Protocol {
    pub(super) fn of(name: &str) -> Self {
        match name {
            "TCP" | "TCPv6" => Self::Tcp,
            "UDP" | "UDPv6" | "UDP-Lite" | "UDPLITEv6" => Self::Udp,
            "UNIX" | "UNIX-STREAM" => Self::Unix,
            "NETLINK" => Self::Netlink,
            "MPTCP" | "MPTCPv6" => Self::Mptcp,
            "RAW" | "RAWv6" | "PING" | "PINGv6" | "PACKET" => Self::Fine,
            _ => Self::Unknown,
        }
    }
}

/// Judges a TCP socket.
pub(super) fn tcp(socket: &Inet, allowed: &Allowed) -> Option<Problem> {
    match socket.state {
        State::Connected if !allowed.tcp_established => Some(Problem::TcpConnected),
        State::Listening if socket.queued > 0 && !allowed.tcp_skip_in_flight => {
            Some(Problem::TcpInFlight)
        }
        _ => None,
    }
}

/// How a TCP or UDP socket is called in a message.
pub(super) fn inet_name(protocol: &str, socket: &Inet) -> String {
    let Inet { local, remote, .. } = socket;
    match socket.state {
        State::Connected => format!("{protocol} {local}, connected to {remote}"),
        State::Listening => format!("{protocol} {local}, listening"),
        State::Other if remote.port() != 0 => format!("{protocol} {local}, to {remote}"),
        State::Other => format!("{protocol} {local}"),
    }
}

/// What a unix socket is judged by.
#[derive(Debug)]
pub(super) struct Neighbours<'a, T> {
    /// The sockets that the dumped processes have open.
    ours: &'a HashMap<u64, T>,
    /// All unix sockets of the network namespace.
    near: &'a HashMap<u64, Unix>,
    /// Those that wait for one of ours to accept them.
    waiting: HashSet<u64>,
}

impl<'a, T> Neighbours<'a, T> {
    pub(super) fn new(ours: &'a HashMap<u64, T>, near: &'a HashMap<u64, Unix>) -> Self {
        let listening = near.values().filter(|s| ours.contains_key(&s.inode));
        Self {
            ours,
            near,
            waiting: listening.flat_map(|s| s.waiting.iter().copied()).collect(),
        }
    }

    /// Judges a unix socket by its other end.
    pub(super) fn judge(&self, socket: &Unix, allowed: &Allowed) -> Option<Problem> {
        let outside = match socket.peer {
            Some(peer) => !self.ours.contains_key(&peer),
            None => socket.pending && !self.waiting.contains(&socket.inode),
        };
        if !outside {
            return None;
        }
        // What is sent goes by the name, so that the name alone is needed.
        let named = |peer: &u64| self.near.get(peer).is_some_and(|peer| peer.name.is_some());
        if socket.datagram && socket.peer.as_ref().is_some_and(named) {
            return (!allowed.ext_unix_sk).then_some(Problem::OutsideDatagram);
        }
        Some(Problem::OutsideUnix)
    }
}

/// How a unix socket is called in a message.
pub(super) fn unix_name(socket: &Unix, peer: Option<&Unix>) -> String {
    match peer
        .and_then(|p| p.name.as_deref())
        .or(socket.name.as_deref())
    {
        Some(name) => format!("unix {name}"),
        None => "unix".to_owned(),
    }
}

/// Judges a netlink socket.
pub(super) fn netlink(socket: &Netlink) -> Option<Problem> {
    (socket.queued > 0).then_some(Problem::NetlinkQueue)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols() {
        for (name, wanted) in [
            ("TCP", Protocol::Tcp),
            ("UDPv6", Protocol::Udp),
            ("UNIX-STREAM", Protocol::Unix),
            ("MPTCP", Protocol::Mptcp),
            ("PACKET", Protocol::Fine),
            ("AF_VSOCK", Protocol::Unknown),
            ("XDP", Protocol::Unknown),
            ("", Protocol::Unknown),
        ] {
            assert_eq!(Protocol::of(name), wanted, "{name}");
        }
    }

    #[test]
    fn tcp_sockets() {
        let of = |state, queued| Inet {
            inode: 1,
            state,
            local: "10.0.0.1:80".parse().unwrap(),
            remote: "10.0.0.2:4242".parse().unwrap(),
            queued,
        };
        let strict = Allowed::default();
        let lax = Allowed {
            tcp_established: true,
            tcp_skip_in_flight: true,
            ..strict
        };
        for (socket, problem) in [
            (of(State::Connected, 5), Some(Problem::TcpConnected)),
            (of(State::Listening, 0), None),
            (of(State::Listening, 1), Some(Problem::TcpInFlight)),
            (of(State::Other, 1), None),
        ] {
            assert_eq!(tcp(&socket, &strict), problem);
            assert_eq!(tcp(&socket, &lax), None);
        }
        assert_eq!(
            inet_name("TCP", &of(State::Connected, 0)),
            "TCP 10.0.0.1:80, connected to 10.0.0.2:4242"
        );
    }

    #[test]
    fn unix_sockets() {
        let of = |inode, datagram, peer| Unix {
            inode,
            datagram,
            peer,
            pending: false,
            waiting: Vec::new(),
            name: None,
        };
        let named = Unix {
            name: Some("/run/x".to_owned()),
            ..of(3, true, None)
        };
        let listening = |inode, client| Unix {
            waiting: vec![client],
            ..of(inode, false, None)
        };
        let pending = |inode| Unix {
            pending: true,
            ..of(inode, false, None)
        };
        let near: HashMap<u64, Unix> = [
            named.clone(),
            of(4, true, None),
            listening(5, 1),
            listening(6, 2),
        ]
        .into_iter()
        .map(|s| (s.inode, s))
        .collect();
        let ours = HashMap::from([(1, ()), (2, ()), (5, ())]);
        let neighbours = Neighbours::new(&ours, &near);
        let strict = Allowed::default();
        let lax = Allowed {
            ext_unix_sk: true,
            ..strict
        };
        let (datagram, outside) = (Some(Problem::OutsideDatagram), Some(Problem::OutsideUnix));
        for (socket, problem, if_allowed) in [
            (of(1, false, None), None, None),
            (of(1, false, Some(2)), None, None),
            (of(1, true, Some(3)), datagram, None),
            (of(1, true, Some(4)), outside, outside),
            (of(1, true, Some(9)), outside, outside),
            (of(1, false, Some(3)), outside, outside),
            (pending(1), None, None),
            (pending(2), outside, outside),
        ] {
            assert_eq!(neighbours.judge(&socket, &strict), problem);
            assert_eq!(neighbours.judge(&socket, &lax), if_allowed);
        }
        assert_eq!(
            unix_name(&of(1, true, Some(3)), Some(&named)),
            "unix /run/x"
        );
    }
}
