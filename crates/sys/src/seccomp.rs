//! Seccomp filters as the kernel has them.

use std::io;
use std::ptr;

use rustix::process::{Pid, Signal, kill_process};

use crate::process::{Fork, exit_now, fork, wait_for};

/// The most system calls that loading a filter may take.
const MAX_STEPS: usize = 1 << 16;
/// The longest filter (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;
/// `PTRACE_SECCOMP_GET_FILTER`, which libc has not for all C libraries.
const GET_FILTER: libc::c_uint = 0x420c;
/// Bytes of a `struct sock_filter`.
const INSTRUCTION_BYTES: usize = 8;

/// The program of the filter that `load` loads: its instructions, as they were given to the
/// kernel. It is loaded by a process of its own, which ends then.
///
/// # Errors
///
/// When `load` loads none; `EACCES` without `CAP_SYS_ADMIN`, or under a filter oneself; as
/// [`fork`] with several threads.
pub fn filter_of(load: impl FnOnce()) -> io::Result<Vec<u8>> {
    match fork()? {
        Fork::Child => {
            if trace_me().is_ok() {
                load();
            }
            exit_now(1)
        }
        Fork::Parent(pid) => {
            let filter = step_to_filter(pid);
            let _ = kill_process(pid, Signal::KILL);
            if !matches!(filter, Err(Step::Ended)) {
                wait_for(pid)?;
            }
            filter.map_err(|step| match step {
                Step::Ended => io::Error::other("it ended before it had loaded a filter"),
                Step::Failed(error) => error,
            })
        }
    }
}

fn trace_me() -> io::Result<()> {
    request(libc::PTRACE_TRACEME, 0, 0, ptr::null_mut())?;
    kill_process(rustix::process::getpid(), Signal::STOP)?;
    Ok(())
}

/// Why there is no filter.
enum Step {
    /// The process has ended, and is waited for.
    Ended,
    Failed(io::Error),
}

impl From<io::Error> for Step {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Lets the process go from system call to system call until it has a filter.
fn step_to_filter(pid: Pid) -> Result<Vec<u8>, Step> {
    let raw = pid.as_raw_nonzero().get();
    let mut pass_on = stopped(raw)?;
    // The first stop is its own, by SIGSTOP.
    if pass_on == libc::SIGSTOP {
        pass_on = 0;
    }
    let options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD;
    request(libc::PTRACE_SETOPTIONS, raw, 0, number(options))?;
    for _ in 0..MAX_STEPS {
        request(libc::PTRACE_SYSCALL, raw, 0, number(pass_on))?;
        let signal = stopped(raw)?;
        let at_call = signal == libc::SIGTRAP | 0x80;
        pass_on = if at_call { 0 } else { signal };
        // Without a filter EINVAL, as where the number is not one.
        let count = match request(GET_FILTER, raw, 0, ptr::null_mut()) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => continue,
            count => count?,
        };
        let mut program = vec![0; MAX_INSTRUCTIONS * INSTRUCTION_BYTES];
        let length = usize::try_from(count).unwrap_or(usize::MAX);
        if length > MAX_INSTRUCTIONS {
            return Err(io::Error::other("a filter longer than there are").into());
        }
        request(GET_FILTER, raw, 0, program.as_mut_ptr().cast())?;
        program.truncate(length * INSTRUCTION_BYTES);
        return Ok(program);
    }
    Err(io::Error::other("it does not come to load a filter").into())
}

/// Waits until a traced child stops, and answers by which signal.
fn stopped(pid: libc::pid_t) -> Result<libc::c_int, Step> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is an int that the kernel may write.
        let rc = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
        if rc == pid && libc::WIFSTOPPED(status) {
            return Ok(libc::WSTOPSIG(status));
        }
        if rc == pid {
            return Err(Step::Ended);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error.into());
        }
    }
}

/// An argument that is no pointer.
fn number(value: libc::c_int) -> *mut libc::c_void {
    ptr::without_provenance_mut(value.unsigned_abs() as usize)
}

fn request(
    request: libc::c_uint,
    pid: libc::pid_t,
    address: usize,
    data: *mut libc::c_void,
) -> io::Result<libc::c_long> {
    let address = ptr::without_provenance_mut::<libc::c_void>(address);
    // SAFETY: of the requests made here only PTRACE_SECCOMP_GET_FILTER writes to this process's
    // memory: a filter of at most BPF_MAXINSNS instructions to `data`, unless that is null, and
    // the caller has room for so many there.
    let rc = unsafe { libc::ptrace(request, pid, address, data) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(rc)
    }
}
