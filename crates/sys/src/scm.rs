//! One message with file descriptors over a `SOCK_SEQPACKET` socket.
//!
//! A message is one packet: it arrives whole or not at all. Descriptors arrive with
//! `CLOEXEC` set. An empty packet cannot be told from the end of the connection, so none
//! is ever sent.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::retry_on_intr;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// The most descriptors one message may carry: the kernel's own limit (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

/// Makes a pair of connected sockets for [`send`] and [`recv`], both with `CLOEXEC`.
///
/// # Errors
///
/// Whatever `socketpair(2)` answers.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends one message with `fds`, which stay the caller's.
///
/// # Errors
///
/// `InvalidInput` for empty data or more than [`MAX_FDS`] descriptors, `BrokenPipe` when the
/// peer is gone (never a `SIGPIPE`), else what `sendmsg(2)` answers.
pub fn send(sock: BorrowedFd<'_>, data: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if data.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "an empty packet would read as the end of the connection",
        ));
    }
    if fds.len() > MAX_FDS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many file descriptors for one message",
        ));
    }
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other(
            "file descriptors do not fit the control buffer",
        ));
    }
    let sent = retry_on_intr(|| {
        rustix::net::sendmsg(
            sock,
            &[IoSlice::new(data)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })?;
    if sent != data.len() {
        return Err(io::Error::new(
            io::ErrorKind::WriteZero,
            "the socket took only a part of the message; it is not a packet socket",
        ));
    }
    Ok(())
}

/// Waits for one message and returns it with its descriptors; `None` is the end of the
/// connection.
///
/// Only one thread may read a socket: the size is peeked before the message is taken.
///
/// # Errors
///
/// `InvalidData` when the message is longer than `max` bytes (it stays unread, and nothing of
/// its length is allocated) or when descriptors were lost for want of room in our table, else
/// what `recvmsg(2)` answers.
pub fn recv(sock: BorrowedFd<'_>, max: usize) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let (_, len) = retry_on_intr(|| {
        let mut none = [0u8; 0];
        rustix::net::recv(sock, &mut none[..], RecvFlags::PEEK | RecvFlags::TRUNC)
    })?;
    if len > max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message of {len} bytes is over the limit of {max}"),
        ));
    }
    let mut data = vec![0u8; len];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = retry_on_intr(|| {
        rustix::net::recvmsg(
            sock,
            &mut [IoSliceMut::new(&mut data)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    // Taken first: whatever happens below, the descriptors are closed.
    let fds = rights(&mut control);
    if got.bytes == 0 {
        return Ok(None);
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "file descriptors of a message were lost; raise the limit of open files",
        ));
    }
    if got.flags.contains(ReturnFlags::TRUNC) || got.bytes != len {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message changed its size while it was read; another thread reads this socket",
        ));
    }
    Ok(Some((data, fds)))
}

/// The descriptors that came along.
fn rights(control: &mut RecvAncillaryBuffer<'_>) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    fds
}

/// Reads once from a stream socket and returns the descriptors that came along; the data, at most
/// 4 KiB, is dropped.
///
/// # Errors
///
/// What `recvmsg(2)` answers.
pub fn recv_stream(sock: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut data = [0u8; 4096];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    retry_on_intr(|| {
        rustix::net::recvmsg(
            sock,
            &mut [IoSliceMut::new(&mut data)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    Ok(rights(&mut control))
}

/// Reads one byte from a stream socket, and the descriptor that came with it.
///
/// # Errors
///
/// `UnexpectedEof` at the end of the connection, `InvalidData` when the byte came alone, else what
/// `recvmsg(2)` answers.
pub fn recv_fd(sock: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut data = [0u8; 1];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = retry_on_intr(|| {
        rustix::net::recvmsg(
            sock,
            &mut [IoSliceMut::new(&mut data)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    match (rights(&mut control).into_iter().next(), got.bytes) {
        (Some(fd), _) => Ok(fd),
        (None, 0) => Err(io::ErrorKind::UnexpectedEof.into()),
        (None, _) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a file descriptor was to come, and did not",
        )),
    }
}

/// Waits until `sock` can be read (a message or the end), until one of `wakes` can be read, or
/// until `timeout` has passed; says which.
///
/// # Errors
///
/// What `ppoll(2)` answers, interruptions apart.
pub fn wait_readable(
    sock: BorrowedFd<'_>,
    wakes: &[BorrowedFd<'_>],
    timeout: Option<std::time::Duration>,
) -> io::Result<Ready> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    let until = timeout.map(|t| std::time::Instant::now() + t);
    loop {
        let left = until.map(|u| u.saturating_duration_since(std::time::Instant::now()));
        let limit = left.map(|l| Timespec {
            tv_sec: i64::try_from(l.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: l.subsec_nanos().into(),
        });
        let mut fds: Vec<_> = std::iter::once(&sock)
            .chain(wakes)
            .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
            .collect();
        match poll(&mut fds, limit.as_ref()) {
            // The message first: an answer that has come is not lost to a late wake-up.
            Ok(_) => match fds.iter().position(|fd| !fd.revents().is_empty()) {
                None => return Ok(Ready::TimedOut),
                Some(0) => return Ok(Ready::Message),
                Some(n) => return Ok(Ready::Woken(n - 1)),
            },
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// What [`wait_readable`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// The socket has a message, or its peer is gone.
    Message,
    /// The wake descriptor of this index is readable.
    Woken(usize),
    /// Neither, in the time given.
    TimedOut,
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;

    #[test]
    fn message_and_descriptors_arrive_together() {
        let (a, b) = pair().expect("pair");
        let mut file = tempfile::tempfile().expect("file");
        file.write_all(b"inside").expect("write");
        send(a.as_fd(), b"hello", &[file.as_fd(), a.as_fd()]).expect("send");
        let (data, fds) = recv(b.as_fd(), 64).expect("recv").expect("message");
        assert_eq!(data, b"hello");
        assert_eq!(fds.len(), 2);
        for fd in &fds {
            let flags = rustix::io::fcntl_getfd(fd).expect("flags");
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
        let mut got = File::from(fds.into_iter().next().expect("fd"));
        got.rewind().expect("rewind");
        let mut text = String::new();
        got.read_to_string(&mut text).expect("read");
        assert_eq!(text, "inside");
    }

    #[test]
    fn descriptors_come_over_a_stream_too() {
        let (a, b) = std::os::unix::net::UnixStream::pair().expect("pair");
        send(a.as_fd(), b"name", &[a.as_fd()]).expect("send");
        assert_eq!(recv_stream(b.as_fd()).expect("recv").len(), 1);
        drop(a);
        assert!(recv_stream(b.as_fd()).expect("end").is_empty());
    }

    #[test]
    fn a_descriptor_comes_with_its_byte_alone() {
        let (mut a, mut b) = std::os::unix::net::UnixStream::pair().expect("pair");
        a.write_all(b"1234").expect("write");
        send(a.as_fd(), b"f", &[a.as_fd()]).expect("send");
        a.write_all(b"5678x").expect("write");
        let mut four = [0; 4];
        b.read_exact(&mut four).expect("read");
        assert_eq!(&four, b"1234");
        recv_fd(b.as_fd()).expect("descriptor");
        b.read_exact(&mut four).expect("read");
        assert_eq!(&four, b"5678");
        let error = recv_fd(b.as_fd()).expect_err("a byte alone");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop(a);
        let error = recv_fd(b.as_fd()).expect_err("the end");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn packets_keep_their_borders() {
        let (a, b) = pair().expect("pair");
        send(a.as_fd(), &[1; 3], &[]).expect("send");
        send(a.as_fd(), &[2; 70_000], &[]).expect("send");
        let one = recv(b.as_fd(), 1 << 20).expect("recv").expect("message").0;
        let two = recv(b.as_fd(), 1 << 20).expect("recv").expect("message").0;
        assert_eq!((one.len(), two.len()), (3, 70_000));
    }

    #[test]
    fn end_of_connection_is_none() {
        let (a, b) = pair().expect("pair");
        drop(a);
        assert!(recv(b.as_fd(), 64).expect("recv").is_none());
        let error = send(b.as_fd(), b"x", &[]).expect_err("peer is gone");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn an_oversized_message_is_refused_unread() {
        let (a, b) = pair().expect("pair");
        send(a.as_fd(), &[0; 100], &[]).expect("send");
        let error = recv(b.as_fd(), 99).expect_err("over the limit");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(recv(b.as_fd(), 100).expect("recv").is_some());
    }

    #[test]
    fn bad_sends_are_refused() {
        let (a, _b) = pair().expect("pair");
        let many = vec![a.as_fd(); MAX_FDS + 1];
        for (data, fds) in [(&b""[..], &[][..]), (b"x", &many[..])] {
            let error = send(a.as_fd(), data, fds).expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn the_most_descriptors_fit() {
        let (a, b) = pair().expect("pair");
        send(a.as_fd(), b"x", &vec![a.as_fd(); MAX_FDS]).expect("send");
        let (_, fds) = recv(b.as_fd(), 8).expect("recv").expect("message");
        assert_eq!(fds.len(), MAX_FDS);
    }

    #[test]
    fn waiting_tells_message_wake_and_time_apart() {
        let (a, b) = pair().expect("pair");
        let (wake_a, wake_b) = pair().expect("pair");
        let wait = |t| wait_readable(b.as_fd(), &[wake_b.as_fd()], Some(t)).expect("wait");
        assert_eq!(wait(Duration::from_millis(5)), Ready::TimedOut);
        send(wake_a.as_fd(), b"x", &[]).expect("send");
        assert_eq!(wait(Duration::from_secs(5)), Ready::Woken(0));
        send(a.as_fd(), b"x", &[]).expect("send");
        assert_eq!(wait(Duration::from_secs(5)), Ready::Message);
    }
}
