//! The criu program: dumps, restores and questions, each asked of a [worker] of its own.

mod serving;
mod worker;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cryo_sys::scm::{self, Ready};
use rustix::event::EventfdFlags;
use rustix::fs::{Mode, OFlags};

use self::worker::{Place, Worker};
use crate::error::{CriuError, Operation};
use crate::notify::Notify;
use crate::proto::{CriuReq, CriuResp};
use crate::request::{BadOption, DumpOptions, PageServer, RestoreOptions};

pub use self::serving::Serving;

/// Where distributions put it.
const USUAL_PLACES: &[&str] = &[
    "/usr/local/sbin/criu",
    "/usr/local/bin/criu",
    "/usr/sbin/criu",
    "/usr/bin/criu",
    "/sbin/criu",
    "/bin/criu",
];

/// A criu program.
#[derive(Debug, Clone)]
pub struct Criu {
    binary: PathBuf,
    args: Vec<String>,
}

/// The answer to a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DumpResult {
    /// CRIU says that it speaks from a restored copy; only in self-dumps.
    pub restored: bool,
}

/// The answer to a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestoreResult {
    /// The root task, in this process's pid namespace.
    pub pid: i32,
}

/// How an operation may be ended early.
///
/// CRIU knows no "stop": a signal kills it on the spot. So when the deadline passes or the
/// [`Abort`] is triggered, its next question is refused, on which it undoes its work in order.
/// A dump has a question each before freezing, before locking the network, before reading files
/// and memory, and when all is written; only the reading can be long. If no question and no end
/// comes within `grace`, CRIU is killed.
///
/// Measured with CRIU 4.2.1 (`examples/real.rs`, no freezer cgroup): killed at any question of a
/// dump or in the middle of its memory, the tasks run on, untraced, without CRIU's code in them,
/// and can be dumped again. Not undone by then: a network lock already taken, and names that
/// link-remap has made. Killed in a restore, tasks other than the root may be left where the
/// container has no pid namespace, so the caller kills its cgroup.
#[derive(Debug, Clone, Copy)]
pub struct Control<'a> {
    /// When to give up.
    pub deadline: Option<Instant>,
    /// A way for another thread to end it.
    pub abort: Option<&'a Abort>,
    /// How long CRIU may take to give up by itself, and to exit after its last word.
    pub grace: Duration,
}

impl Default for Control<'_> {
    fn default() -> Self {
        Self {
            deadline: None,
            abort: None,
            grace: Duration::from_secs(10),
        }
    }
}

/// Ends an operation from another thread; once triggered it stays so.
#[derive(Debug)]
pub struct Abort(OwnedFd);

impl Abort {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// When there is no descriptor left.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(rustix::event::eventfd(0, flags)?))
    }

    /// Readable once somebody has triggered it.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Ends every operation that has it in its [`Control`], and those to come.
    pub fn trigger(&self) {
        // Only a counter at its limit refuses, and then it is triggered.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Whether somebody has triggered it.
    #[must_use]
    pub fn is_triggered(&self) -> bool {
        matches!(
            scm::wait_readable(self.as_fd(), &[], Some(Duration::ZERO)),
            Ok(Ready::Message)
        )
    }
}

impl Criu {
    /// The program at this path.
    #[must_use]
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            args: Vec::new(),
        }
    }

    /// The program at the configured path, or else where distributions put it.
    ///
    /// # Errors
    ///
    /// [`CriuError::NotFound`], which says where it looked.
    pub fn find(configured: Option<&Path>) -> Result<Self, CriuError> {
        let places: Vec<&Path> = match configured {
            Some(path) => vec![path],
            None => USUAL_PLACES.iter().map(Path::new).collect(),
        };
        if let Some(found) = places.iter().find(|p| p.is_file()) {
            return Ok(Self::new(*found));
        }
        let looked: Vec<_> = places.iter().map(|p| p.display().to_string()).collect();
        Err(CriuError::NotFound {
            looked: looked.join(", "),
        })
    }

    /// Uses only the plugins in this directory; by default those of CRIU's installation.
    #[must_use]
    pub fn with_libdir(mut self, dir: &str) -> Self {
        self.args.extend(["--libdir".to_owned(), dir.to_owned()]);
        self
    }

    /// Where it is.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Dumps, and blocks until it is done, undone or dead.
    ///
    /// # Errors
    ///
    /// [`CriuError`]. Unless it was killed or died, the tasks are as before.
    pub fn dump(
        &self,
        options: DumpOptions,
        notify: &mut dyn Notify,
        control: &Control<'_>,
    ) -> Result<DumpResult, CriuError> {
        let response = self.take(options, DumpOptions::request, notify, control)?;
        Ok(DumpResult {
            restored: response.dump.and_then(|d| d.restored).unwrap_or(false),
        })
    }

    fn take(
        &self,
        mut options: DumpOptions,
        request: fn(&DumpOptions, RawFd) -> Result<CriuReq, BadOption>,
        notify: &mut dyn Notify,
        control: &Control<'_>,
    ) -> Result<CriuResp, CriuError> {
        let passed = options.page_server.iter().filter_map(|s| match s {
            PageServer::Socket(fd) => Some(dup(fd)),
            PageServer::At(_) => None,
        });
        let passed = collect(Operation::Dump, passed)?;
        let dir = open_work_dir(Operation::Dump, &options.work_dir)?;
        let request = request(&options, dir.1.as_raw_fd())?;
        let place = Place {
            work_dir: Some(dir),
            ..Place::default()
        };
        let mut worker = Worker::launch(self, Operation::Dump, place, passed)?;
        // Only CRIU holds it now: when it dies, its other end sees that.
        options.page_server = None;
        worker.run(&request, &options.log_file, notify, control)
    }

    /// Takes memory alone, and blocks as [`Criu::dump`] does; the tree runs on.
    ///
    /// # Errors
    ///
    /// As [`Criu::dump`].
    pub fn pre_dump(
        &self,
        options: DumpOptions,
        notify: &mut dyn Notify,
        control: &Control<'_>,
    ) -> Result<(), CriuError> {
        self.take(options, DumpOptions::pre_dump_request, notify, control)
            .map(drop)
    }

    /// Restores, and blocks until the tree runs, is undone, or CRIU is dead.
    ///
    /// # Errors
    ///
    /// [`CriuError`]. The root task has been killed, and reaped if it was our child.
    pub fn restore(
        &self,
        mut options: RestoreOptions,
        notify: &mut dyn Notify,
        control: &Control<'_>,
    ) -> Result<RestoreResult, CriuError> {
        let operation = Operation::Restore;
        let passed = collect(operation, options.inherit_fds.iter().map(|(_, fd)| dup(fd)))?;
        let dir = open_work_dir(operation, &options.work_dir)?;
        let request = options.request(dir.1.as_raw_fd())?;
        let place = Place {
            work_dir: Some(dir),
            namespaces: [
                options.cgroup_namespace.take(),
                options.time_namespace.take(),
            ],
            mounts: options.mounts.take(),
            inside: options.inside.take(),
        };
        let mut worker = Worker::launch(self, operation, place, passed)?;
        let response = worker.run(&request, &options.log_file, notify, control)?;
        match response.restore.map(|r| r.pid) {
            Some(pid) if pid > 0 => Ok(RestoreResult { pid }),
            other => Err(worker.protocol(format!("a restored root task with pid {other:?}"))),
        }
    }

    /// Sends the requests one after the other to one worker without files; CRIU keeps the
    /// connection open for all but the last.
    pub(crate) fn ask(
        &self,
        requests: &[CriuReq],
        control: &Control<'_>,
    ) -> Result<Vec<CriuResp>, CriuError> {
        let mut worker = Worker::launch(self, Operation::Probe, Place::default(), Vec::new())?;
        let mut answers = Vec::new();
        for request in requests {
            match worker.talk(request, &mut (), control) {
                Ok(answer) => answers.push(answer),
                Err(end) => {
                    let exit = worker.finish(control);
                    return Err(worker.judge(Err(end), exit, ""));
                }
            }
        }
        worker.finish(control);
        Ok(answers)
    }
}

fn dup(fd: &OwnedFd) -> io::Result<OwnedFd> {
    fd.try_clone()
}

fn collect(
    operation: Operation,
    fds: impl Iterator<Item = io::Result<OwnedFd>>,
) -> Result<Vec<OwnedFd>, CriuError> {
    fds.collect::<Result<_, _>>()
        .map_err(|source| CriuError::Io {
            operation,
            what: "copy a file descriptor".to_owned(),
            source,
        })
}

fn open_work_dir(operation: Operation, path: &Path) -> Result<(PathBuf, OwnedFd), CriuError> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(dir) => Ok((path.to_owned(), dir)),
        Err(e) => Err(CriuError::Io {
            operation,
            what: format!("open the work directory {}", path.display()),
            source: e.into(),
        }),
    }
}
