//! A container is one actor: a task that owns its state.
//!
//! Handlers send it [`Command`]s and await the answers, so a client that goes
//! away cannot leave half of an operation behind. Operations that take time run
//! beside the actor, one at a time; meanwhile it goes on answering State, Pids,
//! Kill and Wait.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cryo_criu::Abort;
use cryo_criu::config::RESUME_WITHIN;
use cryo_engine::spec;
use cryo_sys::process;
use oci_spec::runtime::LinuxNamespaceType;
use rustix::process::Pid;
use tokio::sync::{mpsc, watch};

use super::container::{
    CheckpointRequest, Command, DRAIN_LIMIT, Done, Process, Reply, Snapshot, answer, raw,
};
use super::context::{Context, FREEZE_LIMIT, KILL_LIMIT, from_engine, internal};
use super::dump::{ContainerState, Operation};
use super::pause::{Due, Ended, Pauses, Why};
use super::process::{self as exec, Host, Processes};
use super::state::{Exit, Op, Phase, State};
use super::stdio::{ContainerEnds, Stdio};
use super::transfer::Transfer;
use super::{checkpoint, criu, failures, kill, oom, restore};
use crate::events;
use crate::rpc::TaskError;

/// How long Delete waits for a killed process.
const EXIT_LIMIT: Duration = Duration::from_secs(10);

/// How long the container's exit is held back for those of its execs.
const EXECS_LIMIT: Duration = Duration::from_secs(5);

/// Starts the actor of a container that has been made: `init` is its first
/// process, or `None` when it is to be restored at its start.
///
/// # Errors
///
/// When the process cannot be watched.
pub(super) fn spawn(
    context: &Arc<Context>,
    stdio: Stdio,
    ends: ContainerEnds,
    init: Option<Pid>,
) -> Result<(mpsc::Sender<Command>, watch::Receiver<Option<Exit>>), TaskError> {
    let (commands, inbox) = mpsc::channel(16);
    let (exit_sender, exit) = watch::channel(None);
    let mut actor = Actor {
        state: State::new(init.is_none()),
        init: None,
        stdio,
        ends: init.is_none().then_some(ends),
        pauses: Pauses::default(),
        resume_due: None,
        begun_at: Instant::now(),
        held_exit: None,
        oom: None,
        execs: Processes::default(),
        deferred: Vec::new(),
        give_up: None,
        asked: None,
        transfer: None,
        exit: exit_sender,
        outbox: commands.downgrade(),
        context: Arc::clone(context),
    };
    if let Some(pid) = init {
        actor.watch(pid)?;
        actor.oom = oom::Watch::start(&actor.context);
    }
    tokio::spawn(actor.run(inbox));
    Ok((commands, exit))
}

#[derive(Debug)]
struct Init {
    pid: Pid,
    pidfd: Arc<OwnedFd>,
}

#[derive(Debug)]
struct HeldExit {
    exit: Exit,
    /// The execs' exits are not waited for any longer.
    overdue: bool,
}

#[derive(Debug)]
struct Asked {
    /// Where the images go.
    path: PathBuf,
    /// The container was paused for it.
    paused: bool,
    reply: Reply<()>,
}

#[derive(Debug)]
struct Actor {
    context: Arc<Context>,
    state: State,
    init: Option<Init>,
    stdio: Stdio,
    /// The container's ends of its streams, until the restore takes them.
    ends: Option<ContainerEnds>,
    pauses: Pauses,
    /// Waits until it is due to resume in a client's place.
    resume_due: Option<Timer>,
    /// When the operation under way, or the last one, began.
    begun_at: Instant,
    /// An exit that must not be told before the start, before the checkpoint
    /// that caused it, or before those of the execs, is.
    held_exit: Option<HeldExit>,
    execs: Processes,
    /// What waits for the end of the operation under way.
    deferred: Vec<Command>,
    /// Gives the checkpoint under way up.
    give_up: Option<Arc<Abort>>,
    /// Who asked for the checkpoint under way, and has no answer yet.
    asked: Option<Asked>,
    /// The transfer under way.
    transfer: Option<Arc<Transfer>>,
    /// From the first process to the removal of the cgroups.
    oom: Option<oom::Watch>,
    exit: watch::Sender<Option<Exit>>,
    outbox: mpsc::WeakSender<Command>,
}

impl Actor {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        while let Some(command) = inbox.recv().await {
            if self.handle(command).is_break() {
                break;
            }
            for command in std::mem::take(&mut self.deferred) {
                if self.handle(command).is_break() {
                    return;
                }
            }
        }
    }

    /// A process that is just entering the cgroups and a freeze do not go
    /// together: CRIU would find what is half in the container.
    fn must_wait(&self, command: &Command) -> bool {
        match command {
            Command::Exec(_, exec::Request::Start(_)) => {
                matches!(self.state.busy(), Some(Op::Pause | Op::Checkpoint))
            }
            Command::Pause(_) | Command::Checkpoint(..) => self.execs.any_starting(),
            Command::ResumeDue(_) => self.state.busy().is_some(),
            // Who resumes a container does not want the checkpoint that holds it any more.
            Command::Resume(_) => {
                matches!(self.state.busy(), Some(Op::Checkpoint | Op::Transfer))
            }
            _ => false,
        }
    }

    fn handle(&mut self, command: Command) -> std::ops::ControlFlow<()> {
        if self.must_wait(&command) {
            if let (Command::Resume(_), Some(abort)) = (&command, &self.give_up) {
                abort.trigger();
            }
            if let (Command::Resume(_), Some(transfer)) = (&command, &self.transfer) {
                transfer.give_up();
            }
            self.deferred.push(command);
            return std::ops::ControlFlow::Continue(());
        }
        match command {
            Command::State(reply) => answer(reply, Ok(self.snapshot())),
            Command::Describe(reply) => answer(reply, Ok(self.describe())),
            Command::Start(reply) => self.start(reply),
            Command::Pause(reply) => self.switch(Op::Pause, None, reply),
            Command::Resume(reply) => self.resume(reply),
            Command::Checkpoint(request, reply) => self.checkpoint(request, reply),
            Command::Delete(reply) => self.delete(reply),
            Command::Kill { signal, all, reply } => {
                let result = self.kill(signal, all);
                answer(reply, result);
            }
            Command::Pids(reply) => answer(reply, Ok(self.pids())),
            Command::CloseStdin(reply) => {
                self.stdio.close_stdin();
                answer(reply, Ok(()));
            }
            Command::Resize((columns, rows), reply) => {
                let result = self
                    .stdio
                    .resize(columns, rows)
                    .map_err(|e| TaskError::io("cannot resize the terminal", &e));
                answer(reply, result);
            }
            Command::Exec(id, request) => {
                let (execs, host) = self.execs();
                execs.handle(id, request, &host);
            }
            Command::ExecDone(id, done) => {
                let (execs, host) = self.execs();
                execs.done(&id, done, &host);
                self.tell_exit();
            }
            Command::Exited(exit) => self.exited(exit),
            Command::TellExit => {
                if let Some(held) = &mut self.held_exit {
                    held.overdue = true;
                }
                self.tell_exit();
            }
            Command::Serving(transfer) => self.serving(transfer),
            Command::ResumeDue(due) => {
                if self.pauses.is_due(&due) {
                    self.resume_for_client(due.why);
                }
            }
            Command::Done(done) => return self.done(done),
        }
        std::ops::ControlFlow::Continue(())
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            phase: self.state.phase(),
            pausing: self.state.busy() == Some(Op::Pause),
            pid: self.init.as_ref().map(|i| i.pid),
        }
    }

    fn describe(&self) -> ContainerState {
        let exit = match self.state.phase() {
            Phase::Stopped(exit) => Some(exit.status),
            _ => None,
        };
        ContainerState {
            id: self.context.id().to_owned(),
            bundle: self.context.record.bundle.clone(),
            cgroup: self.context.record.cgroup_path.clone(),
            checkpoint: self.context.checkpoint.clone(),
            phase: self.state.phase().to_string(),
            exit_status: exit,
            exit_held: self.held_exit.is_some(),
            pid: self.init.as_ref().map(|i| raw(i.pid)),
            operation: self.state.busy().map(|op| Operation {
                name: op.to_string(),
                since_s: self.begun_at.elapsed().as_secs(),
            }),
            requests_waiting: self.deferred.len(),
            memory: self.context.memory.get().map(|memory| memory.describe()),
            streams: self.stdio.describe(),
            execs: self.execs.describe(),
        }
    }

    /// Begins an operation, if the state allows it.
    fn begin(&mut self, op: Op) -> Result<(), TaskError> {
        self.state.begin(op)?;
        self.begun_at = Instant::now();
        Ok(())
    }

    fn execs(&mut self) -> (&mut Processes, Host<'_>) {
        let host = Host {
            context: &self.context,
            init: self.init.as_ref().map(|i| (i.pid, &i.pidfd)),
            phase: self.state.phase(),
            outbox: &self.outbox,
        };
        (&mut self.execs, host)
    }

    /// Learns of the end of the container's first process.
    fn watch(&mut self, pid: Pid) -> Result<(), TaskError> {
        let (pidfd, exited) = self
            .context
            .shared
            .reaper
            .watch(pid)
            .map_err(|e| TaskError::io("cannot watch the container's first process", &e))?;
        self.init = Some(Init { pid, pidfd });
        let outbox = self.outbox.clone();
        tokio::spawn(async move {
            if let (Ok(exit), Some(outbox)) = (exited.await, outbox.upgrade()) {
                let _ = outbox.send(Command::Exited(exit)).await;
            }
        });
        Ok(())
    }

    /// Runs blocking work beside the actor, which hears of its end as `done`.
    fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Context) -> Result<T, TaskError> + Send + 'static,
        done: impl FnOnce(Result<T, TaskError>) -> Done + Send + 'static,
    ) {
        let context = Arc::clone(&self.context);
        let outbox = self.outbox.clone();
        tokio::spawn(async move {
            let result = tokio::task::spawn_blocking(move || work(&context))
                .await
                .unwrap_or_else(|e| Err(internal(e)));
            if let Some(outbox) = outbox.upgrade() {
                let _ = outbox.send(Command::Done(done(result))).await;
            }
        });
    }

    fn start(&mut self, reply: Reply<Pid>) {
        if let Err(error) = self.begin(Op::Start) {
            return answer(reply, Err(error));
        }
        // Kept here too, so that a failed restore can be tried again.
        let ends = match self.ends.as_ref().map(clone_ends).transpose() {
            Ok(ends) => ends,
            Err(error) => {
                self.state.end(false);
                return answer(reply, Err(error));
            }
        };
        let hold = self.context.shared.reaper.hold();
        self.beside(
            move |context| match ends {
                Some(ends) => Ok(Some((restore::run(context, ends)?, hold))),
                None => match context.shared.engine.start(&context.target()) {
                    Ok(()) => Ok(None),
                    Err(error) => {
                        // A failed poststart hook ends a container that runs already.
                        if let Err(error) = context.cgroups.kill(KILL_LIMIT) {
                            tracing::error!(%error, "a container that failed to start stays");
                        }
                        Err(from_engine(error))
                    }
                },
            },
            |result| Done::Started { result, reply },
        );
    }

    fn switch(&mut self, op: Op, for_client: Option<Why>, reply: Reply<()>) {
        if let Err(error) = self.begin(op) {
            return answer(reply, Err(error));
        }
        self.beside(
            move |context| {
                let cgroups = &context.cgroups;
                if op == Op::Pause {
                    cgroups.freeze(FREEZE_LIMIT)
                } else {
                    cgroups.thaw(FREEZE_LIMIT)
                }
                .map_err(internal)?;
                if let Some(Why::Limit(limit)) = for_client {
                    failures::keep_late_client(context, limit);
                }
                Ok(())
            },
            move |result| Done::Switched {
                for_client,
                result,
                reply,
            },
        );
    }

    fn resume(&mut self, reply: Reply<()>) {
        if self.state.phase() == Phase::Running
            && let Some(late) = self.pauses.told_late(Instant::now())
        {
            let text = format!("cannot resume a running container: {late}");
            return answer(reply, Err(TaskError::FailedPrecondition(text)));
        }
        self.switch(Op::Resume, None, reply);
    }

    /// Does for the client of a checkpoint what it cannot any more.
    fn resume_for_client(&mut self, why: Why) {
        if self.state.phase() == Phase::Paused {
            tracing::warn!(id = self.context.id(), "resuming a paused container: {why}");
            self.switch(Op::Resume, Some(why), exec::unheard());
        }
    }

    /// Resumes in a client's place when it is due.
    fn resume_at(&mut self, due: Due) {
        let outbox = self.outbox.clone();
        let wait = tokio::spawn(async move {
            tokio::time::sleep_until(due.at.into()).await;
            if let Some(outbox) = outbox.upgrade() {
                let _ = outbox.send(Command::ResumeDue(due)).await;
            }
        });
        self.resume_due = Some(Timer(wait));
    }

    fn checkpoint(&mut self, request: CheckpointRequest, reply: Reply<()>) {
        let paused = self.state.phase() == Phase::Paused;
        if let Err(error) = self.begin(Op::Checkpoint) {
            return answer(reply, Err(error));
        }
        let Some(pid) = self.init.as_ref().map(|i| i.pid) else {
            self.state.end(false);
            return answer(
                reply,
                Err(TaskError::FailedPrecondition(
                    "cannot checkpoint: there is no process".to_owned(),
                )),
            );
        };
        self.pauses
            .checkpoint_begins(Instant::now(), request.deadline);
        let client_gone = request.client_gone.clone();
        self.give_up = client_gone.clone();
        self.asked = Some(Asked {
            path: request.images.clone(),
            paused: self.pauses.is_for_checkpoint(),
            reply,
        });
        // CRIU is a child for a while, and nobody's to sweep.
        let hold = self.context.shared.reaper.hold();
        let outbox = self.outbox.clone();
        self.beside(
            move |context| {
                let mut hold = Some(hold);
                let mut owned = None;
                let result = checkpoint::run(context, pid, paused, &request, |transfer, pid| {
                    // It may take long; other orphans are not to wait for it.
                    owned = Some(context.shared.reaper.own(pid));
                    hold = None;
                    if let Some(outbox) = outbox.upgrade() {
                        let _ = outbox.blocking_send(Command::Serving(transfer));
                    }
                });
                Ok((result, criu::resume_within(context)))
            },
            move |done| {
                let (result, resume_within) =
                    done.unwrap_or_else(|panicked| (Err(panicked), Some(RESUME_WITHIN)));
                let ended = Ended {
                    client_gone: client_gone.is_some_and(|client| client.is_triggered()),
                    resume_within,
                };
                Done::Checkpointed { ended, result }
            },
        );
    }

    /// Answers who asked for a checkpoint whose memory is served from now on.
    fn serving(&mut self, transfer: Arc<Transfer>) {
        let Some(asked) = self.asked.take() else {
            return;
        };
        if asked.paused || self.state.phase() == Phase::Running {
            transfer.thaw();
        }
        self.state.transfers();
        self.give_up = None;
        // Who resumed before it knew.
        if self.deferred.iter().any(is_resume) {
            transfer.give_up();
        }
        self.transfer = Some(transfer);
        let path = asked.path.to_string_lossy();
        events::checkpointed(&*self.context.shared.events, self.context.id(), &path);
        answer(asked.reply, Ok(()));
    }

    /// The memory was fetched, or the container goes on.
    fn transferred(&mut self, transfer: &Transfer, result: Result<(), TaskError>) {
        let id = self.context.id();
        self.state.end(result.is_ok());
        match result {
            Ok(()) => tracing::info!(id, "the memory of a checkpoint was fetched"),
            Err(error) => {
                tracing::error!(id, %error, "the transfer of a container's memory was given up: it goes on here, and its checkpoint is of no use");
            }
        }
        if transfer.thaws() && self.state.phase() == Phase::Paused {
            self.state.thawed();
            self.pauses.over();
            self.resume_due = None;
            events::resumed(&*self.context.shared.events, self.context.id());
            // They have what they wanted.
            let (resumes, others) = std::mem::take(&mut self.deferred)
                .into_iter()
                .partition(is_resume);
            self.deferred = others;
            for resume in resumes {
                if let Command::Resume(reply) = resume {
                    answer(reply, Ok(()));
                }
            }
        }
        self.tell_exit();
    }

    fn delete(&mut self, reply: Reply<Exit>) {
        if let Err(error) = self.begin(Op::Delete) {
            return answer(reply, Err(error));
        }
        if let Some(init) = &self.init {
            // Only a created container's still lives.
            let _ =
                process::send_signal(init.pidfd.as_fd(), rustix::process::Signal::KILL.as_raw());
        }
        let started = self.init.is_some();
        let mut exit = self.exit.subscribe();
        let stdio = std::mem::take(&mut self.stdio);
        self.ends = None;
        self.oom = None;
        let context = Arc::clone(&self.context);
        let outbox = self.outbox.clone();
        tokio::spawn(async move {
            if started {
                let _ = tokio::time::timeout(EXIT_LIMIT, exit.wait_for(Option::is_some)).await;
            }
            let removed = {
                let context = Arc::clone(&context);
                tokio::task::spawn_blocking(move || {
                    let restored = context.checkpoint.is_some();
                    let engine = context.shared.engine.as_ref();
                    let removed = context
                        .record
                        .remove_all(&context.state_dir(), engine, restored);
                    context.memory.end();
                    removed
                })
            };
            let (result, ()) = tokio::join!(removed, stdio.drain(DRAIN_LIMIT));
            let result = result.unwrap_or_else(|e| Err(internal(e)));
            if let Some(outbox) = outbox.upgrade() {
                let _ = outbox
                    .send(Command::Done(Done::Deleted { result, reply }))
                    .await;
            }
        });
    }

    fn kill(&mut self, signal: i32, all: bool) -> Result<(), TaskError> {
        let gone = || TaskError::NotFound("process already finished".to_owned());
        let Some(init) = &self.init else {
            return Err(TaskError::NotFound(
                "process does not exist: the container is not restored yet".to_owned(),
            ));
        };
        if all {
            kill::all(&self.context.cgroups, signal)?;
        } else {
            if matches!(self.state.phase(), Phase::Stopped(_)) {
                return Err(gone());
            }
            process::send_signal(init.pidfd.as_fd(), signal)
                .map_err(|e| TaskError::io(format_args!("cannot send signal {signal}"), &e))?;
        }
        if signal == rustix::process::Signal::KILL.as_raw()
            && let Some(transfer) = &self.transfer
        {
            transfer.give_up();
        }
        // A frozen v1 process would act on it only after a Resume that nobody sends.
        let frozen = self.state.phase() == Phase::Paused && self.state.busy().is_none();
        if signal == rustix::process::Signal::KILL.as_raw() && frozen {
            let context = Arc::clone(&self.context);
            // Beside the actor, as everything that waits for the kernel.
            tokio::task::spawn_blocking(move || {
                if let Err(error) = context.cgroups.thaw(FREEZE_LIMIT) {
                    tracing::error!(%error, "a killed container stays frozen");
                }
            });
            self.state.thawed();
            self.pauses.over();
        }
        Ok(())
    }

    /// containerd drops a shim that answers an empty list: a container without
    /// processes still has its first one, or 0 while that is not restored yet.
    fn pids(&self) -> Vec<Process> {
        let mut pids = self.context.cgroups.pids().unwrap_or_default();
        if pids.is_empty() {
            pids.push(self.init.as_ref().map_or(0, |i| raw(i.pid)));
        }
        pids.into_iter()
            .map(|pid| Process {
                pid,
                exec_id: self.execs.id_of(pid).map(str::to_owned),
            })
            .collect()
    }

    fn exited(&mut self, exit: Exit) {
        self.state.exited(exit);
        self.held_exit = Some(HeldExit {
            exit,
            overdue: false,
        });
        self.end_the_rest();
        if self.execs.any_alive() {
            let outbox = self.outbox.clone();
            tokio::spawn(async move {
                tokio::time::sleep(EXECS_LIMIT).await;
                if let Some(outbox) = outbox.upgrade() {
                    let _ = outbox.send(Command::TellExit).await;
                }
            });
        }
        self.tell_exit();
    }

    /// The kernel ends the other processes together with the first one only if
    /// that was the first of its pid namespace too.
    fn end_the_rest(&self) {
        if spec::namespace(&self.context.spec, LinuxNamespaceType::Pid) == spec::Namespace::New {
            return;
        }
        let context = Arc::clone(&self.context);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = context.cgroups.kill(EXIT_LIMIT) {
                tracing::warn!(%error, id = context.id(), "processes outlive the container's first");
            }
        });
    }

    /// Tells the exit that is held, unless something has to be told before.
    fn tell_exit(&mut self) {
        let Some(held) = &self.held_exit else {
            return;
        };
        if matches!(
            self.state.busy(),
            Some(Op::Start | Op::Checkpoint | Op::Transfer)
        ) || (self.execs.any_alive() && !held.overdue)
        {
            return;
        }
        let exit = held.exit;
        self.held_exit = None;
        if let Some(oom) = &self.oom {
            oom.check();
        }
        events::exit(
            &*self.context.shared.events,
            self.context.id(),
            self.context.id(),
            self.init.as_ref().map_or(0, |i| raw(i.pid)),
            exit.status,
            exit.at,
        );
        self.exit.send_replace(Some(exit));
    }

    fn done(&mut self, done: Done) -> std::ops::ControlFlow<()> {
        let sink = &*self.context.shared.events;
        match done {
            Done::Started { result, reply } => {
                let result = result.and_then(|restored| {
                    if let Some((restored, _hold)) = restored {
                        self.watch(restored.pid)?;
                        self.ends = None;
                        if let Some(master) = restored.console {
                            self.stdio
                                .attach(master)
                                .map_err(|e| TaskError::io("cannot use the terminal", &e))?;
                        }
                    }
                    self.init.as_ref().map(|i| i.pid).ok_or_else(|| {
                        TaskError::Internal("the container has no first process".to_owned())
                    })
                });
                self.state.end(result.is_ok());
                if let Ok(pid) = &result {
                    events::start(&*self.context.shared.events, self.context.id(), raw(*pid));
                    if self.oom.is_none() {
                        self.oom = oom::Watch::start(&self.context);
                    }
                }
                answer(reply, result);
                self.tell_exit();
            }
            Done::Switched {
                for_client,
                result,
                reply,
            } => {
                let pausing = self.state.busy() == Some(Op::Pause);
                let now = Instant::now();
                match (&result, for_client) {
                    (Ok(()), _) if pausing => {
                        self.pauses.begun(now);
                        events::paused(sink, self.context.id());
                    }
                    (Ok(()), _) => {
                        self.resume_due = None;
                        match for_client {
                            Some(why) => self.pauses.undone(now, why),
                            None => self.pauses.over(),
                        }
                        events::resumed(sink, self.context.id());
                    }
                    (Err(error), Some(why)) => {
                        tracing::error!(id = self.context.id(), %error, "cannot resume in a client's place");
                        self.resume_at(self.pauses.again(now, why));
                    }
                    (Err(_), None) => {}
                }
                self.state.end(result.is_ok());
                answer(reply, result);
            }
            Done::Checkpointed { ended, result } => {
                if let Some(transfer) = self.transfer.take() {
                    self.transferred(&transfer, result);
                    return std::ops::ControlFlow::Continue(());
                }
                let Some(Asked { path, reply, .. }) = self.asked.take() else {
                    return std::ops::ControlFlow::Continue(());
                };
                if result.is_ok() {
                    events::checkpointed(sink, self.context.id(), &path.to_string_lossy());
                }
                self.state.end(result.is_ok());
                // It holds a descriptor.
                self.give_up = None;
                answer(reply, result);
                self.tell_exit();
                if self.state.phase() == Phase::Paused
                    && let Some(due) = self.pauses.checkpoint_ended(Instant::now(), ended)
                {
                    self.resume_at(due);
                }
            }
            Done::Deleted { result, reply } => {
                self.state.end(result.is_ok());
                match result {
                    Err(error) => answer(reply, Err(error)),
                    Ok(()) => {
                        let exit = match self.state.phase() {
                            Phase::Stopped(exit) => exit,
                            _ => Exit {
                                status: 0,
                                at: std::time::SystemTime::now(),
                            },
                        };
                        let pid = self.init.as_ref().map_or(0, |i| raw(i.pid));
                        events::delete(
                            sink,
                            self.context.id(),
                            self.context.id(),
                            pid,
                            exit.status,
                            exit.at,
                        );
                        answer(reply, Ok(exit));
                        return std::ops::ControlFlow::Break(());
                    }
                }
            }
        }
        std::ops::ControlFlow::Continue(())
    }
}

/// A task that ends with this.
#[derive(Debug)]
struct Timer(tokio::task::JoinHandle<()>);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn is_resume(command: &Command) -> bool {
    matches!(command, Command::Resume(_))
}

fn clone_ends(ends: &ContainerEnds) -> Result<ContainerEnds, TaskError> {
    let mut copy = [const { None }; 3];
    for (copy, end) in copy.iter_mut().zip(ends) {
        *copy = end
            .as_ref()
            .map(OwnedFd::try_clone)
            .transpose()
            .map_err(|e| TaskError::io("cannot pass the container its streams", &e))?;
    }
    Ok(copy)
}
