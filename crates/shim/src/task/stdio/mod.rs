//! The container's streams: pipes or a terminal to the container, fifos, files
//! or a logger to containerd.
//!
//! The container gets pipes, not containerd's fifos: CRIU cannot dump a fifo
//! outside of the container's mount namespace, and a restored container needs
//! its old pipes replaced by new ones.
//!
//! Each stream is copied by a task of its own, with pipes that never block: a
//! reader that is stuck holds nothing but what writes to it.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use serde::Serialize;
use tokio::net::unix::pipe;
use tokio::task::JoinSet;

use super::reaper::Reaper;
use crate::rpc::TaskError;
use address::Address;
use copy::{Sink, Source, Terminal, copy};
use logger::Logger;

mod address;
mod copy;
mod logger;

/// Where containerd has the other ends; empty means there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    /// stdin's fifo.
    pub stdin: String,
    /// stdout's fifo or file, or the logger of both.
    pub stdout: String,
    /// stderr's fifo or file; a terminal has none.
    pub stderr: String,
}

/// Whose streams they are.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// The container's id, or the exec's.
    pub id: &'a str,
    /// containerd's namespace.
    pub namespace: &'a str,
    /// Waits for a logger.
    pub reaper: &'a Reaper,
    /// User and group of the process, who may open `/proc/self/fd/N` again.
    pub user: (u32, u32),
}

/// The ends for the container; `None` is `/dev/null`.
pub type ContainerEnds = [Option<OwnedFd>; 3];

/// One stream, as the dump of the shim's state shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StreamState {
    /// `stdin`, `stdout` or `stderr`.
    pub name: &'static str,
    /// Where it goes, or comes from.
    pub address: String,
    /// The shim's descriptors for it.
    pub fds: Vec<i32>,
    /// What the shim has copied; a logger reads by itself.
    pub copied_bytes: u64,
    /// The process of its logger, while that runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logger_pid: Option<u32>,
}

#[derive(Debug)]
struct Stream {
    name: &'static str,
    address: String,
    fds: Vec<i32>,
    copied: Arc<AtomicU64>,
}

/// The copying under way.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Holding the fifo's write end ourselves lets a client leave and another
    /// come without the container seeing the end of its input.
    stdin_hold: Option<pipe::Sender>,
    stdin: Option<tokio::task::AbortHandle>,
    outputs: JoinSet<()>,
    logger: Option<Logger>,
    /// Our ends, until the terminal is there.
    waiting: Option<(Option<pipe::Receiver>, Sink)>,
    terminal: Option<Terminal>,
    streams: Vec<Stream>,
}

impl Stdio {
    /// Opens containerd's ends and starts copying between them and pipes. A
    /// logger of stdout takes stderr too, wherever that is said to go, and is
    /// ready when this returns.
    ///
    /// # Errors
    ///
    /// Unimplemented for schemes that are not known, else what the file system
    /// says, or why the logger is not ready.
    pub async fn open(
        paths: &Paths,
        owner: &Owner<'_>,
    ) -> Result<(Self, ContainerEnds), TaskError> {
        let mut stdio = Self::default();
        let stdin = stdio.copy_input(&paths.stdin, owner)?;
        let (stdout, stderr) = match Address::parse("stdout", &paths.stdout)? {
            Some(Address::Logger(program)) => {
                let pipe = |name| new_pipe(owner).map_err(|e| no_pipe(name, &e));
                let (out, stdout) = pipe("stdout")?;
                let (err, stderr) = pipe("stderr")?;
                stdio.logger = Some(Logger::start(&program, owner, [out, err]).await?);
                stdio.note("stdout", &paths.stdout, &[]);
                stdio.note("stderr", &paths.stdout, &[]);
                (Some(stdout), Some(stderr))
            }
            stdout => (
                stdio.copy_output("stdout", &paths.stdout, stdout, owner)?,
                stdio.copy_output(
                    "stderr",
                    &paths.stderr,
                    Address::parse("stderr", &paths.stderr)?,
                    owner,
                )?,
            ),
        };
        Ok((stdio, [stdin, stdout, stderr]))
    }

    /// Opens containerd's ends for a terminal that [`Self::attach`] brings. A
    /// logger gets what the terminal shows, and an end of stderr at once.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub async fn open_for_terminal(paths: &Paths, owner: &Owner<'_>) -> Result<Self, TaskError> {
        let mut stdio = Self::default();
        let stdin = stdio.open_input(&paths.stdin)?;
        let stdout = match Address::parse("stdout", &paths.stdout)? {
            Some(Address::Logger(program)) => {
                let failed = |e: io::Error| no_pipe("stdout", &e);
                let (out, ours) = new_pipe(owner).map_err(failed)?;
                let ours = pipe::Sender::from_owned_fd(ours).map_err(failed)?;
                let nothing = logger::nothing().map_err(failed)?;
                stdio.logger = Some(Logger::start(&program, owner, [out, nothing]).await?);
                Sink::Pipe(ours)
            }
            address => open_sink("stdout", address)?.unwrap_or(Sink::Null),
        };
        stdio.note("stdin", &paths.stdin, &number(stdin.as_ref()));
        stdio.note("stdout", &paths.stdout, &sink_number(&stdout));
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
        let (stdin, stdout) = self.waiting.take().unwrap_or((None, Sink::Null));
        let counter = |stdio: &mut Self, name| {
            let stream = stdio.streams.iter_mut().find(|s| s.name == name);
            stream.map_or_else(Arc::default, |stream| {
                stream.fds.push(terminal.number());
                Arc::clone(&stream.copied)
            })
        };
        if let Some(fifo) = stdin {
            let copied = counter(self, "stdin");
            let to = Sink::Terminal(terminal.clone());
            let task = tokio::spawn(copy(Source::Pipe(fifo), to, copied));
            self.stdin = Some(task.abort_handle());
        }
        let copied = counter(self, "stdout");
        let from = Source::Terminal(terminal.clone());
        self.outputs.spawn(copy(from, stdout, copied));
        self.terminal = Some(terminal);
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
    fn open_input(&mut self, address: &str) -> Result<Option<pipe::Receiver>, TaskError> {
        let path = match Address::parse("stdin", address)? {
            None => return Ok(None),
            Some(Address::Fifo(path)) => path,
            Some(_) => {
                return Err(TaskError::InvalidArgument(format!(
                    "stdin from {address:?} is not possible: it has to be a fifo"
                )));
            }
        };
        let failed = |e| TaskError::io(format_args!("cannot open {address} for stdin"), &e);
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

    fn copy_input(
        &mut self,
        address: &str,
        owner: &Owner<'_>,
    ) -> Result<Option<OwnedFd>, TaskError> {
        let Some(fifo) = self.open_input(address)? else {
            return Ok(None);
        };
        let failed = |e| no_pipe("stdin", &e);
        let (theirs, ours) = new_pipe(owner).map_err(failed)?;
        let ours = pipe::Sender::from_owned_fd(ours).map_err(failed)?;
        let copied = self.note("stdin", address, &[fifo.as_raw_fd(), ours.as_raw_fd()]);
        let task = tokio::spawn(copy(Source::Pipe(fifo), Sink::Pipe(ours), copied));
        self.stdin = Some(task.abort_handle());
        Ok(Some(theirs))
    }

    fn copy_output(
        &mut self,
        name: &'static str,
        text: &str,
        address: Option<Address>,
        owner: &Owner<'_>,
    ) -> Result<Option<OwnedFd>, TaskError> {
        let Some(sink) = open_sink(name, address)? else {
            return Ok(None);
        };
        let failed = |e| no_pipe(name, &e);
        let (ours, theirs) = new_pipe(owner).map_err(failed)?;
        let ours = pipe::Receiver::from_owned_fd(ours).map_err(failed)?;
        let mut fds = number(Some(&ours));
        fds.extend(sink_number(&sink));
        let copied = self.note(name, text, &fds);
        self.outputs.spawn(copy(Source::Pipe(ours), sink, copied));
        Ok(Some(theirs))
    }

    /// The ends for a container that is restored: pipes where it may have had some. `/dev/null`
    /// is the node's own, and a process that has that cannot be checkpointed again.
    ///
    /// # Errors
    ///
    /// When there are no pipes to be had.
    pub fn fill(
        &mut self,
        [stdin, stdout, stderr]: ContainerEnds,
        owner: &Owner<'_>,
    ) -> Result<ContainerEnds, TaskError> {
        let stdin = stdin.map_or_else(logger::nothing, Ok);
        let stdin = stdin.map_err(|e| no_pipe("stdin", &e))?;
        let mut nowhere = |end: Option<OwnedFd>, name| {
            if end.is_some() {
                return Ok::<_, TaskError>(end);
            }
            let failed = |e| no_pipe(name, &e);
            let (ours, theirs) = new_pipe(owner).map_err(failed)?;
            let ours = pipe::Receiver::from_owned_fd(ours).map_err(failed)?;
            let copied = self.note(name, "", &number(Some(&ours)));
            let task = copy(Source::Pipe(ours), Sink::Null, copied);
            self.outputs.spawn(task);
            Ok(Some(theirs))
        };
        let stdout = nowhere(stdout, "stdout")?;
        let stderr = nowhere(stderr, "stderr")?;
        Ok([Some(stdin), stdout, stderr])
    }

    /// Takes note of a stream; answers its counter.
    fn note(&mut self, name: &'static str, address: &str, fds: &[i32]) -> Arc<AtomicU64> {
        let copied = Arc::default();
        self.streams.push(Stream {
            name,
            address: address.to_owned(),
            fds: fds.to_vec(),
            copied: Arc::clone(&copied),
        });
        copied
    }

    /// The streams as they are now.
    #[must_use]
    pub fn describe(&self) -> Vec<StreamState> {
        let logger = self.logger.as_ref().filter(|logger| logger.runs());
        self.streams
            .iter()
            .map(|stream| StreamState {
                name: stream.name,
                address: stream.address.clone(),
                fds: stream.fds.clone(),
                copied_bytes: stream.copied.load(Ordering::Relaxed),
                logger_pid: logger.filter(|_| stream.name != "stdin").map(Logger::pid),
            })
            .collect()
    }

    /// Lets the container see the end of its input once the clients are gone.
    pub fn close_stdin(&mut self) {
        self.stdin_hold = None;
    }

    /// Waits until all output has reached its readers, at most `limit`, and
    /// stops copying; then until the logger has ended, which has limits of its own.
    pub async fn drain(mut self, limit: Duration) {
        if let Some(stdin) = self.stdin.take() {
            stdin.abort();
        }
        let all = async { while self.outputs.join_next().await.is_some() {} };
        let drained = tokio::time::timeout(limit, all).await.is_ok();
        if !drained {
            tracing::warn!(
                limit_ms = limit.as_millis(),
                "output of the container was not read to its end"
            );
            self.outputs.shutdown().await;
        }
        if let Some(logger) = self.logger.take() {
            logger.finish(drained).await;
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

fn number(pipe: Option<&pipe::Receiver>) -> Vec<i32> {
    pipe.iter().map(|pipe| pipe.as_raw_fd()).collect()
}

fn sink_number(sink: &Sink) -> Vec<i32> {
    match sink {
        Sink::Pipe(pipe) | Sink::Fifo(pipe, _) => vec![pipe.as_raw_fd()],
        Sink::File(file) => vec![file.as_raw_fd()],
        Sink::Terminal(terminal) => vec![terminal.number()],
        Sink::Null => Vec::new(),
    }
}

/// Opens where output goes; `None` if nowhere.
fn open_sink(stream: &str, address: Option<Address>) -> Result<Option<Sink>, TaskError> {
    let (opened, path) = match address {
        None => return Ok(None),
        Some(Address::Fifo(path)) => (Sink::fifo(&path), path),
        Some(Address::File(path)) => (Sink::file(&path), path),
        Some(Address::Logger(_)) => {
            return Err(TaskError::InvalidArgument(format!(
                "{stream} cannot have a logger of its own: name it for stdout, it takes both"
            )));
        }
    };
    opened.map(Some).map_err(|e| {
        TaskError::io(
            format_args!("cannot open {} for {stream}", path.display()),
            &e,
        )
    })
}

fn no_pipe(stream: &str, error: &io::Error) -> TaskError {
    TaskError::io(format_args!("cannot make a pipe for {stream}"), error)
}

/// A pipe whose ends belong to the container's user, who may open
/// `/proc/self/fd/N` again: the read end, the write end.
fn new_pipe(owner: &Owner<'_>) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let user = Some(rustix::fs::Uid::from_raw(owner.user.0));
    let group = Some(rustix::fs::Gid::from_raw(owner.user.1));
    // Both ends are one inode.
    rustix::fs::fchown(&write, user, group)?;
    Ok((read, write))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::path::Path;

    use rustix::fs::{CWD, FileType, Mode};
    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn make_fifo(dir: &Path, name: &str) -> String {
        let path = dir.join(name);
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// No logger is started here: a reaper is about all children of a process.
    /// `tests/service/loggers.rs` has them.
    fn me(reaper: &Reaper) -> Owner<'_> {
        Owner {
            id: "c",
            namespace: "n",
            reaper,
            user: (
                rustix::process::getuid().as_raw(),
                rustix::process::getgid().as_raw(),
            ),
        }
    }

    async fn open(paths: &Paths) -> (Stdio, ContainerEnds) {
        let reaper = Reaper::default();
        Stdio::open(paths, &me(&reaper)).await.unwrap()
    }

    #[tokio::test]
    async fn output_waits_for_a_reader_that_comes_late() {
        let dir = tempfile::tempdir().unwrap();
        let stdout = make_fifo(dir.path(), "out");
        let paths = Paths {
            stdout: stdout.clone(),
            ..Paths::default()
        };
        let (stdio, [_, theirs, _]) = open(&paths).await;
        File::from(theirs.unwrap()).write_all(b"late").unwrap();
        let drained = tokio::spawn(stdio.drain(Duration::from_secs(5)));
        // Long enough for a fifo that is closed at once.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut reader = pipe::OpenOptions::new().open_receiver(&stdout).unwrap();
        drained.await.unwrap();
        let mut text = String::new();
        // Of a fifo that was closed before, there is neither text nor end.
        let read = reader.read_to_string(&mut text);
        let read = tokio::time::timeout(Duration::from_secs(5), read).await;
        read.unwrap().unwrap();
        assert_eq!(text, "late");
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
        let (stdio, [stdin, stdout, stderr]) = open(&paths).await;
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
        let (mut stdio, [container, _, _]) = open(&paths).await;
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
        let (stdio, [_, _, stderr]) = open(&paths).await;
        let mut container = File::from(stderr.unwrap());
        rustix::io::ioctl_fionbio(&container, true).unwrap();
        while container.write(&[0; 4096]).is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let start = std::time::Instant::now();
        stdio.drain(Duration::from_millis(50)).await;
        assert!(start.elapsed() < Duration::from_secs(2));
    }

    #[tokio::test]
    async fn what_cannot_be_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = make_fifo(dir.path(), "fifo");
        let reaper = Reaper::default();
        for (stdin, stdout, stderr, why) in [
            ("file:///x", "", "", "has to be a fifo"),
            ("", "", "binary:///x", "name it for stdout"),
            ("", "", "x:///x", "x://"),
            ("", &*format!("file://{fifo}"), "", "it is a fifo"),
            ("", "/nonexistent/fifo", "", "cannot open /nonexistent/fifo"),
        ] {
            let paths = Paths {
                stdin: stdin.to_owned(),
                stdout: stdout.to_owned(),
                stderr: stderr.to_owned(),
            };
            let error = Stdio::open(&paths, &me(&reaper)).await.unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[tokio::test]
    async fn streams_are_described() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            stdin: make_fifo(dir.path(), "in"),
            stdout: format!("file://{}", dir.path().join("out").display()),
            ..Paths::default()
        };
        let (stdio, [_, stdout, _]) = open(&paths).await;
        File::from(stdout.unwrap()).write_all(b"four").unwrap();
        while stdio.describe()[1].copied_bytes < 4 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let [stdin, stdout] = &stdio.describe()[..] else {
            panic!("{:?}", stdio.describe());
        };
        assert_eq!((stdin.name, &stdin.address), ("stdin", &paths.stdin));
        assert_eq!((stdin.copied_bytes, stdin.fds.len()), (0, 2));
        assert_eq!((stdout.name, &stdout.address), ("stdout", &paths.stdout));
        assert_eq!((stdout.copied_bytes, stdout.fds.len()), (4, 2));
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
        let (stdio, [_, stdout, stderr]) = open(&paths).await;
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
        let reaper = Reaper::default();
        let mut stdio = Stdio::open_for_terminal(&paths, &me(&reaper))
            .await
            .unwrap();
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
