//! Namespaces of one's own, and mounts that show other owners.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;

use crate::process::{Fork, exit_now, fork, wait_for};

/// Gives this process, and what it forks, a mount namespace of its own. Mounts
/// stay peers of those that they are copies of.
///
/// # Errors
///
/// What unshare(2) says.
pub fn unshare_mounts() -> io::Result<()> {
    unshare(UnshareFlags::NEWNS)
}

/// Gives this process a cgroup namespace of its own, the root of which in every
/// hierarchy is the cgroup that the process is in.
///
/// # Errors
///
/// What unshare(2) says.
pub fn unshare_cgroups() -> io::Result<()> {
    unshare(UnshareFlags::NEWCGROUP)
}

/// Makes a time namespace in which the monotonic clock and that of the boot time are ahead of the
/// caller's by so many seconds and nanoseconds. What this process forks from now on is in it.
///
/// # Errors
///
/// What the kernel says: `EINVAL` from one that has none, `ERANGE` for clocks that would be before
/// their start or beyond all years.
pub fn new_time_namespace(monotonic: (i64, i64), boottime: (i64, i64)) -> io::Result<OwnedFd> {
    unshare(UnshareFlags::NEWTIME)?;
    let offsets = format!(
        "monotonic {} {}\nboottime {} {}\n",
        monotonic.0, monotonic.1, boottime.0, boottime.1
    );
    std::fs::write("/proc/self/timens_offsets", offsets)?;
    Ok(File::open("/proc/self/ns/time_for_children")?.into())
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: none of the namespaces that are unshared here concerns memory
    // or descriptors; a time namespace waits for the children. A mount namespace takes the thread's root and working
    // directory along, which nothing in this process takes for shared.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Makes a user namespace with these maps, in the form of `/proc/PID/uid_map`.
/// It is there for as long as its descriptor is, or somebody inside.
///
/// # Errors
///
/// What the kernel says: `EINVAL` for maps that overlap or are empty, `EPERM`
/// for ids that the caller may not map. As [`fork`] with several threads.
pub fn new_user_namespace(uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    // Each direction ends with its writer, so neither side waits for a dead one.
    let (made, making) = std::io::pipe()?;
    let (leave, staying) = std::io::pipe()?;
    match fork()? {
        Fork::Child => {
            drop((made, staying));
            let done = unshare(UnshareFlags::NEWUSER).and_then(|()| {
                io::Write::write_all(&mut &making, b"1")?;
                io::Read::read(&mut &leave, &mut [0])
            });
            exit_now(i32::from(done.is_err()))
        }
        Fork::Parent(pid) => {
            drop((making, leave));
            let namespace = mapped(pid, made, uid_map, gid_map);
            drop(staying);
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            wait_for(pid)?;
            namespace
        }
    }
}

fn mapped(pid: Pid, mut made: io::PipeReader, uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    if io::Read::read(&mut made, &mut [0])? == 0 {
        return Err(io::Error::other(
            "this kernel or its settings allow no new user namespace",
        ));
    }
    let of = |file: &str| format!("/proc/{}/{file}", pid.as_raw_nonzero());
    std::fs::write(of("uid_map"), uid_map)?;
    std::fs::write(of("gid_map"), gid_map)?;
    Ok(File::open(of("ns/user"))?.into())
}

/// Makes a detached tree of mounts show the owners that a user namespace's maps
/// give them; all of it, or the topmost mount.
///
/// # Errors
///
/// `EINVAL` when a file system cannot, or is mapped already; `EPERM` when the
/// tree is attached or the caller is not the owner of its file system.
pub fn map_owners(
    tree: BorrowedFd<'_>,
    user_namespace: BorrowedFd<'_>,
    recursive: bool,
) -> io::Result<()> {
    set_map(tree.as_raw_fd(), user_namespace.as_raw_fd(), recursive)
}

/// Whether this kernel knows mounts that show other owners at all (Linux 5.12);
/// which file systems do is another question.
#[must_use]
pub fn knows_map_owners() -> bool {
    // There is no such tree: a kernel that gets to see that knows the call.
    set_map(-1, 0, false).is_err_and(|e| e.raw_os_error() != Some(libc::ENOSYS))
}

fn set_map(tree: RawFd, user_namespace: RawFd, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        // A descriptor is never negative.
        userns_fd: u64::from(user_namespace.unsigned_abs()),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a zero-ended string and the attributes are readable
    // for as many bytes as is said; a number that is no descriptor is refused.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree,
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
