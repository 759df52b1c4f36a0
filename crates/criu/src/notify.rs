//! CRIU's questions in the middle of an operation.

use std::fmt;
use std::os::fd::OwnedFd;

use crate::request::External;

/// A point that CRIU has reached. It waits for the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Dump: nothing is frozen yet. CRIU does not ask this of every version.
    PreDump,
    /// Dump: frozen, the network is about to be locked.
    NetworkLock,
    /// Dump: frozen; the answer may name more of the outside.
    QueryExtFiles,
    /// Dump: all is written and still frozen. A refusal resumes the tasks.
    PostDump,
    /// Restore: nothing is made yet.
    PreRestore,
    /// Restore: the root task exists, alone, with its namespaces.
    SetupNamespaces {
        /// The root task, in this process's pid namespace.
        pid: i32,
    },
    /// Restore: mounts and the rest of the namespaces are made.
    PostSetupNamespaces,
    /// Restore: all tasks are made, none runs.
    PostRestore {
        /// The root task, in this process's pid namespace.
        pid: i32,
    },
    /// The network is about to be unlocked. The answer is ignored.
    NetworkUnlock,
    /// Restore: credentials and filters are final, and no instruction of the container has
    /// run. The answer is ignored by CRIU: who refuses must kill the tree first.
    PreResume,
    /// Restore: the tasks run. The answer is ignored.
    PostResume,
    /// Restore: the master of a restored terminal comes along.
    OrphanPtsMaster,
    /// A lazy dump's page server listens.
    StatusReady,
    /// Something that CRIU has learned since.
    Other(String),
}

impl Event {
    pub(crate) fn parse(script: &str, pid: Option<i32>) -> Result<Self, String> {
        let need = || pid.ok_or_else(|| format!("notification {script} without a pid"));
        Ok(match script {
            "pre-dump" => Self::PreDump,
            "network-lock" => Self::NetworkLock,
            "query-ext-files" => Self::QueryExtFiles,
            "post-dump" => Self::PostDump,
            "pre-restore" => Self::PreRestore,
            "setup-namespaces" => Self::SetupNamespaces { pid: need()? },
            "post-setup-namespaces" => Self::PostSetupNamespaces,
            "post-restore" => Self::PostRestore { pid: need()? },
            "network-unlock" => Self::NetworkUnlock,
            "pre-resume" => Self::PreResume,
            "post-resume" => Self::PostResume,
            "orphan-pts-master" => Self::OrphanPtsMaster,
            "status-ready" => Self::StatusReady,
            other => Self::Other(other.chars().take(64).collect()),
        })
    }

    /// Whether CRIU gives up when this is refused.
    #[must_use]
    pub fn can_refuse(&self) -> bool {
        !matches!(
            self,
            Self::NetworkUnlock | Self::PreResume | Self::PostResume
        )
    }

    /// CRIU's name of it.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::PreDump => "pre-dump",
            Self::NetworkLock => "network-lock",
            Self::QueryExtFiles => "query-ext-files",
            Self::PostDump => "post-dump",
            Self::PreRestore => "pre-restore",
            Self::SetupNamespaces { .. } => "setup-namespaces",
            Self::PostSetupNamespaces => "post-setup-namespaces",
            Self::PostRestore { .. } => "post-restore",
            Self::NetworkUnlock => "network-unlock",
            Self::PreResume => "pre-resume",
            Self::PostResume => "post-resume",
            Self::OrphanPtsMaster => "orphan-pts-master",
            Self::StatusReady => "status-ready",
            Self::Other(name) => name,
        }
    }
}

/// Why a callback says no; becomes the operation's error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Refusal {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Answers CRIU's questions, on the thread that called the operation.
///
/// The time it takes is frozen time of the container from [`Event::NetworkLock`] to
/// [`Event::PostDump`].
pub trait Notify {
    /// Called at each event, with the descriptor that came along, if one did.
    ///
    /// # Errors
    ///
    /// A [`Refusal`] makes CRIU undo and give up, where [`Event::can_refuse`] says so.
    fn notify(&mut self, event: &Event, fd: Option<OwnedFd>) -> Result<(), Refusal>;

    /// Asked after a consent to [`Event::QueryExtFiles`]: what else is outside, the last chance
    /// to say so.
    fn more_external(&mut self) -> Vec<External> {
        Vec::new()
    }
}

/// Consents to everything.
impl Notify for () {
    fn notify(&mut self, _: &Event, _: Option<OwnedFd>) -> Result<(), Refusal> {
        Ok(())
    }
}

impl<F> Notify for F
where
    F: FnMut(&Event, Option<OwnedFd>) -> Result<(), Refusal>,
{
    fn notify(&mut self, event: &Event, fd: Option<OwnedFd>) -> Result<(), Refusal> {
        self(event, fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for name in [
            "pre-dump",
            "network-lock",
            "query-ext-files",
            "post-dump",
            "pre-restore",
            "setup-namespaces",
            "post-setup-namespaces",
            "post-restore",
            "network-unlock",
            "pre-resume",
            "post-resume",
            "orphan-pts-master",
            "status-ready",
            "pre-stream",
        ] {
            let event = Event::parse(name, Some(7)).expect("event");
            assert_eq!(event.name(), name);
            assert_eq!(matches!(event, Event::Other(_)), name == "pre-stream");
        }
    }

    #[test]
    fn a_pid_is_wanted_where_it_is_used() {
        assert!(Event::parse("setup-namespaces", None).is_err());
        assert!(Event::parse("post-restore", None).is_err());
        assert!(Event::parse("post-dump", None).is_ok());
    }
}
