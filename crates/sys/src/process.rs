//! Processes: fork, signals, exits, and our own executable out of harm's way.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};

/// Which side of a [`fork`] this is.
#[derive(Debug)]
pub enum Fork {
    /// The new process. It has to end with [`exit_now`].
    Child,
    /// The process that called, with the new one's id.
    Parent(Pid),
}

/// Forks this process.
///
/// # Errors
///
/// [`io::ErrorKind::Unsupported`] in a process with more than one thread: the
/// child would own locks that nobody releases. Else what fork(2) says.
pub fn fork() -> io::Result<Fork> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("fork needs a process with one thread, this one has {threads}"),
        ));
    }
    // SAFETY: the process has a single thread (checked above, and only that
    // thread could make another), so the child is a complete copy: no lock is
    // held and no memory is in the middle of a change by somebody else.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Pid::from_raw(pid)
            .map(Fork::Parent)
            .ok_or_else(|| io::Error::other("fork answered with an impossible process id")),
    }
}

/// Ends the process at once: no destructors, no exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) takes any integer and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// How a process ended, as containerd wants it: the exit code, or 128 plus the
/// number of the signal that ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitCode(pub u32);

/// Reaps the child behind `pidfd` if it has ended; `None` while it runs.
///
/// # Errors
///
/// `ECHILD` when the process is not a child of the caller or is reaped already.
pub fn try_wait(pidfd: BorrowedFd<'_>) -> io::Result<Option<ExitCode>> {
    wait_with(
        WaitId::PidFd(pidfd),
        WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
    )
}

/// Waits for the child behind `pidfd` to end, and reaps it.
///
/// # Errors
///
/// As [`try_wait`].
pub fn wait(pidfd: BorrowedFd<'_>) -> io::Result<ExitCode> {
    wait_with(WaitId::PidFd(pidfd), WaitIdOptions::EXITED)?
        .ok_or_else(|| io::Error::other("waitid answered without a status"))
}

/// Reaps one particular child that is known to have ended.
///
/// # Errors
///
/// As [`try_wait`].
pub fn reap(pid: Pid) -> io::Result<Option<ExitCode>> {
    wait_with(
        WaitId::Pid(pid),
        WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
    )
}

/// Waits for a child by its id, and reaps it.
///
/// # Errors
///
/// As [`try_wait`].
pub fn wait_for(pid: Pid) -> io::Result<ExitCode> {
    wait_with(WaitId::Pid(pid), WaitIdOptions::EXITED)?
        .ok_or_else(|| io::Error::other("waitid answered without a status"))
}

/// The id of some child that has ended and is not reaped yet. It stays so.
///
/// # Errors
///
/// `ECHILD` when there are no children at all.
pub fn peek_zombie() -> io::Result<Option<Pid>> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: `info` is large enough for what waitid(2) writes, and with
    // WNOWAIT the call changes nothing else.
    let rc = unsafe {
        libc::waitid(
            libc::P_ALL,
            0,
            info.as_mut_ptr(),
            libc::WEXITED | libc::WNOHANG | libc::WNOWAIT,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeroes are a valid siginfo_t, and waitid(2) leaves either
    // that or a SIGCHLD record, whose si_pid is set.
    let pid = unsafe { info.assume_init().si_pid() };
    Ok(Pid::from_raw(pid))
}

fn wait_with(id: WaitId<'_>, options: WaitIdOptions) -> io::Result<Option<ExitCode>> {
    let status = loop {
        match rustix::process::waitid(id.clone(), options) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    Ok(status.map(|s| {
        let code = s
            .exit_status()
            .or_else(|| s.terminating_signal().map(|n| 128 + n))
            .unwrap_or(255);
        ExitCode(u32::try_from(code).unwrap_or(255))
    }))
}

/// A handle on a process that stays true when its id is used again.
///
/// # Errors
///
/// `ESRCH` when there is no such process.
pub fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// What threads and processes may have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Common {
    /// The table of open files.
    Files,
    /// Working directory, root and umask.
    Fs,
}

/// Whether two threads, each given by its id, have this in common.
///
/// # Errors
///
/// `ESRCH` when one of them is gone, `EPERM` without the right to trace both.
pub fn share(one: Pid, other: Pid, what: Common) -> io::Result<bool> {
    // KCMP_FILES and KCMP_FS of linux/kcmp.h.
    let kind: libc::c_long = match what {
        Common::Files => 2,
        Common::Fs => 3,
    };
    // SAFETY: kcmp(2) takes numbers alone for these kinds and touches no memory of ours.
    let order = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            one.as_raw_nonzero().get(),
            other.as_raw_nonzero().get(),
            kind,
            0,
            0,
        )
    };
    if order < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(order == 0)
}

/// Sends a signal by number, real-time ones included.
///
/// # Errors
///
/// `ESRCH` when the process is gone, `EINVAL` when there is no such signal.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: pidfd_send_signal(2) takes a null siginfo and no flags; the fd
    // is open for as long as it is borrowed.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Gives every signal its default effect and blocks none, for a program to be
/// executed: what is ignored stays so across `execve`.
///
/// # Errors
///
/// What sigprocmask(2) says.
pub fn default_signals() -> io::Result<()> {
    // The kernel's `struct sigaction` for SIG_DFL: zeros, with room to spare.
    let default = [0u64; 8];
    for signal in 1..=64 as libc::c_long {
        // SAFETY: the action is readable for more than the kernel reads, and
        // no old one is asked for. The system call and not libc's function,
        // which refuses 32 and 33; SIGKILL and SIGSTOP fail and need nothing.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null::<u64>(),
                8,
            );
        }
    }
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initializes the set before sigprocmask reads it, and
    // no old mask is asked for.
    let rc = unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut())
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets `CLOEXEC` on every open descriptor from this number on.
///
/// # Errors
///
/// What close_range(2) says.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: with this flag close_range(2) changes descriptors' flags only;
    // no descriptor is closed under an owner's feet.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Becomes another program, with exactly these arguments and variables. Comes
/// back only with an error.
#[must_use]
pub fn execve(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let list = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings
            .iter()
            .map(|s| s.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let (args, env) = (list(args), list(env));
    // SAFETY: the path and all strings end with a NUL and outlive the call,
    // and both lists end with a null.
    unsafe {
        libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr());
    }
    io::Error::last_os_error()
}

/// The running executable in a form that nobody can write through, to be
/// executed as `/proc/self/fd/N`: a container that reaches `/proc/PID/exe` of a
/// process started from it cannot change the file on the host (CVE-2019-5736's
/// class). By a read-only overlay where the kernel lets us make one, which
/// shares the file's pages; else a sealed copy in memory.
///
/// # Errors
///
/// What memfd_create(2), reading the executable or sealing say.
pub fn protected_self_exe() -> io::Result<OwnedFd> {
    overlaid_self_exe().or_else(|_| sealed_self_exe())
}

/// A mount of nowhere: it is in no mount table, and ends with its last user.
fn overlaid_self_exe() -> io::Result<OwnedFd> {
    let exe = std::fs::read_link("/proc/self/exe")?;
    let (Some(dir), Some(name)) = (exe.parent(), exe.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // Without a writable layer there must be two; any folder does.
    for layer in [dir, Path::new("/etc")] {
        rustix::mount::fsconfig_set_string(fs.as_fd(), "lowerdir+", layer)?;
    }
    rustix::mount::fsconfig_create(fs.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mount = rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&mount, name, flags, Mode::empty())?;
    // The name may lead to another file by now, after an upgrade. Inode numbers
    // are the overlay's own.
    let identity = |s: rustix::fs::Stat| (s.st_size, s.st_mtime, s.st_mtime_nsec);
    let running = File::open("/proc/self/exe")?;
    if identity(rustix::fs::fstat(&file)?) != identity(rustix::fs::fstat(&running)?) {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(file)
}

fn sealed_self_exe() -> io::Result<OwnedFd> {
    let exe = File::open("/proc/self/exe")?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mem: File = rustix::fs::memfd_create("cryo", flags)?.into();
    io::copy(&mut &exe, &mut &mem)?;
    rustix::fs::fcntl_add_seals(
        mem.as_fd(),
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    Ok(mem.into())
}

/// Gives this thread, and what it forks, a core scheduling cookie of its own:
/// no other process shares a core's threads with them at the same time.
///
/// # Errors
///
/// `EINVAL` from a kernel without core scheduling, `ENODEV` on a machine whose
/// cores have one thread.
pub fn new_core_scheduling_cookie() -> io::Result<()> {
    // SAFETY: PR_SCHED_CORE_CREATE takes numbers and touches no memory.
    let rc = unsafe {
        libc::prctl(
            libc::PR_SCHED_CORE,
            libc::PR_SCHED_CORE_CREATE,
            0,
            libc::PR_SCHED_CORE_SCOPE_THREAD,
            0,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The calling thread's core scheduling cookie; `None` if it has none, or the
/// kernel knows of none.
#[must_use]
pub fn core_scheduling_cookie() -> Option<u64> {
    let mut cookie = 0u64;
    // SAFETY: `cookie` is valid for the 8 bytes that the kernel writes.
    let rc = unsafe {
        libc::prctl(
            libc::PR_SCHED_CORE,
            libc::PR_SCHED_CORE_GET,
            0,
            libc::PR_SCHED_CORE_SCOPE_THREAD,
            std::ptr::from_mut(&mut cookie),
        )
    };
    (rc == 0 && cookie != 0).then_some(cookie)
}

/// Gives this process, and what it forks, a new session keyring of that name.
/// A kernel without keyrings has none to share, so that is no error.
///
/// # Errors
///
/// `EDQUOT` when the user has too many keys, `EINVAL` for a name with a zero.
pub fn new_session_keyring(name: &str) -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    let name = std::ffi::CString::new(name)?;
    // SAFETY: the name is a zero-ended string that lives through the call.
    let rc = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) };
    if rc >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        e => Err(e),
    }
}

#[cfg(test)]
#[expect(
    clippy::zombie_processes,
    reason = "children are waited for through their pidfds"
)]
mod tests {
    use std::io::Write as _;
    use std::process::Command;

    use super::*;

    fn pidfd_of(child: &std::process::Child) -> OwnedFd {
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        pidfd_open(pid).unwrap()
    }

    #[test]
    fn a_signal_becomes_128_plus_its_number() {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let fd = pidfd_of(&child);
        assert_eq!(try_wait(fd.as_fd()).unwrap(), None);
        send_signal(fd.as_fd(), libc::SIGRTMIN() + 3).unwrap();
        assert_eq!(wait(fd.as_fd()).unwrap(), ExitCode(128 + 37));
        assert_eq!(
            try_wait(fd.as_fd()).unwrap_err().raw_os_error(),
            Some(libc::ECHILD)
        );
    }

    #[test]
    fn an_exit_code_is_itself() {
        let child = Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let fd = pidfd_of(&child);
        assert_eq!(wait(fd.as_fd()).unwrap(), ExitCode(3));
    }

    #[test]
    fn signals_that_do_not_exist_are_refused() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let fd = pidfd_of(&child);
        assert_eq!(
            send_signal(fd.as_fd(), 4711).unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn threads_share_what_processes_do_not() {
        let own = rustix::process::getpid();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let other = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        for what in [Common::Files, Common::Fs] {
            std::thread::spawn(move || {
                assert!(share(own, rustix::thread::gettid(), what).unwrap());
            })
            .join()
            .unwrap();
            assert!(!share(own, other, what).unwrap());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let error = share(own, other, Common::Fs).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn a_session_keyring_can_be_had() {
        // Of this thread only: the kernel keeps keyrings per thread.
        std::thread::spawn(|| new_session_keyring("_ses.test").unwrap())
            .join()
            .unwrap();
        assert_eq!(
            new_session_keyring("a\0b").unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }

    #[test]
    fn a_core_scheduling_cookie_is_had_or_refused() {
        let thread = std::thread::spawn(|| match new_core_scheduling_cookie() {
            Ok(()) => assert!(core_scheduling_cookie().is_some()),
            Err(error) => {
                println!("no core scheduling here: {error}");
                let code = error.raw_os_error();
                assert!(matches!(code, Some(libc::EINVAL | libc::ENODEV)), "{error}");
                assert_eq!(core_scheduling_cookie(), None);
            }
        });
        thread.join().unwrap();
    }

    #[test]
    fn fork_is_refused_beside_other_threads() {
        // The test runner itself has threads.
        let err = fork().unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let error = execve(c"/nonexistent", &[c"x".to_owned()], &[]);
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn the_protected_executable_cannot_be_written_and_runs() {
        let forms = [
            ("overlay", overlaid_self_exe()),
            ("memory", sealed_self_exe()),
            ("either", protected_self_exe()),
        ];
        for (form, fd) in forms {
            let fd = match fd {
                // Not root, or a kernel before 6.5: then the other form serves.
                Err(error) if form == "overlay" => {
                    println!("no overlay here: {error}");
                    continue;
                }
                fd => fd.unwrap(),
            };
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            let write = File::options().write(true).open(&path);
            let refused = write.and_then(|mut file| file.write(b"x").map(drop));
            let code = refused.unwrap_err().raw_os_error();
            assert!(
                matches!(code, Some(libc::EPERM | libc::EROFS | libc::ETXTBSY)),
                "{form}: {code:?}"
            );
            let run = Command::new(&path).arg("--list").output().unwrap();
            assert!(run.status.success(), "{form}");
        }
    }
}
