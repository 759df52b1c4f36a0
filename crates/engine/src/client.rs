//! The shim's side of the zygote.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use cryo_sys::{process, scm};
use oci_spec::runtime::LinuxResources;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use rustix::net::Shutdown;
use rustix::process::Pid;

use crate::protocol::{
    Answer, ClockOffset, CreateOptions, ExecRequest, Failure, FailureKind, HookPhase,
    MAX_MESSAGE_BYTES, MappedRoot, Reply, Request, Target,
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

/// A process that the engine made.
#[derive(Debug)]
pub struct Started {
    /// Its id.
    pub pid: Pid,
    /// The master of its terminal, if it has one.
    pub console: Option<OwnedFd>,
}

/// How long the process in a scope may take to end.
const RELEASE_LIMIT: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// A scope that was made, with a process of ours in it.
#[derive(Debug)]
#[must_use = "the scope goes with it"]
pub struct Enclosed(OwnedFd);

impl Enclosed {
    /// Ends that process and waits for it. The scope stays if another one is in it.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn release(self) -> Result<(), Error> {
        rustix::net::shutdown(&self.0, Shutdown::Write).map_err(io::Error::from)?;
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let told =
            rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&RELEASE_LIMIT)));
        match told.map_err(io::Error::from)? {
            0 => Err(Error::Io(io::Error::new(
                io::ErrorKind::TimedOut,
                "the process that held the scope does not end",
            ))),
            // That it is reaped, or that nobody is there to say so.
            _ => Ok(()),
        }
    }
}

/// A process to be run in a running container.
#[derive(Debug, Clone, Copy)]
pub struct ExecSpec<'a> {
    /// The OCI `Process`, as JSON.
    pub process: &'a [u8],
    /// The container's first process.
    pub init: Pid,
    /// A handle on it: its id may have been used again.
    pub init_pidfd: BorrowedFd<'a>,
    /// The container's cgroup path.
    pub cgroup: &'a Path,
}

/// What the shim needs of a container engine; everything else (signals, state,
/// freezing, restore) it does itself. Every call blocks.
pub trait Engine: Send + Sync + std::fmt::Debug {
    /// Makes a container; its first process waits for [`Engine::start`]. With a
    /// terminal the streams are not used.
    ///
    /// # Errors
    ///
    /// Nothing is left behind by a failure but what the caller made.
    fn create(
        &self,
        target: &Target,
        stdio: [Option<OwnedFd>; 3],
        options: CreateOptions,
    ) -> Result<Started, Error>;

    /// Mounts a root file system that shows other owners; a detached mount. `dir`
    /// is for the engine's own mounts, which nobody sees.
    ///
    /// # Errors
    ///
    /// When this kernel or the file system cannot; nothing is left behind.
    fn mount_root(&self, root: &MappedRoot, dir: &Path) -> Result<OwnedFd, Error>;

    /// Runs a process in a running container. It becomes the caller's child.
    ///
    /// # Errors
    ///
    /// What kept the program from starting; nothing is left behind.
    fn exec(
        &self,
        target: &Target,
        spec: &ExecSpec<'_>,
        stdio: [Option<OwnedFd>; 3],
    ) -> Result<Started, Error>;

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

    /// Makes a cgroup namespace whose roots are cgroups that the caller made.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; nothing is left behind.
    fn cgroup_namespace(&self, target: &Target) -> Result<OwnedFd, Error>;

    /// Lets systemd make the container's scope, and writes the spec's limits
    /// there. A process of ours keeps it in being as long as the value lives.
    ///
    /// # Errors
    ///
    /// When systemd refuses, or a limit is refused; the scope is gone then.
    fn enclose(&self, target: &Target) -> Result<Enclosed, Error>;

    /// Lets systemd end the container's scope; one that is gone is fine.
    ///
    /// # Errors
    ///
    /// When it stays, or systemd cannot be asked.
    fn end_scope(&self, target: &Target) -> Result<(), Error>;

    /// The program of the spec's seccomp filter, as the kernel has it when it is
    /// loaded here: instructions of eight bytes.
    ///
    /// # Errors
    ///
    /// When the spec has none, or it cannot be loaded or read back.
    fn seccomp_filter(&self, target: &Target) -> Result<Vec<u8>, Error>;

    /// Makes a time namespace whose clocks are ahead of the node's by so much.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    fn time_namespace(
        &self,
        monotonic: ClockOffset,
        boottime: ClockOffset,
    ) -> Result<OwnedFd, Error>;

    /// Makes detached mounts of what the spec binds, in the order of
    /// [`spec::binds`](crate::spec::binds), with the owners that it wants them to show.
    ///
    /// # Errors
    ///
    /// When a source is not there, or cannot show other owners.
    fn binds(&self, target: &Target) -> Result<Vec<OwnedFd>, Error>;

    /// Writes other limits into the cgroups of a container that lives. A later
    /// restore goes by its own spec, not by these.
    ///
    /// # Errors
    ///
    /// When a limit is refused; then the others are as they were.
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
    /// Starts the zygote from a form of this executable that cannot be written.
    ///
    /// # Errors
    ///
    /// When the copy cannot be made or run.
    pub fn spawn() -> io::Result<Self> {
        let exe = process::protected_self_exe()?;
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

    fn call(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), Error> {
        let ours = self.send(request, fds)?;
        let mut reply = None;
        loop {
            match self.receive(ours.as_fd())? {
                (Answer::Reply(result), fds) => reply = Some(result.map(|r| (r, fds))),
                (Answer::Done { status }, _) => {
                    return match reply {
                        Some(result) => result.map_err(Error::Failed),
                        None => Err(Error::Died { status }),
                    };
                }
            }
        }
    }

    /// Answers the call socket.
    fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<OwnedFd, Error> {
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
        Ok(ours)
    }

    fn call_for_fd(&self, request: &Request) -> Result<OwnedFd, Error> {
        let (_, fds) = self.call(request, &[])?;
        fds.into_iter()
            .next()
            .ok_or_else(|| io::Error::other("the worker sent no descriptor").into())
    }

    /// The next answer. The container's init inherits the call socket, so its
    /// end says nothing; the zygote's own end does.
    fn receive(&self, call: BorrowedFd<'_>) -> Result<(Answer, Vec<OwnedFd>), Error> {
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
                let (data, fds) = scm::recv(call, MAX_MESSAGE_BYTES)?.ok_or(Error::Gone)?;
                let answer = serde_json::from_slice(&data).map_err(io::Error::from)?;
                return Ok((answer, fds));
            }
            if !fds[1].revents().is_empty() {
                return Err(Error::Gone);
            }
        }
    }
}

fn started((reply, fds): (Reply, Vec<OwnedFd>)) -> Result<Started, Error> {
    match reply {
        Reply::Created { pid } => Ok(Started {
            pid: Pid::from_raw(pid).ok_or(Error::Gone)?,
            console: fds.into_iter().next(),
        }),
        Reply::Ok => Err(Error::Io(io::Error::other(
            "worker did not name the new process",
        ))),
    }
}

impl Engine for Zygote {
    fn create(
        &self,
        target: &Target,
        stdio: [Option<OwnedFd>; 3],
        options: CreateOptions,
    ) -> Result<Started, Error> {
        let fds: Vec<_> = stdio.iter().flatten().map(AsFd::as_fd).collect();
        let request = Request::Create {
            target: target.clone(),
            stdio: [stdio[0].is_some(), stdio[1].is_some(), stdio[2].is_some()],
            options,
        };
        started(self.call(&request, &fds)?)
    }

    fn mount_root(&self, root: &MappedRoot, dir: &Path) -> Result<OwnedFd, Error> {
        let request = Request::MountRoot {
            root: root.clone(),
            dir: dir.to_owned(),
        };
        self.call_for_fd(&request)
    }

    fn exec(
        &self,
        target: &Target,
        spec: &ExecSpec<'_>,
        stdio: [Option<OwnedFd>; 3],
    ) -> Result<Started, Error> {
        let request = Request::Exec {
            target: target.clone(),
            exec: ExecRequest {
                init: spec.init.as_raw_nonzero().get(),
                cgroup: spec.cgroup.to_owned(),
                stdio: [stdio[0].is_some(), stdio[1].is_some(), stdio[2].is_some()],
            },
        };
        // Arguments and variables may be larger than a message.
        let mut process = File::from(
            rustix::fs::memfd_create("process", MemfdFlags::CLOEXEC).map_err(io::Error::from)?,
        );
        process.write_all(spec.process)?;
        process.rewind()?;
        let fds: Vec<_> = [process.as_fd(), spec.init_pidfd]
            .into_iter()
            .chain(stdio.iter().flatten().map(AsFd::as_fd))
            .collect();
        started(self.call(&request, &fds)?)
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

    fn cgroup_namespace(&self, target: &Target) -> Result<OwnedFd, Error> {
        self.call_for_fd(&Request::CgroupNamespace {
            target: target.clone(),
        })
    }

    fn enclose(&self, target: &Target) -> Result<Enclosed, Error> {
        let request = Request::Enclose {
            target: target.clone(),
        };
        let call = self.send(&request, &[])?;
        match self.receive(call.as_fd())? {
            (Answer::Reply(reply), _) => reply.map(|_| Enclosed(call)).map_err(Error::Failed),
            (Answer::Done { status }, _) => Err(Error::Died { status }),
        }
    }

    fn end_scope(&self, target: &Target) -> Result<(), Error> {
        let request = Request::EndScope {
            target: target.clone(),
        };
        self.call(&request, &[]).map(drop)
    }

    fn seccomp_filter(&self, target: &Target) -> Result<Vec<u8>, Error> {
        let file = self.call_for_fd(&Request::SeccompFilter {
            target: target.clone(),
        })?;
        let mut program = Vec::new();
        File::from(file)
            .take(MAX_MESSAGE_BYTES as u64)
            .read_to_end(&mut program)?;
        Ok(program)
    }

    fn time_namespace(
        &self,
        monotonic: ClockOffset,
        boottime: ClockOffset,
    ) -> Result<OwnedFd, Error> {
        self.call_for_fd(&Request::TimeNamespace {
            monotonic,
            boottime,
        })
    }

    fn binds(&self, target: &Target) -> Result<Vec<OwnedFd>, Error> {
        let request = Request::Binds {
            target: target.clone(),
        };
        self.call(&request, &[]).map(|(_, fds)| fds)
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
