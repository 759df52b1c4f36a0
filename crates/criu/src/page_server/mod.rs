//! Serves the memory that a lazy dump has left with its tasks, in CRIU's protocol.
//!
//! `criu lazy-pages --page-server --address A --port P` is a client. **It is not asked who it is,
//! and nothing is encrypted**: whoever reaches the address reads the memory of the container.
//! Its requests are taken for hostile. It ends the transfer only by saying so after it has had
//! every page on this very connection. One that breaks, or is closed before, is no end: what was
//! sent may have been lost with it, and the next one starts anew.

mod left;
mod tasks;
mod wire;

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use cryo_sys::scm::{self, Ready};
use rustix::event::{PollFd, PollFlags, poll};

use crate::swrk::Abort;
use wire::Request;

pub use left::Left;
pub use tasks::Tasks;

/// The most clients at a time; each has a thread. One is the rule.
const MAX_CLIENTS: usize = 16;
/// The most memory that one answer brings.
const MAX_ANSWER: u64 = 4 << 20;

/// A server that listens.
#[derive(Debug)]
pub struct Server(TcpListener);

/// Why a server has stopped serving.
#[derive(Debug)]
pub enum Stopped {
    /// A client had every page, and said so.
    Complete,
    /// The time is over.
    TimedOut,
    /// The wake of this index was readable.
    Woken(usize),
    /// The memory cannot be read, or nobody can be listened to, any more.
    Failed(io::Error),
}

impl Server {
    /// Listens at an address.
    ///
    /// # Errors
    ///
    /// What the system says, as of an address that this node has not, or that is in use.
    pub fn bind(at: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(at)?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Serves memory until a client had all of it, until `deadline`, or until one of `wakes` can
    /// be read. Blocks; no client is served any more afterwards.
    #[must_use]
    pub fn serve(
        &self,
        tasks: &Tasks,
        left: &Left,
        wakes: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Stopped {
        match Shared::new(tasks, left) {
            Ok(shared) => thread::scope(|scope| {
                let stopped = self.accept(scope, &shared, wakes, deadline);
                shared.stop.trigger();
                stopped
            }),
            Err(error) => Stopped::Failed(error),
        }
    }

    fn accept<'scope, 'env>(
        &'env self,
        scope: &'scope thread::Scope<'scope, 'env>,
        shared: &'env Shared<'env>,
        wakes: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Stopped {
        let all: Vec<_> = std::iter::once(shared.stop.as_fd())
            .chain(wakes.iter().copied())
            .collect();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match scm::wait_readable(self.0.as_fd(), &all, Some(left)) {
                Ok(Ready::Message) => {}
                Ok(Ready::Woken(0)) => return shared.outcome(),
                Ok(Ready::Woken(n)) => return Stopped::Woken(n - 1),
                Ok(Ready::TimedOut) => return Stopped::TimedOut,
                Err(error) => return Stopped::Failed(error),
            }
            let (stream, peer) = match self.0.accept() {
                Ok(accepted) => accepted,
                // It is gone again, or there is no descriptor for it just now.
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection that asks for memory");
                    thread::sleep(std::time::Duration::from_millis(10));
                    continue;
                }
            };
            if shared.clients.fetch_add(1, Ordering::Relaxed) >= MAX_CLIENTS {
                shared.clients.fetch_sub(1, Ordering::Relaxed);
                tracing::warn!(%peer, "too many connections ask for memory: refusing one");
                continue;
            }
            let serve = move || {
                match shared.client(&stream) {
                    Ok(()) => tracing::info!(%peer, "a client of a container's memory is gone"),
                    Err(error) => {
                        tracing::warn!(%peer, %error, "a client of a container's memory is dropped");
                    }
                }
                shared.clients.fetch_sub(1, Ordering::Relaxed);
            };
            tracing::info!(%peer, "a client asks for a container's memory");
            if let Err(error) = thread::Builder::new().spawn_scoped(scope, serve) {
                shared.clients.fetch_sub(1, Ordering::Relaxed);
                tracing::warn!(%error, "no thread for a client that asks for memory");
            }
        }
    }
}

/// What the clients' threads have in common.
#[derive(Debug)]
struct Shared<'a> {
    tasks: &'a Tasks,
    left: &'a Left,
    clients: AtomicUsize,
    /// Ends all of them.
    stop: Abort,
    /// Why one of them has triggered it; complete, if there is nothing.
    failed: Mutex<Option<io::Error>>,
}

impl<'a> Shared<'a> {
    fn new(tasks: &'a Tasks, left: &'a Left) -> io::Result<Self> {
        Ok(Self {
            tasks,
            left,
            clients: AtomicUsize::new(0),
            stop: Abort::new()?,
            failed: Mutex::new(None),
        })
    }

    fn outcome(&self) -> Stopped {
        let failed = self.failed.lock();
        match failed.unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Stopped::Failed(error),
            None => Stopped::Complete,
        }
    }

    /// Answers one client until it goes or all ends.
    fn client(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let page_bytes = rustix::param::page_size() as u64;
        let mut left = self.left.clone();
        let mut answer = Vec::new();
        let mut head = [0; wire::HEAD];
        while self.receive(stream, &mut head)? {
            match Request::parse(&head) {
                Request::Get {
                    process,
                    address,
                    pages,
                } => {
                    let asked = pages.saturating_mul(page_bytes).min(MAX_ANSWER);
                    let bytes = left.at(process, address, asked);
                    if bytes == 0 || !address.is_multiple_of(page_bytes) {
                        return Err(strange("it asks for memory that is not served"));
                    }
                    answer.clear();
                    answer.extend(wire::answer(process, address, bytes / page_bytes));
                    answer.resize(wire::HEAD + bytes as usize, 0);
                    if let Some((_, memory)) = answer.split_at_mut_checked(wire::HEAD) {
                        let read = self.tasks.read(process, address, memory);
                        read.map_err(|e| self.fail(e))?;
                    }
                    self.send(stream, &answer)?;
                    left.fetched(process, address, bytes);
                }
                Request::Close => {
                    let missing = left.missing();
                    self.send(stream, &wire::closed(missing == 0))?;
                    if missing == 0 {
                        self.stop.trigger();
                    } else {
                        tracing::warn!(
                            missing,
                            "a client of a container's memory has closed before it had all bytes"
                        );
                    }
                    return Ok(());
                }
                Request::Other(command) => {
                    return Err(strange(&format!("it sends the command {command}")));
                }
            }
        }
        Ok(())
    }

    /// Ends all, since the memory is not to be had: what was fetched is of no use without it.
    fn fail(&self, error: io::Error) -> io::Error {
        let copy = io::Error::new(error.kind(), error.to_string());
        let failed = self.failed.lock();
        *failed.unwrap_or_else(PoisonError::into_inner) = Some(error);
        self.stop.trigger();
        copy
    }

    /// Takes a whole request; `false` at the end, that of the connection or of all.
    fn receive(&self, mut stream: &TcpStream, head: &mut [u8]) -> io::Result<bool> {
        let mut got = 0;
        while let Some(rest) = head.get_mut(got..).filter(|rest| !rest.is_empty()) {
            if !self.wait(stream, PollFlags::IN)? {
                return Ok(false);
            }
            match stream.read(rest) {
                Ok(0) if got == 0 => return Ok(false),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => got += n,
                Err(e) if retried(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    fn send(&self, mut stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if !self.wait(stream, PollFlags::OUT)? {
                return Err(strange("it takes too long"));
            }
            match stream.write(bytes) {
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(e) if retried(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Waits for the connection; `false` when all ends.
    fn wait(&self, stream: &TcpStream, what: PollFlags) -> io::Result<bool> {
        let mut fds = [
            PollFd::from_borrowed_fd(stream.as_fd(), what),
            PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN),
        ];
        loop {
            match poll(&mut fds, None) {
                Ok(_) => return Ok(fds.last().is_some_and(|stop| stop.revents().is_empty())),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

fn strange(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn retried(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
    )
}

#[cfg(test)]
mod tests;
