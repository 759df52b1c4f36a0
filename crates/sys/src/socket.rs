//! Options of sockets that rustix does not know.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Whether a UDP socket holds back what is sent, until it is uncorked (`UDP_CORK`).
///
/// # Errors
///
/// `ENOPROTOOPT` or `EOPNOTSUPP` for any other socket.
pub fn is_corked(udp: BorrowedFd<'_>) -> io::Result<bool> {
    // linux/udp.h
    const UDP_CORK: libc::c_int = 1;
    let mut corked: libc::c_int = 0;
    let mut size = libc::socklen_t::try_from(size_of_val(&corked)).unwrap_or_default();
    // SAFETY: value and size are writable for as long as the call lasts, and the size is the
    // value's.
    let rc = unsafe {
        libc::getsockopt(
            udp.as_raw_fd(),
            libc::IPPROTO_UDP,
            UDP_CORK,
            std::ptr::from_mut(&mut corked).cast(),
            &raw mut size,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(corked != 0)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_corked_socket_is_told() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(!is_corked(socket.as_fd()).unwrap());
        let on: libc::c_int = 1;
        // SAFETY: the value is readable for the call, and the size is its own.
        let rc = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_UDP,
                1,
                std::ptr::from_ref(&on).cast(),
                4,
            )
        };
        assert_eq!(rc, 0);
        assert!(is_corked(socket.as_fd()).unwrap());
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(is_corked(tcp.as_fd()).is_err());
    }
}
