//! The memory of a container that was restored with `lazy-pages`: the shim's side.
//!
//! A server ([`cryo_criu::lazy`]) fills it while the container runs. Here are copies of all
//! userfaultfds, so that the end of the server does not turn what is missing into zeros: first the
//! container is killed, until nothing of it is left, then they are closed.
//!
//! Two threads for one restore: one hears CRIU and tells the server, until CRIU has said all; one
//! hears the server, until it has ended.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cryo_checkpoint::image_dir::{ImageDir, LazyMemory};
use cryo_criu::Abort;
use cryo_criu::lazy::relay::{Listener, Sent};
use cryo_criu::lazy::wire::{Order, Report};
use cryo_criu::lazy::{self, Server};
use cryo_engine::cgroup::Cgroups;
use cryo_sys::process;
use cryo_sys::uffd::Uffd;
use rustix::process::Signal;
use tokio::sync::oneshot;

use super::container::raw;
use super::context::{Context, KILL_LIMIT, internal};
use super::dump::MemoryState;
use super::failures;
use super::state::Exit;
use crate::rpc::{TaskError, with_causes};

/// How long a checkpoint without a deadline waits for the memory.
const FILL_LIMIT: Duration = Duration::from_secs(600);
/// So much before its deadline a client hears that it waits in vain.
const ANSWER_TIME: Duration = Duration::from_millis(500);
/// How long what CRIU has said may take to be heard.
const RELAY_LIMIT: Duration = Duration::from_secs(10);
/// How often whoever waits looks whether it still has to.
const LOOK: Duration = Duration::from_millis(50);
/// How long a server that is killed may take, and then its container.
const END_LIMIT: Duration = Duration::from_secs(20);

/// The memory of one lazy restore.
#[derive(Debug)]
pub(super) struct Memory {
    server: Server,
    pid: rustix::process::Pid,
    pidfd: Arc<OwnedFd>,
    /// Nothing more is to be heard.
    stop: Abort,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// By what they are called.
    held: HashMap<u64, Uffd>,
    left_bytes: u64,
    all_bytes: u64,
    phase: Phase,
    /// CRIU has handed over all tasks.
    all_came: bool,
    /// CRIU may still make tasks.
    restoring: bool,
    /// Nobody wants it any more: its end is no failure.
    unwanted: bool,
    /// Both threads have done what they had to.
    ended: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Filling,
    Filled,
    /// The container was killed, or is about to be.
    Failed(String),
}

/// Where a container keeps its memory, should it have been restored lazily.
#[derive(Debug, Default)]
pub struct Slot(Mutex<Option<Arc<Memory>>>);

impl Slot {
    pub(super) fn get(&self) -> Option<Arc<Memory>> {
        lock(&self.0).clone()
    }

    /// Ends it, once nothing of the container runs any more. Blocks.
    pub(super) fn end(&self) {
        if let Some(memory) = lock(&self.0).take() {
            memory.end();
        }
    }
}

/// Whose memory it is.
struct Guarded {
    cgroups: Cgroups,
    namespace: String,
    id: String,
}

/// Ends what a failed restore has begun.
#[derive(Debug)]
pub(super) struct Restoring<'a>(Option<&'a Context>);

impl Restoring<'_> {
    /// The restore worked. From now on all is filled, not only what is touched: while CRIU and
    /// the hooks were at work, that would have taken their time.
    ///
    /// # Errors
    ///
    /// When CRIU has not handed over all tasks, or the server is gone.
    pub(super) fn done(mut self) -> Result<(), TaskError> {
        if let Some(memory) = self.0.and_then(|context| context.memory.get()) {
            memory.all_came()?;
            if let Some(failure) = self.failure() {
                return Err(failure);
            }
            let told = memory.server.order(&Order::End);
            told.map_err(|e| TaskError::io("cannot tell the memory server to go on", &e))?;
            memory.change(|state| state.restoring = false);
        }
        self.0 = None;
        Ok(())
    }

    /// Why memory cannot be filled.
    pub(super) fn failure(&self) -> Option<TaskError> {
        match &self.0?.memory.get()?.state().phase {
            Phase::Failed(reason) => Some(TaskError::Internal(format!(
                "the memory cannot be filled after the restore: {reason}"
            ))),
            _ => None,
        }
    }
}

impl Drop for Restoring<'_> {
    fn drop(&mut self) {
        if let Some(context) = self.0 {
            context.memory.end();
        }
    }
}

/// Gets all ready for CRIU to restore these images lazily. Put what comes back where it is dropped
/// after the container's processes are killed.
///
/// # Errors
///
/// FailedPrecondition for images whose memory cannot be filled in, else the cause.
pub(super) fn start<'a>(
    context: &'a Context,
    images: &ImageDir,
) -> Result<Restoring<'a>, TaskError> {
    let memory = images
        .lazy_memory()
        .map_err(|e| TaskError::FailedPrecondition(format!("{}: {}", with_causes(&e), e.hint())))?;
    let (child, server) = lazy::start(Path::new("/proc/self/exe")).map_err(internal)?;
    let pid = child.pid();
    let watched = context.shared.reaper.watch(pid);
    let (pidfd, exited) =
        watched.map_err(|e| TaskError::io("cannot watch the memory server", &e))?;
    child.release();
    let memory_server = Arc::new(Memory {
        server,
        pid,
        pidfd,
        stop: Abort::new().map_err(|e| TaskError::io("cannot make an eventfd", &e))?,
        state: Mutex::new(State {
            held: HashMap::new(),
            left_bytes: 0,
            all_bytes: 0,
            phase: Phase::Filling,
            all_came: false,
            restoring: true,
            unwanted: false,
            ended: false,
        }),
        changed: Condvar::new(),
    });
    let guarded = Guarded {
        cgroups: context.cgroups.clone(),
        namespace: context.shared.namespace.clone(),
        id: context.id().to_owned(),
    };
    let watcher = Arc::clone(&memory_server);
    spawn("memory-watch", move || watcher.watch(&guarded, exited))?;
    *lock(&context.memory.0) = Some(Arc::clone(&memory_server));
    let restoring = Restoring(Some(context));
    for LazyMemory {
        pid,
        pagemap,
        pages,
    } in memory
    {
        let order = Order::Images {
            process: pid,
            pagemap: pagemap.into(),
            pages: pages.map(Into::into),
        };
        let told = memory_server.server.order(&order);
        told.map_err(|e| TaskError::io("cannot tell the memory server of the images", &e))?;
    }
    Ok(restoring)
}

impl Restoring<'_> {
    /// Listens for CRIU in its work directory.
    ///
    /// # Errors
    ///
    /// When there can be no socket or thread.
    pub(super) fn listen(&self, images: &ImageDir, work: &Path) -> Result<(), TaskError> {
        let Some(memory) = self.0.and_then(|context| context.memory.get()) else {
            return Ok(());
        };
        let listener = std::fs::File::open(work)
            .and_then(|dir| Listener::new(dir.as_fd()))
            .map_err(|e| TaskError::io("cannot listen for criu's tasks", &e))?;
        let processes: HashSet<u32> = images.tree().processes().iter().map(|p| p.pid).collect();
        spawn("memory-relay", move || {
            if let Err(error) = memory.relay(&listener, &processes) {
                memory.give_up(format!("cannot take over criu's tasks: {error}"));
            }
        })
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), TaskError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map(drop)
        .map_err(|e| TaskError::io("cannot start a thread", &e))
}

impl Memory {
    /// How far it is.
    pub(super) fn describe(&self) -> MemoryState {
        let state = self.state();
        MemoryState {
            phase: match &state.phase {
                Phase::Filling => "filling".to_owned(),
                Phase::Filled => "filled".to_owned(),
                Phase::Failed(reason) => format!("failed: {reason}"),
            },
            server: (!state.ended).then(|| raw(self.pid)),
            left_bytes: state.left_bytes,
            all_bytes: state.all_bytes,
            held: state.held.len(),
        }
    }

    /// Waits until all is there. Blocks.
    ///
    /// # Errors
    ///
    /// Unavailable, with how much is missing, when it is not there in time; Aborted when nobody
    /// waits any more; FailedPrecondition when it never will be.
    pub(super) fn wait(
        &self,
        deadline: Option<Instant>,
        client_gone: Option<&Abort>,
    ) -> Result<(), TaskError> {
        let deadline = match deadline {
            Some(deadline) => deadline.checked_sub(ANSWER_TIME).unwrap_or(deadline),
            None => Instant::now() + FILL_LIMIT,
        };
        let mut state = self.state();
        loop {
            match &state.phase {
                Phase::Filled => return Ok(()),
                Phase::Failed(reason) => {
                    return Err(TaskError::FailedPrecondition(format!(
                        "cannot checkpoint: the container is ended, its memory could not be filled: {reason}"
                    )));
                }
                Phase::Filling => {}
            }
            if client_gone.is_some_and(Abort::is_triggered) {
                return Err(TaskError::Aborted(
                    "the checkpoint was given up while the container's memory was being filled"
                        .to_owned(),
                ));
            }
            if Instant::now() >= deadline {
                return Err(TaskError::Unavailable(format!(
                    "cannot checkpoint yet: {} of {} bytes of memory are still to come from the checkpoint that the container was restored from with lazy-pages: try again later, or give the request more time",
                    state.left_bytes, state.all_bytes
                )));
            }
            let waited = self.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until CRIU's last word was heard, which it has said by now.
    fn all_came(&self) -> Result<(), TaskError> {
        let until = Instant::now() + RELAY_LIMIT;
        let mut state = self.state();
        while !state.all_came && state.phase == Phase::Filling {
            if Instant::now() >= until {
                return Err(TaskError::Internal(
                    "criu did not hand over the memory of all tasks".to_owned(),
                ));
            }
            let waited = self.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Hears CRIU, until it has said all.
    fn relay(&self, listener: &Listener, processes: &HashSet<u32>) -> io::Result<()> {
        let Some(mut criu) = listener.accept(&self.stop)? else {
            return Ok(());
        };
        while let Some(sent) = criu.next(&self.stop)? {
            match sent {
                Sent::Task(process, uffd) => {
                    if !processes.contains(&process) {
                        return Err(io::Error::other(format!(
                            "it sent the memory of process {process}, which is not in the checkpoint"
                        )));
                    }
                    let id = process.into();
                    let ours = uffd.try_clone()?;
                    self.change(|state| state.held.insert(id, ours));
                    self.server.order(&Order::Task { process, id, uffd })?;
                }
                Sent::Zombie => {}
                Sent::Finished => {
                    self.change(|state| state.all_came = true);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Hears the server until it has ended, and kills the container if that was too early.
    fn watch(&self, guarded: &Guarded, exited: oneshot::Receiver<Exit>) {
        let heard = self.hear();
        if heard.is_err() {
            self.kill_server();
        }
        let status = exited.blocking_recv().map(|exit| exit.status);
        self.stop.trigger();
        let Err(reason) = heard else {
            self.change(|state| {
                state.held.clear();
                state.left_bytes = 0;
                state.phase = Phase::Filled;
                state.ended = true;
            });
            return tracing::debug!(id = guarded.id, "all memory is there");
        };
        self.change(|state| {
            if state.phase == Phase::Filling {
                state.phase = Phase::Failed(reason.unwrap_or_else(|| {
                    format!(
                        "the memory server ended with status {} before it was done",
                        status.map_or_else(|_| "unknown".to_owned(), |s| s.to_string())
                    )
                }));
            }
        });
        self.tell_failure(guarded);
        self.kill_container(guarded);
        self.change(|state| {
            state.held.clear();
            state.ended = true;
        });
    }

    /// Hears the server.
    ///
    /// # Errors
    ///
    /// It has not filled everything; the reason, if there is one beside its end.
    fn hear(&self) -> Result<(), Option<String>> {
        loop {
            match self.server.report() {
                Ok(Some(Report::Forked { id, uffd })) => {
                    self.change(|state| state.held.insert(id, uffd));
                }
                Ok(Some(Report::Gone { id })) => {
                    self.change(|state| state.held.remove(&id));
                }
                Ok(Some(Report::Left { bytes, all })) => self.change(|state| {
                    state.left_bytes = bytes;
                    state.all_bytes = all;
                }),
                Ok(Some(Report::Filled)) => return Ok(()),
                Ok(Some(Report::Failed(reason))) => return Err(Some(reason)),
                Ok(None) => return Err(None),
                Err(error) => {
                    return Err(Some(format!(
                        "the memory server is not understood: {error}"
                    )));
                }
            }
        }
    }

    fn tell_failure(&self, guarded: &Guarded) {
        let state = self.state();
        let Phase::Failed(reason) = &state.phase else {
            return;
        };
        if state.unwanted {
            return;
        }
        let text = format!(
            "the container is killed: {} of {} bytes of its memory could not be filled after the restore: {reason}",
            state.left_bytes, state.all_bytes
        );
        drop(state);
        tracing::error!(id = guarded.id, "{text}");
        let record = failures::record("memory", &guarded.namespace, &guarded.id, None, &text);
        failures::keep(Path::new(failures::DIR), &record, None);
    }

    /// Whatever is left would take what is missing for zeros, so this has no limit: until then the
    /// copies stay open, and who touches what is missing waits.
    fn kill_container(&self, guarded: &Guarded) {
        loop {
            let killed = guarded.cgroups.kill(KILL_LIMIT);
            match killed {
                Ok(()) if !self.state().restoring => return,
                Ok(()) => {}
                Err(error) => {
                    tracing::error!(%error, id = guarded.id, "a container without memory does not end");
                }
            }
            std::thread::sleep(LOOK);
        }
    }

    fn give_up(&self, reason: String) {
        self.change(|state| {
            if state.phase == Phase::Filling && !state.unwanted {
                state.phase = Phase::Failed(reason);
            }
        });
        self.kill_server();
    }

    fn kill_server(&self) {
        let _ = process::send_signal(self.pidfd.as_fd(), Signal::KILL.as_raw());
    }

    /// Ends the server. What it was for is gone, or is killed now. Blocks.
    fn end(&self) {
        self.change(|state| {
            state.unwanted = true;
            state.restoring = false;
        });
        self.stop.trigger();
        self.kill_server();
        let until = Instant::now() + END_LIMIT;
        let mut state = self.state();
        while !state.ended {
            if Instant::now() >= until {
                return tracing::error!("a memory server does not end");
            }
            let waited = self.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) {
        change(&mut self.state());
        self.changed.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
