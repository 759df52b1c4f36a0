//! CRIU's side of a lazy restore: it connects to a socket and hands over its tasks' memory.

use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use cryo_sys::scm::{self, Ready};
use cryo_sys::uffd::Uffd;

use crate::swrk::Abort;

/// What CRIU looks for in its work directory.
const SOCKET: &str = "lazy-pages.socket";
/// It says so when all tasks are as they are to be, but for their memory.
const FINISHED: u32 = 0x5253_5446;

/// Where CRIU is to connect.
#[derive(Debug)]
pub struct Listener(UnixListener);

/// What CRIU says.
#[derive(Debug)]
pub enum Sent {
    /// A task, by its number in the images, whose memory is to be filled.
    Task(u32, Uffd),
    /// One that is dead and has none.
    Zombie,
    /// All have come, and can be filled.
    Finished,
}

impl Listener {
    /// Makes the socket in CRIU's work directory.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn new(work_dir: BorrowedFd<'_>) -> io::Result<Self> {
        // A socket's path is short, and that of a work directory may not be.
        let path = format!("/proc/self/fd/{}/{SOCKET}", work_dir.as_raw_fd());
        UnixListener::bind(path).map(Self)
    }

    /// Waits for CRIU; `None` once nobody wants it any more.
    ///
    /// # Errors
    ///
    /// What accept(2) says.
    pub fn accept(&self, stop: &Abort) -> io::Result<Option<Connection>> {
        match scm::wait_readable(self.0.as_fd(), &[stop.as_fd()], None)? {
            Ready::Message => Ok(Some(Connection(self.0.accept()?.0))),
            Ready::Woken(_) | Ready::TimedOut => Ok(None),
        }
    }
}

/// CRIU, connected.
#[derive(Debug)]
pub struct Connection(UnixStream);

impl Connection {
    /// Waits for the next; `None` at its end, or once nobody wants it any more.
    ///
    /// # Errors
    ///
    /// `InvalidData` for what CRIU does not say, else what the socket says.
    pub fn next(&mut self, stop: &Abort) -> io::Result<Option<Sent>> {
        match scm::wait_readable(self.0.as_fd(), &[stop.as_fd()], None)? {
            Ready::Message => {}
            Ready::Woken(_) | Ready::TimedOut => return Ok(None),
        }
        let mut word = [0; 4];
        match self.0.read_exact(&mut word) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let pid = i32::from_ne_bytes(word);
        if u32::from_ne_bytes(word) == FINISHED {
            return Ok(Some(Sent::Finished));
        }
        match u32::try_from(pid) {
            Ok(0) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "criu sent memory of no process",
            )),
            Ok(pid) => Ok(Some(Sent::Task(pid, scm::recv_fd(self.0.as_fd())?.into()))),
            Err(_) => Ok(Some(Sent::Zombie)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn criu_is_heard() {
        let dir = tempfile::tempdir().unwrap();
        let work = std::fs::File::open(dir.path()).unwrap();
        let listener = Listener::new(work.as_fd()).unwrap();
        let mut criu = UnixStream::connect(dir.path().join(SOCKET)).unwrap();
        let stop = Abort::new().unwrap();
        let mut heard = listener.accept(&stop).unwrap().unwrap();
        criu.write_all(&7i32.to_ne_bytes()).unwrap();
        scm::send(criu.as_fd(), b"f", &[work.as_fd()]).unwrap();
        criu.write_all(&(-8i32).to_ne_bytes()).unwrap();
        criu.write_all(&FINISHED.to_ne_bytes()).unwrap();
        let mut next = || heard.next(&stop).unwrap();
        assert!(matches!(next(), Some(Sent::Task(7, _))));
        assert!(matches!(next(), Some(Sent::Zombie)));
        assert!(matches!(next(), Some(Sent::Finished)));
        drop(criu);
        assert!(next().is_none());
        stop.trigger();
        assert!(listener.accept(&stop).unwrap().is_none());
    }

    #[test]
    fn a_stranger_is_not_believed() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut heard = Connection(b);
        let stop = Abort::new().unwrap();
        a.write_all(&[0; 4]).unwrap();
        assert!(heard.next(&stop).is_err());
        a.write_all(&[7, 0, 0, 0, b'x']).unwrap();
        assert!(heard.next(&stop).is_err());
    }
}
