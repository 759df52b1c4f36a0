//! What containers write.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::lock;
use crate::lab::{FIFOS, Node};
use crate::patience::{PATIENCE, until};

/// What a container writes to its stdout and stderr, read as it comes.
#[derive(Debug)]
pub struct Output {
    folder: String,
    host: PathBuf,
    stdout: Stream,
    stderr: Stream,
}

#[derive(Clone, Debug, Default)]
struct Stream(Arc<Mutex<Received>>);

#[derive(Debug, Default)]
struct Received {
    bytes: Vec<u8>,
    ended: bool,
}

static NEXT_OUTPUT: AtomicU32 = AtomicU32::new(0);

impl Output {
    /// Makes the fifos and starts to read them.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn open(node: &Node, id: &str) -> anyhow::Result<Self> {
        let n = NEXT_OUTPUT.fetch_add(1, Ordering::Relaxed);
        let folder = format!("{FIFOS}/{id}-{n}");
        let host = node.host(&folder);
        std::fs::create_dir_all(&host)?;
        for name in ["stdin", "stdout", "stderr"] {
            make_fifo(&host.join(name))?;
        }
        let stdout = Stream::read(host.join("stdout"));
        let stderr = Stream::read(host.join("stderr"));
        Ok(Self {
            folder,
            host,
            stdout,
            stderr,
        })
    }

    /// The path in the node of `stdin`, `stdout` or `stderr`.
    pub fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    /// Opens the fifo of stdin for writing, as containerd's client does.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn stdin(&self) -> anyhow::Result<File> {
        Ok(File::options()
            .read(true)
            .write(true)
            .open(self.host.join("stdin"))?)
    }

    /// All of stdout so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// How many bytes of stdout came so far.
    pub fn received(&self) -> usize {
        lock(&self.stdout.0).bytes.len()
    }

    /// All of stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// The numbers a counter wrote so far.
    pub fn numbers(&self) -> Vec<u64> {
        crate::workload::numbers(&self.stdout())
    }

    /// Waits until at least `n` numbers were written.
    ///
    /// # Errors
    /// When they are not within [`PATIENCE`].
    pub async fn count_to(&self, n: usize) -> anyhow::Result<Vec<u64>> {
        self.until(|text| {
            let numbers = crate::workload::numbers(text);
            (numbers.len() >= n).then_some(numbers)
        })
        .await
        .with_context(|| format!("wait for {n} numbers"))
    }

    /// Waits until `n` more numbers were written than now.
    ///
    /// # Errors
    /// As [`Output::count_to`].
    pub async fn count_on(&self, n: usize) -> anyhow::Result<Vec<u64>> {
        let now = self.numbers().len();
        self.count_to(now + n).await
    }

    /// Waits until stdout has something that `find` finds.
    ///
    /// # Errors
    /// When it has not within [`PATIENCE`]; the end of the output is in the text.
    pub async fn until<T>(&self, find: impl Fn(&str) -> Option<T>) -> anyhow::Result<T> {
        let end = Instant::now() + PATIENCE;
        loop {
            let text = self.stdout();
            if let Some(found) = find(&text) {
                return Ok(found);
            }
            if Instant::now() > end {
                let tail: String = text.chars().rev().take(80).collect();
                let tail: String = tail.chars().rev().collect();
                bail!(
                    "waited in vain; stdout ends {tail:?}, stderr is {:?}",
                    self.stderr()
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until stdout is at its end and returns all of it.
    ///
    /// # Errors
    /// When it does not end within [`PATIENCE`].
    pub async fn complete(&self) -> anyhow::Result<String> {
        let bytes = self.complete_bytes().await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// As [`Output::complete`], for what is no text.
    ///
    /// # Errors
    /// As [`Output::complete`].
    pub async fn complete_bytes(&self) -> anyhow::Result<Vec<u8>> {
        self.stdout.complete().await
    }

    /// Waits until stderr is at its end and returns all of it.
    ///
    /// # Errors
    /// When it does not end within [`PATIENCE`].
    pub async fn complete_stderr(&self) -> anyhow::Result<String> {
        let bytes = self.stderr.complete().await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // A reader that nobody ever wrote to hangs in open(2): let it go.
        for name in ["stdout", "stderr"] {
            if let Ok(mut end) = File::options()
                .write(true)
                .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
                .open(self.host.join(name))
            {
                end.flush().ok();
            }
        }
        std::fs::remove_dir_all(&self.host).ok();
    }
}

impl Stream {
    fn read(path: PathBuf) -> Self {
        let stream = Self::default();
        let sink = stream.clone();
        std::thread::spawn(move || {
            if let Ok(mut fifo) = File::open(path) {
                let mut buffer = [0; 64 << 10];
                while let Ok(n) = fifo.read(&mut buffer) {
                    if n == 0 {
                        break;
                    }
                    if let Some(bytes) = buffer.get(..n) {
                        lock(&sink.0).bytes.extend_from_slice(bytes);
                    }
                }
            }
            lock(&sink.0).ended = true;
        });
        stream
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.0).bytes).into_owned()
    }

    async fn complete(&self) -> anyhow::Result<Vec<u8>> {
        until("the end of the output", || {
            let mut received = lock(&self.0);
            Ok(received.ended.then(|| std::mem::take(&mut received.bytes)))
        })
        .await
        .with_context(|| format!("{} bytes came", lock(&self.0).bytes.len()))
    }
}

fn make_fifo(path: &Path) -> anyhow::Result<()> {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .with_context(|| format!("mkfifo {}", path.display()))
}
