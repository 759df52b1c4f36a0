//! Waits for the shim's children, and for the orphans that become its children.
//!
//! A child with an owner is awaited through its own pidfd. A process that was
//! orphaned below the shim (a subreaper) has no owner: the sweep reaps it. A
//! child is nobody's for a moment, between its birth and [`Reaper::watch`], and
//! must not be swept in it: whoever may give birth holds a [`Hold`].

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use cryo_sys::process;
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::state::Exit;

#[derive(Debug, Default)]
struct Inner {
    holds: usize,
    owned: HashSet<i32>,
}

/// The one that reaps.
#[derive(Debug, Clone, Default)]
pub struct Reaper {
    inner: Arc<Mutex<Inner>>,
}

/// While one of these lives, no orphan is reaped.
#[derive(Debug)]
pub struct Hold(Reaper);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.lock().holds -= 1;
        self.0.sweep();
    }
}

/// While one of these lives, one child is not reaped, for its owner awaits it.
#[derive(Debug)]
pub struct Owned(Reaper, Pid);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.lock().owned.remove(&self.1.as_raw_nonzero().get());
        self.0.sweep();
    }
}

impl Reaper {
    /// Starts reaping. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// When SIGCHLD cannot be listened to.
    pub fn start() -> io::Result<Self> {
        let reaper = Self::default();
        let mut children = signal(SignalKind::child())?;
        let sweeper = reaper.clone();
        tokio::spawn(async move {
            while children.recv().await.is_some() {
                sweeper.sweep();
            }
        });
        Ok(reaper)
    }

    /// Keeps the sweep away from children that nobody watches yet.
    #[must_use]
    pub fn hold(&self) -> Hold {
        self.lock().holds += 1;
        Hold(self.clone())
    }

    /// Keeps the sweep away from one child, which somebody else waits for.
    #[must_use]
    pub fn own(&self, pid: Pid) -> Owned {
        self.lock().owned.insert(pid.as_raw_nonzero().get());
        Owned(self.clone(), pid)
    }

    /// Owns a child from now on; its exit is sent once.
    ///
    /// # Errors
    ///
    /// When there is no such process or no file descriptor left.
    pub fn watch(&self, pid: Pid) -> io::Result<(Arc<OwnedFd>, oneshot::Receiver<Exit>)> {
        let pidfd = Arc::new(process::pidfd_open(pid)?);
        // Deprecated because a lying AsRawFd would be unsound; an OwnedFd's does not lie.
        #[allow(deprecated)]
        let fd = AsyncFd::with_interest(Arc::clone(&pidfd), Interest::READABLE)?;
        self.lock().owned.insert(pid.as_raw_nonzero().get());
        let (sender, receiver) = oneshot::channel();
        let reaper = self.clone();
        tokio::spawn(async move {
            let status = loop {
                let Ok(mut ready) = fd.readable().await else {
                    break 255;
                };
                match process::try_wait(fd.get_ref().as_fd()) {
                    Ok(Some(code)) => break code.0,
                    // A pidfd is readable from the exit on, but a traced child
                    // can be waited for only after its tracer let go.
                    Ok(None) => {
                        ready.clear_ready();
                        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                        if let Ok(Some(code)) = process::try_wait(fd.get_ref().as_fd()) {
                            break code.0;
                        }
                    }
                    Err(error) => {
                        tracing::error!(%error, pid = pid.as_raw_nonzero(), "cannot wait for a child");
                        break 255;
                    }
                }
            };
            reaper.lock().owned.remove(&pid.as_raw_nonzero().get());
            // Its owner may be gone; then nobody wants to know.
            let _ = sender.send(Exit {
                status,
                at: SystemTime::now(),
            });
            reaper.sweep();
        });
        Ok((pidfd, receiver))
    }

    /// Reaps orphans. The kernel names the first zombie only: if that one has
    /// an owner, the owner's own sweep goes on.
    fn sweep(&self) {
        let inner = self.lock();
        if inner.holds > 0 {
            return;
        }
        while let Ok(Some(pid)) = process::peek_zombie() {
            if inner.owned.contains(&pid.as_raw_nonzero().get()) {
                return;
            }
            if let Err(error) = process::reap(pid) {
                tracing::debug!(%error, pid = pid.as_raw_nonzero(), "an orphan cannot be reaped");
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[expect(clippy::zombie_processes, reason = "the reaper is to wait")]
    fn spawn(script: &str) -> Pid {
        let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap()
    }

    fn state_of(pid: Pid) -> Option<String> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        Some(text.rsplit_once(") ")?.1[..1].to_owned())
    }

    // One test: the reaper is about all children of the process, and so would
    // be any other test that ran beside it.
    #[tokio::test]
    async fn owned_children_report_and_orphans_vanish() {
        let reaper = Reaper::start().unwrap();

        // Watched only after its end: the hold kept the sweep away.
        let hold = reaper.hold();
        let early = spawn("exit 7");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (_, exit) = reaper.watch(early).unwrap();
        drop(hold);
        assert_eq!(exit.await.unwrap().status, 7);

        let (_, exit) = reaper.watch(spawn("kill -9 $$")).unwrap();
        assert_eq!(exit.await.unwrap().status, 137);

        // Nobody's child, behind the zombie of an owned one.
        let hold = reaper.hold();
        let orphan = spawn("exit 0");
        while state_of(orphan).as_deref() != Some("Z") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(hold);
        assert_eq!(state_of(orphan), None);
    }
}
