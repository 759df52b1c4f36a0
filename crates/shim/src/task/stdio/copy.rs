//! Both sides of a copy: what is read, what is written, and the loop between.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::unix::pipe;

/// What is copied at once; a pipe holds 64 KiB.
const BUFFER_BYTES: usize = 32 * 1024;

/// How long the reader of a fifo may take to come, once there is nothing more to write.
const READER_LIMIT: Duration = Duration::from_secs(2);

/// What is read.
#[derive(Debug)]
pub(super) enum Source {
    Pipe(pipe::Receiver),
    Terminal(Terminal),
}

impl Source {
    /// What there is to read; `None` at the end. The buffer is made only then:
    /// most streams are silent most of the time, and a pod has many.
    async fn chunk(&self) -> Option<Vec<u8>> {
        match self {
            Self::Pipe(pipe) => loop {
                pipe.readable().await.ok()?;
                let mut data = Vec::with_capacity(BUFFER_BYTES);
                match pipe.try_read_buf(&mut data) {
                    Ok(0) => return None,
                    Ok(_) => return Some(data),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return None,
                }
            },
            Self::Terminal(terminal) => terminal.chunk().await,
        }
    }
}

/// What is written.
#[derive(Debug)]
pub(super) enum Sink {
    Pipe(pipe::Sender),
    /// The path, if it had no reader yet.
    Fifo(pipe::Sender, Option<PathBuf>),
    File(tokio::fs::File),
    Terminal(Terminal),
    Null,
}

impl Sink {
    /// A fifo, open for both: then a containerd that restarts does not break it.
    pub(super) fn fifo(path: &Path) -> io::Result<Self> {
        // Kept until the other is open: its end would be that of the output.
        let probe = pipe::OpenOptions::new().open_sender(path);
        let both = pipe::OpenOptions::new()
            .read_write(true)
            .open_sender(path)?;
        Ok(Self::Fifo(both, probe.is_err().then(|| path.to_owned())))
    }

    /// A file to append to, made with its folder if it is missing.
    pub(super) fn file(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        // One that nobody reads would hold the whole shim, hence NONBLOCK too.
        if std::fs::metadata(path).is_ok_and(|m| m.file_type().is_fifo()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is a fifo: name it without file://",
            ));
        }
        let file = File::options()
            .create(true)
            .append(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open(path)?;
        Ok(Self::File(tokio::fs::File::from_std(file)))
    }

    async fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) | Self::Fifo(pipe, _) => pipe.write_all(data).await,
            Self::File(file) => {
                file.write_all(data).await?;
                // Until then it is in tokio's own buffer.
                file.flush().await
            }
            Self::Terminal(terminal) => terminal.write_all(data).await,
            Self::Null => Ok(()),
        }
    }

    /// Closes it, but a fifo not before somebody reads it: one that nobody has open forgets
    /// what is in it, and who opens it later waits for ever. containerd opens it beside the
    /// request that names it, so a short-lived process can be over first.
    async fn close(self) {
        let Self::Fifo(both, Some(path)) = self else {
            return;
        };
        let Ok(writer) = pipe::OpenOptions::new().open_sender(&path) else {
            return;
        };
        // From here on an error on the write end means that there is no reader.
        drop(both);
        let deadline = Instant::now() + READER_LIMIT;
        let unread = || {
            let mut poll = [PollFd::new(&writer, PollFlags::OUT)];
            rustix::event::poll(&mut poll, Some(&Timespec::default())).is_ok()
                && poll[0].revents().contains(PollFlags::ERR)
        };
        while unread() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Copies until the source ends, or nobody takes what comes.
pub(super) async fn copy(from: Source, mut to: Sink, copied: Arc<AtomicU64>) {
    while let Some(data) = from.chunk().await {
        if to.write_all(&data).await.is_ok() {
            copied.fetch_add(data.len() as u64, Ordering::Relaxed);
        } else if matches!(from, Source::Terminal(_)) {
            // A process does not hear of it, so its output must not stop it.
            to = Sink::Null;
        } else {
            break;
        }
    }
    to.close().await;
}

/// The master of a container's terminal.
#[derive(Debug, Clone)]
pub(super) struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    pub(super) fn new(master: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&master, true)?;
        // Deprecated because a lying AsRawFd would be unsound; an OwnedFd's does not lie.
        #[allow(deprecated)]
        AsyncFd::with_interest(master, Interest::READABLE | Interest::WRITABLE)
            .map(|fd| Self(Arc::new(fd)))
    }

    pub(super) fn number(&self) -> i32 {
        self.0.get_ref().as_raw_fd()
    }

    pub(super) fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(rustix::termios::tcsetwinsize(self.0.get_ref(), size)?)
    }

    /// As [`Source::chunk`]. An error is the end: nobody has it open any more.
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
}
