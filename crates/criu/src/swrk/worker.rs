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
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cryo_sys::scm::{self, Ready};
use cryo_sys::spawn::{Child, Exit, Group, MountPlan, Spawn, SpawnError};
use prost::Message;
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use super::{Abort, Control, Criu};
use crate::error::{CriuError, Failure, Operation};
use crate::log::diagnose;
use crate::notify::{Event, Notify};
use crate::proto::{CriuOpts, CriuReq, CriuResp, ReqType};
use crate::request::{FIRST_PASSED_FD, Inside};

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
/// Where a worker runs; by default, where this process does.
#[derive(Default)]
pub(super) struct Place {
    pub(super) work_dir: Option<(PathBuf, OwnedFd)>,
    pub(super) namespaces: [Option<OwnedFd>; 2],
    pub(super) mounts: Option<MountPlan>,
    pub(super) inside: Option<Inside>,
}

/// Why we want it to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    Deadline,
    Cancelled,
    Refused { event: String, reason: String },
}

/// A running `criu swrk`. Dropping it, as a panic in a callback does, closes the connection,
/// lets CRIU undo, and kills it if it does not.
#[derive(Debug)]
pub(super) struct Worker {
    binary: PathBuf,
    operation: Operation,
    pub(super) child: Child,
    pub(super) sock: Option<OwnedFd>,
    output: File,
    work_dir: Option<(PathBuf, OwnedFd)>,
    /// The restored root task, from when CRIU told of it.
    root: Option<OwnedFd>,
    pub(super) ending: Option<Ending>,
    /// CRIU had to be killed.
    pub(super) killed: bool,
}

impl Worker {
    pub(super) fn launch(
        criu: &Criu,
        operation: Operation,
        place: Place,
        passed: Vec<OwnedFd>,
    ) -> Result<Self, CriuError> {
        let Place {
            work_dir,
            namespaces,
            mounts,
            inside,
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
            .args(criu.args.iter().cloned());
        if let Some(inside) = inside {
            spawn = spawn
                .arg("--work-dir")
                .arg(inside.work_dir)
                .user_namespace(inside.user_namespace);
        }
        spawn = spawn
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
        for namespace in namespaces.into_iter().flatten() {
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
    pub(super) fn run(
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
    pub(super) fn judge(
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
    pub(super) fn talk(
        &mut self,
        request: &CriuReq,
        notify: &mut dyn Notify,
        control: &Control<'_>,
    ) -> Result<CriuResp, Talk> {
        self.send(request)?;
        let response = self.converse(request, None, notify, control)?;
        // It stops nowhere on its way.
        response.ok_or(Talk::Closed)
    }

    /// Answers questions until the final response, or leaves the question of this event
    /// unanswered, which is `None`. It is refused where the operation is to end anyway.
    pub(super) fn converse(
        &mut self,
        request: &CriuReq,
        until: Option<&Event>,
        notify: &mut dyn Notify,
        control: &Control<'_>,
    ) -> Result<Option<CriuResp>, Talk> {
        loop {
            let (response, fd) = self.receive(control)?;
            if response.r#type() != ReqType::Notify {
                if response.r#type != request.r#type {
                    return Err(self.unexpected(&response));
                }
                return Ok(Some(response));
            }
            let event = self.event(&response)?;
            self.look_at(control);
            if until == Some(&event) && self.ending.is_none() {
                return Ok(None);
            }
            let answer = self.question(&event, fd, notify);
            self.send(&answer)?;
        }
    }

    fn event(&self, response: &CriuResp) -> Result<Event, Talk> {
        let notification = response.notify.clone().unwrap_or_default();
        let script = notification.script.unwrap_or_default();
        let event = Event::parse(&script, notification.pid).map_err(|e| self.protocol(e))?;
        tracing::debug!(operation = %self.operation, event = event.name(), "criu asks");
        Ok(event)
    }

    fn question(&mut self, event: &Event, fd: Option<OwnedFd>, notify: &mut dyn Notify) -> CriuReq {
        if let Event::SetupNamespaces { pid } | Event::PostRestore { pid } = *event
            && self.root.is_none()
        {
            self.root = Pid::from_raw(pid.max(0))
                .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
        }
        let mut external = Vec::new();
        if self.ending.is_none() {
            match notify.notify(event, fd) {
                Ok(()) if *event == Event::QueryExtFiles => external = notify.more_external(),
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
        CriuReq {
            notify_success: Some(self.ending.is_none() || !event.can_refuse()),
            opts: (!external.is_empty()).then(|| CriuOpts {
                images_dir_fd: -1,
                external: external.iter().map(|e| e.as_str().to_owned()).collect(),
                ..CriuOpts::default()
            }),
            ..CriuReq::of(ReqType::Notify)
        }
    }

    pub(super) fn send(&mut self, request: &CriuReq) -> Result<(), Talk> {
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
    pub(super) fn finish(&mut self, control: &Control<'_>) -> Option<Exit> {
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

    pub(super) fn protocol(&self, what: String) -> CriuError {
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
pub(super) enum Talk {
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
