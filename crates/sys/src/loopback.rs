//! The loopback interface, which is down in a new network namespace.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Brings up `lo` of this thread's network namespace.
///
/// # Errors
///
/// What netdevice(7) says.
pub fn up() -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: all of it are numbers, for which zero is a value.
    let mut lo: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in lo.ifr_name.iter_mut().zip(*b"lo\0") {
        *to = from.cast_signed();
    }
    ioctl(&socket, libc::SIOCGIFFLAGS, &mut lo)?;
    // SAFETY: the call before has written the flags; any bits of them are a number.
    unsafe { lo.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    ioctl(&socket, libc::SIOCSIFFLAGS, &mut lo)
}

fn ioctl(socket: &OwnedFd, number: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: both numbers used here read and write one ifreq, which `request` is.
    if unsafe { libc::ioctl(socket.as_raw_fd(), number, std::ptr::from_mut(request)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use rustix::thread::{UnshareFlags, unshare_unsafe};

    #[test]
    fn a_new_namespace_can_be_spoken_in() {
        if !rustix::process::geteuid().is_root() {
            println!("not run: a network namespace needs root");
            return;
        }
        let reached = std::thread::spawn(|| {
            // SAFETY: of this thread alone, which makes no use of the old namespace.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            let reach = || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.send_to(b"x", "127.0.0.1:9").is_ok()
            };
            assert!(!reach(), "it is up already");
            super::up().unwrap();
            reach()
        });
        assert!(reached.join().unwrap());
    }
}
