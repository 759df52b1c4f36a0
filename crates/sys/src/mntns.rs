//! Mount namespaces: a look inside, and how many mounts there are.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// Runs `f` on a thread whose root and working directory are those of a mount namespace.
///
/// # Errors
///
/// When the thread cannot be made, or the namespace not be entered.
pub fn inside<T: Send>(namespace: BorrowedFd<'_>, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let enter = || {
            // SAFETY: the thread gets a root and working directory of its own, and shares
            // descriptors and memory as before.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
            rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Mount))?;
            Ok(f())
        };
        std::thread::Builder::new()
            .spawn_scoped(scope, enter)?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// How many mounts a namespace has, those included that no root in it leads to; `None` from a
/// kernel before 6.12, which does not tell.
///
/// # Errors
///
/// What ioctl(2) says.
pub fn count(namespace: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    /// `NS_MNT_GET_INFO`, `_IOR(0xb7, 10, struct mnt_ns_info)`.
    const GET_INFO: libc::Ioctl = 0x8010_b70a;
    #[repr(C)]
    struct Info {
        size: u32,
        mounts: u32,
        id: u64,
    }
    let mut info = Info {
        size: 16,
        mounts: 0,
        id: 0,
    };
    // SAFETY: the kernel writes at most the 16 bytes that the number names, and `info` has them.
    let rc = unsafe { libc::ioctl(namespace.as_raw_fd(), GET_INFO, &raw mut info) };
    if rc == 0 {
        return Ok(Some(info.mounts));
    }
    match io::Error::last_os_error() {
        e if Errno::from_io_error(&e) == Some(Errno::NOTTY) => Ok(None),
        e => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;
    use std::path::Path;

    use super::*;

    #[test]
    fn ours_can_be_entered_and_counted() {
        let own = File::open("/proc/self/ns/mnt").unwrap();
        let listed = std::fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .lines()
            .count();
        if let Some(mounts) = count(own.as_fd()).unwrap() {
            assert!(
                usize::try_from(mounts).unwrap() >= listed,
                "{mounts} of {listed}"
            );
        } else {
            eprintln!("not counted: the kernel is older than 6.12");
        }
        let not_one = File::open("/proc/self/ns/net").unwrap();
        assert!(inside(not_one.as_fd(), || ()).is_err());
        if !rustix::process::geteuid().is_root() {
            eprintln!("not entered: that takes root");
            return;
        }
        let before = std::env::current_dir().unwrap();
        let there = inside(own.as_fd(), || std::env::current_dir().unwrap()).unwrap();
        assert_eq!(there, Path::new("/"));
        assert_eq!(std::env::current_dir().unwrap(), before);
    }
}
