//! Descriptors that the parent left under an agreed number.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

/// Takes over descriptor `number`, if this process inherited it, and sets its `CLOEXEC`.
///
/// An inherited descriptor is told from one that this program opened by its missing `CLOEXEC`:
/// everything here is opened with it. So each number can be taken once, and only by the process
/// that was given it. Call it first thing in `main`.
///
/// # Errors
///
/// `EBADF` when nothing is open under `number`, [`io::ErrorKind::InvalidInput`] when it was not
/// inherited.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD takes no argument and touches no memory; a bad number is EBADF.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("descriptor {number} was not inherited"),
        ));
    }
    // SAFETY: F_SETFD takes an int and touches no memory.
    if unsafe { libc::fcntl(number, libc::F_SETFD, flags | libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and nothing here owns it: it came from the parent (no CLOEXEC), and a
    // second call for this number fails, as CLOEXEC is set now.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd as _, IntoRawFd as _};

    #[test]
    fn only_once_and_only_inherited() {
        let ours = std::fs::File::open("/dev/null").unwrap();
        let error = take(ours.as_raw_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);

        let left = std::fs::File::open("/dev/null").unwrap();
        rustix::io::fcntl_setfd(&left, rustix::io::FdFlags::empty()).unwrap();
        let number = left.into_raw_fd();
        let taken = take(number).unwrap();
        assert_eq!(taken.as_raw_fd(), number);
        assert!(take(number).is_err());
        assert_eq!(
            take(1_000_000).unwrap_err().raw_os_error(),
            Some(libc::EBADF)
        );
    }
}
