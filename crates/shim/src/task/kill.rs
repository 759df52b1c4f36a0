//! A signal to every process of a container.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd as _;

use cryo_engine::cgroup::Cgroups;
use cryo_sys::process;
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use super::context::internal;
use crate::rpc::TaskError;

/// How often processes that were forked meanwhile are looked for.
const ROUNDS: usize = 50;

/// Sends `signal` to all, those of nested cgroups included. SIGKILL also
/// reaches what they fork meanwhile.
pub(super) fn all(cgroups: &Cgroups, signal: i32) -> Result<(), TaskError> {
    let mut told = HashSet::new();
    for _ in 0..ROUNDS {
        let mut pids = cgroups.pids().map_err(internal)?;
        pids.retain(|pid| told.insert(*pid));
        for pid in &pids {
            send(*pid, signal)
                .map_err(|e| TaskError::io(format_args!("cannot send signal {signal}"), &e))?;
        }
        if pids.is_empty() || signal != Signal::KILL.as_raw() {
            break;
        }
    }
    if told.is_empty() {
        return Err(TaskError::NotFound("process already finished".to_owned()));
    }
    Ok(())
}

/// Kills one, wherever it is.
pub(super) fn one(pid: u32) {
    if let Err(error) = send(pid, Signal::KILL.as_raw()) {
        tracing::error!(%error, pid, "a process cannot be killed");
    }
}

/// Ended in the meantime is as good.
fn send(pid: u32, signal: i32) -> io::Result<()> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    let sent = process::pidfd_open(pid).and_then(|fd| process::send_signal(fd.as_fd(), signal));
    match sent {
        Err(e) if e.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_dead_are_no_error_and_a_strange_signal_is() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let pid = child.id();
        assert_eq!(
            send(pid, 4711).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        send(pid, Signal::KILL.as_raw()).unwrap();
        child.wait().unwrap();
        send(pid, Signal::KILL.as_raw()).unwrap();
    }

    #[test]
    fn a_container_without_processes_is_not_found() {
        let path = std::path::Path::new("/cryo-kill-test/none");
        let Ok(cgroups) = Cgroups::at(path) else {
            return;
        };
        assert!(matches!(all(&cgroups, 9), Err(TaskError::NotFound(_))));
    }
}
