//! A container as the service sees it: a handle on its actor.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cryo_criu::Abort;
use cryo_criu::options::{self, Layer};
use cryo_engine::Started;
use rustix::process::Pid;
use tokio::sync::{mpsc, oneshot, watch};

use super::actor;
use super::context::Context;
use super::dump::ContainerState;
use super::pause::{Due, Ended, Why};
use super::process::{self as exec, Exec, ExecRequest};
use super::reaper::Hold;
use super::state::{Exit, Phase};
use super::stdio::{ContainerEnds, Stdio};
use super::transfer::Transfer;
use crate::rpc::TaskError;

/// How long Delete waits for output that nobody reads.
pub(super) const DRAIN_LIMIT: Duration = Duration::from_secs(10);

pub(super) type Reply<T> = oneshot::Sender<Result<T, TaskError>>;

/// What State tells.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot {
    /// Where in its life the container is.
    pub phase: Phase,
    /// Whether it is being paused just now.
    pub pausing: bool,
    /// The first process, if there is one yet.
    pub pid: Option<Pid>,
}

/// What a checkpoint is to be like.
#[derive(Debug, Clone)]
pub struct CheckpointRequest {
    /// Where the images go.
    pub images: PathBuf,
    /// Where log and statistics go.
    pub work: Option<PathBuf>,
    /// End the container once it is dumped.
    pub exit: bool,
    /// What else the request says.
    pub options: Layer<options::Checkpoint>,
    /// When the client stops waiting.
    pub deadline: Option<Instant>,
    /// Triggered when the client has gone: its connection has ended.
    pub client_gone: Option<Arc<Abort>>,
}

/// A process of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// The exec that it was started by.
    pub exec_id: Option<String>,
}

#[derive(Debug)]
pub(super) enum Command {
    State(Reply<Snapshot>),
    Describe(Reply<ContainerState>),
    Start(Reply<Pid>),
    Pause(Reply<()>),
    Resume(Reply<()>),
    Checkpoint(CheckpointRequest, Reply<()>),
    Delete(Reply<Exit>),
    Kill {
        signal: i32,
        all: bool,
        reply: Reply<()>,
    },
    Pids(Reply<Vec<Process>>),
    CloseStdin(Reply<()>),
    Resize((u16, u16), Reply<()>),
    Exec(String, exec::Request),
    ExecDone(String, exec::Done),
    Exited(Exit),
    /// The execs had their time.
    TellExit,
    /// The images of a checkpoint are whole; its memory is served from now on.
    Serving(Arc<Transfer>),
    /// The client of a checkpoint, that paused for it, had its time.
    ResumeDue(Due),
    Done(Done),
}

/// The end of an operation that ran beside the actor.
#[derive(Debug)]
pub(super) enum Done {
    Started {
        result: Result<Option<(Started, Hold)>, TaskError>,
        reply: Reply<Pid>,
    },
    Switched {
        /// The shim did it in a client's place.
        for_client: Option<Why>,
        result: Result<(), TaskError>,
        reply: Reply<()>,
    },
    Checkpointed {
        ended: Ended,
        result: Result<(), TaskError>,
    },
    Deleted {
        result: Result<(), TaskError>,
        reply: Reply<Exit>,
    },
}

/// A running container as the service sees it.
#[derive(Debug, Clone)]
pub struct Container {
    context: Arc<Context>,
    commands: mpsc::Sender<Command>,
    exit: watch::Receiver<Option<Exit>>,
}

impl Container {
    /// Takes a container over that has been made: `init` is its first process,
    /// or `None` when it is to be restored at its start.
    ///
    /// # Errors
    ///
    /// When the process cannot be watched.
    pub fn adopt(
        context: Arc<Context>,
        stdio: Stdio,
        ends: ContainerEnds,
        init: Option<Pid>,
    ) -> Result<Self, TaskError> {
        let (commands, exit) = actor::spawn(&context, stdio, ends, init)?;
        Ok(Self {
            context,
            commands,
            exit,
        })
    }

    /// What it was made from.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    pub(super) async fn ask<T>(
        &self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, TaskError> {
        let (sender, receiver) = oneshot::channel();
        // A failed send shows as an answer that never comes.
        let _ = self.commands.send(command(sender)).await;
        receiver.await.unwrap_or_else(|_| {
            Err(TaskError::NotFound(format!(
                "container {} is gone",
                self.context.id()
            )))
        })
    }

    /// Where it is in its life.
    ///
    /// # Errors
    ///
    /// NotFound once it is deleted; so do all the others.
    pub async fn state(&self) -> Result<Snapshot, TaskError> {
        self.ask(Command::State).await
    }

    /// Everything about it, for the dump of the shim's state.
    ///
    /// # Errors
    ///
    /// NotFound once it is deleted.
    pub async fn describe(&self) -> Result<ContainerState, TaskError> {
        self.ask(Command::Describe).await
    }

    /// Starts it, or restores it; answers its first process.
    ///
    /// # Errors
    ///
    /// FailedPrecondition in the wrong phase, else the cause.
    pub async fn start(&self) -> Result<Pid, TaskError> {
        self.ask(Command::Start).await
    }

    /// Freezes it.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub async fn pause(&self) -> Result<(), TaskError> {
        self.ask(Command::Pause).await
    }

    /// Thaws it.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub async fn resume(&self) -> Result<(), TaskError> {
        self.ask(Command::Resume).await
    }

    /// Dumps it to images. It goes on as it was, unless `exit` is asked for.
    ///
    /// # Errors
    ///
    /// As [`Self::start`]; after any error it goes on as it was.
    pub async fn checkpoint(&self, request: CheckpointRequest) -> Result<(), TaskError> {
        self.ask(|reply| Command::Checkpoint(request, reply)).await
    }

    /// Removes it with everything it has on this machine.
    ///
    /// # Errors
    ///
    /// FailedPrecondition while it runs; else what stays, and it can be repeated.
    pub async fn delete(&self) -> Result<Exit, TaskError> {
        self.ask(Command::Delete).await
    }

    /// Sends a signal to the first process, or to all.
    ///
    /// # Errors
    ///
    /// NotFound when there is no process.
    pub async fn kill(&self, signal: i32, all: bool) -> Result<(), TaskError> {
        self.ask(|reply| Command::Kill { signal, all, reply }).await
    }

    /// The ids of its processes; never empty.
    ///
    /// # Errors
    ///
    /// NotFound once it is deleted.
    pub async fn pids(&self) -> Result<Vec<Process>, TaskError> {
        self.ask(Command::Pids).await
    }

    /// Ends its input once the clients have closed theirs.
    ///
    /// # Errors
    ///
    /// NotFound once it is deleted.
    pub async fn close_stdin(&self) -> Result<(), TaskError> {
        self.ask(Command::CloseStdin).await
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    ///
    /// What the kernel says; without a terminal nothing happens.
    pub async fn resize(&self, columns: u16, rows: u16) -> Result<(), TaskError> {
        self.ask(|reply| Command::Resize((columns, rows), reply))
            .await
    }

    /// Declares another process; [`Exec::start`] runs it.
    ///
    /// # Errors
    ///
    /// AlreadyExists, or FailedPrecondition unless the container runs.
    pub async fn exec(&self, request: ExecRequest) -> Result<(), TaskError> {
        let id = request.id.clone();
        let request = Box::new(request);
        self.ask(|reply| Command::Exec(id, exec::Request::Add(request, reply)))
            .await
    }

    /// An exec'd process, should there be one of this id.
    #[must_use]
    pub fn process(&self, exec_id: String) -> Exec {
        Exec::new(self.clone(), exec_id)
    }

    /// Waits for its end; answers again and again.
    ///
    /// # Errors
    ///
    /// NotFound when it is deleted without ever having run.
    pub async fn wait(&self) -> Result<Exit, TaskError> {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|e| *e);
        ended.ok_or_else(|| {
            TaskError::NotFound(format!(
                "container {} was deleted before it ran",
                self.context.id()
            ))
        })
    }
}

pub(super) fn answer<T>(reply: Reply<T>, result: Result<T, TaskError>) {
    // The client may have given up.
    let _ = reply.send(result);
}

/// A process id as the protocol wants it.
#[must_use]
pub fn raw(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}
