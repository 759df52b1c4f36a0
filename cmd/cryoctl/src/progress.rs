//! How far work is that takes longer than a second.
//!
//! A command flattens [`ProgressArgs`] into its own arguments, and holds a [`Progress`] while it
//! works:
//!
//! ```ignore
//! let progress = self.progress.start("searching", total_bytes);
//! work(|bytes| progress.add(bytes));
//! drop(progress);
//! ```
//!
//! It says nothing in the first second, so that what is quick stays quiet. Then a terminal shows
//! a bar, which goes away at the end; `--progress=json` writes a line of JSON each second, and one
//! at the end, whether or not it took a second. All of it is on stderr.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use crate::text::bytes;

/// How long work may take before anything is said of it, and between two lines of JSON.
const QUIET: Duration = Duration::from_secs(1);

/// How often a bar is drawn anew.
const REDRAW: Duration = Duration::from_millis(200);

/// The argument of commands that may take long.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ProgressArgs {
    /// How to tell on stderr how far the work is, once it has taken a second.
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Mode::Auto)]
    progress: Mode,
}

/// How to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// A bar if stderr is a terminal, else nothing.
    Auto,
    /// One JSON object a line: what, done_bytes, total_bytes, seconds, finished.
    Json,
    /// Nothing.
    None,
}

impl ProgressArgs {
    /// Work on `total` bytes begins; 0 if nobody knows how many there are. `what` is a word such
    /// as `searching`.
    pub(crate) fn start(self, what: &'static str, total: u64) -> Progress {
        let mode = match self.progress {
            Mode::Auto if !io::stderr().is_terminal() => Mode::None,
            mode => mode,
        };
        let state = Arc::new(State {
            what,
            total,
            began: Instant::now(),
            done: AtomicU64::new(0),
            ended: Mutex::new(false),
            end: Condvar::new(),
        });
        let teller = (mode != Mode::None).then(|| {
            let state = Arc::clone(&state);
            std::thread::spawn(move || state.tell(mode))
        });
        Progress { state, teller }
    }
}

/// Work that goes on. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    state: Arc<State>,
    teller: Option<JoinHandle<()>>,
}

impl Progress {
    /// So many more bytes are done.
    pub(crate) fn add(&self, bytes: u64) {
        self.state.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// How many bytes are done: for those who count on several threads.
    pub(crate) fn counter(&self) -> &AtomicU64 {
        &self.state.done
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        *self
            .state
            .ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        self.state.end.notify_all();
        if let Some(teller) = self.teller.take() {
            // It only prints.
            let _ = teller.join();
        }
    }
}

#[derive(Debug)]
struct State {
    what: &'static str,
    total: u64,
    began: Instant,
    done: AtomicU64,
    ended: Mutex<bool>,
    end: Condvar,
}

impl State {
    fn tell(&self, mode: Mode) {
        let mut pause = QUIET;
        let mut drawn = false;
        loop {
            let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            let (ended, _) = self
                .end
                .wait_timeout_while(ended, pause, |ended| !*ended)
                .unwrap_or_else(PoisonError::into_inner);
            let ended = *ended;
            let now = Now {
                what: self.what,
                done: self.done.load(Ordering::Relaxed),
                total: self.total,
                seconds: self.began.elapsed().as_secs_f64(),
                finished: ended,
            };
            let line = match mode {
                Mode::Json => now.json(),
                _ if ended && drawn => "\r\x1b[K".to_owned(),
                _ if ended => String::new(),
                _ => now.bar(),
            };
            let mut stderr = io::stderr().lock();
            // Nobody is left to hear of it.
            let _ = stderr.write_all(line.as_bytes());
            let _ = stderr.flush();
            drawn = true;
            if ended {
                return;
            }
            pause = if mode == Mode::Json { QUIET } else { REDRAW };
        }
    }
}

/// How far work is.
#[derive(Debug)]
struct Now {
    what: &'static str,
    done: u64,
    total: u64,
    seconds: f64,
    finished: bool,
}

impl Now {
    fn json(&self) -> String {
        let mut object = serde_json::json!({
            "what": self.what,
            "done_bytes": self.done,
            "seconds": (self.seconds * 1e3).round() / 1e3,
            "finished": self.finished,
        });
        if self.total > 0
            && let Some(object) = object.as_object_mut()
        {
            object.insert("total_bytes".to_owned(), self.total.into());
        }
        format!("{object}\n")
    }

    fn bar(&self) -> String {
        const WIDTH: u64 = 30;
        let done = bytes(self.done);
        let speed = bytes((self.done as f64 / self.seconds.max(0.001)) as u64);
        if self.total == 0 {
            return format!("\r\x1b[K{}: {done}, {speed}/s", self.what);
        }
        let full = self.done.min(self.total).saturating_mul(WIDTH) / self.total;
        let full = usize::try_from(full).unwrap_or_default();
        let rest = WIDTH as usize - full;
        let total = bytes(self.total);
        format!(
            "\r\x1b[K{} [{}{}] {done} of {total}, {speed}/s",
            self.what,
            "#".repeat(full),
            " ".repeat(rest),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let mut now = Now {
            what: "searching",
            done: 512 << 20,
            total: 1 << 30,
            seconds: 2.0,
            finished: false,
        };
        assert_eq!(
            now.json(),
            "{\"done_bytes\":536870912,\"finished\":false,\"seconds\":2.0,\"total_bytes\":1073741824,\"what\":\"searching\"}\n"
        );
        assert_eq!(
            now.bar(),
            "\r\x1b[Ksearching [###############               ] 512.0 MiB of 1.0 GiB, 256.0 MiB/s"
        );
        now.total = 0;
        assert_eq!(now.bar(), "\r\x1b[Ksearching: 512.0 MiB, 256.0 MiB/s");
        // More than was said there would be.
        now.total = 1;
        assert!(now.bar().contains(&"#".repeat(30)));
    }

    #[test]
    fn what_is_quick_says_nothing_and_ends() {
        let args = ProgressArgs {
            progress: Mode::Auto,
        };
        let progress = args.start("testing", 10);
        progress.add(10);
        assert_eq!(progress.counter().load(Ordering::Relaxed), 10);
    }
}
