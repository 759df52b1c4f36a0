//! The container's streams: pipes to the container, fifos to containerd.
//!
//! The container gets pipes, not containerd's fifos: CRIU cannot dump a fifo
//! outside of the container's mount namespace, and a restored container needs
//! its old pipes replaced by new ones.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
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
    /// stdout's fifo.
    pub stdout: String,
    /// stderr's fifo.
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
}

impl Stdio {
    /// Opens containerd's fifos and starts copying.
    ///
    /// # Errors
    ///
    /// Unimplemented for other things than fifos, else what the file system says.
    pub fn open(paths: &Paths, owner: (u32, u32)) -> Result<(Self, ContainerEnds), TaskError> {
        let mut stdio = Self::default();
        let stdin = stdio.open_stdin(&paths.stdin, owner)?;
        let stdout = stdio.open_output("stdout", &paths.stdout, owner)?;
        let stderr = stdio.open_output("stderr", &paths.stderr, owner)?;
        Ok((stdio, [stdin, stdout, stderr]))
    }

    fn open_stdin(&mut self, path: &str, owner: (u32, u32)) -> Result<Option<OwnedFd>, TaskError> {
        let Some(path) = fifo("stdin", path)? else {
            return Ok(None);
        };
        let failed = |e| {
            TaskError::io(
                format_args!("cannot open the stdin fifo {}", path.display()),
                &e,
            )
        };
        // The read end first: a write end without a reader does not open.
        let mut fifo = pipe::OpenOptions::new()
            .open_receiver(&path)
            .map_err(failed)?;
        self.stdin_hold = Some(
            pipe::OpenOptions::new()
                .open_sender(&path)
                .map_err(failed)?,
        );
        let (theirs, ours) = new_pipe(owner).map_err(failed)?;
        let mut ours = pipe::Sender::from_owned_fd(ours).map_err(failed)?;
        let copy = tokio::spawn(async move {
            let mut buffer = vec![0; BUFFER_BYTES];
            while let Ok(n @ 1..) = fifo.read(&mut buffer).await {
                if ours.write_all(&buffer[..n]).await.is_err() {
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
        let Some(path) = fifo(name, path)? else {
            return Ok(None);
        };
        let failed = |e| {
            TaskError::io(
                format_args!("cannot open the {name} fifo {}", path.display()),
                &e,
            )
        };
        // Open for both: then a containerd that restarts does not break the pipe.
        let mut fifo = pipe::OpenOptions::new()
            .read_write(true)
            .open_sender(&path)
            .map_err(failed)?;
        let (ours, theirs) = new_pipe(owner).map_err(failed)?;
        let mut ours = pipe::Receiver::from_owned_fd(ours).map_err(failed)?;
        self.outputs.spawn(async move {
            let mut buffer = vec![0; BUFFER_BYTES];
            while let Ok(n @ 1..) = ours.read(&mut buffer).await {
                if fifo.write_all(&buffer[..n]).await.is_err() {
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

    /// Waits until all output has reached the fifos, at most `limit`, and stops
    /// copying.
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

/// The path of a fifo, if there is a stream at all.
fn fifo(stream: &str, path: &str) -> Result<Option<PathBuf>, TaskError> {
    let path = match path.split_once("://") {
        _ if path.is_empty() => return Ok(None),
        None => path,
        Some(("fifo", path)) => path,
        Some((scheme, _)) => {
            return Err(TaskError::Unimplemented(format!(
                "{stream} to {scheme}:// is not implemented by cryo yet; use fifos"
            )));
        }
    };
    Ok(Some(PathBuf::from(path)))
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
        let err = fifo("stdout", "binary:///usr/bin/log?a=b").unwrap_err();
        assert!(
            matches!(&err, TaskError::Unimplemented(t) if t.contains("binary://")),
            "{err}"
        );
        assert_eq!(fifo("stdin", "").unwrap(), None);
    }
}
