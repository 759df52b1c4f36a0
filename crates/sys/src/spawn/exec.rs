//! The child between `clone3(2)` and `execve(2)`: what is laid out for it before, the system
//! calls that it makes, and how it tells which of them failed.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use rustix::process::Pid;

use super::{Group, Spawn};

const STEP_GROUP: u8 = 1;
const STEP_FDS: u8 = 2;
const STEP_NAMESPACE: u8 = 3;
const STEP_SLAVE: u8 = 4;
const STEP_BIND: u8 = 5;
const STEP_CWD: u8 = 6;
const STEP_EXEC: u8 = 7;
const STEP_ENTER: u8 = 8;
const STEP_TREE: u8 = 9;
const STEP_USERS: u8 = 10;
/// Step, index, errno: under `PIPE_BUF`, so written whole.
pub(super) const REPORT_LEN: usize = 6;

impl Spawn {
    /// What a step reported by the child was to do.
    pub(super) fn step_name(&self, step: u8, index: usize) -> String {
        let bind = self.mounts.as_ref().and_then(|m| m.binds.get(index));
        let tree = self.mounts.as_ref().and_then(|m| m.trees.get(index));
        match (step, bind) {
            (STEP_TREE, _) => match tree {
                Some(t) => format!("mount {}", t.target.display()),
                None => "mount what it was given".into(),
            },
            (STEP_USERS, _) => "become the root of a user namespace".into(),
            (STEP_GROUP, _) => "make its process group".into(),
            (STEP_FDS, _) => "pass its file descriptors".into(),
            (STEP_ENTER, _) => "enter a namespace".into(),
            (STEP_NAMESPACE, _) => "make its mount namespace".into(),
            (STEP_SLAVE, _) => "part its mounts from the host's".into(),
            (STEP_BIND, Some(b)) => {
                format!("bind {} to {}", b.source.display(), b.target.display())
            }
            (STEP_CWD, _) => "enter its working directory".into(),
            (STEP_EXEC, _) => "execute it".into(),
            _ => "prepare it".into(),
        }
    }
}

/// All that the child needs, laid out before it is made: it must not allocate.
pub(super) struct Prepared {
    program: CString,
    argv: PointerList,
    envp: PointerList,
    namespaces: Vec<RawFd>,
    /// Detached mount, target, and whether it gets peers of its own.
    trees: Vec<(RawFd, CString, bool)>,
    binds: Vec<(CString, CString)>,
    isolate: bool,
    /// -1 for the caller's.
    users: RawFd,
    /// Source and number.
    fds: Vec<(RawFd, RawFd)>,
    /// The lowest number above every wanted one.
    above: RawFd,
    cwd: RawFd,
    group: Group,
    report: RawFd,
}

struct PointerList {
    // Keeps what `pointers` point at.
    _strings: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl PointerList {
    fn new(strings: Vec<CString>) -> Self {
        let pointers = strings
            .iter()
            .map(|s| s.as_ptr())
            .chain([ptr::null()])
            .collect();
        Self {
            _strings: strings,
            pointers,
        }
    }
}

impl Prepared {
    pub(super) fn new(spawn: &Spawn, report: RawFd) -> Result<Self, &'static str> {
        let program = c_string(spawn.program.as_os_str())?;
        let mut argv = vec![program.clone()];
        for arg in &spawn.args {
            argv.push(c_string(arg)?);
        }
        let mut envp = Vec::new();
        for (key, value) in &spawn.env {
            let mut pair = key.clone();
            pair.push("=");
            pair.push(value);
            envp.push(c_string(&pair)?);
        }
        let mut trees = Vec::new();
        for tree in spawn.mounts.iter().flat_map(|m| &m.trees) {
            trees.push((tree.tree.as_raw_fd(), c_path(&tree.target)?, tree.own_peers));
        }
        let mut binds = Vec::new();
        for bind in spawn.mounts.iter().flat_map(|m| &m.binds) {
            binds.push((c_path(&bind.source)?, c_path(&bind.target)?));
        }
        if binds.len().max(trees.len()) > usize::from(u8::MAX) {
            return Err("more than 255 mounts");
        }
        if spawn.fds.len() > MAX_PASSED {
            return Err("more than 1024 file descriptors");
        }
        let highest = spawn.fds.iter().map(|(_, n)| *n).max().unwrap_or(2);
        if highest > 4096 || spawn.fds.iter().any(|(_, n)| *n < 0) {
            return Err("a file descriptor's number is not between 0 and 4096");
        }
        Ok(Self {
            program,
            argv: PointerList::new(argv),
            envp: PointerList::new(envp),
            namespaces: spawn.namespaces.iter().map(AsRawFd::as_raw_fd).collect(),
            trees,
            binds,
            isolate: spawn.mounts.is_some(),
            users: spawn.user_namespace.as_ref().map_or(-1, AsRawFd::as_raw_fd),
            fds: spawn
                .fds
                .iter()
                .map(|(fd, n)| (fd.as_raw_fd(), *n))
                .collect(),
            above: highest + 1,
            cwd: spawn.cwd.as_ref().map_or(-1, AsRawFd::as_raw_fd),
            group: spawn.group,
            report,
        })
    }
}

pub(super) fn c_string(s: &OsStr) -> Result<CString, &'static str> {
    CString::new(s.as_bytes()).map_err(|_| "an argument, variable or path holds a NUL byte")
}

fn c_path(path: &Path) -> Result<CString, &'static str> {
    c_string(path.as_os_str())
}

/// `struct clone_args` of `clone3(2)`, version 0.
#[repr(C)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

pub(super) fn clone_and_exec(prepared: &Prepared) -> io::Result<(Pid, OwnedFd)> {
    let mut pidfd: RawFd = -1;
    let args = CloneArgs {
        flags: libc::CLONE_PIDFD as u64,
        pidfd: ptr::from_mut(&mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
    };
    // A handler of ours that ran in the child would write into our own wake-up pipes.
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut old = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are valid for writing; sigfillset initializes `all` before it is read.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr());
    }
    // SAFETY: `args` is a valid clone_args of the size given, and its pidfd pointer is valid
    // for one int. Without CLONE_VM and with no stack given the child continues here on a copy
    // of this memory, as after fork(2), and does nothing but `run_child`.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            ptr::from_ref(&args),
            std::mem::size_of::<CloneArgs>(),
        )
    };
    if pid == 0 {
        // SAFETY: this is the child of the clone3 above, with all signals blocked.
        unsafe { run_child(prepared) }
    }
    let error = io::Error::last_os_error();
    // SAFETY: `old` was initialized by the call that blocked the signals.
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, old.as_ptr(), ptr::null_mut());
    }
    let pid = i32::try_from(pid)
        .ok()
        .and_then(|p| Pid::from_raw(p.max(0)));
    match pid {
        // SAFETY: clone3 succeeded, so it stored a new descriptor that nobody else owns.
        Some(pid) => Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) })),
        None => Err(error),
    }
}

/// The life of the child up to `execve`.
///
/// # Safety
///
/// Only in a fresh child of a clone without `CLONE_VM`. Other threads of the parent do not
/// exist here and may have held any lock, so nothing below allocates, locks or panics.
unsafe fn run_child(p: &Prepared) -> ! {
    let mut report = p.report;
    // SAFETY: plain system calls on pointers into `p`, which lives in this process's copy of
    // the memory and is not freed before execve; every C string in it ends with a NUL and both
    // pointer lists end with a null. All are async-signal-safe.
    unsafe {
        for signal in 1..=64 as libc::c_long {
            // Not libc's function: it refuses 32 and 33. SIGKILL and SIGSTOP fail, and need
            // nothing.
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                DEFAULT_ACTION.as_ptr(),
                ptr::null::<u64>(),
                8,
            );
        }
        match p.group {
            Group::Inherit => {}
            Group::Own => {
                if libc::setpgid(0, 0) < 0 {
                    fail(report, STEP_GROUP, 0);
                }
            }
            Group::Session => {
                if libc::setsid() < 0 {
                    fail(report, STEP_GROUP, 0);
                }
            }
        }

        for namespace in &p.namespaces {
            if libc::setns(*namespace, 0) < 0 {
                fail(report, STEP_ENTER, 0);
            }
        }
        if p.isolate {
            if libc::unshare(libc::CLONE_NEWNS) < 0 {
                fail(report, STEP_NAMESPACE, 0);
            }
            if change_propagation(c"/".as_ptr(), libc::MS_SLAVE | libc::MS_REC) < 0 {
                fail(report, STEP_SLAVE, 0);
            }
        }
        let mut index: u8 = 0;
        for (tree, target, own_peers) in &p.trees {
            if libc::syscall(
                libc::SYS_move_mount,
                *tree,
                c"".as_ptr(),
                libc::AT_FDCWD,
                target.as_ptr(),
                libc::MOVE_MOUNT_F_EMPTY_PATH,
            ) < 0
                || change_propagation(target.as_ptr(), libc::MS_SLAVE | libc::MS_REC) < 0
                || (*own_peers && change_propagation(target.as_ptr(), libc::MS_SHARED) < 0)
            {
                fail(report, STEP_TREE, index);
            }
            index = index.wrapping_add(1);
        }
        index = 0;
        for (source, target) in &p.binds {
            if libc::mount(
                source.as_ptr(),
                target.as_ptr(),
                ptr::null(),
                libc::MS_BIND | libc::MS_REC,
                ptr::null(),
            ) < 0
                || change_propagation(target.as_ptr(), libc::MS_SLAVE | libc::MS_REC) < 0
                || change_propagation(target.as_ptr(), libc::MS_SHARED) < 0
            {
                fail(report, STEP_BIND, index);
            }
            index = index.wrapping_add(1);
        }
        if p.cwd >= 0 && libc::fchdir(p.cwd) < 0 {
            fail(report, STEP_CWD, 0);
        }
        // Not libc's functions for the ids: they would tell threads that are not here.
        if p.users >= 0
            && (libc::setns(p.users, libc::CLONE_NEWUSER) < 0
                || libc::syscall(libc::SYS_setresgid, 0, 0, 0) < 0
                || libc::syscall(libc::SYS_setgroups, 0, ptr::null::<libc::gid_t>()) < 0
                || libc::syscall(libc::SYS_setresuid, 0, 0, 0) < 0
                || libc::unshare(libc::CLONE_NEWNS) < 0)
        {
            fail(report, STEP_USERS, 0);
        }

        // Out of the way of every wanted number, the report first.
        let moved = libc::fcntl(report, libc::F_DUPFD_CLOEXEC, p.above);
        if moved < 0 {
            fail(report, STEP_FDS, 0);
        }
        report = moved;
        let mut lifted = [-1; MAX_PASSED];
        for (slot, (source, _)) in lifted.iter_mut().zip(&p.fds) {
            *slot = libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, p.above);
            if *slot < 0 {
                fail(report, STEP_FDS, 0);
            }
        }
        if libc::syscall(
            libc::SYS_close_range,
            0,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        ) < 0
        {
            fail(report, STEP_FDS, 0);
        }
        for (source, (_, number)) in lifted.iter().zip(&p.fds) {
            // Clears CLOEXEC on the wanted number.
            if libc::dup2(*source, *number) < 0 {
                fail(report, STEP_FDS, 0);
            }
        }

        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
        libc::execve(
            p.program.as_ptr(),
            p.argv.pointers.as_ptr(),
            p.envp.pointers.as_ptr(),
        );
        fail(report, STEP_EXEC, 0)
    }
}

/// The kernel's `struct sigaction` for `SIG_DFL`: zeros, with room to spare on every machine.
const DEFAULT_ACTION: [u64; 8] = [0; 8];
/// The most descriptors that one program is given.
const MAX_PASSED: usize = 1024;

/// # Safety
///
/// `path` is a NUL-terminated string.
unsafe fn change_propagation(path: *const libc::c_char, flags: libc::c_ulong) -> libc::c_int {
    // SAFETY: the caller vouches for `path`; the other strings are not looked at.
    unsafe { libc::mount(ptr::null(), path, ptr::null(), flags, ptr::null()) }
}

/// Tells the parent what failed, with errno, and ends the child.
fn fail(report: RawFd, step: u8, index: u8) -> ! {
    // SAFETY: errno's location is valid; the buffer is as long as said; _exit runs no handlers.
    unsafe {
        let [a, b, c, d] = (*libc::__errno_location()).to_ne_bytes();
        let bytes = [step, index, a, b, c, d];
        libc::write(report, bytes.as_ptr().cast(), bytes.len());
        libc::_exit(127)
    }
}
