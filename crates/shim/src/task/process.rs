//! Exec'd processes of a container. The container's actor owns them; what
//! takes time runs beside it.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use cryo_engine::{ExecSpec, Started};
use cryo_sys::process;
use rustix::process::Pid;
use tokio::sync::{mpsc, oneshot, watch};

use super::container::{Command, Container, DRAIN_LIMIT, Reply, answer, raw};
use super::context::{Context, from_engine, internal};
use super::dump::ExecState;
use super::reaper::Hold;
use super::state::{Exit, Phase};
use super::stdio::{Paths, Stdio};
use crate::events;
use crate::rpc::TaskError;

/// A process as it was asked for.
#[derive(Debug, Clone)]
pub struct ExecRequest {
    /// Its id, unique in the container.
    pub id: String,
    /// The OCI `Process`, as JSON.
    pub process: Vec<u8>,
    /// Where its streams go.
    pub paths: Paths,
    /// Whether it has a terminal.
    pub terminal: bool,
}

/// What State tells of an exec'd process.
#[derive(Debug, Clone)]
pub struct ExecSnapshot {
    /// Its process, once it is started.
    pub pid: Option<Pid>,
    /// How it ended, if it did.
    pub exit: Option<Exit>,
    /// Where its streams go.
    pub paths: Paths,
    /// Whether it has a terminal.
    pub terminal: bool,
}

/// What can be asked of one exec'd process.
#[derive(Debug)]
pub(super) enum Request {
    Add(Box<ExecRequest>, Reply<()>),
    Start(Reply<Pid>),
    State(Reply<ExecSnapshot>),
    Kill(i32, Reply<()>),
    Delete(Reply<(u32, Exit)>),
    Wait(Reply<watch::Receiver<Option<Exit>>>),
    CloseStdin(Reply<()>),
    Resize((u16, u16), Reply<()>),
}

/// What happened beside the actor.
#[derive(Debug)]
pub(super) enum Done {
    Started {
        result: Result<Box<(Started, Stdio, Hold)>, TaskError>,
        reply: Reply<Pid>,
    },
    Exited(Exit),
}

/// One exec'd process as the service sees it.
#[derive(Debug, Clone)]
pub struct Exec {
    container: Container,
    id: String,
}

impl Exec {
    pub(super) fn new(container: Container, id: String) -> Self {
        Self { container, id }
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, TaskError> {
        let id = self.id.clone();
        self.container
            .ask(|reply| Command::Exec(id, request(reply)))
            .await
    }

    /// Starts it; answers its process.
    ///
    /// # Errors
    ///
    /// NotFound when there is no such exec; so do all the others. FailedPrecondition when the
    /// container does not run, else what kept the program from starting.
    pub async fn start(&self) -> Result<Pid, TaskError> {
        self.ask(Request::Start).await
    }

    /// Where it is in its life.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub async fn state(&self) -> Result<ExecSnapshot, TaskError> {
        self.ask(Request::State).await
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// FailedPrecondition before its start, NotFound after its end.
    pub async fn kill(&self, signal: i32) -> Result<(), TaskError> {
        self.ask(|reply| Request::Kill(signal, reply)).await
    }

    /// Forgets it once all its output is delivered; answers process and end.
    ///
    /// # Errors
    ///
    /// FailedPrecondition while it runs.
    pub async fn delete(&self) -> Result<(u32, Exit), TaskError> {
        self.ask(Request::Delete).await
    }

    /// Waits for its end; answers again and again.
    ///
    /// # Errors
    ///
    /// NotFound when it is deleted without ever having run.
    pub async fn wait(&self) -> Result<Exit, TaskError> {
        let mut exit = self.ask(Request::Wait).await?;
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|e| *e);
        ended.ok_or_else(|| not_found(&self.id))
    }

    /// Ends its input once the clients have closed theirs.
    ///
    /// # Errors
    ///
    /// NotFound.
    pub async fn close_stdin(&self) -> Result<(), TaskError> {
        self.ask(Request::CloseStdin).await
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    ///
    /// What the kernel says; without a terminal nothing happens.
    pub async fn resize(&self, columns: u16, rows: u16) -> Result<(), TaskError> {
        self.ask(|reply| Request::Resize((columns, rows), reply))
            .await
    }
}

/// What the container's actor lends.
#[derive(Debug)]
pub(super) struct Host<'a> {
    pub(super) context: &'a Arc<Context>,
    pub(super) init: Option<(Pid, &'a Arc<OwnedFd>)>,
    pub(super) phase: Phase,
    pub(super) outbox: &'a mpsc::WeakSender<Command>,
}

impl Host<'_> {
    /// Only in a running container.
    fn admits(&self) -> Result<(Pid, &Arc<OwnedFd>), TaskError> {
        match (self.phase, self.init) {
            (Phase::Running, Some(init)) => Ok(init),
            (phase, _) => Err(TaskError::FailedPrecondition(format!(
                "cannot exec in a {phase} container: {}",
                match phase {
                    Phase::Paused => "resume it first",
                    Phase::Stopped(_) => "there is no process left",
                    _ => "start it first",
                }
            ))),
        }
    }
}

#[derive(Debug)]
enum Stage {
    Added,
    Starting,
    Running { pid: Pid, pidfd: Arc<OwnedFd> },
    Stopped { pid: Pid, exit: Exit },
}

#[derive(Debug)]
struct Entry {
    request: ExecRequest,
    stage: Stage,
    stdio: Stdio,
    exit: watch::Sender<Option<Exit>>,
}

impl Entry {
    fn alive(&self) -> bool {
        matches!(self.stage, Stage::Starting | Stage::Running { .. })
    }

    fn pid(&self) -> Option<Pid> {
        match &self.stage {
            Stage::Added | Stage::Starting => None,
            Stage::Running { pid, .. } | Stage::Stopped { pid, .. } => Some(*pid),
        }
    }

    fn kill(&self, signal: i32) -> Result<(), TaskError> {
        match &self.stage {
            Stage::Running { pidfd, .. } => process::send_signal(pidfd.as_fd(), signal)
                .map_err(|e| TaskError::io(format_args!("cannot send signal {signal}"), &e)),
            Stage::Stopped { .. } => {
                Err(TaskError::NotFound("process already finished".to_owned()))
            }
            Stage::Added | Stage::Starting => Err(TaskError::FailedPrecondition(
                "process not created: start it first".to_owned(),
            )),
        }
    }
}

/// All exec'd processes of a container.
#[derive(Debug, Default)]
pub(super) struct Processes(HashMap<String, Entry>);

impl Processes {
    /// Whether some run, or are about to.
    pub(super) fn any_alive(&self) -> bool {
        self.0.values().any(Entry::alive)
    }

    /// Whether some are about to run.
    pub(super) fn any_starting(&self) -> bool {
        self.0
            .values()
            .any(|entry| matches!(entry.stage, Stage::Starting))
    }

    /// All of them, by id.
    pub(super) fn describe(&self) -> Vec<ExecState> {
        let mut all: Vec<_> = self
            .0
            .iter()
            .map(|(id, entry)| ExecState {
                id: id.clone(),
                phase: match entry.stage {
                    Stage::Added => "added",
                    Stage::Starting => "starting",
                    Stage::Running { .. } => "running",
                    Stage::Stopped { .. } => "stopped",
                },
                pid: entry.pid().map(raw),
                exit_status: entry.exit.borrow().map(|exit| exit.status),
                streams: entry.stdio.describe(),
            })
            .collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// The exec that this process was started by.
    pub(super) fn id_of(&self, pid: u32) -> Option<&str> {
        self.0
            .iter()
            .find(|(_, entry)| {
                matches!(&entry.stage, Stage::Running { pid: own, .. } if raw(*own) == pid)
            })
            .map(|(id, _)| id.as_str())
    }

    pub(super) fn handle(&mut self, id: String, request: Request, host: &Host<'_>) {
        match request {
            Request::Add(request, reply) => answer(reply, self.add(*request, host)),
            Request::Start(reply) => self.start(&id, reply, host),
            Request::Delete(reply) => self.delete(&id, reply),
            Request::State(reply) => answer(
                reply,
                self.entry(&id).map(|entry| ExecSnapshot {
                    pid: entry.pid(),
                    exit: *entry.exit.borrow(),
                    paths: entry.request.paths.clone(),
                    terminal: entry.request.terminal,
                }),
            ),
            Request::Kill(signal, reply) => {
                answer(reply, self.entry(&id).and_then(|entry| entry.kill(signal)));
            }
            Request::Wait(reply) => {
                answer(reply, self.entry(&id).map(|entry| entry.exit.subscribe()));
            }
            Request::CloseStdin(reply) => answer(
                reply,
                self.entry(&id).map(|entry| entry.stdio.close_stdin()),
            ),
            Request::Resize((columns, rows), reply) => answer(
                reply,
                self.entry(&id).and_then(|entry| {
                    entry
                        .stdio
                        .resize(columns, rows)
                        .map_err(|e| TaskError::io("cannot resize the terminal", &e))
                }),
            ),
        }
    }

    fn entry(&mut self, id: &str) -> Result<&mut Entry, TaskError> {
        self.0.get_mut(id).ok_or_else(|| not_found(id))
    }

    fn add(&mut self, request: ExecRequest, host: &Host<'_>) -> Result<(), TaskError> {
        if self.0.contains_key(&request.id) {
            return Err(TaskError::AlreadyExists(format!(
                "exec {} of container {} exists already",
                request.id,
                host.context.id()
            )));
        }
        host.admits()?;
        events::exec_added(&*host.context.shared.events, host.context.id(), &request.id);
        self.0.insert(
            request.id.clone(),
            Entry {
                request,
                stage: Stage::Added,
                stdio: Stdio::default(),
                exit: watch::Sender::new(None),
            },
        );
        Ok(())
    }

    fn start(&mut self, id: &str, reply: Reply<Pid>, host: &Host<'_>) {
        let ready = self.entry(id).and_then(|entry| {
            if !matches!(entry.stage, Stage::Added) {
                return Err(TaskError::FailedPrecondition(format!(
                    "cannot start exec {id}: it was started already"
                )));
            }
            let (init, pidfd) = host.admits()?;
            Ok((entry, init, Arc::clone(pidfd)))
        });
        let (entry, init, pidfd) = match ready {
            Ok(ready) => ready,
            Err(error) => return answer(reply, Err(error)),
        };
        entry.stage = Stage::Starting;
        let request = entry.request.clone();
        let context = Arc::clone(host.context);
        let outbox = host.outbox.clone();
        let id = id.to_owned();
        // The process is nobody's until it is watched.
        let hold = context.shared.reaper.hold();
        tokio::spawn(async move {
            let result = launch(context, request, init, pidfd)
                .await
                .map(|(started, stdio)| Box::new((started, stdio, hold)));
            if let Some(outbox) = outbox.upgrade() {
                let done = Done::Started { result, reply };
                let _ = outbox.send(Command::ExecDone(id, done)).await;
            }
        });
    }

    fn delete(&mut self, id: &str, reply: Reply<(u32, Exit)>) {
        let Some(entry) = self.0.remove(id) else {
            return answer(reply, Err(not_found(id)));
        };
        let (pid, exit) = match entry.stage {
            Stage::Starting | Stage::Running { .. } => {
                self.0.insert(id.to_owned(), entry);
                // containerd looks for these very words.
                let text = "cannot delete a running process: kill it first";
                return answer(reply, Err(TaskError::FailedPrecondition(text.to_owned())));
            }
            Stage::Stopped { pid, exit } => (raw(pid), exit),
            Stage::Added => (
                0,
                Exit {
                    status: 0,
                    at: std::time::SystemTime::now(),
                },
            ),
        };
        tokio::spawn(async move {
            entry.stdio.drain(DRAIN_LIMIT).await;
            answer(reply, Ok((pid, exit)));
        });
    }

    /// Takes note of what happened beside the actor.
    pub(super) fn done(&mut self, id: &str, done: Done, host: &Host<'_>) {
        let sink = &*host.context.shared.events;
        let Ok(entry) = self.entry(id) else {
            return;
        };
        match done {
            Done::Started { result, reply } => {
                let started = result.and_then(|made| {
                    let (started, stdio, _hold) = *made;
                    let pidfd = watch_exit(id, started.pid, host)?;
                    entry.stdio = stdio;
                    Ok((started.pid, pidfd))
                });
                match started {
                    Ok((pid, pidfd)) => {
                        entry.stage = Stage::Running { pid, pidfd };
                        events::exec_started(sink, host.context.id(), id, raw(pid));
                        answer(reply, Ok(pid));
                    }
                    Err(error) => {
                        // It can be deleted, or tried again.
                        entry.stage = Stage::Added;
                        answer(reply, Err(error));
                    }
                }
            }
            Done::Exited(exit) => {
                if let Some(pid) = entry.pid() {
                    entry.stage = Stage::Stopped { pid, exit };
                    events::exit(sink, host.context.id(), id, raw(pid), exit.status, exit.at);
                    entry.exit.send_replace(Some(exit));
                }
            }
        }
    }
}

fn not_found(id: &str) -> TaskError {
    TaskError::NotFound(format!("process does not exist: exec {id}"))
}

/// Opens the streams and runs the process.
async fn launch(
    context: Arc<Context>,
    request: ExecRequest,
    init: Pid,
    init_pidfd: Arc<OwnedFd>,
) -> Result<(Started, Stdio), TaskError> {
    let owner = context.owner_of(&request.id, user_of(&request.process));
    let (mut stdio, ends) = if request.terminal {
        let stdio = Stdio::open_for_terminal(&request.paths, &owner).await?;
        (stdio, [const { None }; 3])
    } else {
        Stdio::open(&request.paths, &owner).await?
    };
    let mut started = tokio::task::spawn_blocking(move || {
        let spec = ExecSpec {
            process: &request.process,
            init,
            init_pidfd: init_pidfd.as_fd(),
            cgroup: &context.record.cgroup_path,
        };
        context
            .shared
            .engine
            .exec(&context.target(), &spec, ends)
            .map_err(from_engine)
    })
    .await
    .unwrap_or_else(|e| Err(internal(e)))?;
    if let Some(master) = started.console.take()
        && let Err(error) = stdio.attach(master)
    {
        tracing::error!(%error, "cannot copy from and to a terminal");
    }
    Ok((started, stdio))
}

/// User and group of a process; what is not said is root.
fn user_of(process: &[u8]) -> (u32, u32) {
    let value = serde_json::from_slice::<serde_json::Value>(process).unwrap_or_default();
    let id = |name: &str| {
        value["user"][name]
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .unwrap_or(0)
    };
    (id("uid"), id("gid"))
}

fn watch_exit(id: &str, pid: Pid, host: &Host<'_>) -> Result<Arc<OwnedFd>, TaskError> {
    let (pidfd, exited) = host
        .context
        .shared
        .reaper
        .watch(pid)
        .map_err(|e| TaskError::io("cannot watch the process", &e))?;
    let (outbox, id) = (host.outbox.clone(), id.to_owned());
    tokio::spawn(async move {
        if let (Ok(exit), Some(outbox)) = (exited.await, outbox.upgrade()) {
            let _ = outbox.send(Command::ExecDone(id, Done::Exited(exit))).await;
        }
    });
    Ok(pidfd)
}

/// The reply of a request that is not to be answered to anybody.
pub(super) fn unheard<T>() -> Reply<T> {
    oneshot::channel().0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_read_leniently() {
        assert_eq!(user_of(br#"{"user":{"uid":5,"gid":6}}"#), (5, 6));
        assert_eq!(user_of(br#"{"user":{"uid":-1}}"#), (0, 0));
        assert_eq!(user_of(b"nonsense"), (0, 0));
    }
}
