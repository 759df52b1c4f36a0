//! The shim's side of the zygote.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use cryo_sys::{process, scm};
use oci_spec::runtime::LinuxResources;
use rustix::event::{PollFd, PollFlags};
use rustix::process::Pid;

use crate::protocol::{
    Answer, CreateOptions, Failure, FailureKind, HookPhase, MAX_MESSAGE_BYTES, Reply, Request,
    Target,
};

/// The argument that makes the executable a zygote.
pub const ZYGOTE_ARG: &str = "zygote";

/// An operation of the engine that did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The worker says why.
    #[error("{}", .0.message)]
    Failed(Failure),
    /// The worker ended without an answer.
    #[error(
        "the container engine's worker ended with status {status} before it answered; its operation may be half done, delete the container"
    )]
    Died {
        /// Exit code, or 128 plus a signal.
        status: u32,
    },
    /// There is no zygote any more.
    #[error("the container engine is gone: delete this pod's containers and start them again")]
    Gone,
    /// The socket does not work.
    #[error("cannot talk to the container engine")]
    Io(#[from] io::Error),
}

impl Error {
    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Failed(failure) => failure.kind,
            _ => FailureKind::Other,
        }
    }
}

/// What the shim needs of a container engine; everything else (signals, state,
/// freezing, restore) it does itself. Every call blocks.
pub trait Engine: Send + Sync + std::fmt::Debug {
    /// Makes a container; its first process waits for [`Engine::start`].
    ///
    /// # Errors
    ///
    /// Nothing is left behind by a failure but what the caller made.
    fn create(
        &self,
        target: &Target,
        stdio: [Option<OwnedFd>; 3],
        options: CreateOptions,
    ) -> Result<Pid, Error>;

    /// Lets the program start.
    ///
    /// # Errors
    ///
    /// When the first process is gone, or a `poststart` hook fails.
    fn start(&self, target: &Target) -> Result<(), Error>;

    /// Removes what [`Engine::create`] made, and runs the `poststop` hooks.
    ///
    /// # Errors
    ///
    /// When something of it stays.
    fn delete(&self, target: &Target) -> Result<(), Error>;

    /// Writes the spec's limits into cgroups that the caller made.
    ///
    /// # Errors
    ///
    /// When a limit is refused.
    fn limit(&self, target: &Target) -> Result<(), Error>;

    /// Writes other limits into the cgroups of a container that lives. A later
    /// restore goes by its own spec, not by these.
    ///
    /// # Errors
    ///
    /// When a limit is refused; others may have been written by then.
    fn update(&self, target: &Target, resources: &LinuxResources) -> Result<(), Error>;

    /// Runs hooks around a restored container.
    ///
    /// # Errors
    ///
    /// The first hook that fails.
    fn hooks(&self, target: &Target, phases: &[HookPhase], pid: i32) -> Result<(), Error>;
}

/// The running zygote.
#[derive(Debug)]
pub struct Zygote {
    socket: Mutex<OwnedFd>,
    pidfd: OwnedFd,
    pid: Pid,
}

impl Zygote {
    /// Starts the zygote from a sealed copy of this executable.
    ///
    /// # Errors
    ///
    /// When the copy cannot be made or run.
    pub fn spawn() -> io::Result<Self> {
        let exe = process::sealed_self_exe()?;
        let (ours, theirs) = scm::pair()?;
        let child = Command::new(format!("/proc/self/fd/{}", exe.as_raw_fd()))
            .arg0("cryo-zygote")
            .arg(ZYGOTE_ARG)
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let pid = i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other("impossible process id"))?;
        Ok(Self {
            socket: Mutex::new(ours),
            pidfd: process::pidfd_open(pid)?,
            pid,
        })
    }

    /// The zygote's process, which the caller has to reap should it die.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    fn call(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, Error> {
        let data = serde_json::to_vec(request).map_err(io::Error::from)?;
        let (ours, theirs) = scm::pair()?;
        let mut passed = vec![theirs.as_fd()];
        passed.extend_from_slice(fds);
        {
            let socket = self
                .socket
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            scm::send(socket.as_fd(), &data, &passed).map_err(|e| match e.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Error::Gone,
                _ => Error::Io(e),
            })?;
        }
        drop(theirs);
        let mut reply = None;
        loop {
            match self.receive(ours.as_fd())? {
                Answer::Reply(result) => reply = Some(result),
                Answer::Done { status } => {
                    return match reply {
                        Some(result) => result.map_err(Error::Failed),
                        None => Err(Error::Died { status }),
                    };
                }
            }
        }
    }

    /// The next answer. The container's init inherits the call socket, so its
    /// end says nothing; the zygote's own end does.
    fn receive(&self, call: BorrowedFd<'_>) -> Result<Answer, Error> {
        loop {
            let mut fds = [
                PollFd::new(&call, PollFlags::IN),
                PollFd::new(&self.pidfd, PollFlags::IN),
            ];
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(io::Error::from(e).into()),
            }
            if !fds[0].revents().is_empty() {
                let (data, _) = scm::recv(call, MAX_MESSAGE_BYTES)?.ok_or(Error::Gone)?;
                return serde_json::from_slice(&data).map_err(|e| Error::Io(e.into()));
            }
            if !fds[1].revents().is_empty() {
                return Err(Error::Gone);
            }
        }
    }
}

impl Engine for Zygote {
    fn create(
        &self,
        target: &Target,
        stdio: [Option<OwnedFd>; 3],
        options: CreateOptions,
    ) -> Result<Pid, Error> {
        let fds: Vec<_> = stdio.iter().flatten().map(AsFd::as_fd).collect();
        let request = Request::Create {
            target: target.clone(),
            stdio: [stdio[0].is_some(), stdio[1].is_some(), stdio[2].is_some()],
            options,
        };
        match self.call(&request, &fds)? {
            Reply::Created { pid } => Pid::from_raw(pid).ok_or(Error::Gone),
            Reply::Ok => Err(Error::Io(io::Error::other(
                "worker did not name the container's process",
            ))),
        }
    }

    fn start(&self, target: &Target) -> Result<(), Error> {
        self.call(
            &Request::Start {
                target: target.clone(),
            },
            &[],
        )
        .map(drop)
    }

    fn delete(&self, target: &Target) -> Result<(), Error> {
        self.call(
            &Request::Delete {
                target: target.clone(),
            },
            &[],
        )
        .map(drop)
    }

    fn limit(&self, target: &Target) -> Result<(), Error> {
        self.call(
            &Request::Limit {
                target: target.clone(),
            },
            &[],
        )
        .map(drop)
    }

    fn update(&self, target: &Target, resources: &LinuxResources) -> Result<(), Error> {
        let request = Request::Update {
            target: target.clone(),
            resources: Box::new(resources.clone()),
        };
        self.call(&request, &[]).map(drop)
    }

    fn hooks(&self, target: &Target, phases: &[HookPhase], pid: i32) -> Result<(), Error> {
        let request = Request::Hooks {
            target: target.clone(),
            phases: phases.to_vec(),
            pid,
        };
        self.call(&request, &[]).map(drop)
    }
}
