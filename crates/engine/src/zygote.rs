//! The zygote: a process of one thread that forks a worker per operation.
//!
//! libcontainer clones and then runs ordinary code in the child, changes the
//! caller's working directory, `oom_score_adj` and dumpable flag. In the
//! shim's threaded process that deadlocks. A worker does it instead and takes
//! the damage with it. The container's init, once its worker is gone, becomes a
//! child of the shim, which is a subreaper.
//!
//! The zygote runs from a protected form of the executable, since its image is
//! what a container sees behind `/proc/PID/exe` until its own program starts.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use cryo_sys::process::{self, ExitCode, Fork};
use cryo_sys::scm;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::Mode;
use rustix::io::DupFlags;
use rustix::net::SocketType;

use crate::protocol::{Answer, MAX_MESSAGE_BYTES, Request};
use crate::worker;

struct Worker {
    pidfd: OwnedFd,
    call: OwnedFd,
}

/// The zygote's life: serves the socket on stdin until the shim closes it.
///
/// # Errors
///
/// When stdin is no socket, or the kernel refuses something basic.
pub fn run() -> io::Result<()> {
    let mut socket = take_stdin()?;
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    rustix::process::chdir("/")?;
    let mut workers: Vec<Worker> = Vec::new();
    loop {
        for i in ready(&socket, &workers)?.into_iter().rev() {
            match i.checked_sub(1) {
                Some(at) => finish(workers.swap_remove(at)),
                None => match scm::recv(socket.as_fd(), MAX_MESSAGE_BYTES)? {
                    None => return Ok(()),
                    Some((data, fds)) => workers.extend(start(&mut socket, &data, fds)?),
                },
            }
        }
    }
}

/// Keeps the socket out of sight of workers' children: they get `/dev/null`.
fn take_stdin() -> io::Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    if rustix::net::sockopt::socket_type(&socket) != Ok(SocketType::SEQPACKET) {
        return Err(io::Error::other(
            "stdin is no socket: only the shim itself starts its zygote",
        ));
    }
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(socket)
}

/// Waits for a request (index 0) or the end of workers (index 1 and on).
fn ready(socket: &OwnedFd, workers: &[Worker]) -> io::Result<Vec<usize>> {
    let mut fds: Vec<PollFd<'_>> = std::iter::once(PollFd::new(socket, PollFlags::IN))
        .chain(workers.iter().map(|w| PollFd::new(&w.pidfd, PollFlags::IN)))
        .collect();
    match rustix::event::poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(e) => return Err(e.into()),
    }
    Ok(fds
        .iter()
        .enumerate()
        .filter(|(_, fd)| !fd.revents().is_empty())
        .map(|(i, _)| i)
        .collect())
}

fn start(socket: &mut OwnedFd, data: &[u8], mut fds: Vec<OwnedFd>) -> io::Result<Option<Worker>> {
    let request = serde_json::from_slice::<Request>(data)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    if fds.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "request without a call socket",
        ));
    }
    let call = fds.remove(0);
    match process::fork()? {
        Fork::Child => {
            // Nothing of the zygote's conversation is the worker's business.
            if let Ok(null) = File::open("/dev/null") {
                let _ = rustix::io::dup3(&null, socket, DupFlags::CLOEXEC);
            }
            let stays = matches!(request, Request::Enclose { .. });
            let (result, fds) = match worker::run(request, fds) {
                Ok((reply, fds)) => (Ok(reply), fds),
                Err(failure) => (Err(failure), Vec::new()),
            };
            let stays = stays && result.is_ok();
            let sent = send(&call, &Answer::Reply(result), &fds);
            if stays && sent.is_ok() {
                // Until the shim shuts its end down, or is gone.
                let _ = scm::recv(call.as_fd(), MAX_MESSAGE_BYTES);
            }
            process::exit_now(if sent.is_ok() { 0 } else { 1 })
        }
        Fork::Parent(pid) => Ok(Some(Worker {
            pidfd: process::pidfd_open(pid)?,
            call,
        })),
    }
}

fn finish(worker: Worker) {
    let status = process::wait(worker.pidfd.as_fd()).map_or(255, |ExitCode(code)| code);
    // The caller may have given up; then nobody wants to know.
    let _ = send(&worker.call, &Answer::Done { status }, &[]);
}

fn send(call: &OwnedFd, answer: &Answer, fds: &[OwnedFd]) -> io::Result<()> {
    let data = serde_json::to_vec(answer)?;
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    scm::send(call.as_fd(), &data, &fds)
}
