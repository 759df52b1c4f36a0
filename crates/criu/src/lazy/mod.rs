//! Lazy restore: the tasks run at once, and their memory comes when it is touched.
//!
//! CRIU restores all but the private memory that its images mark as lazy, and hands over a
//! userfaultfd of each task. Three hold what belongs together:
//!
//! ```text
//! criu ── lazy-pages.socket ──► shim ── orders ──► server     one process per lazy restore
//!                               │  ◄── reports ──    │
//!                   copies of all userfaultfds   userfaultfds, open images
//! ```
//!
//! The **server** ([`run`], a mode of the shim's executable) answers faults, and fills all the rest
//! beside that, from when the restore is done ([`wire::Order::End`]). It has one
//! thread and no names of files: what it reads was checked and opened by the shim.
//!
//! The **shim** holds a copy of each userfaultfd: should the server end before all is filled, the
//! kernel would take the closing of the last one for "the rest is zeros". So it kills the container
//! first. A forked child's comes by way of the server; between the server's reading of the fork and
//! its next system call nobody else has it. When the shim ends, the server goes on to the end.

mod pending;
pub mod relay;
mod server;
mod source;
pub mod wire;

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use cryo_sys::inherited;
use cryo_sys::scm;
use cryo_sys::spawn::{Child, Group, Spawn, SpawnError};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use wire::{Order, Report};

/// The argument that makes the executable a memory server.
pub const ARG: &str = "memory";

/// The numbers of its sockets.
const ORDERS_FD: i32 = 3;
const REPORTS_FD: i32 = 4;

/// A running server, as its shim sees it.
#[derive(Debug)]
pub struct Server {
    orders: OwnedFd,
    reports: OwnedFd,
}

/// A server that was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotStarted {
    /// No sockets.
    #[error("cannot make the memory server's sockets")]
    Sockets(#[source] io::Error),
    /// No process.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
}

/// Starts `program` as a memory server, in a session of its own. It ends with the value that stands
/// for its process, unless that is released.
///
/// # Errors
///
/// [`NotStarted`].
pub fn start(program: &Path) -> Result<(Child, Server), NotStarted> {
    let (orders, their_orders) = scm::pair().map_err(NotStarted::Sockets)?;
    let (reports, their_reports) = scm::pair().map_err(NotStarted::Sockets)?;
    let child = Spawn::new(program)
        .arg(ARG)
        .group(Group::Session)
        .fd(their_orders, ORDERS_FD)
        .fd(their_reports, REPORTS_FD)
        .spawn()?;
    Ok((child, Server { orders, reports }))
}

/// The life of a server; its sockets were inherited.
///
/// # Errors
///
/// Why it could not go on; the shim was told.
pub fn run() -> Result<(), Box<dyn std::error::Error>> {
    let orders = inherited::take(ORDERS_FD)?;
    let reports = inherited::take(REPORTS_FD)?;
    // It would be called as what it was executed by.
    rustix::thread::set_name(c"cryo-memory")?;
    rustix::process::chdir("/")?;
    // Two images and a userfaultfd for each process.
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised)?;
    Ok(server::Server::new(orders, reports).run()?)
}

impl Server {
    /// Tells it something.
    ///
    /// # Errors
    ///
    /// `BrokenPipe` when it is gone, else what the socket says.
    pub fn order(&self, order: &Order) -> io::Result<()> {
        order.send(self.orders.as_fd())
    }

    /// Waits for what it has to say; `None` is its end.
    ///
    /// # Errors
    ///
    /// What the socket says.
    pub fn report(&self) -> io::Result<Option<Report>> {
        Report::receive(self.reports.as_fd())
    }
}
