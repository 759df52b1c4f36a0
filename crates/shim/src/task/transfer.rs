//! The memory of a checkpoint with `lazy-pages`: it stays with the stopped processes until
//! somebody has fetched it, after the Checkpoint was answered.
//!
//! Only a client that had every page, and says so, ends the container here. Whatever else ends the
//! transfer (its time, a Resume, the end of CRIU, memory that cannot be read) lets the container
//! go on, as no other one can have all of its memory.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cryo_criu::options::Checkpoint as Options;
use cryo_criu::page_server::{Left, Server, Stopped, Tasks};
use cryo_criu::{Abort, Serving};
use cryo_sys::process;
use rustix::process::Pid;

use super::context::{Context, KILL_LIMIT, internal};
use super::criu::from_criu;
use crate::rpc::TaskError;

/// How a transfer under way is told to end.
#[derive(Debug)]
pub(super) struct Transfer {
    stop: Abort,
    /// What was paused before is not to be so afterwards.
    thaw: AtomicBool,
}

impl Transfer {
    pub(super) fn new() -> Result<Self, TaskError> {
        Ok(Self {
            stop: Abort::new().map_err(|e| TaskError::io("cannot make a descriptor", &e))?,
            thaw: AtomicBool::new(false),
        })
    }

    /// Gives it up: the container goes on.
    pub(super) fn give_up(&self) {
        self.thaw();
        self.stop.trigger();
    }

    /// The container goes on if it is given up, even if it was paused before.
    pub(super) fn thaw(&self) {
        self.thaw.store(true, Ordering::Relaxed);
    }

    pub(super) fn thaws(&self) -> bool {
        self.thaw.load(Ordering::Relaxed)
    }
}

/// Where the memory is to be served, if it is; nobody is let in yet.
///
/// # Errors
///
/// InvalidArgument for what cannot be asked for together, FailedPrecondition when it cannot
/// listen there.
pub(super) fn listen(options: &Options, exit: bool) -> Result<Option<Server>, TaskError> {
    if !options.lazy_pages {
        return Ok(None);
    }
    let at = check(options, exit).map_err(|why| {
        TaskError::InvalidArgument(format!("cannot checkpoint with lazy-pages: {why}"))
    })?;
    Server::bind(at).map(Some).map_err(|error| {
        TaskError::FailedPrecondition(format!(
            "cannot serve memory at {at}: {error}; name another address of this node with page-server"
        ))
    })
}

/// The address, unless something goes against it.
fn check(options: &Options, exit: bool) -> Result<SocketAddr, &'static str> {
    if !exit {
        return Err(
            "the container ends when its memory was fetched, so ask with exit, or without lazy-pages",
        );
    }
    if options.pre_dump || options.parent_path.is_some() {
        return Err("pre-dump and parent-path take memory at once: leave one or the other out");
    }
    // CRIU takes neither back once the images are done, and the container could have to go on.
    if options.tcp_established && !options.tcp_close {
        return Err(
            "connections that are kept could not be let go on here if it is given up: use tcp-close",
        );
    }
    if options.link_remap {
        return Err("the names that link-remap makes would stay if it is given up: leave it out");
    }
    match options.page_server {
        Some(at) if at.port() != 0 => Ok(at),
        Some(_) => Err("page-server has the port 0, which nobody could ask at: choose one"),
        None => Err(
            "say with page-server at which address and port of this node the memory is to be served",
        ),
    }
}

/// Opens the memory of the dumped processes, as the images speak of it.
pub(super) fn open(
    context: &Context,
    images: &std::path::Path,
) -> Result<(Tasks, Left), TaskError> {
    let pids = context.cgroups.pids().map_err(internal)?;
    Tasks::open(images, &pids)
        .map_err(|e| TaskError::io("cannot serve the memory of the container", &e))
}

/// Serves the memory until all was fetched, and then ends the container. Blocks.
///
/// # Errors
///
/// Why it was given up. Then the processes are as before the dump.
pub(super) fn serve(
    context: &Context,
    init: Pid,
    serving: Serving,
    server: Server,
    memory: &(Tasks, Left),
    transfer: &Transfer,
    limit: Duration,
) -> Result<(), TaskError> {
    let (tasks, left) = memory;
    let stopped = match process::pidfd_open(init) {
        Ok(init) => {
            let wakes = [serving.criu(), init.as_fd(), transfer.stop.as_fd()];
            server.serve(tasks, left, &wakes, Instant::now() + limit)
        }
        Err(error) => Stopped::Failed(error),
    };
    drop(server);
    let why = match stopped {
        Stopped::Complete => {
            if let Err(error) = serving.end() {
                // It is elsewhere now, and must not be here too.
                tracing::warn!(%error, id = context.id(), "criu has not ended the container: killing it");
                context.cgroups.kill(KILL_LIMIT).map_err(internal)?;
            }
            return Ok(());
        }
        Stopped::TimedOut => TaskError::DeadlineExceeded(format!(
            "nobody has fetched all of the memory within {} s: allow more with serve-timeout",
            limit.as_secs()
        )),
        Stopped::Woken(0) => TaskError::Internal("criu has ended".to_owned()),
        Stopped::Woken(1) => TaskError::Aborted("the container has ended".to_owned()),
        Stopped::Woken(_) => TaskError::Canceled("a Resume or a Kill has given it up".to_owned()),
        Stopped::Failed(error) => TaskError::io("the memory cannot be served", &error),
    };
    match serving.undo() {
        Ok(()) => Err(why),
        Err(error) => Err(why.with_note(&from_criu(error).to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options {
            lazy_pages: true,
            page_server: Some("127.0.0.1:9".parse().unwrap()),
            ..Options::default()
        }
    }

    #[test]
    fn what_does_not_go_together_is_refused_by_name() {
        assert_eq!(check(&options(), true), Ok(options().page_server.unwrap()));
        let refused = |exit, options: Options| check(&options, exit).unwrap_err();
        assert!(refused(false, options()).contains("exit"));
        let without = |change: fn(&mut Options)| {
            let mut options = options();
            change(&mut options);
            refused(true, options)
        };
        assert!(without(|o| o.page_server = None).contains("page-server"));
        assert!(without(|o| o.page_server = Some("[::]:0".parse().unwrap())).contains("port 0"));
        assert!(without(|o| o.pre_dump = true).contains("pre-dump"));
        assert!(without(|o| o.parent_path = Some("../1".into())).contains("parent-path"));
        assert!(without(|o| o.tcp_established = true).contains("tcp-close"));
        assert!(without(|o| o.link_remap = true).contains("link-remap"));
        let closed = Options {
            tcp_established: true,
            tcp_close: true,
            ..options()
        };
        assert!(check(&closed, true).is_ok());
    }

    #[test]
    fn an_address_that_is_not_ours_is_told() {
        let nowhere = Options {
            // TEST-NET-1
            page_server: Some("192.0.2.1:9876".parse().unwrap()),
            ..options()
        };
        let error = listen(&nowhere, true).unwrap_err();
        assert!(matches!(error, TaskError::FailedPrecondition(_)), "{error}");
        assert!(error.to_string().contains("192.0.2.1:9876"), "{error}");
        assert!(listen(&Options::default(), false).unwrap().is_none());
    }
}
