//! Tells containerd when the kernel has killed something in a container for
//! its memory.
//!
//! What counts is the kernel's counter `oom_kill` of the container's own cgroup:
//! one event for each increase. cgroup v1 notifies every container below a limit
//! that was hit, also those in which nothing was killed, and before it kills;
//! so a notification only makes us look, and so does the container's exit.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cryo_engine::cgroup::{Cgroups, Kind};
use rustix::event::EventfdFlags;
use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

use super::context::Context;
use super::stats;
use crate::events::{self, EventSink};

/// How long after a v1 notification its kill may be counted.
const V1_LOOKS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(800),
];

/// v2 notifies when it has counted.
const V2_LOOKS: [Duration; 1] = [Duration::ZERO];

/// Watches one container for as long as it lives.
#[derive(Debug)]
pub struct Watch {
    counter: Arc<Counter>,
    task: AbortHandle,
}

impl Watch {
    /// Starts watching. A container that cannot be watched, as on a machine
    /// without a memory controller, is none the worse for it. Needs a tokio runtime.
    #[must_use]
    pub fn start(context: &Context) -> Option<Self> {
        let source = Source::of(&context.cgroups)?;
        let counter = Counter {
            file: source.file(),
            id: context.id().to_owned(),
            events: Arc::clone(&context.shared.events),
            seen: Mutex::new(0),
        };
        if context.checkpoint.is_none() {
            counter.skip();
        }
        // A restored one has run already, in a cgroup made for it: all counts.
        Self::on(&source, counter)
            .inspect_err(|error| {
                tracing::warn!(%error, id = context.id(), "the container is not watched for OOM kills");
            })
            .ok()
    }

    fn on(source: &Source, counter: Counter) -> io::Result<Self> {
        let fd = source.notifications()?;
        #[allow(deprecated)] // As in the reaper: an OwnedFd's descriptor is its own.
        let fd = AsyncFd::with_interest(fd, Interest::READABLE)?;
        let counter = Arc::new(counter);
        counter.look();
        let looks = source.looks();
        let task = tokio::spawn(follow(Arc::clone(&counter), fd, looks)).abort_handle();
        Ok(Self { counter, task })
    }

    /// Tells of a kill that was not told yet. The exit that it causes comes after it.
    pub fn check(&self) {
        self.counter.look();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Ends with the cgroup, whose removal is a notification too.
async fn follow(counter: Arc<Counter>, fd: AsyncFd<OwnedFd>, looks: &'static [Duration]) {
    loop {
        let Ok(mut ready) = fd.readable().await else {
            return;
        };
        drain(fd.get_ref());
        ready.clear_ready();
        for pause in looks {
            tokio::time::sleep(*pause).await;
            match counter.look() {
                Look::Gone => return,
                Look::Told => break,
                Look::Nothing => {}
            }
        }
    }
}

fn drain(fd: &OwnedFd) {
    let mut buffer = [0u8; 1024];
    while rustix::io::read(fd, &mut buffer).is_ok_and(|n| n > 0) {}
}

#[derive(Debug)]
struct Counter {
    file: PathBuf,
    id: String,
    events: Arc<dyn EventSink>,
    seen: Mutex<u64>,
}

#[derive(Debug, PartialEq, Eq)]
enum Look {
    Told,
    Nothing,
    Gone,
}

impl Counter {
    fn look(&self) -> Look {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kills) = self.kills() else {
            return Look::Gone;
        };
        if kills <= *seen {
            return Look::Nothing;
        }
        *seen = kills;
        events::oom(&*self.events, &self.id);
        Look::Told
    }

    /// What was before is not told.
    fn skip(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = self.kills().unwrap_or(0);
    }

    fn kills(&self) -> Option<u64> {
        let text = fs::read_to_string(&self.file).ok()?;
        Some(stats::oom_kills(&text))
    }
}

/// Where the memory controller is.
#[derive(Debug)]
enum Source {
    V1(PathBuf),
    V2(PathBuf),
}

impl Source {
    fn of(cgroups: &Cgroups) -> Option<Self> {
        let v1 = cgroups.dirs().find(|(h, _)| h.has("memory"));
        let v2 = || cgroups.dirs().find(|(h, _)| h.kind == Kind::V2);
        v1.map(|(_, dir)| Self::V1(dir))
            .or_else(|| v2().map(|(_, dir)| Self::V2(dir)))
            .filter(|source| source.file().exists())
    }

    fn file(&self) -> PathBuf {
        match self {
            Self::V1(dir) => dir.join("memory.oom_control"),
            Self::V2(dir) => dir.join("memory.events"),
        }
    }

    fn looks(&self) -> &'static [Duration] {
        match self {
            Self::V1(_) => &V1_LOOKS,
            Self::V2(_) => &V2_LOOKS,
        }
    }

    /// Is readable whenever it is worth a look.
    fn notifications(&self) -> io::Result<OwnedFd> {
        match self {
            Self::V1(dir) => eventfd(dir),
            Self::V2(_) => {
                let fd =
                    inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
                inotify::add_watch(&fd, self.file(), inotify::WatchFlags::MODIFY)?;
                Ok(fd)
            }
        }
    }
}

fn eventfd(dir: &Path) -> io::Result<OwnedFd> {
    let control = File::open(dir.join("memory.oom_control"))?;
    let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let registration = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
    fs::write(dir.join("cgroup.event_control"), registration)?;
    Ok(event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Recorder;

    fn counter(file: PathBuf, events: &Arc<Recorder>) -> Counter {
        Counter {
            file,
            id: "a".to_owned(),
            events: events.clone(),
            seen: Mutex::new(0),
        }
    }

    #[test]
    fn an_increase_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let (file, events) = (dir.path().join("f"), Arc::new(Recorder::default()));
        let counter = counter(file.clone(), &events);
        assert_eq!(counter.look(), Look::Gone);
        fs::write(&file, "oom_kill_disable 0\nunder_oom 1\noom_kill 0\n").unwrap();
        assert_eq!(counter.look(), Look::Nothing);
        fs::write(&file, "oom_kill 2\n").unwrap();
        assert_eq!(counter.look(), Look::Told);
        assert_eq!(counter.look(), Look::Nothing);
        fs::write(&file, "oom_kill 5\n").unwrap();
        counter.skip();
        assert_eq!(counter.look(), Look::Nothing);
        assert_eq!(events.topics(), ["/tasks/oom"]);
    }

    // An ordinary file is as good as v2's: inotify tells of writes to both.
    #[tokio::test]
    async fn v2_is_followed_until_the_watch_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let source = Source::V2(dir.path().to_owned());
        let events = Arc::new(Recorder::default());
        let write = |kills: u32| {
            let text = format!("low 0\nmax 9\noom 3\noom_kill {kills}\noom_group_kill 0\n");
            fs::write(source.file(), text).unwrap();
        };
        write(0);
        let watch = Watch::on(&source, counter(source.file(), &events)).unwrap();
        let told = async |n: usize| {
            for _ in 0..3000 {
                if events.events().len() >= n {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(events.events().len(), n);
        };
        write(1);
        told(1).await;
        write(1);
        told(1).await;
        write(4);
        told(2).await;

        let left = Arc::downgrade(&watch.counter);
        drop(watch);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(
            left.upgrade().is_none(),
            "the task lives on with its descriptor"
        );
    }
}
