//! What can go wrong with CRIU.

use std::fmt;
use std::io;
use std::path::PathBuf;

use cryo_sys::spawn::{Exit, SpawnError};

use crate::log::{Cause, Diagnosis};
use crate::probe::Version;
use crate::request::BadOption;

/// What CRIU was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Tell its version and features.
    Probe,
    /// Dump.
    Dump,
    /// Restore.
    Restore,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Probe => "probe",
            Self::Dump => "dump",
            Self::Restore => "restore",
        })
    }
}

/// What is known about a failed operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What the log says.
    pub diagnosis: Diagnosis,
    /// CRIU's error number, if it told one.
    pub errno: Option<i32>,
    /// What CRIU wrote to its standard output and error; mostly empty, bounded.
    pub output: String,
    /// The log, if there is one; in the work directory, which its owner may remove.
    pub log: Option<PathBuf>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.diagnosis)?;
        if self.diagnosis.line.is_none() && !self.output.is_empty() {
            write!(f, " (criu wrote: {})", self.output)?;
        }
        Ok(())
    }
}

/// Why an operation failed.
///
/// However it failed, the criu process has ended and is reaped. After a failed restore, who
/// asked for it kills what is left in the container's cgroup: see [`Died`](Self::Died).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CriuError {
    /// There is no criu.
    #[error("criu was not found at {looked}; install criu 4.0 or newer, or set its path")]
    NotFound {
        /// Where it was looked for.
        looked: String,
    },
    /// CRIU is too old.
    #[error("criu at {} is version {found}, and at least {minimum} is needed; upgrade it, or set the path of another", path.display())]
    TooOld {
        /// The program.
        path: PathBuf,
        /// Its version.
        found: Version,
        /// The version needed.
        minimum: Version,
    },
    /// CRIU could not be started.
    #[error("cannot run criu")]
    Spawn(#[source] SpawnError),
    /// An option cannot be sent to CRIU.
    #[error(transparent)]
    BadOption(#[from] BadOption),
    /// Something of ours failed: a directory cannot be opened, a socket cannot be made.
    #[error("cannot {what} for a criu {operation}")]
    Io {
        /// What for.
        operation: Operation,
        /// What failed.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// CRIU, or what runs in its name, does not speak its protocol.
    #[error("criu broke its protocol in a {operation}: {what}; check that {} is criu", path.display())]
    Protocol {
        /// In what.
        operation: Operation,
        /// The program.
        path: PathBuf,
        /// What came.
        what: String,
    },
    /// CRIU ended without an answer. After this a dump's tasks run on, for CRIU's code in them
    /// removes itself; a restore's half-made tasks may be left, of which only the root task is
    /// known here and killed.
    #[error("criu died in a {operation} by {exit}{}", death_note(failure))]
    Died {
        /// In what.
        operation: Operation,
        /// How it ended.
        exit: Exit,
        /// What is known.
        failure: Box<Failure>,
    },
    /// CRIU says that it failed.
    #[error("criu {operation} failed: {failure}")]
    Failed {
        /// What failed.
        operation: Operation,
        /// What is known.
        failure: Box<Failure>,
    },
    /// Our own callback refused, and CRIU has undone.
    #[error("criu {operation} was refused at {event}: {reason}")]
    Refused {
        /// What was refused.
        operation: Operation,
        /// When.
        event: String,
        /// Why: the callback's words.
        reason: String,
    },
    /// It took too long and was ended.
    #[error("criu {operation} was not done in the time given{}; give it more, or look for what is slow", kill_note(*.killed))]
    DeadlineExceeded {
        /// What.
        operation: Operation,
        /// CRIU did not give up by itself and was killed.
        killed: bool,
    },
    /// It was ended because the caller wanted so.
    #[error("criu {operation} was cancelled{}", kill_note(*.killed))]
    Cancelled {
        /// What.
        operation: Operation,
        /// CRIU did not give up by itself and was killed.
        killed: bool,
    },
}

impl CriuError {
    /// What is known from CRIU's log, if that was read.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Died { failure, .. } | Self::Failed { failure, .. } => Some(failure),
            _ => None,
        }
    }
}

fn death_note(failure: &Failure) -> String {
    let known = failure.diagnosis.cause == Cause::Killed;
    if known || failure.diagnosis.line.is_some() || !failure.output.is_empty() {
        return format!(": {failure}");
    }
    "; it left no reason: try again, or try another version of it".into()
}

fn kill_note(killed: bool) -> &'static str {
    if killed {
        " (criu had to be killed)"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::diagnose;

    #[test]
    fn an_old_criu_is_told_with_both_versions_and_a_remedy() {
        let error = CriuError::TooOld {
            path: "/usr/sbin/criu".into(),
            found: Version::new(3, 17, 0),
            minimum: Version::new(4, 0, 0),
        };
        assert_eq!(
            error.to_string(),
            "criu at /usr/sbin/criu is version 3.17, and at least 4.0 is needed; upgrade it, or set the path of another"
        );
    }

    #[test]
    fn a_killed_criu_is_told_as_killed() {
        let died = |log: &str| CriuError::Died {
            operation: Operation::Restore,
            exit: Exit::Signal(9),
            failure: Box::new(Failure {
                diagnosis: diagnose(log).of_killed(),
                errno: None,
                output: String::new(),
                log: None,
            }),
        };
        let text = died("Error (criu/x.c:1): the last word").to_string();
        assert_eq!(
            text,
            format!(
                "criu died in a restore by signal 9: criu was killed (the last word); {}",
                Cause::Killed.remedy()
            )
        );
        assert!(died("").to_string().contains("criu was killed; try again"));
    }
}
