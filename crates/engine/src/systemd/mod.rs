//! Containers in cgroups that systemd makes: the runtime option `SystemdCgroup`.
//!
//! systemd wants to be asked for each cgroup below its own. So a container gets
//! a transient scope, which systemd makes around a process and hands to us
//! (`Delegate`): inside of it everything is as in cgroups of our own. Limits are
//! written by us and then told to systemd, or it would undo them whenever it
//! writes its own idea of them. A scope goes with its last process: until one of
//! the container is in it, a worker is.
//!
//! systemd is asked in workers, which have one thread and end with the operation.

mod dbus;
mod limits;
mod scope;

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

pub use self::scope::Scope;

use self::dbus::{Connection, Value, Writer};
use crate::cgroup::{Cgroups, unified_path};
use crate::protocol::FailureKind;

/// How long systemd may take to make a scope, or to forget one.
const LIMIT: Duration = Duration::from_secs(10);

const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";

/// Why systemd cannot place containers on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// It is not there.
    #[error(
        "the runtime option SystemdCgroup needs systemd, which has not booted this node (there is no /run/systemd/system): set it to false for this runtime in containerd's configuration, and the kubelet's cgroupDriver to cgroupfs"
    )]
    NotBooted,
    /// Its cgroups are of version 1.
    #[error(
        "the runtime option SystemdCgroup needs cgroup v2 alone, and this node has cgroup v1: boot it with systemd.unified_cgroup_hierarchy=1, or set the option to false for this runtime in containerd's configuration and the kubelet's cgroupDriver to cgroupfs"
    )]
    CgroupV1,
}

/// Whether systemd can place containers here.
///
/// # Errors
///
/// [`Unavailable`].
pub fn available() -> Result<(), Unavailable> {
    let booted = Path::new("/run/systemd/system").is_dir();
    let cgroups = Cgroups::at(Path::new("system.slice"));
    judge(booted, cgroups.is_ok_and(|c| c.only_v2()))
}

fn judge(booted: bool, only_v2: bool) -> Result<(), Unavailable> {
    match (booted, only_v2) {
        (false, _) => Err(Unavailable::NotBooted),
        (true, false) => Err(Unavailable::CgroupV1),
        (true, true) => Ok(()),
    }
}

/// What went wrong between us and systemd.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot talk to systemd at {socket}")]
    Unreachable {
        socket: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("systemd refuses {member}: {text} ({name})")]
    Refused {
        member: &'static str,
        name: String,
        text: String,
    },
    #[error("systemd has a unit {unit} already: `systemctl stop {unit}`, or use another id")]
    Exists { unit: String },
    #[error(
        "process {pid} is not in {path} after {} s; it is in {found}: systemd may be busy, try again",
        LIMIT.as_secs()
    )]
    NotPlaced {
        pid: u32,
        path: String,
        found: String,
    },
    #[error("systemd still has the unit {unit} after {} s: `systemctl status {unit}` says why", LIMIT.as_secs())]
    Stays { unit: String },
}

impl Error {
    /// What the caller can do about it.
    pub(crate) fn kind(&self) -> FailureKind {
        match self {
            Self::Exists { .. } => FailureKind::State,
            _ => FailureKind::Other,
        }
    }
}

/// Makes the scope around a process, with that in it when this returns.
pub(crate) fn start(scope: &Scope, id: &str, pid: u32) -> Result<(), Error> {
    let mut properties = vec![
        ("Description", Value::Text(format!("cryo container {id}"))),
        ("Slice", Value::Text(scope.slice().to_owned())),
        // What is below is ours, with all controllers.
        ("Delegate", Value::Flag(true)),
        // Not kept when it has failed: its name is to be used again.
        ("CollectMode", Value::Text("inactive-or-failed".to_owned())),
        // Else a shutdown ends containers before what is to end them.
        ("DefaultDependencies", Value::Flag(false)),
        ("PIDs", Value::Pids(vec![pid])),
    ];
    for accounting in [
        "CPUAccounting",
        "IOAccounting",
        "MemoryAccounting",
        "TasksAccounting",
    ] {
        properties.push((accounting, Value::Flag(true)));
    }
    let mut body = Writer::default();
    body.text(scope.unit())
        .text("fail")
        .properties(&properties)
        .no_units();
    Connection::open()?
        .call("StartTransientUnit", "ssa(sv)a(sa(sv))", &body)
        .map_err(|error| match error {
            Error::Refused { name, .. } if name == UNIT_EXISTS => Error::Exists {
                unit: scope.unit().to_owned(),
            },
            error => error,
        })?;
    // That it is to be is what the answer said.
    let wanted = scope.path().to_string_lossy();
    let found = until(LIMIT, || {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let found = unified_path(&text).map_or_else(String::new, |path| format!("/{path}"));
        if found == wanted { Ok(()) } else { Err(found) }
    });
    found.map_err(|found| Error::NotPlaced {
        pid,
        path: wanted.into_owned(),
        found,
    })
}

/// Tells systemd of the limits that are in force in the scope.
pub(crate) fn tell_limits(scope: &Scope, cgroups: &Cgroups) -> Result<(), Error> {
    let Some((_, dir)) = cgroups.dirs().next() else {
        return Ok(());
    };
    let limits = limits::properties(|file| std::fs::read_to_string(dir.join(file)).ok());
    let mut body = Writer::default();
    // For as long as the unit is there.
    body.text(scope.unit()).flag(true).properties(&limits);
    Connection::open()?.call("SetUnitProperties", "sba(sv)", &body)
}

/// Ends the scope and waits until systemd has forgotten it. One that is not
/// there is fine.
pub(crate) fn stop(scope: &Scope) -> Result<(), Error> {
    let mut systemd = Connection::open()?;
    let mut body = Writer::default();
    body.text(scope.unit()).text("replace");
    if gone(systemd.call("StopUnit", "ss", &body))? {
        return Ok(());
    }
    let mut body = Writer::default();
    body.text(scope.unit());
    until(LIMIT, || match gone(systemd.call("GetUnit", "s", &body)) {
        Ok(true) => Ok(Ok(())),
        Err(error) => Ok(Err(error)),
        Ok(false) => Err(Error::Stays {
            unit: scope.unit().to_owned(),
        }),
    })?
}

fn gone(answer: Result<(), Error>) -> Result<bool, Error> {
    match answer {
        Err(Error::Refused { name, .. }) if name == NO_SUCH_UNIT => Ok(true),
        other => other.map(|()| false),
    }
}

/// Tries until it is a success, or the last failure.
fn until<T, E>(limit: Duration, mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_and_cgroup_v2_are_needed() {
        assert_eq!(judge(true, true), Ok(()));
        assert_eq!(judge(false, true), Err(Unavailable::NotBooted));
        assert_eq!(judge(false, false), Err(Unavailable::NotBooted));
        assert_eq!(judge(true, false), Err(Unavailable::CgroupV1));
    }

    #[test]
    fn a_unit_that_is_not_there_is_gone() {
        let refused = |name: &str| {
            Err(Error::Refused {
                member: "GetUnit",
                name: name.to_owned(),
                text: String::new(),
            })
        };
        assert!(gone(refused(NO_SUCH_UNIT)).unwrap());
        assert!(!gone(Ok(())).unwrap());
        gone(refused("org.freedesktop.DBus.Error.AccessDenied")).unwrap_err();
    }
}
