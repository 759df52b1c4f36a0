//! Both sides of a copy: what is read, what is written, and the loop between.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::buffer::spare_capacity;
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::unix::pipe;

/// What is copied at once; a pipe holds 64 KiB.
const BUFFER_BYTES: usize = 32 * 1024;

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
    File(tokio::fs::File),
    Terminal(Terminal),
    Null,
}

impl Sink {
    /// A fifo, open for both: then a containerd that restarts does not break it.
    pub(super) fn fifo(path: &Path) -> io::Result<Self> {
        pipe::OpenOptions::new()
            .read_write(true)
            .open_sender(path)
            .map(Self::Pipe)
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
            Self::Pipe(pipe) => pipe.write_all(data).await,
            Self::File(file) => {
                file.write_all(data).await?;
                // Until then it is in tokio's own buffer.
                file.flush().await
            }
            Self::Terminal(terminal) => terminal.write_all(data).await,
            Self::Null => Ok(()),
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
