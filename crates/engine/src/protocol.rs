//! What the shim, its zygote and the zygote's workers say to each other.
//!
//! One `SOCK_SEQPACKET` message is one JSON value. The shim sends a
//! [`Request`] to the zygote together with file descriptors: first the *call
//! socket*, then what the request itself needs. On the call socket come back
//! at most one [`Answer::Reply`] from the worker and always, once the worker is
//! reaped, one [`Answer::Done`] from the zygote.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxIdMapping, LinuxResources};
use serde::{Deserialize, Serialize};

use crate::systemd::Scope;

/// Upper bound of a message.
pub const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// Which container, and where its files are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The container's id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Where libcontainer keeps its state; it appends the id.
    pub root: PathBuf,
    /// The scope that it lives in, if systemd places it; else its cgroups are
    /// those of the spec.
    pub scope: Option<Scope>,
}

/// How a container is made; containerd's runtime options.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateOptions {
    /// Do not pivot into the root (`NoPivotRoot`).
    pub no_pivot: bool,
    /// Keep the shim's session keyring (`NoNewKeyring`).
    pub no_new_keyring: bool,
}

/// Something that only a single-threaded process may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Make the container up to the point where its program would start. The
    /// file descriptors are stdin, stdout and stderr, as far as `stdio` says.
    Create {
        /// The container.
        target: Target,
        /// Which of the three streams are passed; the others are `/dev/null`.
        stdio: [bool; 3],
        /// How it is made.
        options: CreateOptions,
    },
    /// Run another process in a running container. The file descriptors are
    /// the process's JSON, a pidfd of the container's first process, then
    /// stdin, stdout and stderr as far as `stdio` says.
    Exec {
        /// The container.
        target: Target,
        /// What to run where.
        exec: ExecRequest,
    },
    /// Let the program of a created container start.
    Start {
        /// The container.
        target: Target,
    },
    /// Remove what [`Request::Create`] made; kills what still runs.
    Delete {
        /// The container.
        target: Target,
    },
    /// Write the spec's resource limits into the container's cgroups.
    Limit {
        /// The container.
        target: Target,
    },
    /// Make a cgroup namespace whose roots are the container's cgroups. It comes
    /// with the reply.
    CgroupNamespace {
        /// The container.
        target: Target,
    },
    /// Make a time namespace whose clocks are ahead of the node's by so much. It
    /// comes with the reply.
    TimeNamespace {
        /// The monotonic clock.
        monotonic: ClockOffset,
        /// The clock of the boot time.
        boottime: ClockOffset,
    },
    /// Make detached mounts of all that the spec binds, with the owners that it
    /// wants. They come with the reply, in the order of the spec.
    Binds {
        /// The container.
        target: Target,
    },
    /// Let systemd make the container's scope around the worker, and write the
    /// spec's resource limits there. The worker stays until the call socket is
    /// shut down.
    Enclose {
        /// The container, with its scope.
        target: Target,
    },
    /// Let systemd end the container's scope.
    EndScope {
        /// The container, with its scope.
        target: Target,
    },
    /// Load the spec's seccomp filter and read it back; a file with its
    /// instructions comes with the reply.
    SeccompFilter {
        /// The container.
        target: Target,
    },
    /// Write other limits than the spec's into the container's cgroups. What is
    /// not named stays as it is.
    Update {
        /// The container.
        target: Target,
        /// The limits.
        resources: Box<LinuxResources>,
    },
    /// Mount a root file system whose owners are to be seen shifted. The
    /// detached mount comes with the reply.
    MountRoot {
        /// What to mount.
        root: MappedRoot,
        /// A folder for the worker's own mounts.
        dir: PathBuf,
    },
    /// Run the spec's hooks of some phases.
    Hooks {
        /// The container.
        target: Target,
        /// The phases, in order.
        phases: Vec<HookPhase>,
        /// The container's first process.
        pid: i32,
    },
}

/// How much a clock is ahead of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockOffset {
    /// Whole seconds, rounded down.
    pub secs: i64,
    /// Nanoseconds more, below a second.
    pub nanos: i64,
}

impl ClockOffset {
    /// From one reading of a clock (seconds and nanoseconds) to another.
    #[must_use]
    pub fn between(now: (i64, i64), wanted: (i64, i64)) -> Self {
        const SECOND: i64 = 1_000_000_000;
        let nanos = wanted.1.saturating_sub(now.1);
        let secs = wanted.0.saturating_sub(now.0);
        Self {
            secs: secs.saturating_add(nanos.div_euclid(SECOND)),
            nanos: nanos.rem_euclid(SECOND),
        }
    }
}

/// A root file system that shows other owners than its layers have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedRoot {
    /// The file system's type, if it is none that is bound.
    pub fs_type: String,
    /// Whether `source` is a folder to bind.
    pub is_bind: bool,
    /// The folder, or the file system's source.
    pub source: String,
    /// The file system's own options.
    pub options: Vec<String>,
    /// How its users are to be seen.
    pub uids: Vec<LinuxIdMapping>,
    /// How its groups are to be seen.
    pub gids: Vec<LinuxIdMapping>,
}

/// Where an exec'd process is to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The container's first process, whose namespaces are joined.
    pub init: i32,
    /// The container's cgroup path.
    pub cgroup: PathBuf,
    /// Which of the three streams are passed; the others are `/dev/null`.
    pub stdio: [bool; 3],
}

/// Hooks that run outside of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HookPhase {
    /// `prestart`
    Prestart,
    /// `createRuntime`
    CreateRuntime,
    /// `poststart`
    Poststart,
    /// `poststop`
    Poststop,
}

/// What comes back on the call socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The worker's result.
    Reply(Result<Reply, Failure>),
    /// The worker has ended, with this status, and is reaped.
    Done {
        /// Exit code, or 128 plus a signal.
        status: u32,
    },
}

/// A worker's result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// A new process: the container's first, or an exec'd one. If it has a
    /// terminal, that one's master comes along.
    Created {
        /// Its id, in the shim's pid namespace.
        pid: i32,
    },
    /// Nothing to tell.
    Ok,
}

/// A worker's failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What the caller can do about it.
    pub kind: FailureKind,
    /// The cause, with what libcontainer logged about it.
    pub message: String,
}

/// Sorts failures by what the caller can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The spec asks for something wrong or impossible here.
    Spec,
    /// There is a container of that id already.
    Exists,
    /// The container is not in a state for this.
    State,
    /// Anything else.
    Other,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn target() -> impl Strategy<Value = Target> {
        ("[a-z]{1,8}", "/[a-z/]{1,12}", "/[a-z/]{1,12}").prop_map(|(id, bundle, root)| Target {
            id,
            bundle: bundle.into(),
            root: root.into(),
            scope: Scope::parse(Path::new("a-b.slice:c:d"), "e").ok(),
        })
    }

    proptest! {
        #[test]
        fn requests_survive_the_wire(target in target(), stdio: [bool; 3], no_pivot: bool, no_new_keyring: bool, pid: i32) {
            for request in [
                Request::Create { target: target.clone(), stdio, options: CreateOptions { no_pivot, no_new_keyring } },
                Request::Start { target: target.clone() },
                Request::Exec {
                    target: target.clone(),
                    exec: ExecRequest { init: pid, cgroup: target.bundle.clone(), stdio },
                },
                Request::Delete { target: target.clone() },
                Request::Limit { target: target.clone() },
                Request::CgroupNamespace { target: target.clone() },
                Request::Enclose { target: target.clone() },
                Request::EndScope { target: target.clone() },
                Request::SeccompFilter { target: target.clone() },
                Request::Binds { target: target.clone() },
                Request::TimeNamespace {
                    monotonic: ClockOffset { secs: -5, nanos: 999_999_999 },
                    boottime: ClockOffset { secs: 7, nanos: 0 },
                },
                Request::Update { target: target.clone(), resources: Box::default() },
                Request::MountRoot {
                    root: MappedRoot {
                        fs_type: target.id.clone(),
                        is_bind: no_pivot,
                        source: String::new(),
                        options: vec![target.id.clone()],
                        uids: vec![LinuxIdMapping::default()],
                        gids: Vec::new(),
                    },
                    dir: target.root.clone(),
                },
                Request::Hooks { target, phases: vec![HookPhase::Prestart, HookPhase::Poststop], pid },
            ] {
                let bytes = serde_json::to_vec(&request).unwrap();
                prop_assert_eq!(serde_json::from_slice::<Request>(&bytes).unwrap(), request);
            }
        }

        #[test]
        fn answers_survive_the_wire(pid: i32, status: u32, message in ".*") {
            for answer in [
                Answer::Reply(Ok(Reply::Created { pid })),
                Answer::Reply(Err(Failure { kind: FailureKind::Spec, message })),
                Answer::Done { status },
            ] {
                let bytes = serde_json::to_vec(&answer).unwrap();
                prop_assert_eq!(serde_json::from_slice::<Answer>(&bytes).unwrap(), answer);
            }
        }

        #[test]
        fn garbage_is_an_error_not_a_panic(bytes: Vec<u8>) {
            let _ = serde_json::from_slice::<Request>(&bytes);
            let _ = serde_json::from_slice::<Answer>(&bytes);
        }
    }
}
