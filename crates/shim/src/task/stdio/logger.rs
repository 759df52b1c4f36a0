//! A program that takes a process' output: `binary://` and `binary-v2://`.
//!
//! | descriptor | what the logger has there |
//! |---|---|
//! | 0, 1, 2 | `/dev/null` |
//! | 3, 4 | the read ends of stdout and stderr: the process writes to it without the shim |
//! | 5 | a pipe: the logger writes a byte and closes it when it is ready |
//!
//! Its environment is `CONTAINER_ID` (an exec's own id) and
//! `CONTAINER_NAMESPACE`. A `binary` logger may also just close descriptor 5:
//! those made for containerd before 2.3 do.
//!
//! The shim keeps no write end, so the logger sees the end of its input when
//! the last process has ended. It is waited for at Delete, then asked to end by
//! SIGTERM, then killed.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cryo_sys::process;
use cryo_sys::spawn::{Group, Spawn, SpawnError};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::timeout;

use super::Owner;
use super::address::Program;
use crate::rpc::{TaskError, with_causes};
use crate::task::container::raw;
use crate::task::context::internal;
use crate::task::state::Exit;

/// How long a logger may take until it is ready.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// How long a logger may take after the end of its input, before it is told.
const INPUT_END_LIMIT: Duration = Duration::from_secs(3);

/// How long it may take after that; both together are what the Go shim gives.
const TERM_LIMIT: Duration = Duration::from_secs(9);

/// How long the kernel may take to end a killed one.
const KILL_LIMIT: Duration = Duration::from_secs(1);

/// A logger that runs, or has ended. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct Logger {
    path: PathBuf,
    pid: Pid,
    pidfd: Arc<OwnedFd>,
    exit: watch::Receiver<Option<Exit>>,
}

impl Logger {
    /// Starts a logger that reads `streams`, stdout and stderr, and waits
    /// until it is ready.
    ///
    /// # Errors
    ///
    /// When it does not start, ends at once, or is not ready in time; then it
    /// is gone.
    pub(super) async fn start(
        program: &Program,
        owner: &Owner<'_>,
        [stdout, stderr]: [OwnedFd; 2],
    ) -> Result<Self, TaskError> {
        let (ready, theirs) = pipe_with(PipeFlags::CLOEXEC)
            .map_err(|e| TaskError::io("cannot make a pipe for a logger", &e.into()))?;
        let spawn = Spawn::new(&program.path)
            .args(&program.args)
            .env("CONTAINER_ID", owner.id)
            .env("CONTAINER_NAMESPACE", owner.namespace)
            .fd(stdout, 3)
            .fd(stderr, 4)
            .fd(theirs, 5)
            .group(Group::Own);
        // It is nobody's until it is watched.
        let hold = owner.reaper.hold();
        let child = tokio::task::spawn_blocking(|| spawn.spawn())
            .await
            .map_err(internal)?
            .map_err(|error| no_start(&error))?;
        let pid = child.pid();
        let (pidfd, exited) = owner
            .reaper
            .watch(pid)
            .map_err(|e| TaskError::io("cannot watch a logger", &e))?;
        child.release();
        drop(hold);

        let (sender, exit) = watch::channel(None);
        let (path, id) = (program.path.clone(), owner.id.to_owned());
        tokio::spawn(async move {
            let Ok(exit) = exited.await else { return };
            let (path, status) = (path.display(), exit.status);
            if status == 0 {
                tracing::debug!(id, %path, "a logger has ended");
            } else {
                tracing::warn!(id, %path, status, "a logger has failed: output may be lost");
            }
            sender.send_replace(Some(exit));
        });
        let logger = Self {
            path: program.path.clone(),
            pid,
            pidfd,
            exit,
        };
        logger.ready(ready, program.says_ready).await?;
        Ok(logger)
    }

    async fn ready(&self, ready: OwnedFd, says_ready: bool) -> Result<(), TaskError> {
        let path = self.path.display();
        let failed = |text: String| TaskError::FailedPrecondition(format!("logger {path} {text}"));
        let hear = async { pipe::Receiver::from_owned_fd(ready)?.read(&mut [0]).await };
        match timeout(READY_LIMIT, hear).await {
            Ok(Ok(1..)) => return Ok(()),
            Ok(Ok(0)) => {}
            Ok(Err(error)) => return Err(TaskError::io("cannot hear from a logger", &error)),
            Err(_) => {
                return Err(failed(format!(
                    "is not ready after {} s: it has to write a byte to descriptor 5 and close it",
                    READY_LIMIT.as_secs()
                )));
            }
        }
        if let Some(status) = self.ending().await
            && (status != 0 || says_ready)
        {
            return Err(failed(format!(
                "ended with status {status} before it was ready: run it by hand to see why"
            )));
        }
        if says_ready {
            return Err(failed(
                "closed descriptor 5 without a byte: it has to write one when it is ready, or be named by binary://".to_owned(),
            ));
        }
        Ok(())
    }

    /// The status of a logger that is about to end. A process gives its
    /// descriptors back first and has an exit status a moment later.
    async fn ending(&self) -> Option<u32> {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", raw(self.pid)));
        if fds.is_ok_and(|mut fds| fds.next().is_some()) {
            return None;
        }
        timeout(KILL_LIMIT, self.ended()).await.ok()
    }

    async fn ended(&self) -> u32 {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await;
        // Without a sender nobody waits for it any more.
        ended.ok().and_then(|exit| *exit).map_or(255, |e| e.status)
    }

    /// Waits for its end, and brings it about. Without `patience` it is not
    /// waited for until it is told to end.
    pub(super) async fn finish(self, patience: bool) {
        let first = if patience {
            INPUT_END_LIMIT
        } else {
            Duration::ZERO
        };
        for (limit, then) in [(first, Signal::TERM), (TERM_LIMIT, Signal::KILL)] {
            if timeout(limit, self.ended()).await.is_ok() {
                return;
            }
            let path = self.path.display();
            tracing::info!(%path, signal = ?then, "a logger does not end by itself");
            self.signal(then);
        }
        if timeout(KILL_LIMIT, self.ended()).await.is_err() {
            tracing::warn!(pid = self.pid(), "a killed logger stays");
        }
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        raw(self.pid)
    }

    /// Whether it has not ended yet.
    pub(super) fn runs(&self) -> bool {
        self.exit.borrow().is_none()
    }

    fn signal(&self, signal: Signal) {
        // It may have ended just now.
        let _ = process::send_signal(self.pidfd.as_fd(), signal.as_raw());
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        if self.runs() {
            self.signal(Signal::KILL);
        }
    }
}

fn no_start(error: &SpawnError) -> TaskError {
    let what = format!("the logger does not start: {error}");
    match error.io_error() {
        Some(cause) => TaskError::io(what, cause),
        None => TaskError::InvalidArgument(with_causes(error)),
    }
}

/// The read end of a pipe that has ended.
pub(super) fn nothing() -> io::Result<OwnedFd> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?.0)
}
