//! The container's streams: pipes or a terminal to the container, fifos or
//! files to containerd.
//!
//! The container gets pipes, not containerd's fifos: CRIU cannot dump a fifo
//! outside of the container's mount namespace, and a restored container needs
//! its old pipes replaced by new ones.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::unix::pipe;
use tokio::task::JoinSet;

use crate::rpc::TaskError;

/// What is copied at once; a pipe holds 64 KiB.
const BUFFER_BYTES: usize = 32 * 1024;

/// Where containerd has the other ends; empty means there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    /// stdin's fifo.
    pub stdin: String,
    /// stdout's fifo or file.
    pub stdout: String,
    /// stderr's fifo or file; a terminal has none.
    pub stderr: String,
}

/// The ends for the container; `None` is `/dev/null`.
pub type ContainerEnds = [Option<OwnedFd>; 3];

/// The copying under way.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Holding the fifo's write end ourselves lets a client leave and another
    /// come without the container seeing the end of its input.
    stdin_hold: Option<pipe::Sender>,
    stdin: Option<tokio::task::AbortHandle>,
    outputs: JoinSet<()>,
    /// Our ends, until the terminal is there.
    waiting: Option<(Option<pipe::Receiver>, Sink)>,
    terminal: Option<Terminal>,
}

impl Stdio {
    /// Opens containerd's ends and starts copying between them and pipes.
    ///
    /// # Errors
    ///
    /// Unimplemented for schemes that are not known, else what the file system says.
    pub fn open(paths: &Paths, owner: (u32, u32)) -> Result<(Self, ContainerEnds), TaskError> {
        let mut stdio = Self::default();
        let stdin = stdio.open_stdin(&paths.stdin, owner)?;
        let stdout = stdio.open_output("stdout", &paths.stdout, owner)?;
        let stderr = stdio.open_output("stderr", &paths.stderr, owner)?;
        Ok((stdio, [stdin, stdout, stderr]))
    }

    /// Opens containerd's ends for a terminal that [`Self::attach`] brings.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn open_for_terminal(paths: &Paths) -> Result<Self, TaskError> {
        let mut stdio = Self::default();
        let stdin = stdio.open_input(&paths.stdin)?;
        let stdout = Sink::open("stdout", &paths.stdout)?.unwrap_or(Sink::Null);
        stdio.waiting = Some((stdin, stdout));
        Ok(stdio)
    }

    /// Starts copying between containerd's ends and a terminal, given by its
    /// master.
    ///
    /// # Errors
    ///
    /// When the terminal cannot be waited for.
    pub fn attach(&mut self, master: OwnedFd) -> io::Result<()> {
        let terminal = Terminal::new(master)?;
        let (stdin, mut stdout) = self.waiting.take().unwrap_or((None, Sink::Null));
        if let Some(mut fifo) = stdin {
            let terminal = terminal.clone();
            let copy = tokio::spawn(async move {
                while let Some(data) = chunk(&mut fifo).await {
                    if terminal.write_all(&data).await.is_err() {
                        break;
                    }
                }
            });
            self.stdin = Some(copy.abort_handle());
        }
        self.terminal = Some(terminal.clone());
        self.outputs.spawn(async move {
            while let Some(data) = terminal.chunk().await {
                if stdout.write_all(&data).await.is_err() {
                    // Unread output must not stop the process.
                    stdout = Sink::Null;
                }
            }
        });
        Ok(())
    }

    /// Sets the terminal's size; without one there is nothing to do.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        match &self.terminal {
            Some(terminal) => terminal.resize(columns, rows),
            None => Ok(()),
        }
    }

    /// Our end of stdin, with a write end held so that it does not end.
    fn open_input(&mut self, path: &str) -> Result<Option<pipe::Receiver>, TaskError> {
        let path = match scheme("stdin", path)? {
            None => return Ok(None),
            Some(("fifo", path)) => path,
            Some((other, _)) => return Err(unknown("stdin", other)),
        };
        let failed = |e| {
            TaskError::io(
                format_args!("cannot open the stdin fifo {}", path.display()),
                &e,
            )
        };
        // The read end first: a write end without a reader does not open.
        let fifo = pipe::OpenOptions::new()
            .open_receiver(&path)
            .map_err(failed)?;
        self.stdin_hold = Some(
            pipe::OpenOptions::new()
                .open_sender(&path)
                .map_err(failed)?,
        );
        Ok(Some(fifo))
    }

    fn open_stdin(&mut self, path: &str, owner: (u32, u32)) -> Result<Option<OwnedFd>, TaskError> {
        let Some(mut fifo) = self.open_input(path)? else {
            return Ok(None);
        };
        let failed = |e| TaskError::io("cannot make a pipe for stdin", &e);
        let (theirs, ours) = new_pipe(owner).map_err(failed)?;
        let mut ours = pipe::Sender::from_owned_fd(ours).map_err(failed)?;
        let copy = tokio::spawn(async move {
            while let Some(data) = chunk(&mut fifo).await {
                if ours.write_all(&data).await.is_err() {
                    break;
                }
            }
        });
        self.stdin = Some(copy.abort_handle());
        Ok(Some(theirs))
    }

    fn open_output(
        &mut self,
        name: &str,
        path: &str,
        owner: (u32, u32),
    ) -> Result<Option<OwnedFd>, TaskError> {
        let Some(mut sink) = Sink::open(name, path)? else {
            return Ok(None);
        };
        let failed = |e| TaskError::io(format_args!("cannot make a pipe for {name}"), &e);
        let (ours, theirs) = new_pipe(owner).map_err(failed)?;
        let mut ours = pipe::Receiver::from_owned_fd(ours).map_err(failed)?;
        self.outputs.spawn(async move {
            while let Some(data) = chunk(&mut ours).await {
                if sink.write_all(&data).await.is_err() {
                    break;
                }
            }
        });
        Ok(Some(theirs))
    }

    /// Lets the container see the end of its input once the clients are gone.
    pub fn close_stdin(&mut self) {
        self.stdin_hold = None;
    }

    /// Waits until all output has reached its readers, at most `limit`, and
    /// stops copying.
    pub async fn drain(mut self, limit: Duration) {
        if let Some(stdin) = self.stdin.take() {
            stdin.abort();
        }
        let all = async { while self.outputs.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!(
                limit_ms = limit.as_millis(),
                "output of the container was not read to its end"
            );
        }
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        if let Some(stdin) = self.stdin.take() {
            stdin.abort();
        }
    }
}

/// What there is to read; `None` at the end. The buffer is made only then:
/// most streams are silent most of the time, and a pod has many.
async fn chunk(pipe: &mut pipe::Receiver) -> Option<Vec<u8>> {
    loop {
        pipe.readable().await.ok()?;
        let mut data = Vec::with_capacity(BUFFER_BYTES);
        match pipe.try_read_buf(&mut data) {
            Ok(0) => return None,
            Ok(_) => return Some(data),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}

/// Where output goes.
#[derive(Debug)]
enum Sink {
    Fifo(pipe::Sender),
    File(tokio::fs::File),
    Null,
}

impl Sink {
    fn open(stream: &str, path: &str) -> Result<Option<Self>, TaskError> {
        let Some((scheme, path)) = scheme(stream, path)? else {
            return Ok(None);
        };
        let failed = |e| {
            TaskError::io(
                format_args!("cannot open {} for {stream}", path.display()),
                &e,
            )
        };
        match scheme {
            // Open for both: then a containerd that restarts does not break the pipe.
            "fifo" => pipe::OpenOptions::new()
                .read_write(true)
                .open_sender(&path)
                .map(|fifo| Some(Self::Fifo(fifo)))
                .map_err(failed),
            "file" => {
                if let Some(dir) = path.parent() {
                    std::fs::create_dir_all(dir).map_err(failed)?;
                }
                let file = File::options()
                    .create(true)
                    .append(true)
                    .open(&path)
                    .map_err(failed)?;
                Ok(Some(Self::File(tokio::fs::File::from_std(file))))
            }
            other => Err(unknown(stream, other)),
        }
    }

    async fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Fifo(fifo) => fifo.write_all(data).await,
            Self::File(file) => {
                file.write_all(data).await?;
                // Until then it is in tokio's own buffer.
                file.flush().await
            }
            Self::Null => Ok(()),
        }
    }
}

/// The master of a container's terminal.
#[derive(Debug, Clone)]
struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    fn new(master: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&master, true)?;
        // Deprecated because a lying AsRawFd would be unsound; an OwnedFd's does not lie.
        #[allow(deprecated)]
        AsyncFd::with_interest(master, Interest::READABLE | Interest::WRITABLE)
            .map(|fd| Self(Arc::new(fd)))
    }

    /// As [`chunk`]. An error is the end: nobody has it open any more.
    async fn chunk(&self) -> Option<Vec<u8>> {
        let read = |fd: &OwnedFd| {
            let mut data = Vec::with_capacity(BUFFER_BYTES);
            rustix::io::read(fd, spare_capacity(&mut data))?;
            Ok(data)
        };
        let data = self.0.async_io(Interest::READABLE, read).await.ok()?;
        (!data.is_empty()).then_some(data)
    }

    async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let written = self
                .0
                .async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, data)?))
                .await?;
            data = data.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(rustix::termios::tcsetwinsize(self.0.get_ref(), size)?)
    }
}

/// Takes a stream's address apart: scheme and absolute path; `None` if there is
/// no stream at all.
fn scheme<'a>(stream: &str, address: &'a str) -> Result<Option<(&'a str, PathBuf)>, TaskError> {
    let (scheme, path) = match address.split_once("://") {
        _ if address.is_empty() => return Ok(None),
        None => ("fifo", address),
        Some((scheme, rest)) => (scheme, rest),
    };
    if !path.starts_with('/') {
        return Err(TaskError::InvalidArgument(format!(
            "{stream} to {address:?} is not possible: the path is not absolute"
        )));
    }
    Ok(Some((scheme, PathBuf::from(path))))
}

fn unknown(stream: &str, scheme: &str) -> TaskError {
    TaskError::Unimplemented(format!(
        "{stream} to {scheme}:// is not implemented by cryo yet; use fifos"
    ))
}

/// A pipe whose ends belong to the container's user, who may open
/// `/proc/self/fd/N` again.
fn new_pipe((uid, gid): (u32, u32)) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let owner = Some(rustix::fs::Uid::from_raw(uid));
    let group = Some(rustix::fs::Gid::from_raw(gid));
    // Both ends are one inode.
    rustix::fs::fchown(&write, owner, group)?;
    Ok((read, write))
}

/// `/dev/null`, for a stream of a checkpoint that has no successor.
///
/// # Errors
///
/// When it cannot be opened.
pub fn null() -> io::Result<OwnedFd> {
    Ok(File::options()
        .read(true)
        .write(true)
        .open("/dev/null")?
        .into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::path::Path;

    use rustix::fs::{CWD, FileType, Mode};

    use super::*;

    fn make_fifo(dir: &Path, name: &str) -> String {
        let path = dir.join(name);
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn me() -> (u32, u32) {
        (
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw(),
        )
    }

    #[tokio::test]
    async fn all_output_arrives_before_the_drain_ends() {
        let dir = tempfile::tempdir().unwrap();
        let stdout = make_fifo(dir.path(), "out");
        let reader = {
            let path = stdout.clone();
            std::thread::spawn(move || {
                let mut text = Vec::new();
                File::open(path).unwrap().read_to_end(&mut text).unwrap();
                text.len()
            })
        };
        let paths = Paths {
            stdout,
            ..Paths::default()
        };
        let (stdio, [stdin, stdout, stderr]) = Stdio::open(&paths, me()).unwrap();
        assert!(stdin.is_none() && stderr.is_none());
        let mut container = File::from(stdout.unwrap());
        let writer = std::thread::spawn(move || {
            for _ in 0..64 {
                container.write_all(&[b'x'; 16 * 1024]).unwrap();
            }
        });
        tokio::task::spawn_blocking(move || writer.join().unwrap())
            .await
            .unwrap();
        stdio.drain(Duration::from_secs(5)).await;
        let read = tokio::task::spawn_blocking(move || reader.join().unwrap())
            .await
            .unwrap();
        assert_eq!(read, 1024 * 1024);
    }

    #[tokio::test]
    async fn input_ends_when_the_hold_and_the_clients_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let stdin = make_fifo(dir.path(), "in");
        let paths = Paths {
            stdin: stdin.clone(),
            ..Paths::default()
        };
        let (mut stdio, [container, _, _]) = Stdio::open(&paths, me()).unwrap();
        let mut client = File::options().write(true).open(&stdin).unwrap();
        client.write_all(b"one").unwrap();
        drop(client);
        let mut client = File::options().write(true).open(&stdin).unwrap();
        client.write_all(b"two").unwrap();
        stdio.close_stdin();
        drop(client);
        let mut container = File::from(container.unwrap());
        let text = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            container.read_to_string(&mut text).unwrap();
            text
        });
        assert_eq!(text.await.unwrap(), "onetwo");
    }

    #[tokio::test]
    async fn a_reader_that_never_comes_does_not_hold_the_drain() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            stderr: make_fifo(dir.path(), "err"),
            ..Paths::default()
        };
        let (stdio, [_, _, stderr]) = Stdio::open(&paths, me()).unwrap();
        let mut container = File::from(stderr.unwrap());
        rustix::io::ioctl_fionbio(&container, true).unwrap();
        while container.write(&[0; 4096]).is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let start = std::time::Instant::now();
        stdio.drain(Duration::from_millis(50)).await;
        assert!(start.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn other_schemes_are_named() {
        let err = Sink::open("stdout", "binary:///usr/bin/log?a=b").unwrap_err();
        assert!(
            matches!(&err, TaskError::Unimplemented(t) if t.contains("binary://")),
            "{err}"
        );
        assert_eq!(scheme("stdin", "").unwrap(), None);
        assert!(matches!(
            scheme("stdin", "a/b"),
            Err(TaskError::InvalidArgument(_))
        ));
    }

    #[tokio::test]
    async fn output_is_appended_to_a_file_which_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/log");
        let address = format!("file://{}", path.display());
        let paths = Paths {
            stdout: address.clone(),
            stderr: address,
            ..Paths::default()
        };
        let (stdio, [_, stdout, stderr]) = Stdio::open(&paths, me()).unwrap();
        File::from(stdout.unwrap()).write_all(b"one\n").unwrap();
        File::from(stderr.unwrap()).write_all(b"two\n").unwrap();
        stdio.drain(Duration::from_secs(5)).await;
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains("one\n") && text.contains("two\n"), "{text}");
    }

    #[tokio::test]
    async fn a_terminal_is_copied_both_ways_sized_and_drained() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            stdin: make_fifo(dir.path(), "in"),
            stdout: make_fifo(dir.path(), "out"),
            ..Paths::default()
        };
        let mut stdio = Stdio::open_for_terminal(&paths).unwrap();
        let mut output = File::open(&paths.stdout).unwrap();
        let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let mut slave = File::from(rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap());
        stdio.attach(master).unwrap();
        stdio.resize(100, 30).unwrap();
        let size = rustix::termios::tcgetwinsize(&slave).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (100, 30));

        let mut client = File::options().write(true).open(&paths.stdin).unwrap();
        client.write_all(b"hello\n").unwrap();
        let (line, mut slave) = tokio::task::spawn_blocking(move || {
            let mut line = [0; 6];
            slave.read_exact(&mut line).unwrap();
            (line, slave)
        })
        .await
        .unwrap();
        assert_eq!(&line, b"hello\n");
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            output.read_to_string(&mut text).unwrap();
            text
        });
        slave.write_all(b"bye\n").unwrap();
        drop(slave);
        stdio.drain(Duration::from_secs(5)).await;
        let text = tokio::task::spawn_blocking(move || reader.join().unwrap())
            .await
            .unwrap();
        // The terminal echoes, and ends lines as terminals do.
        assert_eq!(text, "hello\r\nbye\r\n");
    }
}
