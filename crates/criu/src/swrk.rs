//! The `criu swrk` process and the talk with it.
//!
//! A worker is started with nothing but what it needs: `PATH`, a packet socket, the
//! descriptors of the request, the work directory as its current one, and its output in a
//! memory file. It runs in a session of its own, so nobody's Ctrl-C reaches it.
//!
//! No death signal ties it to us: that would be tied to the thread that started it, and threads
//! of a pool end. It is tied by its socket instead. When we die CRIU finds the connection
//! closed at its next notification, undoes what it did and exits (`SIGPIPE` is ignored by it).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cryo_sys::scm::{self, Ready};
use cryo_sys::spawn::{Child, Exit, Group, MountPlan, Spawn, SpawnError};
use prost::Message;
use rustix::event::EventfdFlags;
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use crate::error::{CriuError, Failure, Operation};
use crate::log::diagnose;
use crate::notify::{Event, Notify};
use crate::proto::{CriuOpts, CriuReq, CriuResp, ReqType};
use crate::request::{BadOption, DumpOptions, FIRST_PASSED_FD, PageServer, RestoreOptions};

/// The number of the RPC socket in the worker.
const SOCKET_FD: i32 = 3;
/// The largest message taken from a worker. Real ones are under 2 KiB.
const MAX_MESSAGE: usize = 256 << 10;
/// The most of a log that is read.
const MAX_LOG: u64 = 8 << 20;
/// The most of a worker's output that is kept.
const MAX_OUTPUT: u64 = 2000;
/// How long a killed worker may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// All of the environment: enough for `ip`, `nft`, `tar` and `iptables-restore`.
const WORKER_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
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

    /// Ends every operation that has it in its [`Control`], and those to come.
    pub fn trigger(&self) {
        // Only a counter at its limit refuses, and then it is triggered.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Whether somebody has triggered it.
    #[must_use]
    pub fn is_triggered(&self) -> bool {
        matches!(
            scm::wait_readable(self.0.as_fd(), &[], Some(Duration::ZERO)),
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
            cgroup_namespace: options.cgroup_namespace.take(),
            mounts: options.mounts.take(),
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

/// Where a worker runs; by default, where this process does.
#[derive(Default)]
struct Place {
    work_dir: Option<(PathBuf, OwnedFd)>,
    cgroup_namespace: Option<OwnedFd>,
    mounts: Option<MountPlan>,
}

/// Why we want it to end.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ending {
    Deadline,
    Cancelled,
    Refused { event: String, reason: String },
}

/// A running `criu swrk`. Dropping it, as a panic in a callback does, closes the connection,
/// lets CRIU undo, and kills it if it does not.
struct Worker {
    binary: PathBuf,
    operation: Operation,
    child: Child,
    sock: Option<OwnedFd>,
    output: File,
    work_dir: Option<(PathBuf, OwnedFd)>,
    /// The restored root task, from when CRIU told of it.
    root: Option<OwnedFd>,
    ending: Option<Ending>,
    /// CRIU had to be killed.
    killed: bool,
}

impl Worker {
    fn launch(
        criu: &Criu,
        operation: Operation,
        place: Place,
        passed: Vec<OwnedFd>,
    ) -> Result<Self, CriuError> {
        let Place {
            work_dir,
            cgroup_namespace,
            mounts,
        } = place;
        let io = |what: &str| {
            let what = what.to_owned();
            move |source| CriuError::Io {
                operation,
                what,
                source,
            }
        };
        let (sock, theirs) = scm::pair().map_err(io("make a socket"))?;
        let output: File = rustix::fs::memfd_create("criu-output", MemfdFlags::CLOEXEC)
            .map_err(io::Error::from)
            .map_err(io("make a file in memory"))?
            .into();
        let mut spawn = Spawn::new(&criu.binary)
            .arg("--no-default-config")
            .args(criu.args.iter().cloned())
            .args(["swrk", "3"])
            .env("PATH", WORKER_PATH)
            .group(Group::Session)
            .fd(theirs, SOCKET_FD);
        for number in [1, 2] {
            let out = output.try_clone().map_err(io("copy a file descriptor"))?;
            spawn = spawn.fd(out.into(), number);
        }
        for (fd, number) in passed.into_iter().zip(FIRST_PASSED_FD..) {
            spawn = spawn.fd(fd, number);
        }
        let dir = match &work_dir {
            Some((_, dir)) => dir.try_clone(),
            None => File::open("/").map(Into::into),
        };
        spawn = spawn.cwd(dir.map_err(io("open its directory"))?);
        if let Some(namespace) = cgroup_namespace {
            spawn = spawn.namespace(namespace);
        }
        if let Some(plan) = mounts {
            spawn = spawn.mounts(plan);
        }
        let child = spawn.spawn().map_err(|e| not_started(&criu.binary, e))?;
        tracing::debug!(pid = child.pid().as_raw_pid(), %operation, "criu started");
        Ok(Self {
            binary: criu.binary.clone(),
            operation,
            child,
            sock: Some(sock),
            output,
            work_dir,
            root: None,
            ending: None,
            killed: false,
        })
    }

    /// The whole of a dump or restore: request, questions, answer, exit, judgement.
    fn run(
        &mut self,
        request: &CriuReq,
        log_file: &str,
        notify: &mut dyn Notify,
        control: &Control<'_>,
    ) -> Result<CriuResp, CriuError> {
        let talked = self.talk(request, notify, control);
        // On every path: nothing may be judged, or removed by the caller, while it still works.
        let exit = self.finish(control);
        if let Ok(response) = &talked
            && response.success
            && (self.ending.is_none() || self.operation == Operation::Dump)
        {
            // A successful dump cannot be taken back: what came too late to stop it is no error.
            tracing::debug!(operation = %self.operation, late = ?self.ending, "criu succeeded");
            return Ok(response.clone());
        }
        self.kill_root();
        self.reap_root();
        Err(self.judge(talked, exit, log_file))
    }

    /// The error that a failed talk and exit come to.
    fn judge(
        &mut self,
        talked: Result<CriuResp, Talk>,
        exit: Option<Exit>,
        log_file: &str,
    ) -> CriuError {
        let operation = self.operation;
        match (talked, self.ending.take()) {
            (Err(Talk::Fatal(error)), _) => error,
            (_, Some(Ending::Deadline)) => CriuError::DeadlineExceeded {
                operation,
                killed: self.killed,
            },
            (_, Some(Ending::Cancelled)) => CriuError::Cancelled {
                operation,
                killed: self.killed,
            },
            (_, Some(Ending::Refused { event, reason })) => CriuError::Refused {
                operation,
                event,
                reason,
            },
            (Ok(response), None) => CriuError::Failed {
                operation,
                failure: self.failure(log_file, response.cr_errno.filter(|e| *e != 0)),
            },
            (Err(Talk::Closed), None) => {
                // Unknown only where somebody else reaped it.
                let exit = exit.unwrap_or(Exit::Code(-1));
                let mut failure = self.failure(log_file, None);
                if let Exit::Signal(_) = exit {
                    failure.diagnosis = failure.diagnosis.of_killed();
                }
                CriuError::Died {
                    operation,
                    exit,
                    failure,
                }
            }
        }
    }

    /// Sends a request and answers questions until the final response.
    fn talk(
        &mut self,
        request: &CriuReq,
        notify: &mut dyn Notify,
        control: &Control<'_>,
    ) -> Result<CriuResp, Talk> {
        self.send(request)?;
        loop {
            let (response, fd) = self.receive(control)?;
            if response.r#type() != ReqType::Notify {
                if response.r#type != request.r#type {
                    return Err(self.unexpected(&response));
                }
                return Ok(response);
            }
            let answer = self.question(&response, fd, notify, control)?;
            self.send(&answer)?;
        }
    }

    fn question(
        &mut self,
        response: &CriuResp,
        fd: Option<OwnedFd>,
        notify: &mut dyn Notify,
        control: &Control<'_>,
    ) -> Result<CriuReq, Talk> {
        let notification = response.notify.clone().unwrap_or_default();
        let script = notification.script.unwrap_or_default();
        let event = Event::parse(&script, notification.pid).map_err(|e| self.protocol(e))?;
        tracing::debug!(operation = %self.operation, event = event.name(), "criu asks");
        if let Event::SetupNamespaces { pid } | Event::PostRestore { pid } = event
            && self.root.is_none()
        {
            self.root = Pid::from_raw(pid.max(0))
                .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
        }
        self.look_at(control);
        let mut external = Vec::new();
        if self.ending.is_none() {
            match notify.notify(&event, fd) {
                Ok(()) if event == Event::QueryExtFiles => external = notify.more_external(),
                Ok(()) => {}
                Err(refusal) => {
                    self.ending = Some(Ending::Refused {
                        event: event.name().to_owned(),
                        reason: refusal.0,
                    });
                }
            }
        }
        if self.ending.is_some() && matches!(event, Event::PreResume | Event::PostResume) {
            // CRIU ignores a refusal here and would let the tasks run. It cannot undo a tree whose
            // root is dead either: it waits for the root, the root for the others of its pid
            // namespace, and they for CRIU, which traces them. It has nothing left to undo.
            self.kill_root();
            self.kill();
        }
        Ok(CriuReq {
            notify_success: Some(self.ending.is_none() || !event.can_refuse()),
            opts: (!external.is_empty()).then(|| CriuOpts {
                images_dir_fd: -1,
                external: external.iter().map(|e| e.as_str().to_owned()).collect(),
                ..CriuOpts::default()
            }),
            ..CriuReq::of(ReqType::Notify)
        })
    }

    fn send(&mut self, request: &CriuReq) -> Result<(), Talk> {
        let Some(sock) = &self.sock else {
            return Err(Talk::Closed);
        };
        match scm::send(sock.as_fd(), &request.encode_to_vec(), &[]) {
            Ok(()) => Ok(()),
            // It is gone; what it said before is still to be read, and its status tells more.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(e) => Err(self.io("send a message", e)),
        }
    }

    /// The next message, whatever it says.
    fn receive(&mut self, control: &Control<'_>) -> Result<(CriuResp, Option<OwnedFd>), Talk> {
        self.wait_readable(control)?;
        let Some(sock) = &self.sock else {
            return Err(Talk::Closed);
        };
        let (data, fds) = match scm::recv(sock.as_fd(), MAX_MESSAGE) {
            Ok(Some(message)) => message,
            Ok(None) => return Err(Talk::Closed),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Err(Talk::Closed),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                return Err(self.protocol(e.to_string()).into());
            }
            Err(e) => return Err(self.io("receive a message", e)),
        };
        let response = CriuResp::decode(&*data)
            .map_err(|e| self.protocol(format!("a message that is none of its own ({e})")))?;
        Ok((response, fds.into_iter().next()))
    }

    /// Waits for a message; at the deadline or an abort remembers it and waits for the grace,
    /// then kills and reports the connection as closed.
    fn wait_readable(&mut self, control: &Control<'_>) -> Result<(), Talk> {
        let mut kill_at = None;
        loop {
            let Some(sock) = &self.sock else {
                return Err(Talk::Closed);
            };
            let now = Instant::now();
            let ending = self.ending.is_some();
            if ending && kill_at.is_none() {
                kill_at = Some(now + control.grace);
            }
            let until = if ending { kill_at } else { control.deadline };
            let mut wakes = vec![self.child.pidfd()];
            wakes.extend(control.abort.filter(|_| !ending).map(|a| a.0.as_fd()));
            let left = until.map(|u| u.saturating_duration_since(now));
            match scm::wait_readable(sock.as_fd(), &wakes, left) {
                Ok(Ready::Message) => return Ok(()),
                // A half-restored task holds the socket open: CRIU's end is not its end.
                Ok(Ready::Woken(0)) => return Err(Talk::Closed),
                Ok(Ready::Woken(_)) => self.ending = Some(Ending::Cancelled),
                Ok(Ready::TimedOut) if !ending => self.ending = Some(Ending::Deadline),
                Ok(Ready::TimedOut) => {
                    self.give_up();
                    return Err(Talk::Closed);
                }
                Err(e) => return Err(self.io("wait for criu", e)),
            }
        }
    }

    /// Notes a deadline or an abort that came while nobody waited.
    fn look_at(&mut self, control: &Control<'_>) {
        if self.ending.is_some() {
            return;
        }
        if control.deadline.is_some_and(|d| d <= Instant::now()) {
            self.ending = Some(Ending::Deadline);
        } else if control.abort.is_some_and(Abort::is_triggered) {
            self.ending = Some(Ending::Cancelled);
        }
    }

    fn give_up(&mut self) {
        tracing::warn!(pid = self.child.pid().as_raw_pid(), operation = %self.operation,
            "criu does not give up by itself: killing it");
        self.kill();
    }

    fn kill(&mut self) {
        self.killed = true;
        // Its helpers too: they are in its session's group.
        let _ = rustix::process::kill_process_group(self.child.pid(), Signal::KILL);
        let _ = self.child.kill(Signal::KILL);
    }

    /// Closes the connection and waits for the exit; kills a worker that stays.
    fn finish(&mut self, control: &Control<'_>) -> Option<Exit> {
        self.sock = None;
        match self.child.wait_timeout(control.grace) {
            Ok(Some(exit)) => return Some(exit),
            Ok(None) => self.give_up(),
            Err(e) => {
                tracing::error!(error = %e, "cannot wait for criu");
                return None;
            }
        }
        self.child.wait_timeout(KILL_LIMIT).ok().flatten()
    }

    /// Ends the half-restored root task, with all of its pid namespace if it is that one's init.
    fn kill_root(&self) {
        if let Some(root) = &self.root {
            let _ = rustix::process::pidfd_send_signal(root, Signal::KILL);
        }
    }

    /// Reaps the killed root task if it is our child, as nobody else may know of it. Not before
    /// CRIU has ended: who traces a task sees its end first.
    fn reap_root(&self) {
        let Some(root) = &self.root else { return };
        let ended = scm::wait_readable(root.as_fd(), &[], Some(Duration::from_secs(2)));
        if matches!(ended, Ok(Ready::Message)) {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            // ECHILD: not ours, or reaped by whoever reaps here.
            let _ = rustix::process::waitid(WaitId::PidFd(root.as_fd()), options);
        }
    }

    fn failure(&self, log_file: &str, errno: Option<i32>) -> Box<Failure> {
        let read = |fd: BorrowedFd<'_>| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let file: File = rustix::fs::openat(fd, log_file, flags, Mode::empty())?.into();
            let mut bytes = Vec::new();
            file.take(MAX_LOG).read_to_end(&mut bytes)?;
            io::Result::Ok(bytes)
        };
        let log = self
            .work_dir
            .as_ref()
            .and_then(|(path, fd)| Some((path.join(log_file), read(fd.as_fd()).ok()?)));
        let text = log
            .as_ref()
            .map(|(_, bytes)| String::from_utf8_lossy(bytes))
            .unwrap_or_default();
        Box::new(Failure {
            diagnosis: diagnose(&text),
            errno,
            output: self.output_text(),
            log: log.map(|(path, _)| path),
        })
    }

    fn output_text(&self) -> String {
        let mut bytes = vec![0; MAX_OUTPUT as usize];
        let read = rustix::io::pread(&self.output, &mut bytes, 0).unwrap_or(0);
        bytes.truncate(read);
        let text = String::from_utf8_lossy(&bytes);
        text.trim().replace(|c: char| c.is_control(), " ")
    }

    fn unexpected(&self, response: &CriuResp) -> Talk {
        self.protocol(format!("an answer of type {}", response.r#type))
            .into()
    }

    fn protocol(&self, what: String) -> CriuError {
        CriuError::Protocol {
            operation: self.operation,
            path: self.binary.clone(),
            what,
        }
    }

    fn io(&self, what: &str, source: io::Error) -> Talk {
        Talk::Fatal(CriuError::Io {
            operation: self.operation,
            what: what.to_owned(),
            source,
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.sock.is_some() {
            self.finish(&Control::default());
            if self.operation == Operation::Restore {
                self.kill_root();
                self.reap_root();
            }
        }
    }
}

/// Why there is no final response.
enum Talk {
    /// The connection ended.
    Closed,
    /// Something else, known already.
    Fatal(CriuError),
}

impl From<CriuError> for Talk {
    fn from(error: CriuError) -> Self {
        Self::Fatal(error)
    }
}

fn not_started(binary: &Path, error: SpawnError) -> CriuError {
    let missing = error
        .io_error()
        .is_some_and(|e| e.kind() == io::ErrorKind::NotFound);
    if missing && !binary.exists() {
        return CriuError::NotFound {
            looked: binary.display().to_string(),
        };
    }
    CriuError::Spawn(error)
}
