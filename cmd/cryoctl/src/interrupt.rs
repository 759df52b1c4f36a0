//! Ctrl-C and SIGTERM, for commands that have something to put in order first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// The exit code of a command that was interrupted and has put things in order, as a shell has
/// it for SIGINT.
pub(crate) const EXIT_CODE: u8 = 130;

/// What the user said since the command began. The second time ends the process at once.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt {
    told: Arc<AtomicBool>,
    tell: Arc<Notify>,
}

/// It was interrupted.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

impl Interrupt {
    /// Listens from now on; needs the runtime of [`crate::containerd::block_on`].
    ///
    /// # Errors
    ///
    /// When the system does not let us.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let mut int = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
        let mut term = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let this = Self {
            told: Arc::default(),
            tell: Arc::default(),
        };
        let us = this.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = int.recv() => (),
                    _ = term.recv() => (),
                }
                if us.told.swap(true, Ordering::Relaxed) {
                    std::process::exit(EXIT_CODE.into());
                }
                us.tell.notify_waiters();
            }
        });
        Ok(this)
    }

    /// Whether it has come.
    pub(crate) fn came(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }

    /// Waits for it.
    pub(crate) async fn wait(&self) {
        let coming = self.tell.notified();
        if !self.came() {
            coming.await;
        }
    }

    /// # Errors
    ///
    /// [`Interrupted`] if it has come.
    pub(crate) fn check(&self) -> Result<(), Interrupted> {
        if self.came() {
            Err(Interrupted)
        } else {
            Ok(())
        }
    }
}
