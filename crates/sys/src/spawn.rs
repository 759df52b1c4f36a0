//! Starting a program with nothing inherited but what is named.
//!
//! `std::process::Command` cannot do what CRIU needs: descriptors under chosen numbers
//! without a moment in which another thread's child could inherit them, and binds in a mount
//! namespace of the child's own. Here the child is made by `clone3(2)` with its pidfd, with
//! all signals blocked, and between that and `execve(2)` makes only plain system calls on
//! memory prepared before.
//!
//! What the program gets: the given arguments, only the given environment, default signal
//! dispositions, an empty signal mask, descriptors 0, 1 and 2 (`/dev/null` unless given) and
//! the given ones. Every other descriptor is closed at `execve`, even if somebody forgot its
//! `CLOEXEC`.
//!
//! The child is an ordinary child of this process. Whoever sweeps zombies by
//! `waitpid(-1)` must be held off while a [`Child`] lives.

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use crate::scm::{Ready, wait_readable};

/// The process group of the new program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Group {
    /// The caller's: a Ctrl-C at the caller's terminal reaches it too.
    #[default]
    Inherit,
    /// A new group in the caller's session.
    Own,
    /// A new session, hence a new group and no terminal.
    Session,
}

/// Mounts for the program alone, in a mount namespace of its own: they end with it.
///
/// Every mount of the new namespace is made a slave of the host's first. So nothing that the
/// program mounts reaches the host, not even where the host's mounts are shared, while mounts
/// and unmounts of the host still arrive; and a copy that the program makes of a volume is a
/// slave of the host's volume, as it would be if made on the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MountPlan {
    /// Recursive binds, made in this order.
    pub binds: Vec<Bind>,
}

/// One recursive bind of a [`MountPlan`].
///
/// The target becomes a mount of its own with a peer group of its own, as a slave of the
/// source's: CRIU takes the sharing of a container's root from there and refuses a private one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// What to show; a directory or a file.
    pub source: PathBuf,
    /// Where; it exists.
    pub target: PathBuf,
}

/// What to start, and how. See the [module](self) for what the program gets.
#[derive(Debug)]
pub struct Spawn {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: Option<OwnedFd>,
    fds: Vec<(OwnedFd, RawFd)>,
    group: Group,
    namespaces: Vec<OwnedFd>,
    mounts: Option<MountPlan>,
}

/// Why a program was not started. Nothing is left of the attempt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// An argument, variable or path holds a NUL byte, or a descriptor's number is bad.
    #[error("cannot start {program}: {what}")]
    Invalid {
        /// The program.
        program: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// A system call failed.
    #[error("cannot start {program}: failed to {step}")]
    Step {
        /// The program.
        program: PathBuf,
        /// What was being done.
        step: String,
        /// Why not.
        source: io::Error,
    },
}

impl SpawnError {
    /// The system's reason, if there is one.
    #[must_use]
    pub fn io_error(&self) -> Option<&io::Error> {
        match self {
            Self::Invalid { .. } => None,
            Self::Step { source, .. } => Some(source),
        }
    }
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

impl Exit {
    /// Whether it returned 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// A started program. Dropping it kills and reaps what still runs, unless it was
/// [released](Self::release).
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    exit: Option<Exit>,
    released: bool,
}

impl Spawn {
    /// Starts planning to run `program`, a path; `PATH` is not searched.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: None,
            fds: Vec::new(),
            group: Group::default(),
            namespaces: Vec::new(),
            mounts: None,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds a variable to the environment, which is otherwise empty.
    #[must_use]
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Starts the program in this directory instead of the caller's.
    #[must_use]
    pub fn cwd(mut self, dir: OwnedFd) -> Self {
        self.cwd = Some(dir);
        self
    }

    /// Gives the program a descriptor under this number (0, 1 and 2 are its stdio). The later
    /// of two for one number wins.
    #[must_use]
    pub fn fd(mut self, fd: OwnedFd, number: RawFd) -> Self {
        self.fds.retain(|(_, n)| *n != number);
        self.fds.push((fd, number));
        self
    }

    /// Sets the process group.
    #[must_use]
    pub fn group(mut self, group: Group) -> Self {
        self.group = group;
        self
    }

    /// Starts the program in this namespace (one of `/proc/PID/ns`) instead of the caller's.
    #[must_use]
    pub fn namespace(mut self, namespace: OwnedFd) -> Self {
        self.namespaces.push(namespace);
        self
    }

    /// Gives the program a mount namespace of its own with these mounts.
    #[must_use]
    pub fn mounts(mut self, plan: MountPlan) -> Self {
        self.mounts = Some(plan);
        self
    }

    /// Starts it. When this returns, the program has been executed.
    ///
    /// # Errors
    ///
    /// [`SpawnError`]; the child, if there was one, has been reaped.
    pub fn spawn(mut self) -> Result<Child, SpawnError> {
        for number in 0..3 {
            if !self.fds.iter().any(|(_, n)| *n == number) {
                let null = File::options()
                    .read(true)
                    .write(true)
                    .open("/dev/null")
                    .map_err(|e| self.failed("open /dev/null", e))?;
                self.fds.push((null.into(), number));
            }
        }
        let (report, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|e| self.failed("make a pipe", e.into()))?;
        let prepared =
            Prepared::new(&self, writer.as_raw_fd()).map_err(|what| SpawnError::Invalid {
                program: self.program.clone(),
                what,
            })?;

        let (pid, pidfd) =
            clone_and_exec(&prepared).map_err(|e| self.failed("clone a process", e))?;
        drop(writer);
        let mut child = Child {
            pid,
            pidfd,
            exit: None,
            released: false,
        };

        let mut bytes = Vec::with_capacity(REPORT_LEN);
        File::from(report)
            .take(REPORT_LEN as u64)
            .read_to_end(&mut bytes)
            .map_err(|e| self.failed("learn how the start went", e))?;
        if bytes.is_empty() {
            return Ok(child);
        }
        // It has reported, so it is about to end.
        let _ = child.wait();
        let [step, index, e0, e1, e2, e3] = bytes[..] else {
            return Err(self.failed(
                "learn how the start went",
                io::ErrorKind::InvalidData.into(),
            ));
        };
        let errno = i32::from_ne_bytes([e0, e1, e2, e3]);
        let step = self.step_name(step, usize::from(index));
        Err(self.failed(&step, io::Error::from_raw_os_error(errno)))
    }

    fn failed(&self, step: &str, source: io::Error) -> SpawnError {
        SpawnError::Step {
            program: self.program.clone(),
            step: step.to_owned(),
            source,
        }
    }

    fn step_name(&self, step: u8, index: usize) -> String {
        let bind = self.mounts.as_ref().and_then(|m| m.binds.get(index));
        match (step, bind) {
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

impl Child {
    /// Its process id; it cannot be reused until the child is reaped.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its pidfd, readable when it has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Waits until it ends, and reaps it. Later calls answer the same.
    ///
    /// # Errors
    ///
    /// `ECHILD` when somebody else reaped it; what `waitid(2)` answers.
    pub fn wait(&mut self) -> io::Result<Exit> {
        loop {
            if let Some(exit) = self.reap(WaitIdOptions::EXITED)? {
                return Ok(exit);
            }
        }
    }

    /// Waits at most `timeout`; `None` if it still runs.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&mut self, timeout: Duration) -> io::Result<Option<Exit>> {
        if self.exit.is_none()
            && wait_readable(self.pidfd.as_fd(), &[], Some(timeout))? == Ready::TimedOut
        {
            return Ok(None);
        }
        self.reap(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    /// Sends it a signal; an ended child is no error.
    ///
    /// # Errors
    ///
    /// What `pidfd_send_signal(2)` answers.
    pub fn kill(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Lets it live on: from now on somebody else waits for it.
    pub fn release(mut self) {
        self.released = true;
    }

    fn reap(&mut self, options: WaitIdOptions) -> io::Result<Option<Exit>> {
        if self.exit.is_some() {
            return Ok(self.exit);
        }
        let status =
            rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(self.pidfd.as_fd()), options))?;
        self.exit = status.and_then(|s| {
            s.exit_status()
                .map(Exit::Code)
                .or_else(|| s.terminating_signal().map(Exit::Signal))
        });
        Ok(self.exit)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.exit.is_none() && !self.released {
            let _ = self.kill(Signal::KILL);
            // Bounded: a task in an uninterruptible wait must not take its owner with it.
            let _ = self.wait_timeout(Duration::from_secs(10));
        }
    }
}

const STEP_GROUP: u8 = 1;
const STEP_FDS: u8 = 2;
const STEP_NAMESPACE: u8 = 3;
const STEP_SLAVE: u8 = 4;
const STEP_BIND: u8 = 5;
const STEP_CWD: u8 = 6;
const STEP_EXEC: u8 = 7;
const STEP_ENTER: u8 = 8;
/// Step, index, errno: under `PIPE_BUF`, so written whole.
const REPORT_LEN: usize = 6;

/// All that the child needs, laid out before it is made: it must not allocate.
struct Prepared {
    program: CString,
    argv: PointerList,
    envp: PointerList,
    namespaces: Vec<RawFd>,
    binds: Vec<(CString, CString)>,
    isolate: bool,
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
    fn new(spawn: &Spawn, report: RawFd) -> Result<Self, &'static str> {
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
        let mut binds = Vec::new();
        for bind in spawn.mounts.iter().flat_map(|m| &m.binds) {
            binds.push((c_path(&bind.source)?, c_path(&bind.target)?));
        }
        if binds.len() > usize::from(u8::MAX) {
            return Err("more than 255 binds");
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
            binds,
            isolate: spawn.mounts.is_some(),
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

fn c_string(s: &OsStr) -> Result<CString, &'static str> {
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

fn clone_and_exec(prepared: &Prepared) -> io::Result<(Pid, OwnedFd)> {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Seek;
    use std::os::fd::IntoRawFd;
    use std::time::Instant;

    use super::*;

    fn sh(script: &str) -> Spawn {
        Spawn::new("/bin/sh").arg("-c").arg(script)
    }

    /// Runs it to the end with its output in a file; returns both.
    fn output(spawn: Spawn) -> (Exit, String) {
        let mut file = tempfile::tempfile().expect("file");
        let fd = file.try_clone().expect("dup").into();
        let mut child = spawn.fd(fd, 1).spawn().expect("spawn");
        let exit = child.wait().expect("wait");
        file.rewind().expect("rewind");
        let mut text = String::new();
        file.read_to_string(&mut text).expect("read");
        (exit, text)
    }

    fn file_with(text: &str) -> OwnedFd {
        let mut file = tempfile::tempfile().expect("file");
        io::Write::write_all(&mut file, text.as_bytes()).expect("write");
        file.rewind().expect("rewind");
        file.into()
    }

    fn is_root(what: &str) -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            println!("skipped: {what} needs root");
        }
        root
    }

    #[test]
    fn exit_codes_and_signals_are_told() {
        assert_eq!(output(sh("exit 3")).0, Exit::Code(3));
        assert_eq!(output(sh("kill -9 $$")).0, Exit::Signal(9));
        assert_eq!(Exit::Signal(9).to_string(), "signal 9");
    }

    #[test]
    fn what_is_no_namespace_is_named() {
        let spawn = sh("exit 0").namespace(file_with(""));
        let error = spawn.spawn().expect_err("an ordinary file");
        assert!(
            error.to_string().ends_with("failed to enter a namespace"),
            "{error}"
        );
        if is_root("entering a namespace") {
            let own = File::open("/proc/self/ns/cgroup").expect("open");
            let (exit, text) = output(sh("readlink /proc/self/ns/cgroup").namespace(own.into()));
            assert!(exit.success());
            let wanted = std::fs::read_link("/proc/self/ns/cgroup").expect("link");
            assert_eq!(Path::new(text.trim()), wanted);
        }
    }

    #[test]
    fn environment_is_only_what_is_given() {
        let (_, text) = output(Spawn::new("/usr/bin/env").env("ONE", "1").env("TWO", "a=b"));
        assert_eq!(text, "ONE=1\nTWO=a=b\n");
        assert_eq!(output(Spawn::new("/usr/bin/env")).1, "");
    }

    #[test]
    fn descriptors_arrive_under_their_numbers() {
        let spawn = sh("cat <&7; cat <&5; cat <&0")
            .env("PATH", "/usr/bin:/bin")
            .fd(file_with("seven "), 7)
            .fd(file_with("five "), 5)
            .fd(file_with("in"), 0);
        assert_eq!(output(spawn).1, "seven five in");
    }

    #[test]
    fn numbers_that_overlap_sources_are_kept_apart() {
        // Ask for each source under the other's number.
        let (a, b) = (file_with("a"), file_with("b"));
        let (na, nb) = (a.as_raw_fd(), b.as_raw_fd());
        let spawn = sh(&format!("cat /proc/self/fd/{na} /proc/self/fd/{nb}"))
            .env("PATH", "/usr/bin:/bin")
            .fd(a, nb)
            .fd(b, na);
        assert_eq!(output(spawn).1, "ba");
    }

    #[test]
    fn nothing_else_is_inherited() {
        // One without CLOEXEC, as a careless library would leave it.
        let leak = file_with("leak");
        rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).expect("setfd");
        let spawn =
            sh("i=0; while [ $i -lt 200 ]; do [ -L /proc/$$/fd/$i ] && echo $i; i=$((i+1)); done")
                .fd(file_with(""), 9);
        let (_, text) = output(spawn);
        let seen: BTreeSet<&str> = text.split_whitespace().collect();
        assert_eq!(seen, BTreeSet::from(["0", "1", "2", "9"]));
        drop(leak);
    }

    #[test]
    fn signals_are_as_new() {
        // The test runner ignores SIGPIPE; the child must not.
        let (_, text) = output(Spawn::new("/bin/cat").arg("/proc/self/status"));
        for name in ["SigBlk", "SigIgn", "SigCgt"] {
            let want = format!("{name}:\t0000000000000000");
            assert!(text.lines().any(|l| l == want), "{text}");
        }
    }

    #[test]
    fn groups_and_sessions_are_its_own() {
        let stat = |group| {
            let (_, text) = output(Spawn::new("/bin/cat").arg("/proc/self/stat").group(group));
            let mut fields = text.split(' ');
            let pid = fields.next().expect("pid").to_owned();
            let rest: Vec<String> = fields.skip(3).take(2).map(str::to_owned).collect();
            (pid, rest)
        };
        let (pid, rest) = stat(Group::Session);
        assert_eq!(rest, [pid.clone(), pid]);
        let (pid, rest) = stat(Group::Own);
        assert_eq!(rest[0], pid);
        assert_ne!(rest[1], pid);
    }

    #[test]
    fn working_directory_is_the_given_one() {
        let dir = tempfile::tempdir().expect("dir");
        let fd = File::open(dir.path()).expect("open").into();
        let (_, text) = output(Spawn::new("/bin/pwd").arg("-P").cwd(fd));
        let want = dir.path().canonicalize().expect("canonical");
        assert_eq!(Path::new(text.trim_end()), want);
    }

    #[test]
    fn failures_name_the_step_and_leave_nothing() {
        let error = Spawn::new("/nonexistent/criu").spawn().expect_err("fails");
        assert_eq!(
            error.to_string(),
            "cannot start /nonexistent/criu: failed to execute it"
        );
        let kind = error.io_error().map(io::Error::kind);
        assert_eq!(kind, Some(io::ErrorKind::NotFound));
        let error = sh("true\0").spawn().expect_err("fails");
        assert!(error.io_error().is_none());
        let error = sh("true").fd(file_with(""), -1).spawn().expect_err("fails");
        assert!(matches!(error, SpawnError::Invalid { .. }));
    }

    #[test]
    fn waiting_has_a_limit_and_a_drop_kills() {
        let mut child = Spawn::new("/bin/sleep").arg("100").spawn().expect("spawn");
        let start = Instant::now();
        let waited = child.wait_timeout(Duration::from_millis(30)).expect("wait");
        assert_eq!(waited, None);
        assert!(start.elapsed() >= Duration::from_millis(30));
        let pid = child.pid();
        drop(child);
        assert!(rustix::process::test_kill_process(pid).is_err());

        let mut child = Spawn::new("/bin/sleep").arg("100").spawn().expect("spawn");
        child.kill(Signal::TERM).expect("kill");
        assert_eq!(child.wait().expect("wait"), Exit::Signal(15));
        assert_eq!(child.wait().expect("again"), Exit::Signal(15));
        child
            .kill(Signal::TERM)
            .expect("an ended child is no error");
    }

    #[test]
    fn many_threads_spawn_without_mixing_descriptors() {
        std::thread::scope(|scope| {
            for t in 0..4 {
                scope.spawn(move || {
                    for i in 0..10 {
                        let word = format!("{t}-{i}");
                        let spawn = sh("cat <&6")
                            .env("PATH", "/usr/bin:/bin")
                            .fd(file_with(&word), 6);
                        assert_eq!(output(spawn).1, word);
                    }
                });
            }
        });
    }

    #[test]
    fn privileged_mounts_end_with_the_program() {
        if !is_root("a mount namespace") {
            return;
        }
        let dir = tempfile::tempdir().expect("dir");
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        std::fs::create_dir(&source).expect("mkdir");
        std::fs::create_dir(&target).expect("mkdir");
        std::fs::write(source.join("file"), "inside").expect("write");
        let plan = MountPlan {
            binds: vec![Bind {
                source,
                target: target.clone(),
            }],
        };
        let before = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let script = format!(
            "cat {0}/file; grep -c ' {0} .* shared:' /proc/self/mountinfo",
            target.display()
        );
        let (_, text) = output(
            sh(&script)
                .env("PATH", "/usr/bin:/bin")
                .mounts(plan.clone()),
        );
        assert_eq!(text, "inside1\n");
        let after = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        assert_eq!(before, after);

        let bad = MountPlan {
            binds: vec![Bind {
                source: dir.path().join("absent"),
                target,
            }],
        };
        let error = sh("true").mounts(bad).spawn().expect_err("fails");
        assert!(error.to_string().contains("absent to"), "{error}");
    }

    /// The host's mounts are shared on a systemd machine. In a scratch namespace that is made
    /// so, a bind must not come back, and a mount of the host must still arrive.
    #[test]
    fn privileged_nothing_propagates_to_a_shared_host() {
        if !is_root("a mount namespace") {
            return;
        }
        // This test again as the "host", with a shared mount to work on.
        const INNER: &str = "CRYO_TEST_SHARED_HOST";
        let me = std::env::current_exe().expect("self");
        if std::env::var_os(INNER).is_none() {
            let dir = tempfile::tempdir().expect("dir");
            let spawn = Spawn::new(me)
                .args(["--exact", "--nocapture"])
                .arg("spawn::tests::privileged_nothing_propagates_to_a_shared_host")
                .env(INNER, dir.path())
                .mounts(MountPlan::default());
            let (exit, text) = output(spawn);
            assert!(exit.success(), "{text}");
            return;
        }
        let dir = PathBuf::from(std::env::var_os(INNER).expect("dir"));
        mount("none", &dir, "tmpfs", 0);
        mount("none", &dir, "", libc::MS_SHARED);
        let (source, target) = (dir.join("source"), dir.join("target"));
        for path in [&source, &target, &dir.join("late")] {
            std::fs::create_dir(path).expect("mkdir");
        }
        // The source is a shared mount too, as an overlay under a shared parent is.
        mount("none", &source, "tmpfs", 0);
        std::fs::create_dir(source.join("sub")).expect("mkdir");
        let before = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let plan = MountPlan {
            binds: vec![Bind {
                source,
                target: target.clone(),
            }],
        };
        let (out, theirs) = crate::scm::pair().expect("pair");
        let script = format!(
            "mount -t tmpfs none {0}/sub && echo ready >&8; read x <&8; \
             grep -c ' {1}/late ' /proc/self/mountinfo",
            target.display(),
            dir.display()
        );
        let mut file = tempfile::tempfile().expect("file");
        let mut child = sh(&script)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .fd(theirs, 8)
            .fd(file.try_clone().expect("dup").into(), 1)
            .mounts(plan)
            .spawn()
            .expect("spawn");
        let ready = crate::scm::recv(out.as_fd(), 64)
            .expect("recv")
            .expect("ready");
        assert_eq!(ready.0, b"ready\n");
        let during = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        assert_eq!(before, during, "a bind came back");
        mount("none", &dir.join("late"), "tmpfs", 0);
        // One byte: the shell reads byte by byte and would lose the rest of a packet.
        crate::scm::send(out.as_fd(), b"\n", &[]).expect("send");
        child.wait().expect("wait");
        file.rewind().expect("rewind");
        let mut text = String::new();
        file.read_to_string(&mut text).expect("read");
        assert_eq!(text, "1\n", "a mount of the host did not arrive");
    }

    fn mount(source: &str, target: &Path, fstype: &str, flags: libc::c_ulong) {
        let c = |s: &OsStr| c_string(s).expect("string");
        let (source, target) = (c(source.as_ref()), c(target.as_os_str()));
        let fstype = c(fstype.as_ref());
        // SAFETY: three NUL-terminated strings that outlive the call.
        let done = unsafe {
            libc::mount(
                source.as_ptr(),
                target.as_ptr(),
                fstype.as_ptr(),
                flags,
                ptr::null(),
            )
        };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    }

    #[test]
    fn no_descriptor_is_leaked() {
        // In a process of its own: other tests open descriptors at the same time.
        const INNER: &str = "CRYO_TEST_FD_COUNT";
        if std::env::var_os(INNER).is_none() {
            let spawn = Spawn::new(std::env::current_exe().expect("self"))
                .args(["--exact", "spawn::tests::no_descriptor_is_leaked"])
                .env(INNER, "1");
            let (exit, text) = output(spawn);
            assert!(exit.success(), "{text}");
            return;
        }
        let count = || std::fs::read_dir("/proc/self/fd").expect("fds").count();
        let before = count();
        for _ in 0..5 {
            let extra = file_with("x");
            sh("exit 1")
                .fd(extra, 4)
                .spawn()
                .expect("spawn")
                .wait()
                .expect("wait");
            Spawn::new("/nonexistent").spawn().expect_err("fails");
        }
        assert_eq!(count(), before);
        let raw = file_with("kept").into_raw_fd();
        assert_eq!(count(), before + 1);
        // SAFETY: `raw` was owned by us until into_raw_fd just now.
        drop(unsafe { OwnedFd::from_raw_fd(raw) });
    }
}
