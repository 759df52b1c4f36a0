//! Receives a container's terminal as the OCI runtimes pass it: over a unix
//! socket that the container's first process connects to.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cryo_sys::scm::{self, Ready};
use rustix::fs::Uid;
use rustix::pty::OpenptFlags;

/// It was sent before the container was made, so it is there.
const LIMIT: Duration = Duration::from_secs(10);

/// A socket that waits for one terminal.
#[derive(Debug)]
pub(crate) struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    /// Listens in a folder that nobody else uses. Changes the process's
    /// working directory, as the folder's path may be too long for a socket's.
    pub(crate) fn listen(dir: &Path) -> io::Result<Self> {
        let name = "console.sock";
        std::env::set_current_dir(dir)?;
        match std::fs::remove_file(name) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        Ok(Self {
            listener: UnixListener::bind(name)?,
            path: dir.join(name),
        })
    }

    /// Where it listens.
    pub(crate) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// The terminal's master.
    pub(crate) fn receive(self) -> io::Result<OwnedFd> {
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        if scm::wait_readable(self.listener.as_fd(), &[], Some(LIMIT))? != Ready::Message {
            return Err(late());
        }
        let (stream, _) = self.listener.accept()?;
        if scm::wait_readable(stream.as_fd(), &[], Some(LIMIT))? != Ready::Message {
            return Err(late());
        }
        scm::recv_stream(stream.as_fd())?
            .into_iter()
            .next()
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    }
}

/// Gives a terminal to the user who works at it, by the terminal's master.
pub(crate) fn own(master: &OwnedFd, uid: u32) -> io::Result<()> {
    let slave = rustix::pty::ioctl_tiocgptpeer(
        master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )?;
    Ok(rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None)?)
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
