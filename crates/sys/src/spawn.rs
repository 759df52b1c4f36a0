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

mod exec;

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use self::exec::{Prepared, REPORT_LEN, clone_and_exec};
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
#[derive(Debug, Default)]
pub struct MountPlan {
    /// Detached mounts, attached in this order.
    pub trees: Vec<Tree>,
    /// Recursive binds, made in this order after them.
    pub binds: Vec<Bind>,
}

/// A detached mount of a [`MountPlan`], as `open_tree(2)` and `fsmount(2)` make them.
///
/// With all that is mounted below it, it becomes a slave of what it is a copy of.
#[derive(Debug)]
pub struct Tree {
    /// The mount.
    pub tree: OwnedFd,
    /// Where to attach it; it exists, at the latest in the trees before.
    pub target: PathBuf,
    /// Give it a peer group of its own, as a [`Bind`]'s.
    pub own_peers: bool,
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
    user_namespace: Option<OwnedFd>,
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
            user_namespace: None,
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

    /// Starts the program as the root of this user namespace, in a mount namespace that
    /// belongs to it: a copy of the one that it would have had.
    #[must_use]
    pub fn user_namespace(mut self, namespace: OwnedFd) -> Self {
        self.user_namespace = Some(namespace);
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

#[cfg(test)]
mod tests;
