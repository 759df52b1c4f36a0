//! Exec: another process in a running container.
//!
//! libcontainer's own way leaves seccomp, user namespace and some cgroups out.
//! Here the worker joins the container's cgroups and the namespaces that count
//! for children, forks, and the child enters the rest and becomes the program
//! ([`child`]). The worker learns over a socket, closed by `execve`, how that
//! went. Its end makes the process a child of the shim.

mod child;
mod passwd;
mod place;
mod plan;

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};

use cryo_sys::process::{self, Fork};
use cryo_sys::scm;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::thread::CpuSet;

use self::place::Place;
use self::plan::Plan;
use crate::cgroup::Cgroups;
use crate::protocol::{ExecRequest, Failure, FailureKind, MAX_MESSAGE_BYTES, Reply, Target};
use crate::spec;
use crate::worker::failure;

/// Plans a process without running it.
///
/// # Errors
///
/// Why it is refused.
#[cfg(fuzzing)]
pub fn fuzz_plan(process: &[u8], spec: &oci_spec::runtime::Spec) -> Result<(), String> {
    Plan::new(process, spec).map(drop)
}

/// Runs a process. The descriptors are those of the request.
pub(crate) fn run(
    target: &Target,
    request: &ExecRequest,
    fds: Vec<OwnedFd>,
) -> Result<(Reply, Vec<OwnedFd>), Failure> {
    let mut fds = fds.into_iter();
    let (Some(process), Some(init)) = (fds.next(), fds.next()) else {
        return Err(Failure {
            kind: FailureKind::Other,
            message: "the request lacks descriptors".to_owned(),
        });
    };
    let stdio = request.stdio.map(|there| fds.next_if_said(there));

    let mut json = Vec::new();
    File::from(process)
        .read_to_end(&mut json)
        .map_err(|e| failure(FailureKind::Other, &e))?;
    let spec = spec::load(&target.bundle).map_err(|e| failure(FailureKind::Spec, &e))?;
    let plan = Plan::new(&json, &spec).map_err(|message| Failure {
        kind: FailureKind::Spec,
        message,
    })?;
    let place = Place::of(request.init).map_err(|e| gone_or(&e, request.init))?;
    // What was opened by number is what the handle means only if that lives.
    if has_ended(&init).map_err(|e| failure(FailureKind::Other, &e))? {
        return Err(gone());
    }
    drop(init);

    run_on(plan.first_cpus.as_ref())?;
    Cgroups::at(&request.cgroup)
        .and_then(|c| c.join_beside(std::process::id(), request.init.unsigned_abs()))
        .map_err(|e| failure(FailureKind::Other, &e))?;
    run_on(plan.cpus.as_ref())?;
    place.enter_for_children().map_err(|(name, e)| Failure {
        kind: FailureKind::Other,
        message: format!("cannot enter the container's {name} namespace: {e}"),
    })?;

    // The container's own, so that the shim's stays out of reach.
    process::new_session_keyring(&format!("_ses.{}", target.id)).map_err(|e| Failure {
        kind: FailureKind::Other,
        message: format!("cannot join the container's session keyring: {e}"),
    })?;

    let (ours, theirs) = scm::pair().map_err(|e| failure(FailureKind::Other, &e))?;
    match process::fork().map_err(|e| match e.raw_os_error() {
        // The pid namespace has lost its first process.
        Some(code) if code == Errno::NOMEM.raw_os_error() => gone(),
        _ => failure(FailureKind::Other, &e),
    })? {
        Fork::Child => {
            drop(ours);
            let Err(failure) = child::run(&plan, place, request.init, stdio, theirs.as_fd());
            let text = serde_json::to_vec(&failure).unwrap_or_else(|_| b"{}".to_vec());
            let _ = scm::send(theirs.as_fd(), &text, &[]);
            process::exit_now(1)
        }
        Fork::Parent(pid) => {
            drop((theirs, stdio, place));
            let mut console = Vec::new();
            while let Some((data, fds)) = scm::recv(ours.as_fd(), MAX_MESSAGE_BYTES)
                .map_err(|e| failure(FailureKind::Other, &e))?
            {
                if !fds.is_empty() {
                    console = fds;
                    continue;
                }
                // It is about to end; nobody else may find it as a zombie.
                let _ = process::wait_for(pid);
                return Err(serde_json::from_slice(&data)
                    .unwrap_or_else(|e| failure(FailureKind::Other, &io::Error::from(e))));
            }
            let pid = pid.as_raw_nonzero().get();
            Ok((Reply::Created { pid }, console))
        }
    }
}

/// Moves this process, and what it forks, to these processors.
fn run_on(cpus: Option<&CpuSet>) -> Result<(), Failure> {
    let Some(cpus) = cpus else {
        return Ok(());
    };
    rustix::thread::sched_setaffinity(None, cpus).map_err(|e| Failure {
        kind: FailureKind::Spec,
        message: format!(
            "cannot run on the processors of execCPUAffinity: {}",
            io::Error::from(e)
        ),
    })
}

trait NextIfSaid {
    fn next_if_said(&mut self, said: bool) -> Option<OwnedFd>;
}

impl<I: Iterator<Item = OwnedFd>> NextIfSaid for I {
    fn next_if_said(&mut self, said: bool) -> Option<OwnedFd> {
        said.then(|| self.next()).flatten()
    }
}

fn gone() -> Failure {
    Failure {
        kind: FailureKind::State,
        message: "the container's first process has ended".to_owned(),
    }
}

fn gone_or(error: &io::Error, init: i32) -> Failure {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT | Errno::SRCH) => gone(),
        _ => Failure {
            kind: FailureKind::Other,
            message: format!("cannot open the namespaces of process {init}: {error}"),
        },
    }
}

/// A pidfd can be read once its process has ended.
fn has_ended(pidfd: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&now)))?;
    Ok(!fds[0].revents().is_empty())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::Pid;

    use super::*;

    #[test]
    fn a_pidfd_tells_the_end() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let fd = process::pidfd_open(pid).unwrap();
        assert!(!has_ended(&fd).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(has_ended(&fd).unwrap());
    }
}
